"""A table of announced models and their prices, ours or anybody's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pylon.cli.layout import Cell, Colour, Screen, cell, sats

if TYPE_CHECKING:
    from pylon.nostr.nip89 import AnnouncedModel, ModelPrice

_TITLES = ("name", "context", "base", "per 1k input", "per 1k output", "quantization", "also known as")


def model_table(models: Iterable[AnnouncedModel], screen: Screen) -> None:
    """Put models on the screen; what was not said is a dash."""
    rows = [
        [
            cell(model.name, limit=60),
            Cell("-" if model.context_tokens is None else f"{model.context_tokens:,}", right=True),
            *_prices(model.price),
            cell(model.quantization or "-", limit=20),
            cell(", ".join(model.aliases)),
        ]
        for model in models
    ]
    if not rows:
        screen.line("  none", Colour.DIM)
        return
    head = [Cell(title, Colour.DIM, right=0 < at < 5) for at, title in enumerate(_TITLES)]
    screen.table([head, *rows], indent="  ")


def _prices(price: ModelPrice | None) -> list[Cell]:
    if price is None:
        return [Cell("-", right=True)] * 3
    parts = (price.base_msats, price.input_msats_per_1k, price.output_msats_per_1k)
    return [Cell(sats(part), right=True) for part in parts]
