"""NIP-89 announcements (kind 31990) of service providers, with the profile and the relay list beside them.

Clients find a provider by `#k`, the job kind, and read the content's JSON. Fields are written as the usual ones
(nostr-dvm, DVMDash, vendata) read them: `picture` and also `image`, `encryptionSupported`, and `nip90Params` as
`{"model": {"required": false, "values": ["…"]}}`. Ours beside them are `models` (with `context` in tokens, `price`
in msats, `quantization`, `measured`) and `paused`.

Reading takes what any stranger published: it raises `BadAnnouncement` for another kind and nothing else. What is
missing or malformed counts as not said, what is too long is cut, so the value is always small.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from pylon.nostr.event import Draft, Event, Tags
from pylon.nostr.nip90 import DELETION_KIND, MAX_MONEY_MSATS, REQUEST_KINDS

ANNOUNCEMENT_KIND: Final = 31990
PROFILE_KIND: Final = 0
RELAY_LIST_KIND: Final = 10002

MAX_NAME: Final = 128
MAX_ABOUT: Final = 2048
MAX_URL: Final = 512
MAX_KINDS: Final = 64
MAX_TOPICS: Final = 32
MAX_PARAMS: Final = 64
MAX_VALUES: Final = 256
MAX_MODELS: Final = 256
MAX_ALIASES: Final = 16
MAX_CONTEXT: Final = 2**40
MAX_TOKENS_PER_S: Final = 1_000_000
MAX_FIRST_TOKEN_MS: Final = 86_400_000
MAX_TIME: Final = 2**40

_PRICE_KEYS: Final = ("base_msats", "input_msats_per_1k", "output_msats_per_1k", "min_msats")
_KIND: Final = re.compile(r"[0-9]{1,5}", re.ASCII)


class BadAnnouncement(ValueError):
    """An event that is no announcement; the message says why."""


@dataclass(frozen=True, slots=True)
class ModelPrice:
    """What a model costs, in msats, and the least that a job does; all zero means free."""

    base_msats: int = 0
    input_msats_per_1k: int = 0
    output_msats_per_1k: int = 0
    min_msats: int = 0

    @property
    def free(self) -> bool:
        """Whether nothing is asked."""
        return not (self.base_msats or self.input_msats_per_1k or self.output_msats_per_1k or self.min_msats)


@dataclass(frozen=True, slots=True)
class Measured:
    """How fast a provider says that it measured a model to be, and when (unix seconds): a claim."""

    tokens_per_s: float
    first_token_ms: int
    at: int


@dataclass(frozen=True, slots=True)
class AnnouncedModel:
    """One model as announced; None is what was not said. `kind_prices` tells the price of each job kind where they
    differ; `price` is then that of the first."""

    name: str
    aliases: tuple[str, ...] = ()
    context_tokens: int | None = None
    price: ModelPrice | None = None
    quantization: str | None = None
    kind_prices: tuple[tuple[int, ModelPrice], ...] = ()
    measured: Measured | None = None

    @property
    def free(self) -> bool:
        """Whether nothing is asked for any of its jobs."""
        return self.price is not None and self.price.free and all(price.free for _, price in self.kind_prices)


@dataclass(frozen=True, slots=True)
class AnnouncedParam:
    """A parameter that requests may carry; no values means that any is taken."""

    name: str
    values: tuple[str, ...] = ()
    required: bool = False


@dataclass(frozen=True, slots=True)
class Announcement:
    """What a provider says of itself. `d` tells the announcements of one author apart."""

    d: str
    kinds: tuple[int, ...] = ()
    topics: tuple[str, ...] = ()
    name: str = ""
    about: str = ""
    picture: str = ""
    lud16: str = ""
    encryption_supported: bool = False
    params: tuple[AnnouncedParam, ...] = ()
    models: tuple[AnnouncedModel, ...] = ()
    paused: bool = False

    @property
    def job_kinds(self) -> tuple[int, ...]:
        """Those of its kinds that are job requests; an application for other kinds has none."""
        return tuple(kind for kind in self.kinds if kind in REQUEST_KINDS)

    @property
    def model_names(self) -> frozenset[str]:
        """Every name by which a model may be asked for, wherever it was said."""
        listed = {name for model in self.models for name in (model.name, *model.aliases)}
        return frozenset(listed.union(*(param.values for param in self.params if param.name in _MODEL_PARAMS)))


_MODEL_PARAMS: Final = frozenset({"model", "models"})


# --- written by the provider ----------------------------------------------------------------------------------


def announcement_draft(announcement: Announcement) -> Draft:
    """Return the announcement to sign."""
    content: dict[str, Any] = {"name": announcement.name, "about": announcement.about}
    if announcement.picture:
        content |= {"picture": announcement.picture, "image": announcement.picture}
    if announcement.lud16:
        content["lud16"] = announcement.lud16
    content["encryptionSupported"] = announcement.encryption_supported
    if announcement.models and all(model.free for model in announcement.models):
        content["amount"] = "Free"  # the word that nostr-dvm writes and shows
    if announcement.paused:
        content["paused"] = True
    content["nip90Params"] = {
        param.name: {"required": param.required, "values": param.values} for param in announcement.params
    }
    content["models"] = [_model_json(model) for model in announcement.models]
    tags: Tags = (
        ("d", announcement.d),
        *(("k", str(kind)) for kind in announcement.kinds),
        *(("t", topic) for topic in announcement.topics),
    )
    return Draft(kind=ANNOUNCEMENT_KIND, content=_dumped(content), tags=tags)


def profile_draft(name: str, about: str = "", picture: str = "", lud16: str = "") -> Draft:
    """Return the profile (NIP-01 kind 0) to sign; what is empty is left out."""
    told = {"name": name, "about": about, "picture": picture, "lud16": lud16}
    return Draft(kind=PROFILE_KIND, content=_dumped({key: value for key, value in told.items() if value}))


def relay_list_draft(urls: Iterable[str]) -> Draft:
    """Return the relay list (NIP-65 kind 10002) to sign: relays that are read and written alike."""
    return Draft(kind=RELAY_LIST_KIND, tags=tuple(("r", url) for url in urls))


def withdrawal_draft(pubkey: str, d: str, event_ids: Iterable[str] = (), reason: str = "") -> Draft:
    """Return the deletion (NIP-09 kind 5) of an announcement of `pubkey`, whatever its version."""
    tags: Tags = (
        ("a", f"{ANNOUNCEMENT_KIND}:{pubkey}:{d}"),
        *(("e", event_id) for event_id in event_ids),
        ("k", str(ANNOUNCEMENT_KIND)),
    )
    return Draft(kind=DELETION_KIND, content=reason, tags=tags)


def _model_json(model: AnnouncedModel) -> dict[str, Any]:
    told: dict[str, Any] = {"name": model.name}
    if model.aliases:
        told["aliases"] = model.aliases
    if model.context_tokens is not None:
        told["context"] = model.context_tokens
    if model.price is not None:
        told["price"] = _price_json(model.price)
    if model.kind_prices:
        told["prices"] = {str(kind): _price_json(price) for kind, price in model.kind_prices}
    if model.quantization is not None:
        told["quantization"] = model.quantization
    if model.measured is not None:
        claim = model.measured
        told["measured"] = {
            "tokens_per_s": claim.tokens_per_s,
            "first_token_ms": claim.first_token_ms,
            "at": claim.at,
        }
    return told


def _price_json(price: ModelPrice) -> dict[str, int]:
    told = {key: getattr(price, key) for key in _PRICE_KEYS}
    return told if price.min_msats else {key: value for key, value in told.items() if key != "min_msats"}


def _dumped(content: Mapping[str, Any]) -> str:
    return orjson.dumps(content).decode()


# --- read by the customer -------------------------------------------------------------------------------------


def parse_announcement(event: Event) -> Announcement:
    """Return what a kind 31990 event says. Raises `BadAnnouncement` and nothing else; no signature is checked."""
    if event.kind != ANNOUNCEMENT_KIND:
        raise BadAnnouncement(f"kind {event.kind} is not an announcement")
    told = _read_content(event.content)
    d, named, described = event.tag("d"), event.tag("name"), event.tag("about")
    return Announcement(
        d=_text(d[1] if d and len(d) > 1 else "", MAX_NAME),
        kinds=_read_kinds(event.tag_values("k")),
        topics=_texts(event.tag_values("t"), MAX_TOPICS),
        # Some write these as tags.
        name=_text(told.get("name") or (named[1] if named and len(named) > 1 else ""), MAX_NAME),
        about=_text(told.get("about") or (described[1] if described and len(described) > 1 else ""), MAX_ABOUT),
        picture=_text(told.get("picture") or told.get("image"), MAX_URL),
        lud16=_text(told.get("lud16"), MAX_NAME),
        encryption_supported=told.get("encryptionSupported") is True or told.get("supportsEncryption") is True,
        params=_read_params(told.get("nip90Params")),
        models=_read_models(told.get("models")),
        paused=told.get("paused") is True,
    )


def newest(events: Iterable[Event]) -> list[Event]:
    """Return the announcements that stand: of each author and `d` the newest, in one second the lowest id."""
    standing: dict[tuple[str, str], Event] = {}
    for event in events:
        d = event.tag("d")
        place = (event.pubkey, d[1] if d and len(d) > 1 else "")
        before = standing.get(place)
        if before is None or (-event.created_at, event.id) < (-before.created_at, before.id):
            standing[place] = event
    return list(standing.values())


def _read_content(content: str) -> dict[str, Any]:
    try:
        told = orjson.loads(content)
    except (orjson.JSONDecodeError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def _read_kinds(values: Iterable[str]) -> tuple[int, ...]:
    found = dict.fromkeys(int(value) for value in values if _KIND.fullmatch(value))
    return tuple(found)[:MAX_KINDS]


def _read_params(value: object) -> tuple[AnnouncedParam, ...]:
    if not isinstance(value, dict):
        return ()
    read: dict[str, AnnouncedParam] = {}
    for name, told in value.items():
        short = _text(name, MAX_NAME)
        if len(read) == MAX_PARAMS:
            break
        if isinstance(told, dict):
            read.setdefault(short, AnnouncedParam(short, _texts(told.get("values")), told.get("required") is True))
        elif isinstance(told, list):
            read.setdefault(short, AnnouncedParam(short, _texts(told)))
    return tuple(read.values())


def _read_models(value: object) -> tuple[AnnouncedModel, ...]:
    if not isinstance(value, list):
        return ()
    read = map(_read_model, value[:MAX_MODELS])
    return tuple(model for model in read if model is not None)


def _read_model(told: object) -> AnnouncedModel | None:
    if isinstance(told, str):
        told = {"name": told}
    if not isinstance(told, dict) or not (name := _text(told.get("name"), MAX_NAME)):
        return None
    context = told.get("context")
    return AnnouncedModel(
        name=name,
        aliases=_texts(told.get("aliases"), MAX_ALIASES),
        context_tokens=context if _is_whole(context, 1, MAX_CONTEXT) else None,
        price=_read_price(told.get("price")),
        quantization=_text(told.get("quantization"), MAX_NAME) or None,
        kind_prices=_read_kind_prices(told.get("prices")),
        measured=_read_measured(told.get("measured")),
    )


def _read_price(value: object) -> ModelPrice | None:
    """Return a price, or None when a part of it is no amount: half a price would be a wrong one."""
    if not isinstance(value, dict):
        return None
    parts = [value.get(key, 0) for key in _PRICE_KEYS]
    if value.keys().isdisjoint(_PRICE_KEYS):
        return None
    return ModelPrice(*parts) if all(_is_whole(part, 0, MAX_MONEY_MSATS) for part in parts) else None


def _read_kind_prices(value: object) -> tuple[tuple[int, ModelPrice], ...]:
    if not isinstance(value, dict):
        return ()
    kinds = [kind for kind in value if _KIND.fullmatch(kind) and int(kind) in REQUEST_KINDS][:MAX_KINDS]
    read = {int(kind): _read_price(value[kind]) for kind in kinds}
    return tuple((kind, price) for kind, price in read.items() if price is not None)


def _read_measured(value: object) -> Measured | None:
    """Return a claim, or None when a part of it is missing or beyond what any machine does."""
    if not isinstance(value, dict):
        return None
    speed: Any = value.get("tokens_per_s")
    first: Any = value.get("first_token_ms")
    at: Any = value.get("at")
    if type(speed) not in (int, float) or not 0 < speed <= MAX_TOKENS_PER_S:
        return None
    whole = _is_whole(first, 0, MAX_FIRST_TOKEN_MS) and _is_whole(at, 1, MAX_TIME)
    return Measured(speed, first, at) if whole else None


def _is_whole(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _text(value: object, limit: int) -> str:
    return value[:limit] if isinstance(value, str) else ""


def _texts(value: object, most: int = MAX_VALUES) -> tuple[str, ...]:
    """Return the texts of a list, numbers written out, each once."""
    if not isinstance(value, list):
        return ()
    found: dict[str, None] = {}
    for item in value[: 4 * most]:
        text = str(item) if type(item) in (int, float) else _text(item, MAX_NAME)
        if text:
            found[text] = None
        if len(found) == most:
            break
    return tuple(found)
