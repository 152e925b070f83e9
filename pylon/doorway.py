"""Where the relays' events come in, and where deliveries report: each goes to the part that it is for."""

from __future__ import annotations

from pylon.jobs.announcement import SHARED_KINDS
from pylon.jobs.announcer import Announcer
from pylon.jobs.engine import Engine
from pylon.jobs.intake import Intake
from pylon.jobs.ports import DeliverySink
from pylon.jobs.refunder import Refunder
from pylon.jobs.zaps import ZapDesk
from pylon.nostr.event import Event
from pylon.nostr.nip57 import ZAP_RECEIPT_KIND
from pylon.nostr.nip90 import FEEDBACK_KIND
from pylon.relays.profiles import ProfileReader


class Doorway:
    """Lets relays start before intake exists: what comes earlier is dropped, and asked for again by `since`."""

    def __init__(self) -> None:
        self.intake: Intake | None = None
        self.announcer: Announcer | None = None
        self.refunder: Refunder | None = None
        self.profiles: ProfileReader | None = None
        self.zaps: ZapDesk | None = None

    def offer(self, event: Event, relay_url: str) -> str | None:
        """Pass an event on."""
        if event.kind == FEEDBACK_KIND and self.refunder is not None:
            return self.refunder.hear(event)
        if self.profiles is not None and self.profiles.wants(event):
            return self.profiles.hear(event)
        if event.kind in SHARED_KINDS and self.announcer is not None:
            return self.announcer.hear(event)
        if event.kind == ZAP_RECEIPT_KIND and self.zaps is not None:
            return self.zaps.hear(event)
        return "not-ready" if self.intake is None else self.intake.offer(event, relay_url)


class Ears:
    """Hears how deliveries ended, for the engine's events and for the announcer's."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.announcer: Announcer | None = None

    def confirmed(self, event_id: str, relay_url: str) -> None:
        """Hear that a relay has an event."""
        self._owner(event_id).confirmed(event_id, relay_url)

    def gave_up(self, event_id: str, why: str) -> None:
        """Hear that no relay took an event."""
        self._owner(event_id).gave_up(event_id, why)

    def _owner(self, event_id: str) -> DeliverySink:
        announcer = self.announcer
        return announcer if announcer is not None and announcer.owns(event_id) else self._engine
