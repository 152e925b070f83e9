"""A relay that attacks its client, as a process of its own: the flood must not cost the test's loop anything.

It is polite until its standard input has a line, then attacks every connection, present and to come; it ends with
its input. `python -m tests.support.hostile_relay ATTACK PROVIDER` prints `READY URL`. What it pours out is made
before that.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any, Final

import anyio
import anyio.lowlevel
from websockets.exceptions import ConnectionClosed

from pylon.nostr.event import Event, compute_id
from pylon.nostr.keys import SecretKey
from pylon.nostr.nip90 import JobInput, request_draft
from tests.support.scripted_relay import Peer, scripted_relay

KIND: Final = 5050
INVALID_SIGNATURES: Final = 50_000
HUGE_BYTES: Final = 10 * 1024 * 1024
MESSAGES_BEFORE_DROP: Final = 5

_POUR_BYTES: Final = 64 * 1024
_TEXT: Final = 0x81
_COMPRESSED_TEXT: Final = 0xC1
_SIGNED: Final = 3_000  # making a signature takes 0.1 ms


@dataclass
class Victim:
    """One connection as an attack sees it."""

    peer: Peer
    answering: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    silenced: anyio.Event = field(default_factory=anyio.Event)
    subscriptions: list[str] = field(default_factory=list)
    requests: str = "requests"  # the subscription for job requests

    async def silence(self) -> None:
        """Answer nothing more: the attack does, if anything does."""
        self.answering.cancel()
        await self.silenced.wait()

    async def pour(self, pieces: Iterable[bytes]) -> None:
        """Write bytes, frames or not, as fast as the victim takes them, until it hangs up."""
        socket, batch, size = self.peer.socket, [], 0
        for piece in pieces:
            batch.append(piece)
            size += len(piece)
            if size >= _POUR_BYTES:
                await self._write(b"".join(batch))
                batch, size = [], 0
                if socket.transport.is_closing():
                    return
        await self._write(b"".join(batch))

    async def _write(self, data: bytes) -> None:
        self.peer.socket.transport.write(data)
        await self.peer.socket.drain()
        await anyio.lowlevel.checkpoint()


Attack = Callable[[Victim], Awaitable[None]]
Maker = Callable[[str], Attack]


def frame(payload: bytes, first: int = _TEXT) -> bytes:
    """Return a server's websocket frame."""
    size = len(payload)
    if size < 126:
        return bytes((first, size)) + payload
    if size < 1 << 16:
        return bytes((first, 126)) + size.to_bytes(2, "big") + payload
    return bytes((first, 127)) + size.to_bytes(8, "big") + payload


def message(*parts: Any) -> bytes:
    """Return the frame of a relay's message."""
    return frame(json.dumps(parts, separators=(",", ":")).encode())


def endless(*frames: bytes) -> Maker:
    """Return the attack that repeats some frames until the victim hangs up."""

    def make(_provider: str) -> Attack:
        block = b"".join(islice(cycle(frames), max(1, _POUR_BYTES // sum(map(len, frames))) * len(frames)))

        async def attack(victim: Victim) -> None:
            await victim.pour(iter(lambda: block, b""))

        return attack

    return make


# --- attacks --------------------------------------------------------------------------------------------------


def forged(event: Event) -> Event:
    """Return a copy whose id is right and whose signature is not."""
    return Event(
        event.id, event.pubkey, event.created_at, event.kind, event.tags, event.content, secrets.token_hex(64)
    )


def unsigned_requests(count: int) -> Iterator[Event]:
    """Return requests with the right id and a signature of noise: all of the check has to be made."""
    author, now = SecretKey.generate().public_hex, int(time.time())
    tags = (("i", "a prompt", "text"),)
    for number in range(count):
        event_id = compute_id(author, now, KIND, tags, str(number))
        yield Event(event_id, author, now, KIND, tags, str(number), secrets.token_hex(64))


def signed_requests(count: int, provider: str, created_at: int) -> Iterator[Event]:
    """Return requests to the provider that are correct but for their date."""
    key = SecretKey.generate()
    for number in range(count):
        yield request_draft(KIND, [JobInput(f"prompt {number}")], providers=[provider]).sign(key, created_at)


def events(made: Callable[[str], Iterable[Event]], subscription: str = "", *, repeat: bool = False) -> Maker:
    """Return the attack that sends events, under the victim's subscription or a wrong one; once or again and
    again."""

    def make(provider: str) -> Attack:
        bodies = [event.to_json().encode() for event in made(provider)]

        async def attack(victim: Victim) -> None:
            name = json.dumps(subscription or victim.requests).encode()
            frames = [frame(b'["EVENT",' + name + b"," + body + b"]") for body in bodies]
            await victim.pour(cycle(frames) if repeat else frames)

        return attack

    return make


def of_each_subscription(*parts: Any) -> Maker:
    """Return the attack that says something of every subscription, without end."""

    def make(_provider: str) -> Attack:
        async def attack(victim: Victim) -> None:
            await victim.pour(cycle([message(parts[0], name, *parts[1:]) for name in victim.subscriptions]))

        return attack

    return make


def challenges(_provider: str) -> Attack:
    """Demand AUTH without end, and refuse everything for want of it."""

    async def attack(victim: Victim) -> None:
        def loop() -> Iterator[bytes]:
            number = 0
            while True:
                number += 1
                yield message("AUTH", f"challenge {number}")
                for name in victim.subscriptions:
                    yield message("CLOSED", name, "auth-required: again")

        await victim.pour(loop())

    return attack


def half_open(_provider: str) -> Attack:
    """Neither read nor write: what a peer looks like that lost its power."""

    async def attack(victim: Victim) -> None:
        await victim.silence()
        victim.peer.socket.transport.pause_reading()
        await anyio.sleep_forever()

    return attack


def stall_in_a_frame(_provider: str) -> Attack:
    """Begin a frame and let it drip."""

    async def attack(victim: Victim) -> None:
        await victim.silence()
        victim.peer.socket.transport.pause_reading()
        victim.peer.socket.transport.write(frame(b"x" * 100_000)[:1_000])
        while True:
            await anyio.sleep(0.2)
            victim.peer.socket.transport.write(b"x")

    return attack


def lies(_provider: str) -> Attack:
    """Confirm every other event and refuse the rest for good; keep and pass on none."""

    async def attack(victim: Victim) -> None:
        await victim.silence()
        socket = victim.peer.socket
        number = 0
        async for data in socket:
            match json.loads(data):
                case ["REQ", name, *_]:
                    await victim.peer.send("EOSE", name)
                case ["EVENT", event]:
                    number += 1
                    await victim.peer.ok(event["id"], number % 2 == 0, "blocked: nobody likes you \x1b[2J")

    return attack


def drop_at_a_count(_provider: str) -> Attack:
    """Hang up after a few messages, every time."""

    async def attack(victim: Victim) -> None:
        await victim.silence()
        for _ in range(MESSAGES_BEFORE_DROP):
            await victim.peer.socket.recv()
        await victim.peer.hang_up()

    return attack


def bomb(_provider: str) -> Attack:
    """Send compressed frames, which nobody agreed to, of 100 MB of zeros each."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(100)) + packer.flush(zlib.Z_SYNC_FLUSH)

    async def attack(victim: Victim) -> None:
        await victim.pour(frame(packed[:-4], _COMPRESSED_TEXT) for _ in range(100))

    return attack


ATTACKS: Final[dict[str, Maker]] = {
    "junk": endless(frame(b"rubbish")),
    "empty-frames": endless(frame(b"")),
    "pings": endless(b"\x89\x00"),
    "notices": endless(message("NOTICE", "\x1b]0;pwned\x07 hear me")),
    "invalid-signatures": events(lambda _: unsigned_requests(INVALID_SIGNATURES), repeat=True),
    "duplicates": events(
        lambda _: signed_requests(1, SecretKey.generate().public_hex, int(time.time())), repeat=True
    ),
    "huge-frames": endless(frame(b"x" * HUGE_BYTES)),
    "oversize-frames": endless(frame(b"x" * (1 << 20))),
    "half-open": half_open,
    "stall-in-a-frame": stall_in_a_frame,
    "challenges": challenges,
    "lies": lies,
    "unknown-oks": endless(*(message("OK", secrets.token_hex(32), True, "") for _ in range(100))),
    "closed-storm": of_each_subscription("CLOSED", "error: again"),
    "endless-eose": of_each_subscription("EOSE"),
    "far-past": events(lambda provider: signed_requests(100, provider, 1), repeat=True),
    "far-future": events(lambda provider: signed_requests(_SIGNED, provider, int(time.time()) + 10**8)),
    "wrong-subscriptions": events(
        lambda provider: signed_requests(100, provider, int(time.time())), "not yours", repeat=True
    ),
    "compression-bombs": bomb,
    "drop-at-a-count": drop_at_a_count,
}


# --- the relay ------------------------------------------------------------------------------------------------


async def _answer(victim: Victim) -> None:
    """Be polite, for as long as the attack leaves the answers to us."""
    with victim.answering:
        while True:
            match json.loads(await victim.peer.socket.recv()):
                case ["REQ", name, *filters]:
                    if name not in victim.subscriptions:
                        victim.subscriptions.append(name)
                    if any(KIND in each.get("kinds", ()) for each in filters):
                        victim.requests = name
                    await victim.peer.send("EOSE", name)
                case ["EVENT" | "AUTH", event]:
                    await victim.peer.ok(event["id"])
    victim.silenced.set()


@asynccontextmanager
async def hostile_relay(attack: Attack, go: anyio.Event) -> AsyncIterator[str]:
    """Run the relay in this process; it attacks once `go` is set."""

    async def script(peer: Peer) -> None:
        victim = Victim(peer)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_answer, victim)
                await go.wait()
                while not victim.subscriptions:  # noqa: ASYNC110 - a new connection says at once what it wants
                    await anyio.sleep(0.01)
                await attack(victim)
                await peer.socket.wait_closed()
        except* (ConnectionClosed, ConnectionError):
            pass  # the victim hung up

    async with scripted_relay(script) as relay:
        yield relay.url


class HostileRelay:
    """The process: its URL, and the word to begin."""

    def __init__(self, attack: str, provider: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.hostile_relay", attack, provider],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.url = ""

    def wait(self) -> str:
        """Wait until it listens."""
        assert self._process.stdout is not None
        word, _, self.url = self._process.stdout.readline().strip().partition(" ")
        assert word == "READY", "the hostile relay did not start"
        return self.url

    def attack(self) -> None:
        """Begin."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait(timeout=10)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()


@contextmanager
def hostile_process(attack: str, provider: str) -> Iterator[HostileRelay]:
    """Run a hostile relay in a process of its own; it is polite until `attack()`."""
    relay = HostileRelay(attack, provider)
    try:
        relay.wait()
        yield relay
    finally:
        relay.kill()


async def _serve(attack: Attack) -> None:
    go = anyio.Event()
    async with hostile_relay(attack, go) as url, anyio.create_task_group() as tasks:

        async def listen() -> None:
            async for _ in anyio.wrap_file(sys.stdin):
                go.set()
            tasks.cancel_scope.cancel()  # whoever started us is gone

        tasks.start_soon(listen)
        sys.stdout.write(f"READY {url}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    anyio.run(_serve, ATTACKS[sys.argv[1]](sys.argv[2]))
