"""What the control API tells of the owner's orders and rules; standard library only, as `views` is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MAX_WHY: Final = 200
"""Characters of the reason for a pause or a drain."""

MAX_PAUSE_S: Final = 10 * 365 * 86_400
"""How long a pause may be ordered for."""


@dataclass(frozen=True, slots=True)
class RuleLine:
    """One rule of `[owner]`: `allows` is None where it cannot be told here; `pauses` is what it makes of that."""

    rule: str
    pauses: bool
    why: str
    allows: bool | None = None
    until: int | None = None


@dataclass(frozen=True, slots=True)
class OwnerLine:
    """What the daemon does with jobs (`open`, `paused` or `draining`), why, and what is left to be done.

    `by` is `order` or `rules`, "" while it is open. `unpaid` jobs run only if they are paid; `first_deadline_at` is
    the earliest deadline of those that wait and are paid. `rules_waived`: they say nothing, until `waived_until` or
    until none of them would pause.
    """

    stance: str = "open"
    by: str = ""
    since: int | None = None
    until: int | None = None
    because: str = ""
    exits: bool = False
    running: int = 0
    waiting: int = 0
    waiting_paid: int = 0
    to_deliver: int = 0
    unpaid: int = 0
    first_deadline_at: int | None = None
    freed_at: int | None = None
    freed_bytes: int = 0
    rules: tuple[RuleLine, ...] = ()
    rules_waived: bool = False
    waived_until: int | None = None
