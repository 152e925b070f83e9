"""A table of announced models and their prices, ours or anybody's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pylon.cli.layout import Cell, Colour, Screen, cell, moment, sats

if TYPE_CHECKING:
    from pylon.nostr.nip89 import AnnouncedModel, Measured, ModelPrice

_TITLES = ("name", "context", "base", "per 1k input", "per 1k output", "at least", "quantization", "also known as")
_MEASURED = "measured by itself"


def model_table(models: Iterable[AnnouncedModel], screen: Screen) -> None:
    """Put models on the screen; what was not said is a dash. Speeds have a column where one is told."""
    held = tuple(models)
    if not held:
        screen.line("  none", Colour.DIM)
        return
    measured = any(model.measured is not None for model in held)
    titles = (*_TITLES[:-1], *([_MEASURED] if measured else []), _TITLES[-1])
    head = [Cell(title, Colour.DIM, right=0 < at < 6) for at, title in enumerate(titles)]
    screen.table([head, *(row for model in held for row in _rows(model, measured=measured))], indent="  ")


def _rows(model: AnnouncedModel, *, measured: bool) -> list[list[Cell]]:
    """Return a model's row, and one for each job kind where their prices differ."""
    kinds = [[cell(f"  kind {kind}"), Cell(""), *_prices(price)] for kind, price in model.kind_prices]
    return [
        [
            cell(model.name, limit=60),
            Cell("-" if model.context_tokens is None else f"{model.context_tokens:,}", right=True),
            *([Cell("")] * 4 if kinds else _prices(model.price)),
            cell(model.quantization or "-", limit=20),
            *([Cell(_speed(model.measured))] if measured else []),
            cell(", ".join(model.aliases)),
        ],
        *kinds,
    ]


def _speed(claim: Measured | None) -> str:
    if claim is None:
        return "-"
    return f"{claim.tokens_per_s:g} tokens/s, first {claim.first_token_ms:,} ms, {moment(claim.at)[:10]}"


def _prices(price: ModelPrice | None) -> list[Cell]:
    if price is None:
        return [Cell("-", right=True)] * 4
    parts = (price.base_msats, price.input_msats_per_1k, price.output_msats_per_1k, price.min_msats)
    return [Cell(sats(part), right=True) for part in parts]
