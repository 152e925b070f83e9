"""Announcements: what we write is read back, and whatever a stranger wrote is read without harm."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.nostr import nip89
from pylon.nostr.event import Draft, Event
from pylon.nostr.nip89 import (
    AnnouncedModel,
    AnnouncedParam,
    Announcement,
    BadAnnouncement,
    Measured,
    ModelPrice,
    announcement_draft,
    newest,
    parse_announcement,
    profile_draft,
    relay_list_draft,
    withdrawal_draft,
)
from pylon.nostr.nip90 import MAX_MONEY_MSATS
from tests.support.events import NOW, PROVIDER, STRANGER, events, json_values, signed, texts

short = texts.map(lambda text: text[: nip89.MAX_NAME])
names = short.filter(bool)
amounts = st.integers(0, MAX_MONEY_MSATS)
models = st.builds(
    AnnouncedModel,
    name=names,
    aliases=st.lists(names, max_size=3, unique=True).map(tuple),
    context_tokens=st.none() | st.integers(1, nip89.MAX_CONTEXT),
    price=st.none() | st.builds(ModelPrice, amounts, amounts, amounts),
    quantization=st.none() | names,
    measured=st.none()
    | st.builds(
        Measured,
        st.integers(1, nip89.MAX_TOKENS_PER_S) | st.floats(0.1, nip89.MAX_TOKENS_PER_S),
        st.integers(0, nip89.MAX_FIRST_TOKEN_MS),
        st.integers(1, nip89.MAX_TIME),
    ),
)
params = st.builds(AnnouncedParam, names, st.lists(names, max_size=4, unique=True).map(tuple), st.booleans())
announcements = st.builds(
    Announcement,
    d=short,
    kinds=st.lists(st.integers(0, 65535), max_size=4, unique=True).map(tuple),
    topics=st.lists(names, max_size=4, unique=True).map(tuple),
    name=short,
    about=short,
    picture=short,
    lud16=short,
    encryption_supported=st.booleans(),
    params=st.lists(params, max_size=4, unique_by=lambda param: param.name).map(tuple),
    models=st.lists(models, max_size=4).map(tuple),
    paused=st.booleans(),
)  # fmt: skip

OURS = Announcement(
    d="pylon",
    kinds=(5050,),
    topics=("llm",),
    name="Shop",
    about="Sells answers.",
    picture="https://shop.example/a.png",
    params=(AnnouncedParam("model", ("smollm2",)), AnnouncedParam("max_tokens")),
    models=(AnnouncedModel("smollm2", ("small",), 2048, ModelPrice(1000, 5, 10), "Q8_0"),),
)


def announced(content: str, *tags: tuple[str, ...]) -> Announcement:
    return parse_announcement(signed(Draft(31990, content, tags), STRANGER))


# --- ours -----------------------------------------------------------------------------------------------------


@given(announcements)
def test_an_announcement_survives_the_wire(announcement: Announcement) -> None:
    assert parse_announcement(signed(announcement_draft(announcement), PROVIDER)) == announcement


def test_it_is_written_as_the_usual_clients_read_it() -> None:
    draft = announcement_draft(OURS)
    assert draft.kind == 31990
    assert draft.tags == (("d", "pylon"), ("k", "5050"), ("t", "llm"))
    assert json.loads(draft.content) == {
        "name": "Shop",
        "about": "Sells answers.",
        "picture": "https://shop.example/a.png",
        "image": "https://shop.example/a.png",
        "encryptionSupported": False,
        "nip90Params": {
            "model": {"required": False, "values": ["smollm2"]},
            "max_tokens": {"required": False, "values": []},
        },
        "models": [
            {
                "name": "smollm2",
                "aliases": ["small"],
                "context": 2048,
                "price": {"base_msats": 1000, "input_msats_per_1k": 5, "output_msats_per_1k": 10},
                "quantization": "Q8_0",
            }
        ],
    }


def test_free_and_paused_are_said_only_when_true() -> None:
    free = dataclasses.replace(OURS, models=(AnnouncedModel("a", price=ModelPrice()),), paused=True)
    told = json.loads(announcement_draft(free).content)
    assert (told["amount"], told["paused"]) == ("Free", True)
    assert not {"amount", "paused"} & json.loads(announcement_draft(OURS).content).keys()
    assert "amount" not in json.loads(announcement_draft(dataclasses.replace(OURS, models=())).content)


def test_profile_relay_list_and_withdrawal() -> None:
    assert json.loads(profile_draft("Shop", lud16="shop@ln.example").content) == {
        "name": "Shop",
        "lud16": "shop@ln.example",
    }
    assert profile_draft("Shop").kind == 0
    assert relay_list_draft(["wss://a", "wss://b"]) == Draft(10002, "", (("r", "wss://a"), ("r", "wss://b")))
    pubkey = PROVIDER.public_hex
    assert withdrawal_draft(pubkey, "pylon", ["ab" * 32], "moved").tags == (
        ("a", f"31990:{pubkey}:pylon"),
        ("e", "ab" * 32),
        ("k", "31990"),
    )


# --- strangers' -----------------------------------------------------------------------------------------------


def check_bounds(read: Announcement) -> None:
    assert len(read.name) <= nip89.MAX_NAME and len(read.about) <= nip89.MAX_ABOUT
    assert len(read.models) <= nip89.MAX_MODELS and len(read.params) <= nip89.MAX_PARAMS
    assert len(read.kinds) <= nip89.MAX_KINDS and len(read.topics) <= nip89.MAX_TOPICS
    assert all(len(param.values) <= nip89.MAX_VALUES for param in read.params)
    assert all(model.name and len(model.aliases) <= nip89.MAX_ALIASES for model in read.models)
    assert all(isinstance(name, str) for name in read.model_names)


@given(events(st.sampled_from((0, 1, 5050, 31989, 31990))))
def test_any_event_is_read_or_refused(event: Event) -> None:
    if event.kind != 31990:
        with pytest.raises(BadAnnouncement):
            parse_announcement(event)
        return
    check_bounds(parse_announcement(event))


KEYS = ("name", "about", "picture", "image", "lud16", "nip90Params", "models", "paused", "encryptionSupported")


@given(st.dictionaries(st.sampled_from(KEYS), json_values, max_size=6))
def test_any_content_is_read(content: dict[str, Any]) -> None:
    check_bounds(announced(json.dumps(content), ("k", "5050")))


@given(
    st.lists(st.dictionaries(st.sampled_from(("name", "context", "price", "aliases")), json_values), max_size=4),
    st.dictionaries(texts, json_values | st.dictionaries(st.sampled_from(("values", "required")), json_values)),
)
def test_any_model_and_parameter_is_read(told: list[dict[str, Any]], parameters: dict[str, Any]) -> None:
    check_bounds(announced(json.dumps({"models": told, "nip90Params": parameters})))


@pytest.mark.parametrize("content", ["", "junk", "[]", "3", "null", '"text"', "[" * 3000, '{"name": NaN}', "{}"])
def test_junk_says_nothing(content: str) -> None:
    assert announced(content, ("d", "x"), ("k", "5050")) == Announcement("x", (5050,))


def test_other_spellings_are_understood() -> None:
    read = announced(
        json.dumps(
            {
                "image": "https://dvm.example/i.jpg",
                "supportsEncryption": True,
                "nip90Params": {"models": ["gemma", "llama"], "size": {"values": [512, 1.5, True, None]}, "x": 3},
                "models": ["plain", {"name": "priced", "price": {"base_msats": 7}}, {"name": 3}, 4],
            }
        ),
        ("k", "5050"), ("k", "5050"), ("k", "x"), ("k",), ("k", "31990"), ("name", "Tagged"), ("about", "so too"),
    )  # fmt: skip
    assert (read.d, read.name, read.about, read.picture) == ("", "Tagged", "so too", "https://dvm.example/i.jpg")
    assert read.encryption_supported
    assert (read.kinds, read.job_kinds) == ((5050, 31990), (5050,))
    assert read.params == (AnnouncedParam("models", ("gemma", "llama")), AnnouncedParam("size", ("512", "1.5")))
    assert read.models == (AnnouncedModel("plain"), AnnouncedModel("priced", price=ModelPrice(7)))
    assert read.model_names == {"gemma", "llama", "plain", "priced"}


@pytest.mark.parametrize(
    "price",
    [{}, {"amount": 3}, {"base_msats": -1}, {"base_msats": True}, {"base_msats": "1"}, {"base_msats": 10**19},
     {"base_msats": 1, "input_msats_per_1k": None}, 5, "free", [1]],
)  # fmt: skip
def test_half_a_price_is_none(price: object) -> None:
    (model,) = announced(json.dumps({"models": [{"name": "m", "price": price}]})).models
    assert model.price is None


CLAIM: dict[str, Any] = {"tokens_per_s": 41, "first_token_ms": 180, "at": 1_764_000_000}
WRONG_SPEEDS: tuple[object, ...] = (0, -1, True, "41", None, 1e7, [])
WRONG_TIMES: tuple[object, ...] = (-1, 1.5, True, "180", 10**9)
WRONG_DATES: tuple[object, ...] = (0, -1, 1.5, "now", 2**60)


def test_a_measure_is_written_with_its_date() -> None:
    model = AnnouncedModel("m", measured=Measured(41, 180, 1_764_000_000))
    told = json.loads(announcement_draft(Announcement("pylon", models=(model,))).content)
    assert told["models"] == [{"name": "m", "measured": CLAIM}]


@pytest.mark.parametrize(
    "claim",
    [
        "fast",
        [CLAIM],
        {},
        *({key: value for key, value in CLAIM.items() if key != left_out} for left_out in CLAIM),
        *({**CLAIM, "tokens_per_s": wrong} for wrong in WRONG_SPEEDS),
        *({**CLAIM, "first_token_ms": wrong} for wrong in WRONG_TIMES),
        *({**CLAIM, "at": wrong} for wrong in WRONG_DATES),
    ],
)
def test_half_a_measure_is_none(claim: object) -> None:
    (model,) = announced(json.dumps({"models": [{"name": "m", "measured": claim}]})).models
    assert model.measured is None


def test_what_is_too_much_is_cut() -> None:
    many = {
        "name": "n" * 999,
        "about": "a" * 99_999,
        "models": [{"name": f"m{at}", "aliases": [str(each) for each in range(99)]} for at in range(999)],
        "nip90Params": {f"p{at}": {"values": list(range(9_999))} for at in range(99)},
    }
    read = announced(
        json.dumps(many), *(("k", str(kind)) for kind in range(999)), *[("t", str(at)) for at in range(99)]
    )
    check_bounds(read)
    assert len(read.models) == nip89.MAX_MODELS


def test_the_newest_stands_and_in_one_second_the_lowest_id() -> None:
    def version(at: int, name: str, key: Any = PROVIDER, d: str = "a") -> Event:
        return signed(announcement_draft(Announcement(d, name=name)), key, at)

    old, new, newer_d = version(NOW, "old"), version(NOW + 1, "new"), version(NOW - 5, "other", d="b")
    other = version(NOW - 9, "stranger", STRANGER)
    twins = sorted((version(NOW + 2, "x", STRANGER, "t"), version(NOW + 2, "y", STRANGER, "t")), key=lambda e: e.id)
    assert set(newest([old, new, newer_d, other, twins[1], twins[0]])) == {new, newer_d, other, twins[0]}
    assert newest([new, old]) == newest([old, new]) == [new]
