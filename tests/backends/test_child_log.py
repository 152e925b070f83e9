"""The child's log: private and bounded while the child holds it open."""

from __future__ import annotations

from pathlib import Path

from pylon.backends.child_log import bound_log, open_log


def test_it_is_private_and_bounded_under_an_open_writer(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "llama.log"
    with open_log(path) as log:
        log.write(b"old" * 100 + b"x" * 10)
        bound_log(path, max_bytes=10)
        log.write(b"new")
    older = tmp_path / "deep" / "llama.log.1"
    assert (path.read_bytes(), older.read_bytes()) == (b"new", b"x" * 10)
    assert [file.stat().st_mode & 0o777 for file in (path, older)] == [0o600, 0o600]


def test_a_short_log_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "llama.log"
    path.write_bytes(b"0123456789")
    bound_log(path, max_bytes=10)
    assert path.read_bytes() == b"0123456789"
    assert list(tmp_path.iterdir()) == [path]


def test_it_is_emptied_even_when_it_cannot_be_copied(tmp_path: Path) -> None:
    path = tmp_path / "llama.log"
    path.write_bytes(b"x" * 11)
    (tmp_path / "llama.log.1").mkdir()
    bound_log(path, max_bytes=10)
    assert path.read_bytes() == b""


def test_a_missing_log_is_no_fault(tmp_path: Path) -> None:
    bound_log(tmp_path / "none.log", max_bytes=10)
