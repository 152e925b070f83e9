"""How the fake wallet misbehaves: each fault with its probability, drawn from one seeded source."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

OWNER_ACTS: Final = ("create", "look_up", "find", "list", "pay", "balance")
PAYER_ACT: Final = "payer_pay"
MAX_SECONDS: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Faults:
    """What may go wrong. A name ending in `_s` is the length of its fault, every other number its probability.

    `acts` are the calls that the request faults hit; the payer's call is spared unless it is named.
    """

    acts: tuple[str, ...] = OWNER_ACTS

    # Request faults, in the order in which they strike.
    delay: float = 0.0  # wait up to `delay_s` before anything else
    delay_s: float = 1.0
    restart: float = 0.0  # lose every connection and stream (acting first or not), refuse for `restart_s`
    restart_s: float = 0.5
    lost: float = 0.0  # drop the connection without acting
    error_before: float = 0.0  # answer 500 without acting
    hang: float = 0.0  # act, say nothing for `hang_s`, drop the connection
    hang_s: float = 30.0
    ambiguous: float = 0.0  # act, drop the connection without an answer
    error_after: float = 0.0  # act, answer 500

    # Notices of settlement.
    notice_loss: float = 0.0
    notice_duplicate: float = 0.0
    notice_delay: float = 0.0  # up to `notice_delay_s`, so that notices overtake each other
    notice_delay_s: float = 1.0
    notice_replay: float = 0.0  # a stream starts with old notices

    # Lies about invoices.
    stale: float = 0.0  # a settled invoice is called pending, once per invoice
    forget: float = 0.0  # looking up an open invoice loses it for good
    fail_on_restart: float = 0.0  # an open invoice is failed by a restart
    short: float = 0.0  # a settlement is reported with half of what was received
    pay_expired: float = 0.0  # an expired invoice can still be paid
    pay_twice: float = 0.0  # a settled invoice can be paid again


def parse_faults(values: Mapping[str, Any]) -> Faults:
    """Return the faults that a JSON object names. Raises `ValueError` with one sentence."""
    known = {item.name for item in fields(Faults)}
    checked: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"there is no fault {name!r}; the faults are {', '.join(sorted(known))}")
        checked[name] = _acts(value) if name == "acts" else _number(name, value)
    return Faults(**checked)


def parse_fault_words(words: Sequence[str]) -> Faults:
    """Return the faults given on a command line: `key=value` words, or one JSON object. Raises `ValueError`."""
    if len(words) == 1 and words[0].lstrip().startswith("{"):
        values = json.loads(words[0])
    else:
        values = {}
        for word in words:
            name, separator, text = word.partition("=")
            if not separator:
                raise ValueError(f"{word!r} is not of the form fault=probability")
            values[name] = text.split(",") if name == "acts" else float(text)
    return parse_faults(values)


def _number(name: str, value: object) -> float:
    most = MAX_SECONDS if name.endswith("_s") else 1.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"fault {name!r} needs a number")
    if not 0 <= value <= most:
        raise ValueError(f"fault {name!r} is a number from 0 to {most:g}")
    return float(value)


def _acts(value: object) -> tuple[str, ...]:
    allowed = (*OWNER_ACTS, PAYER_ACT)
    if not isinstance(value, list | tuple) or not all(act in allowed for act in value):
        raise ValueError(f"fault 'acts' is a list of {', '.join(allowed)}")
    return tuple(value)


class Dice:
    """Decides which fault strikes, and counts those that did."""

    def __init__(self, faults: Faults, source: random.Random) -> None:
        self.faults = faults
        self.struck: Counter[str] = Counter()
        self._source = source

    def roll(self, name: str) -> bool:
        """Tell whether the fault called `name` strikes now."""
        probability: float = getattr(self.faults, name)
        strikes = probability > 0 and self._source.random() < probability
        if strikes:
            self.struck[name] += 1
        return strikes

    def strikes_act(self, act: str) -> bool:
        """Tell whether the request faults apply to `act` at all."""
        return act in self.faults.acts

    def coin(self) -> bool:
        """Return true half of the time."""
        return self._source.random() < 0.5

    def seconds(self, limit_s: float) -> float:
        """Return a duration from 0 to `limit_s`."""
        return self._source.uniform(0, limit_s)
