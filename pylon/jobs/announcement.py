"""What a provider announces now: from what is for sale and how its backends stand to the events' drafts. Pure.

Only what the operator declared for sale is ever told, under the names it is sold by; a model whose backend cannot
serve it now is left out. When nothing can be bought the announcement stays, marked as paused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from pylon.jobs.catalogue import Offer, promised_context
from pylon.jobs.kinds import KINDS
from pylon.jobs.ports import BackendHealth, BackendState
from pylon.nostr.event import Draft
from pylon.nostr.nip89 import (
    PROFILE_KIND,
    RELAY_LIST_KIND,
    AnnouncedModel,
    AnnouncedParam,
    Announcement,
    Measured,
    ModelPrice,
    announcement_draft,
    profile_draft,
    relay_list_draft,
)
from pylon.text import utf8_bytes

IDENTIFIER: Final = "pylon"
"""The `d` tag: one key has one announcement of ours, each version takes the place of the one before."""

_ENVELOPE_BYTES: Final = 512  # id, pubkey, signature, time and the field names
_QUANTIZATION: Final = re.compile(
    r"(?:^|[-_.:/ ])(I?Q[1-8]_[A-Z0-9]+(?:_[A-Z]+)?|B?F16|FP16|FP8|F32|MXFP4|AWQ|GPTQ|INT[48])(?=$|[-_.:/ ])",
    re.ASCII | re.IGNORECASE,
)


SHARED_KINDS: Final = frozenset({PROFILE_KIND, RELAY_LIST_KIND})
"""What a key has one of, whatever programs use it: ours must not take the place of somebody's own."""


class ProfileMode(StrEnum):
    """Whether the key's profile (kind 0) and relay list (kind 10002) are published too."""

    AUTO = "auto"  # unless the key has one that was published elsewhere
    ALWAYS = "always"  # in place of any other
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class AnnounceConfig:
    """What the operator says of the provider, and how often it is said.

    `free` means that nobody pays, whatever the prices; `relays` is the NIP-65 list. Changes are gathered for
    `debounce_s`; everything is repeated after `republish_s`.
    """

    name: str
    about: str = ""
    picture: str = ""
    lud16: str = ""
    topics: tuple[str, ...] = ()
    relays: tuple[str, ...] = ()
    free: bool = False
    enabled: bool = True
    profile: ProfileMode = ProfileMode.AUTO
    debounce_s: float = 30.0
    republish_s: float = 21_600.0
    limit_bytes: int = 65_536


def announcement_now(
    config: AnnounceConfig,
    offers: Sequence[Offer],
    states: Mapping[str, BackendState] | None,
    *,
    paused: bool,
    measured: Mapping[str, Measured] | None = None,
) -> Announcement:
    """Return what is to be announced. Without `states` nothing is known of the backends: every offer is told.

    `measured` is how fast the models were, by the offers' names.
    """
    served = [offer for offer in offers if states is None or _is_served(offer, states)]
    # Who is paused is still found by what it will sell again.
    kinds = sorted({kind for offer in served or offers for kind in offer.kinds})
    models = [_model(config, offer, states, (measured or {}).get(offer.name)) for offer in served]
    announcement = _announcement(config, kinds, models, paused=paused)
    # Relays refuse large events: the operator's first models come first.
    while len(models) > 1 and _size_bytes(announcement_draft(announcement)) > config.limit_bytes:
        del models[-max(1, len(models) // 8) :]
        announcement = _announcement(config, kinds, models, paused=paused)
    return announcement


def drafts_now(config: AnnounceConfig, announcement: Announcement) -> dict[int, Draft]:
    """Return everything to be published, by kind: the announcement, the relay list and the profile."""
    drafts = [announcement_draft(announcement)]
    if config.profile is not ProfileMode.NEVER:
        drafts.append(relay_list_draft(config.relays))
        drafts.append(profile_draft(config.name, config.about, config.picture, config.lud16))
    return {draft.kind: draft for draft in drafts}


def is_foreign(config: AnnounceConfig, kind: int, found_at: int | None, published_at: int) -> bool:
    """Tell whether what relays have of a shared kind was published elsewhere, and is to be left alone.

    `found_at` is the `created_at` of the newest version found (None: there is none), `published_at` that of our
    last one, 0 when there never was one.
    """
    auto = config.profile is ProfileMode.AUTO and kind in SHARED_KINDS
    return auto and found_at is not None and found_at > published_at


def quantization_of(name: str) -> str | None:
    """Return how a model is quantized, when the name it has at its backend tells: `Q4_K_M`, `F16`, `MXFP4`, …"""
    found = _QUANTIZATION.search(name)
    return found[1].upper() if found else None


def _announcement(
    config: AnnounceConfig, kinds: Sequence[int], models: Sequence[AnnouncedModel], *, paused: bool
) -> Announcement:
    names = tuple(model.name for model in models)
    params = {name for kind in kinds for name in KINDS[kind].params}
    rest = (AnnouncedParam(name) for name in sorted(params - {"model"}))
    return Announcement(
        d=IDENTIFIER,
        kinds=tuple(kinds),
        topics=config.topics,
        name=config.name,
        about=config.about,
        picture=config.picture,
        lud16=config.lud16,
        params=(AnnouncedParam("model", names), *rest),
        models=tuple(models),
        paused=paused or not models,
    )


def _is_served(offer: Offer, states: Mapping[str, BackendState]) -> bool:
    return any(
        state.health is BackendHealth.READY and state.lists(route.backend_model)
        for route in offer.routes
        if (state := states.get(route.backend)) is not None
    )


def _model(
    config: AnnounceConfig, offer: Offer, states: Mapping[str, BackendState] | None, measured: Measured | None
) -> AnnouncedModel:
    context = offer.context_tokens if states is None else promised_context(offer, states)
    prices = [(kind, _told_price(config, offer, kind)) for kind in offer.kinds]
    return AnnouncedModel(
        name=offer.name,
        aliases=offer.aliases,
        context_tokens=context,
        price=prices[0][1],
        kind_prices=tuple(prices) if len({price for _, price in prices}) > 1 else (),
        quantization=quantization_of(offer.backend_model),
        measured=measured,
    )


def _told_price(config: AnnounceConfig, offer: Offer, kind: int) -> ModelPrice:
    price = offer.price_of(kind)
    if config.free:
        return ModelPrice()
    return ModelPrice(price.base_msats, price.input_msats_per_1k, price.output_msats_per_1k, price.min_msats)


def _size_bytes(draft: Draft) -> int:
    # The content stands in the event's JSON once more escaped: every quote takes two bytes.
    content = utf8_bytes(draft.content) + draft.content.count('"') + draft.content.count("\\")
    return _ENVELOPE_BYTES + content + sum(utf8_bytes(member) + 4 for tag in draft.tags for member in tag)
