"""Who is served at all: the lists, targeted requests only, proof of work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.access_files import read_access
from pylon.jobs import facts
from pylon.jobs.access import Access, check_access, parse_key_list, pow_bits
from pylon.nostr.event import Draft, Event
from pylon.nostr.keys import encode_npub
from pylon.nostr.nip90 import ErrorPrefix
from pylon.settings import SettingsError, load_settings
from pylon.store.records import Work
from tests.support.events import CUSTOMER, STRANGER, job_request, mined
from tests.support.house import World, open_house

US, THEM = CUSTOMER.public_hex, STRANGER.public_hex


def of(customer: str, tags: tuple[tuple[str, ...], ...] = (), event_id: str = "f" * 64) -> Event:
    return replace(job_request("Hi"), pubkey=customer, id=event_id, tags=tags)


# --- lists ----------------------------------------------------------------------------------------------------


def test_a_list_takes_npubs_hex_comments_and_blank_lines() -> None:
    lines = ["# friends", "", f"  {US}  # the first", encode_npub(THEM), US.upper() if US.upper() == US else US]
    assert parse_key_list(lines) == {US, THEM}


def test_a_list_is_taken_whole_or_not_at_all() -> None:
    with pytest.raises(ValueError, match="line 2"):
        parse_key_list([US, "npub1nobody", THEM])


@given(lines=st.lists(st.text(max_size=80), max_size=5))
def test_any_text_is_a_list_or_one_sentence(lines: list[str]) -> None:
    try:
        keys = parse_key_list(lines)
    except ValueError as error:
        assert str(error).startswith("line ") and "\n" not in str(error)
    else:
        assert all(len(key) == 64 for key in keys)


@pytest.mark.parametrize(
    ("access", "served"),
    [
        (Access(), True),
        (Access(deny=frozenset({US})), False),
        (Access(deny=frozenset({US}), allow=frozenset({US})), False),
        (Access(deny=frozenset({THEM})), True),
        (Access(allow_only=True), False),
        (Access(allow_only=True, allow=frozenset({US})), True),
        (Access(allow=frozenset({THEM})), True),
        (Access(min_pow_bits=8), False),
        (Access(min_pow_bits=8, allow=frozenset({US})), True),
    ],
)
def test_who_is_served(access: Access, served: bool) -> None:
    assert (check_access(of(US), access) is None) is served


# --- proof of work --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event_id", "nonce", "bits"),
    [
        ("0" * 5 + "f" * 59, ("nonce", "1", "20"), 20),
        ("0" * 5 + "1" * 59, ("nonce", "1", "30"), 23),
        ("0" * 5 + "1" * 59, ("nonce", "1", "20"), 20),  # more was luck: it aimed at 20
        ("0" * 64, ("nonce", "1", "255"), 255),
        ("8" + "0" * 63, ("nonce", "1", "20"), 0),
        ("0" * 5 + "f" * 59, ("nonce", "1"), 0),  # no commitment
        ("0" * 5 + "f" * 59, ("nonce", "1", "\u0662\u0660"), 0),
        ("0" * 5 + "f" * 59, ("nonce", "1", "-1"), 0),
        ("0" * 5 + "f" * 59, ("nonce", "1", "9" * 5000), 0),
        ("0" * 5 + "f" * 59, ("other", "1", "20"), 0),
    ],
)
def test_the_work_that_an_event_proves(event_id: str, nonce: tuple[str, ...], bits: int) -> None:
    assert pow_bits(of(US, (nonce,), event_id)) == bits


# --- through intake -------------------------------------------------------------------------------------------


def shop(path: Path, access: Access) -> World:
    return World(path / "db", mode=facts.Mode.FREE, access=access)


async def test_who_is_denied_hears_so_and_no_more(tmp_path: Path) -> None:
    world = shop(tmp_path, Access(deny=frozenset({US})))
    async with open_house(world) as house:
        request = house.ask()
        assert world.relays.errors(request.id) == [ErrorPrefix.RESTRICTED]
        assert house.intake.counters.as_dict() == {"restricted": 1}
        other = house.ask(key=STRANGER)
        await house.reaches(other.id, Work.DELIVERED)


async def test_a_list_that_is_read_again_counts_at_once(tmp_path: Path) -> None:
    world = shop(tmp_path, Access(deny=frozenset({US})))
    async with open_house(world) as house:
        house.ask("first")
        house.intake.access = Access()
        await house.reaches(house.ask("second").id, Work.DELIVERED)


async def test_targeted_only(tmp_path: Path) -> None:
    world = shop(tmp_path, Access(targeted_only=True))
    async with open_house(world) as house:
        request = house.ask("to anyone", providers=[])
        assert world.relays.feedback(request.id) == []
        assert house.intake.counters.as_dict() == {"not-targeted": 1}
        await house.reaches(house.ask("to us").id, Work.DELIVERED)


async def test_proof_of_work(tmp_path: Path) -> None:
    world = shop(tmp_path, Access(min_pow_bits=6))
    async with open_house(world) as house:
        request = house.ask()
        assert world.relays.errors(request.id) == [ErrorPrefix.POW_REQUIRED]
        event = mined(Draft(5050, "", (("i", "Hi", "text"),)), 6)
        assert pow_bits(event) >= 6
        assert house.offer(event) is None
        await house.reaches(event.id, Work.DELIVERED)


# --- files ----------------------------------------------------------------------------------------------------


def settings_with(folder: Path, **intake: str) -> object:
    lines = "\n".join(f"{key} = {value!r}" for key, value in intake.items())
    file = folder / "pylon.toml"
    file.write_text(f"[intake]\n{lines}\n")
    return load_settings(file, {}, {"PYLON_HOME": str(folder)}).settings


def test_the_lists_come_from_their_files(tmp_path: Path) -> None:
    allow, deny = tmp_path / "allow.txt", tmp_path / "deny.txt"
    allow.write_text(f"{encode_npub(US)}\n")
    deny.write_text(f"# bad\n{THEM}\n")
    settings = settings_with(tmp_path, allow_file=str(allow), deny_file=str(deny))
    access = read_access(settings)  # type: ignore[arg-type]
    assert (access.allow, access.deny) == (frozenset({US}), frozenset({THEM}))


@pytest.mark.parametrize(
    ("content", "says"), [(None, "cannot be read"), (b"nobody\n", "line 1"), (b"\xff\xfe", "not UTF-8")]
)
def test_a_list_that_is_wrong_is_one_sentence(tmp_path: Path, content: bytes | None, says: str) -> None:
    deny = tmp_path / "deny.txt"
    if content is not None:
        deny.write_bytes(content)
    settings = settings_with(tmp_path, deny_file=str(deny))
    with pytest.raises(SettingsError, match=says) as caught:
        read_access(settings)  # type: ignore[arg-type]
    assert "intake.deny_file" in str(caught.value) and "\n" not in str(caught.value)
