"""What the parts of `relays` share: the settings of the pool, counters, and the state that `pylon status` shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """Settings of the relay pool and the publisher; each default fits public relays."""

    urls: tuple[str, ...]
    connect_timeout_s: float = 10.0  # TCP, TLS and the websocket handshake together
    ping_interval_s: float = 20.0
    pong_timeout_s: float = 20.0
    backoff_min_s: float = 0.5
    backoff_max_s: float = 120.0
    stable_after_s: float = 10.0  # a connection that lasted this long resets the backoff
    max_frame_bytes: int = 512 * 1024  # a larger frame is dropped and counted
    hard_frame_bytes: int = 4 * 1024 * 1024  # a larger frame ends the connection
    max_bad_frames: int = 100  # more frames that mean nothing, beyond one a second, end the connection
    useless_share: float = 0.1  # of the time, at most, one relay's frames of no use are worked on
    useless_burst_s: float = 0.05  # how long they may be before that, at once
    overlap_s: int = 60  # how far before "last known good" a restored subscription starts
    publish_timeout_s: float = 10.0  # how long one send waits for its OK
    auth_wait_s: float = 1.0  # how long an AUTH waits for its OK: some relays send none
    queue_frames: int = 4096  # unsent frames per relay
    queue_bytes: int = 4 * 1024 * 1024
    max_unanswered: int = 1024  # events sent to one relay and not yet answered
    stall_timeout_s: float = 20.0  # a relay that drains nothing for this long is disconnected
    messages_per_s: int = 0  # written to one relay in any second, 0 for no limit
    subscriptions_per_minute: int = 0  # REQs among them in any minute, 0 for no limit
    retry_min_s: float = 1.0
    retry_max_s: float = 60.0
    linger_s: float = 60.0  # how long the other relays are still tried once one has confirmed
    max_lingering: int = 2000
    max_lingering_bytes: int = 16 * 1024 * 1024
    customer_relays_per_job: int = 3
    customer_relays_total: int = 32
    customer_relay_idle_s: float = 30.0
    allow_private_hosts: bool = False  # may customers name relays of private networks? (tests, demo)


class RelayStatus(StrEnum):
    """How the connection to one relay stands."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    BACKOFF = "backoff"  # the connection failed or broke; the next attempt waits
    REFUSED = "refused"  # the relay answered the handshake with a refusal; retried like any fault
    STOPPED = "stopped"  # the pool is not running


class SubscriptionStatus(StrEnum):
    """How one subscription stands on one relay."""

    WAITING = "waiting"  # asked; stored events are still coming
    LIVE = "live"  # EOSE was seen
    AUTH = "auth"  # refused until we are authenticated
    CLOSED = "closed"  # refused or ended by the relay; asked again later


@dataclass(frozen=True, slots=True)
class SubscriptionState:
    """One subscription on one relay, with the relay's words when it refused."""

    name: str
    status: SubscriptionStatus
    detail: str = ""


@dataclass(frozen=True, slots=True)
class RelayState:
    """One relay's line in `pylon status`. Every text of the relay's is fit for a terminal."""

    url: str
    status: RelayStatus
    since: float  # unix seconds of the last change of status
    last_error: str = ""
    trouble: str = ""  # of a relay that is connected: why it is read slowly, or what ended its last connection
    authenticated: bool = False
    subscriptions: tuple[SubscriptionState, ...] = ()
    received: int = 0  # events
    sent: int = 0  # events
    accepted: int = 0  # OK true
    refused: int = 0  # OK false
    dropped: Mapping[str, int] = field(default_factory=dict)  # by reason
    reconnects: int = 0
    last_notice: str = ""
    latency_ms: float | None = None
    queued: int = 0  # events accepted for sending and not yet written to the socket


class Counters:
    """What happened on one relay since the start; survives reconnects."""

    __slots__ = ("accepted", "dropped", "last_notice", "received", "reconnects", "refused", "sent")

    def __init__(self) -> None:
        self.received = 0
        self.sent = 0
        self.accepted = 0
        self.refused = 0
        self.reconnects = 0
        self.dropped: dict[str, int] = {}
        self.last_notice = ""

    def drop(self, reason: str) -> None:
        """Count something dropped. `reason` is a word of ours, so the table stays small."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
