"""What the fuzzer drives: a relay's frames, through the session and the intake of a whole house.

An input is some lines, each one frame, so that what comes before what counts. A line `~{...}` is a draft that is
signed first (`k` kind, `c` content, `t` tags, `a` seconds ahead of now, `w` whose key): nobody guesses a signature,
and what matters most lies behind it.
"""

from __future__ import annotations

import random
from typing import Any, Final

import anyio
import anyio.lowlevel
import orjson

from pylon.nostr.event import Draft
from pylon.nostr.keys import SecretKey
from pylon.nostr.messages import EventMessage
from pylon.relays.session import Session
from pylon.relays.state import PoolConfig
from tests.support.events import CUSTOMER, PROVIDER, STRANGER, job_request
from tests.support.gate import Gate
from tests.support.house import House

URL: Final = "wss://hostile.example"
KEYS: Final = (CUSTOMER, STRANGER, PROVIDER)
MAX_LINES: Final = 20
SETTLE_EVERY: Final = 100  # inputs
_DRAFT: Final = b"~"


def signed_frame(line: bytes, now: int) -> bytes:
    """Return the frame that a draft's line stands for; one that is no draft goes as it is."""
    try:
        parts: Any = orjson.loads(line[1:])
        key: SecretKey = KEYS[parts["w"] % len(KEYS)]
        tags = tuple(tuple(tag) for tag in parts["t"])
        event = Draft(parts["k"], parts["c"], tags).sign(key, now + parts["a"])
        return orjson.dumps(["EVENT", "jobs", event.as_dict()])
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, UnicodeError):
        return line


def as_sent(line: bytes) -> str | bytes:
    """Return a line as the socket hands it on: a text frame where it is UTF-8, else a binary one."""
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line


class Target:
    """A house behind one relay's session; `feed` takes an input and raises when something is not as it must be."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.gate = Gate(house)
        self.fed = 0
        self._now = 0.0
        self._session = self._connect()

    def _connect(self) -> Session:
        """Return a new connection's session, with what the daemon has asked for and published."""
        session = Session(
            URL, PoolConfig(urls=(URL,)), key=PROVIDER, clock=self.house.world.clock, rng=random.Random(1)
        )
        session.subscribe("jobs", [{"kinds": [5050, 5]}])
        session.subscribe("cancels", [{"kinds": [5]}])
        event = job_request("something of ours")
        session.publish("ab" * 32, orjson.dumps(["EVENT", event.as_dict()]), 0.0)
        session.take(1 << 20)
        return session

    async def feed(self, data: bytes) -> None:
        """Feed the frames of an input to a new connection of the same house."""
        self._session = self._connect()
        clock = self.house.world.clock
        clock.advance(1)  # budgets fill again
        for line in data.split(b"\n")[:MAX_LINES]:
            frame = signed_frame(line, int(clock.now)) if line.startswith(_DRAFT) else line
            self._now += 0.01
            heard = self._session.receive(as_sent(frame), self._now)
            if isinstance(heard, EventMessage):
                self.gate.offer(heard.event)
            for sent in self._session.take(1 << 20, self._now):
                orjson.loads(sent)  # whatever is answered is a frame
        self._session.tick(self._now + 60)
        assert self._session.nonsense.isprintable()
        assert all(each.detail.isprintable() for each in self._session.subscriptions())
        self.fed += 1
        await anyio.lowlevel.checkpoint()
        if self.fed % SETTLE_EVERY == 0:
            await self.settle()

    async def settle(self) -> None:
        """Let the house end what it began, check it, and forget what the stand-ins noted."""
        await self.gate.settle()
        relays = self.house.world.relays
        relays.live.clear()
        relays.durable.clear()
        self.house.world.backend.runs.clear()
