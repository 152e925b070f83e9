"""Signed events for tests, and hypothesis strategies for what strangers may send instead."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from pylon.nostr.event import Draft, Event, compute_id
from pylon.nostr.keys import SecretKey
from pylon.nostr.nip90 import InputType, JobInput, request_draft

NOW = 1_800_000_000
CUSTOMER = SecretKey(b"\x01" * 32)
PROVIDER = SecretKey(b"\x02" * 32)
STRANGER = SecretKey(b"\x03" * 32)


def signed(draft: Draft, key: SecretKey = CUSTOMER, created_at: int = NOW) -> Event:
    """Return `draft` as `key` publishes it."""
    return draft.sign(key, created_at)


def mined(draft: Draft, bits: int, key: SecretKey = CUSTOMER, created_at: int = NOW) -> Event:
    """Return `draft` as `key` publishes it, with a real proof of that much work (NIP-13)."""
    for number in range(100_000):
        worked = replace(draft, tags=(*draft.tags, ("nonce", str(number), str(bits))))
        event_id = compute_id(key.public_hex, created_at, worked.kind, worked.tags, worked.content)
        if int(event_id, 16) < 1 << (256 - bits):
            return signed(worked, key, created_at)
    raise AssertionError("no nonce found")


def job_request(
    prompt: str = "Tell me a joke.",
    *,
    kind: int = 5050,
    params: Iterable[tuple[str, Sequence[str]]] = (),
    bid_msats: int | None = None,
    relays: Iterable[str] = (),
    providers: Iterable[str] = (),
    expires_at: int | None = None,
    key: SecretKey = CUSTOMER,
    created_at: int = NOW,
) -> Event:
    """Return a signed job request with one text input."""
    draft = request_draft(
        kind,
        [JobInput(prompt)],
        params=params,
        bid_msats=bid_msats,
        relays=relays,
        providers=providers,
        expires_at=expires_at,
    )
    return signed(draft, key, created_at)


def event_with(*tags: tuple[str, ...], kind: int = 5050, content: str = "") -> Event:
    """Return a signed event with exactly these tags, however odd."""
    return signed(Draft(kind=kind, content=content, tags=tags))


# --- strategies -----------------------------------------------------------------------------------------------

HOSTILE_TEXTS = (
    "",
    " ",
    "\x00",
    "\x1b[2J\x1b]0;owned\x07",
    "\x7f\x80\x9f",
    "\u2028\u2029",
    "\u202eevil",
    "\ufeff\u200b",
    "👩‍👩‍👧‍👦",
    "\U000e0041\U0010ffff",
    '"\\\b\f\n\r\t',
    "١٢",
    "\uff11\uff12",
    "nan",
    "NaN",
    "inf",
    "-inf",
    "1e3",
    "1e400",
    "-1",
    "+1",
    "0x10",
    "1_000",
    " 1",
    "1\n",
    "1.5",
    "10" * 20,
    "9" * 5000,
    "null",
    "true",
    "[]",
    "ws://",
    "wss://\x00",
    "wss://127.0.0.1",
    "a" * 64,
    "A" * 64,
    "f" * 63 + "\n",
)
"""Texts that have broken somebody's parser."""

texts: SearchStrategy[str] = st.sampled_from(HOSTILE_TEXTS) | st.text(max_size=40)
"""Any text that JSON can carry."""

surrogate_texts: SearchStrategy[str] = st.builds(
    "{}{}{}".format, texts, st.characters(categories=["Cs"]), st.text(max_size=10)
)
"""Texts with a lone surrogate: Python holds them, UTF-8 does not."""

hex64: SearchStrategy[str] = st.binary(min_size=32, max_size=32).map(bytes.hex)

TAG_NAMES = (
    "i",
    "param",
    "bid",
    "output",
    "relays",
    "t",
    "p",
    "e",
    "k",
    "expiration",
    "encrypted",
    "status",
    "amount",
)

tags: SearchStrategy[tuple[str, ...]] = st.one_of(
    st.lists(texts, max_size=5).map(tuple),
    st.tuples(st.sampled_from((*TAG_NAMES, "request", "partial")), texts, texts).map(tuple),
    st.tuples(st.just("i"), texts, st.sampled_from([member.value for member in InputType])),
    st.tuples(
        st.just("param"),
        st.sampled_from(
            ("model", "max-tokens", "max_tokens", "temperature", "top_k", "top-p", "seed", "stop", "system")
        ),
        texts | st.integers().map(str) | st.floats().map(str),
    ),
)
"""Tags of any shape, often one that means something to NIP-90."""


def events(kinds: SearchStrategy[int]) -> SearchStrategy[Event]:
    """Return events as `parse_event` lets them through: the shape holds, nothing else does."""
    return st.builds(
        Event,
        id=hex64,
        pubkey=hex64,
        created_at=st.integers(0, 2**53 - 1),
        kind=kinds,
        tags=st.lists(tags, max_size=8).map(tuple),
        content=texts,
        sig=st.just("0" * 128),
    )


json_values: SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | texts
    | st.sampled_from([2**53, 2**64, -(2**63), 1.0, -0.0, 10**40]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
"""Anything a JSON parser may return, and some that it may not."""


def _replaced(event: Event, key: str, value: object) -> dict[str, Any]:
    return {**event.as_dict(), "tags": [list(tag) for tag in event.tags], key: value}


near_events: SearchStrategy[dict[str, Any]] = st.builds(
    _replaced,
    st.just(job_request()),
    st.sampled_from(("id", "pubkey", "created_at", "kind", "tags", "content", "sig")),
    json_values,
)
"""An event as JSON with one member replaced by something else."""
