"""What is for sale: the models the operator declared, found by exact name or alias and never replaced."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

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

    @property
    def routes(self) -> tuple[Route, ...]:
        """Every backend that serves the model, in the order of the settings."""
        return (Route(self.backend, self.backend_model, self.slots), *self.also)


class Catalogue:
    """The offers, by every name they go by. The first one is what a request without `model` gets."""

    def __init__(self, offers: Iterable[Offer]) -> None:
        self.offers = tuple(offers)
        self._by_name = {name: offer for offer in self.offers for name in (offer.name, *offer.aliases)}

    def find(self, model: str | None) -> Offer | None:
        """Return the offer of exactly this name or alias; of the first model when none is named."""
        if model is None:
            return self.offers[0] if self.offers else None
        return self._by_name.get(model)
