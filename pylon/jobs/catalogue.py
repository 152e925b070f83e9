"""What is for sale: the models the operator declared, found by exact name or alias and never replaced."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pylon.jobs.ports import BackendState
from pylon.jobs.pricing import Price


@dataclass(frozen=True, slots=True)
class Route:
    """One way to serve a model: `backend_model` is its name on the backend; so many requests at once."""

    backend: str
    backend_model: str
    slots: int = 1


@dataclass(frozen=True, slots=True)
class Offer:
    """One model for sale. `backend_model` is its name on the backend; `name` is what customers ask for.

    `also` are further backends that serve the very same model. `max_output_tokens` is the most a customer may ask
    for, `default_output_tokens` what is generated unasked; `context_tokens` overrides what the backends say.
    `kinds` are the job kinds that it is sold for; `kind_prices` has the price of those that have one of their own.
    """

    name: str
    backend: str
    backend_model: str
    price: Price = field(default_factory=Price)
    aliases: tuple[str, ...] = ()
    max_output_tokens: int = 2048
    default_output_tokens: int = 512
    context_tokens: int | None = None
    slots: int = 1
    also: tuple[Route, ...] = ()
    kinds: tuple[int, ...] = (5050,)
    kind_prices: Mapping[int, Price] = field(default_factory=dict, hash=False)

    def price_of(self, kind: int) -> Price:
        """Return what a job of this kind costs."""
        return self.kind_prices.get(kind, self.price)

    @property
    def routes(self) -> tuple[Route, ...]:
        """Every backend that serves the model, in the order of the settings."""
        return (Route(self.backend, self.backend_model, self.slots), *self.also)


def promised_context(offer: Offer, states: Mapping[str, BackendState]) -> int | None:
    """Return what one request may use: the operator's word, else the smallest that a backend of the offer tells,
    since the job may run on any of them."""
    if offer.context_tokens is not None:
        return offer.context_tokens
    told = [
        model.context_tokens
        for route in offer.routes
        if route.backend in states
        for model in states[route.backend].models
        if model.name == route.backend_model and model.context_tokens is not None
    ]
    return min(told, default=None)


class Catalogue:
    """The offers, by every name they go by. The first one of its kind is what a request without `model` gets."""

    def __init__(self, offers: Iterable[Offer]) -> None:
        self.offers = tuple(offers)
        self.kinds = frozenset(kind for offer in self.offers for kind in offer.kinds)
        self._by_name = {name: offer for offer in self.offers for name in (offer.name, *offer.aliases)}

    def find(self, model: str | None, kind: int) -> Offer | None:
        """Return the offer of exactly this name or alias, or the first one when none is named, for a job kind."""
        if model is None:
            return next((offer for offer in self.offers if kind in offer.kinds), None)
        offer = self._by_name.get(model)
        return offer if offer is not None and kind in offer.kinds else None
