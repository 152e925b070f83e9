"""Announcements that other programs published, kept as they came. A live test keeps each sample true."""

from __future__ import annotations

from pathlib import Path

import orjson

from pylon.nostr.event import parse_event, verify
from pylon.nostr.nip89 import AnnouncedParam, Announcement, parse_announcement

SAMPLES = Path(__file__).parent / "samples"


def test_the_announcement_of_nostr_dvm() -> None:
    event = parse_event(orjson.loads((SAMPLES / "announcement-nostr-dvm-1.1.8.json").read_bytes()))
    assert verify(event)
    assert parse_announcement(event) == Announcement(
        d="foreign-echo",
        kinds=(5050,),
        name="Foreign Echo",
        about="I say it back.",
        picture="https://example.com/echo.png",
        encryption_supported=True,
        params=(AnnouncedParam("language", ("en", "de")),),
    )
