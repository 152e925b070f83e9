"""Events beside `nostr-tools`, which most Nostr clients are built on: the same bytes, the same id, both ways."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import orjson
import pytest

from pylon.nostr.event import BadEvent, Draft, Event, Tags, canonical_bytes, parse_event, verify
from tests.support.events import CUSTOMER, HOSTILE_TEXTS, PROVIDER
from tests.support.node_programs import NodeProgram

pytestmark = [pytest.mark.live]

COUNT = 500
SURROGATES = ("\ud800", "a\udfffb", "\udc00\ud800", "🙂\ud83d", "\ud83d\ud83d\ude00")
PLANES = ((0x00, 0x1F), (0x20, 0x7E), (0x7F, 0x9F), (0xA0, 0x2FFF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF))
ODD = (
    "\u2028",
    "\u2029",
    "\\",
    "\\u0041",
    '"',
    "/",
    "</script>",
    "\x7f",
    "\ufeff",
    "\ufffe",
    "👩‍👩‍👧‍👦",
    "e\u0301",
    "\x00",
)


def text(rng: random.Random) -> str:
    """Return a text of all that JSON may have to escape, and of much that it may not."""
    pieces = []
    for _ in range(rng.randrange(6)):
        match rng.randrange(3):
            case 0:
                pieces.append(rng.choice(ODD))
            case 1:
                pieces.append(rng.choice(HOSTILE_TEXTS))
            case _:
                low, high = rng.choice(PLANES)
                pieces.append("".join(chr(rng.randint(low, high)) for _ in range(rng.randrange(8))))
    return "".join(pieces)


def drafts(seed: int) -> list[tuple[Draft, int]]:
    """Return drafts with their `created_at`; the first ones have each control character once."""
    rng = random.Random(seed)
    made = [(Draft(1, f"[{chr(code)}]", ((chr(code),),)), code) for code in range(0x20)]
    while len(made) < COUNT:
        tags: Tags = tuple(tuple(text(rng) for _ in range(rng.randrange(5))) for _ in range(rng.randrange(5)))
        created_at = rng.choice((0, 1, 1_800_000_000, 2**31, 2**53 - 1, rng.randrange(2**53)))
        made.append((Draft(rng.choice((0, 1, 5050, 6050, 7000, 31990, 65535)), text(rng), tags), created_at))
    return made


def unsigned(draft: Draft, created_at: int) -> str:
    return json.dumps({"kind": draft.kind, "created_at": created_at, "tags": draft.tags, "content": draft.content})


def ask(folder: Path, drafts: list[str], events: list[Event]) -> dict[str, list[dict[str, Any]]]:
    program = NodeProgram(
        folder,
        "events",
        {"key": PROVIDER.reveal_hex(), "drafts": drafts, "events": [event.to_json() for event in events]},
    )
    try:
        return program.start()
    finally:
        program.kill()


def canonical(event: Event) -> bytes:
    return canonical_bytes(event.pubkey, event.created_at, event.kind, event.tags, event.content)


def test_500_events_each_way_have_the_same_bytes_and_ids(tmp_path: Path) -> None:
    ours = [draft.sign(CUSTOMER, created_at) for draft, created_at in drafts(1)]
    theirs = drafts(2)
    answer = ask(tmp_path, [unsigned(*each) for each in theirs], ours)
    assert len(answer["seen"]) == len(answer["made"]) == COUNT
    for event, seen in zip(ours, answer["seen"], strict=True):
        assert seen == {"serialized": canonical(event).decode(), "id": event.id, "valid": True}
    for (draft, created_at), made in zip(theirs, answer["made"], strict=True):
        event = parse_event(orjson.loads(made["json"]))
        assert (event.kind, event.content, event.tags) == (draft.kind, draft.content, draft.tags)
        assert (event.created_at, event.pubkey) == (created_at, PROVIDER.public_hex)
        assert canonical(event).decode() == made["serialized"]
        assert verify(event)
        assert draft.sign(PROVIDER, created_at).id == event.id


def test_lone_surrogates_are_refused_in_whatever_place(tmp_path: Path) -> None:
    """nostr-tools signs them, as escapes; no UTF-8 has them, so neither do our events, whoever signed."""
    odd = [Draft(1, each) for each in SURROGATES] + [Draft(1, "", (("t", each),)) for each in SURROGATES]
    answer = ask(tmp_path, [unsigned(draft, 1) for draft in odd], [])
    assert len(answer["made"]) == len(odd)
    for draft, made in zip(odd, answer["made"], strict=True):
        assert "\\ud" in made["json"]
        with pytest.raises(orjson.JSONDecodeError):
            orjson.loads(made["json"])
        assert not verify(parse_event(json.loads(made["json"]))), "nor where another parser let it through"
        with pytest.raises(BadEvent, match="not valid Unicode"):
            draft.sign(PROVIDER, 1)


def test_they_see_what_was_changed(tmp_path: Path) -> None:
    """Or their yes above would be worth nothing."""
    event = Draft(1, "hello").sign(CUSTOMER, 1)
    changed = Event(event.id, event.pubkey, event.created_at, event.kind, event.tags, "hallo", event.sig)
    (seen,) = ask(tmp_path, [], [changed])["seen"]
    assert (seen["valid"], seen["id"] == event.id) == (False, False)
