"""The sealed file: what was written comes back, and nothing else ever does."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.backup import sealed
from pylon.backup.sealed import MAGIC, SealBroken, SealedReader, SealedWriter

PASSPHRASE = "correct horse battery"
CHEAP = 10
CHUNK = 64 * 1024 + 16
HEADER = len(MAGIC) + 17


def seal(*parts: bytes, passphrase: str = PASSPHRASE) -> bytes:
    file = io.BytesIO()
    writer = SealedWriter(file, passphrase, cost=CHEAP)
    for part in parts:
        assert writer.write(part) == len(part)
    writer.finish()
    return file.getvalue()


def unseal(raw: bytes, passphrase: str = PASSPHRASE) -> bytes:
    return SealedReader(io.BytesIO(raw), passphrase).read()


@given(st.lists(st.integers(0, 150_000), max_size=4), st.integers(1, 100_000))
def test_what_goes_in_comes_out(sizes: list[int], step: int) -> None:
    parts = [bytes([number]) * size for number, size in enumerate(sizes)]
    raw = seal(*parts)
    assert unseal(raw) == b"".join(parts)
    reader, pieces = SealedReader(io.BytesIO(raw), PASSPHRASE), []
    while piece := reader.read(step):
        assert len(piece) <= step
        pieces.append(piece)
    assert b"".join(pieces) == b"".join(parts)


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 131_072])
def test_around_whole_chunks(size: int) -> None:
    assert unseal(seal(bytes(size))) == bytes(size)


def test_two_files_have_nothing_in_common() -> None:
    first, second = seal(b"same"), seal(b"same")
    assert first[len(MAGIC) + 1 :] != second[len(MAGIC) + 1 :]


def test_the_usual_cost_is_high_and_opens() -> None:
    file = io.BytesIO()
    writer = SealedWriter(file, PASSPHRASE)
    writer.finish()
    assert file.getvalue()[len(MAGIC)] == 17
    assert unseal(file.getvalue()) == b""


def test_another_passphrase() -> None:
    with pytest.raises(SealBroken, match="another passphrase, or it is damaged"):
        unseal(seal(b"secret"), "correct horse batterx")


@given(st.data())
def test_no_changed_byte_goes_unseen(data: st.DataObject) -> None:
    raw = bytearray(seal(b"x" * 70_000))
    at = data.draw(st.integers(0, len(raw) - 1).filter(lambda at: at != len(MAGIC)))  # the cost has its own test
    raw[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(SealBroken):
        unseal(bytes(raw))


@pytest.mark.parametrize("cost", [0, 9, 11, 21, 255])
def test_a_changed_cost(cost: int) -> None:
    raw = bytearray(seal(b"x"))
    raw[len(MAGIC)] = cost
    with pytest.raises(SealBroken):
        unseal(bytes(raw))


def test_nothing_can_be_left_out_moved_or_appended() -> None:
    raw = seal(b"a" * 65_536, b"b" * 65_536, b"c")
    head, first, second, last = raw[:HEADER], raw[HEADER : HEADER + CHUNK], raw[HEADER + CHUNK : -17], raw[-17:]
    assert unseal(head + first + second + last)[-1:] == b"c"
    for wrong in (first, first + second, first + last, second + first + last, first + second + last + last, b""):
        with pytest.raises(SealBroken):
            unseal(head + wrong)


def test_a_missing_end_is_seen_by_who_reads_to_it() -> None:
    raw = seal(b"a" * 200_000)
    reader = SealedReader(io.BytesIO(raw[: HEADER + 2 * CHUNK]), PASSPHRASE)
    assert reader.read(10) == b"a" * 10
    with pytest.raises(SealBroken, match="its end is missing"):
        reader.finish()


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"", "is not a backup of pylon"),
        (b"SQLite format 3", "is not a backup of pylon"),
        (b"pylon backup 2\n" + bytes(50), "written by another version"),
        (MAGIC + bytes(3), "its header makes no sense"),
    ],
)
def test_what_is_no_backup(raw: bytes, what: str) -> None:
    with pytest.raises(SealBroken, match=what):
        unseal(raw)


def test_the_passphrase_is_not_kept() -> None:
    file = io.BytesIO()
    writer = sealed.SealedWriter(file, PASSPHRASE, cost=CHEAP)
    assert PASSPHRASE not in repr(writer) + repr(vars(writer))
