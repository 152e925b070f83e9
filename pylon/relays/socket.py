"""The websocket under a relay connection: websockets' asyncio client, reading and writing many frames at once.

No compression (cheaper, and no decompression bombs), no redirects (a relay must not send us elsewhere), no
logging (it would hold what strangers wrote). asyncio and uvloop set TCP_NODELAY on every TCP transport themselves.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections import deque
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, Final

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import DATA_OPCODES, Frame, Opcode
from websockets.protocol import Event, State

from pylon.net.dialer import Dialer, DialRefused
from pylon.net.urls import parse_target
from pylon.relays.state import PoolConfig
from pylon.text import printable

RELAY_SCHEMES: Final = frozenset({"ws", "wss"})

_CLOSE_TIMEOUT_S: Final = 1.0
_WRITE_HIGH_BYTES: Final = 256 * 1024
_READ_HIGH_MESSAGES: Final = 64
_READ_LOW_MESSAGES: Final = 16
_READ_HIGH_CHARS: Final = 256 * 1024
_MAX_FRAGMENTS: Final = 1024
_PIECE_BYTES: Final = 4096
_CONTROL_FRAMES: Final = 100  # so many pings and pongs at once, and
_CONTROL_FRAMES_PER_S: Final = 10.0
_MESSAGE_TOO_BIG: Final = 1009
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})

_silent = logging.getLogger("pylon.relays.websockets")
_silent.setLevel(logging.CRITICAL + 1)


def _nothing() -> None:
    return None


class RelaySocket(ClientConnection):
    """A client connection that reads and writes many messages at once and tells when its peer does not drain.

    Messages are read by `receive`; `recv` and iteration see none.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.stalled_since: float | None = None
        self.on_room: Callable[[], None] = _nothing
        self.fault = ""  # why we broke the connection off
        self._spent_s = 0.0
        self._unparsed = bytearray()
        self._parsing = False  # the next piece has its turn of the loop
        self._control = 0.0
        self._control_at = self.loop.time()
        self._arrived: deque[str | bytes] = deque()
        self._fragments: list[Frame] = []
        self._reader: asyncio.Future[None] | None = None
        self._reading = True
        self._full = False
        self._arrived_size = 0  # in characters and bytes
        self._aborted = False

    # --- reading ----------------------------------------------------------------------------------------------

    async def receive(self, at_most: int) -> list[str | bytes]:
        """Return the messages that have arrived, in order, waiting for the first; text as `str`.

        `recv` costs 10 µs a message here, this 2. Raises `ConnectionClosed` when all were read and there will be no
        more. What is not read holds up the peer.
        """
        while not self._arrived:
            if self.state is State.CLOSED:
                await self.recv()  # says how it was closed
            self._reader = self.loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        messages = [self._arrived.popleft() for _ in range(min(at_most, len(self._arrived)))]
        self._arrived_size -= sum(map(len, messages))
        if self._full and len(self._arrived) <= _READ_LOW_MESSAGES and self._arrived_size <= _READ_HIGH_CHARS:
            self._full = False
            self._go_on()
        return messages

    def take_spent_s(self) -> float:
        """Return how long the loop was kept by taking frames apart, since this was last asked."""
        spent_s, self._spent_s = self._spent_s, 0.0
        return spent_s

    def data_received(self, data: bytes) -> None:
        """Take bytes apart, a piece in a turn of the loop: what comes at once may be 100,000 tiny frames."""
        self._unparsed += data
        if not self._parsing:
            self._parse()

    def eof_received(self) -> None:
        """Take apart what came before the end; what nobody would read soon is left."""
        while self._unparsed and not self._full:
            self._parse_piece()
        super().eof_received()

    def _parse(self) -> None:
        self._parsing = False
        if self._unparsed and not self._full:
            self._parse_piece()
            self._go_on()

    def _parse_piece(self) -> None:
        started_at = self.loop.time()
        piece = bytes(self._unparsed[:_PIECE_BYTES])
        del self._unparsed[:_PIECE_BYTES]
        super().data_received(piece)
        self._spent_s += self.loop.time() - started_at

    def _go_on(self) -> None:
        """See to it that the next piece is parsed, or that more is read; or neither, while messages wait."""
        if self._unparsed and not self._full and not self._parsing:
            self._parsing = True
            self.loop.call_soon(self._parse)
        wanted = not self._unparsed and not self._full
        if wanted is not self._reading:
            self._reading = wanted
            if wanted:
                self.transport.resume_reading()
            else:
                self.transport.pause_reading()

    def process_event(self, event: Event) -> None:
        """Keep a message that is complete; leave everything else to websockets."""
        if not isinstance(event, Frame) or event.opcode not in DATA_OPCODES:
            super().process_event(event)
            if isinstance(event, Frame) and event.opcode is not Opcode.CLOSE:
                self._count_control()
            return
        if self._aborted:
            return  # what came in the same piece as the fault
        if event.fin and not self._fragments:
            opcode, data = event.opcode, event.data
        else:  # websockets has checked their order, and bounds the size of them all
            self._fragments.append(event)
            if not event.fin:
                if len(self._fragments) >= _MAX_FRAGMENTS:
                    self.abort("a message came in too many pieces")
                return
            opcode, data = self._fragments[0].opcode, b"".join(each.data for each in self._fragments)
            self._fragments.clear()
        message = _text_or_bytes(data) if opcode is Opcode.TEXT else bytes(data)
        self._arrived.append(message)
        self._arrived_size += len(message)
        self._full = len(self._arrived) > _READ_HIGH_MESSAGES or self._arrived_size > _READ_HIGH_CHARS
        self._wake_reader()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let the reader know that nothing more comes."""
        self._unparsed.clear()
        super().connection_lost(exc)
        self._wake_reader()

    def _count_control(self) -> None:
        """Bound pings: each is answered, even where nobody reads the answers."""
        now = self.loop.time()
        self._control = max(0.0, self._control - (now - self._control_at) * _CONTROL_FRAMES_PER_S) + 1
        self._control_at = now
        if self._control > _CONTROL_FRAMES:
            self.abort("too many pings")

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    # --- writing ----------------------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        """Note that the transport's buffer is full."""
        super().pause_writing()
        self.stalled_since = self.loop.time()

    def resume_writing(self) -> None:
        """Note that the peer has drained the buffer."""
        super().resume_writing()
        self.stalled_since = None
        self.on_room()

    def write_texts(self, frames: Iterable[bytes]) -> None:
        """Write text frames in one system call. Does nothing on a connection that is closing.

        `send` costs 15 µs a frame here, this 5; the caller minds `stalled_since` instead of awaiting a drain.
        """
        if self.protocol.state is not State.OPEN or self.transport.is_closing():
            return
        for frame in frames:
            self.protocol.send_text(frame)
        self.transport.write(b"".join(self.protocol.data_to_send()))

    def abort(self, why: str = "") -> None:
        """Drop the connection without a farewell, and what was not read of it; `receive` raises."""
        self.fault = self.fault or why
        self._aborted = True
        self._unparsed.clear()
        self._arrived.clear()
        self._arrived_size = 0
        self.transport.abort()


def _text_or_bytes(data: bytes | bytearray | memoryview) -> str | bytes:
    """Return text; as bytes, which nobody takes for a message, when it is not UTF-8."""
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError:
        return bytes(data)


class _Connect(connect):
    def process_redirect(self, exc: Exception) -> Exception:
        return exc


async def open_configured(url: str, config: PoolConfig, tls: ssl.SSLContext | None) -> RelaySocket:
    """Connect to a relay that the operator configured; proxies of the environment are used for remote ones."""
    target = parse_target(url, RELAY_SCHEMES)
    proxy = None if target.host in LOOPBACK else True
    return await _open(url, config, proxy=proxy, **({"ssl": tls} if target.secure and tls else {}))


async def open_guarded(url: str, config: PoolConfig, tls: ssl.SSLContext | None, dialer: Dialer) -> RelaySocket:
    """Connect to a relay that a stranger named, over the guarded dialer. Raises `DialRefused` beside the usual."""
    dialed = await dialer.dial(url)
    options: dict[str, Any] = {"sock": dialed.sock}
    if dialed.server_hostname is not None:
        options |= {"server_hostname": dialed.server_hostname} | ({"ssl": tls} if tls else {})
    try:
        return await _open(dialed.target.url, config, proxy=None, **options)
    except BaseException:
        dialed.sock.close()
        raise


async def _open(url: str, config: PoolConfig, **options: Any) -> RelaySocket:
    connection = await _Connect(
        url,
        compression=None,
        user_agent_header="pylon",
        open_timeout=config.connect_timeout_s,
        ping_interval=config.ping_interval_s,
        ping_timeout=config.pong_timeout_s,
        close_timeout=_CLOSE_TIMEOUT_S,
        max_size=max(config.hard_frame_bytes, config.max_frame_bytes),
        write_limit=_WRITE_HIGH_BYTES,
        logger=_silent,
        create_connection=RelaySocket,
        **options,
    )
    assert isinstance(connection, RelaySocket)
    return connection


@lru_cache(maxsize=1024)
def canonical_url(url: str) -> str:
    """Return the one spelling of a relay URL by which relays are compared. Raises `DialRefused`."""
    return parse_target(url, RELAY_SCHEMES).url


def is_refusal(error: BaseException) -> bool:
    """Whether the relay (or our own guard) said no, rather than being away."""
    if isinstance(error, InvalidStatus):
        return 400 <= error.response.status_code < 500
    return isinstance(error, DialRefused)


def describe(error: BaseException) -> str:
    """Return one printable line for what ended or prevented a connection."""
    match error:
        case ConnectionClosed(sent=sent) if sent is not None and sent.code == _MESSAGE_TOO_BIG:
            text = "a frame was larger than the hard limit"
        case ConnectionClosed(rcvd=rcvd) if rcvd is not None:
            text = f"closed by the relay: {rcvd.code} {rcvd.reason}"
        case ConnectionClosed(sent=sent) if sent is not None:
            text = f"closed by us: {sent.code} {sent.reason}"
        case ConnectionClosed():
            text = "the connection broke"
        case InvalidStatus():
            text = f"the relay answered HTTP {error.response.status_code}"
        case TimeoutError():
            text = "no answer in time"
        case ssl.SSLError():
            text = f"TLS: {getattr(error, 'verify_message', '') or error.reason or error}"
        case OSError(errno=int(errno)) if errno > 0:
            text = os.strerror(errno)  # asyncio's own words repeat the address
        case OSError(strerror=str(words)):
            text = words
        case _:
            text = str(error) or type(error).__name__
    return printable(text.rstrip())
