"""The guarded dialer: the only way in which a host named by a stranger is contacted.

A URL is parsed strictly, its host resolved once, every address checked, and the socket connected to an address
that passed: there is no second resolution that could answer differently (DNS rebinding). The caller gets a
connected socket and the name for TLS, so a library on top cannot dial elsewhere; redirects are the caller's not
to follow. Time, lookups and concurrent dials are bounded in total.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import anyio

from pylon.net.addresses import IPAddress, parse_address, why_not_public
from pylon.net.urls import MAX_URL_CHARS, DialRefused, Target, parse_target
from pylon.text import printable

__all__ = ["DialPolicy", "DialRefused", "Dialed", "Dialer", "Resolver", "Target", "system_resolver"]

MAX_ADDRESSES: Final = 16
MAX_LOOKUPS: Final = 4

# Names that never lead to the public internet, or that the operator's network answers for itself.
_LOCAL_NAMES: Final = frozenset(
    {"localhost", "localdomain", "local", "internal", "intranet", "lan", "home", "corp", "private"}
    | {"onion", "i2p", "alt", "test", "invalid"}
)

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Returns the addresses of a host name as text; raises OSError when there are none."""


@dataclass(frozen=True, slots=True)
class DialPolicy:
    """What may be dialed. With `allow_private` (tests, a demo on one machine) every address and port passes."""

    allow_private: bool = False
    schemes: frozenset[str] = frozenset({"ws", "wss"})
    low_ports: frozenset[int] = frozenset({80, 443})  # below 1024 nothing else: no greeting of mail servers
    resolve_timeout_s: float = 3.0
    connect_timeout_s: float = 5.0
    max_concurrent: int = 16
    max_url_chars: int = MAX_URL_CHARS


@dataclass(frozen=True, slots=True)
class Dialed:
    """A connected, non-blocking socket. `server_hostname` is what TLS must verify, None without TLS."""

    target: Target
    sock: socket.socket
    address: IPAddress
    server_hostname: str | None


class Dialer:
    """Dials what strangers name, within one policy and one total budget."""

    def __init__(self, policy: DialPolicy | None = None, resolver: Resolver | None = None) -> None:
        self.policy = policy or DialPolicy()
        self._resolver = resolver or system_resolver()
        self._dialing = 0

    def check(self, url: str) -> Target:
        """Return where `url` points, without contacting anything. Raises `DialRefused` and nothing else."""
        target = parse_target(url, self.policy.schemes, self.policy.max_url_chars)
        if self.policy.allow_private:
            return target
        if target.port < 1024 and target.port not in self.policy.low_ports:
            raise DialRefused("bad-port", f"port {target.port} is not one that a stranger may name")
        if target.address is not None:
            self._check_address(target.host, target.address)
        elif "." not in target.host or _is_local_name(target.host):
            raise DialRefused("private-host", f"{target.host} is a name of a local network")
        return target

    async def resolve(self, target: Target) -> tuple[IPAddress, ...]:
        """Return the addresses of a checked target, all of them public. Raises `DialRefused`.

        One private address among public ones refuses the host: a name that is half inside is a trap.
        """
        if target.address is not None:
            return (target.address,)
        try:
            with anyio.fail_after(self.policy.resolve_timeout_s):
                texts = await self._resolver(target.host, target.port)
        except TimeoutError:
            raise DialRefused("resolve-timeout", f"the name {target.host} was not resolved in time") from None
        except (OSError, UnicodeError):
            raise DialRefused("unresolved", f"the name {target.host} does not resolve") from None
        addresses = []
        for text in texts[:MAX_ADDRESSES]:
            address = parse_address(text)
            if address is None:
                raise DialRefused("unresolved", f"the name {target.host} resolves to {printable(text)}")
            self._check_address(target.host, address)
            addresses.append(address)
        if not addresses:
            raise DialRefused("unresolved", f"the name {target.host} does not resolve")
        return tuple(addresses)

    async def dial(self, url: str) -> Dialed:
        """Return a socket connected to what `url` names; the caller closes it. Raises `DialRefused`."""
        target = self.check(url)
        if self._dialing >= self.policy.max_concurrent:
            raise DialRefused("busy", f"{self._dialing} other hosts are being dialed")
        self._dialing += 1
        try:
            addresses = await self.resolve(target)
            return await self._connect(target, addresses)
        finally:
            self._dialing -= 1

    def _check_address(self, host: str, address: IPAddress) -> None:
        if self.policy.allow_private:
            return
        why = why_not_public(address)
        if why is not None:
            raise DialRefused("private-host", f"{host} is at {address}, a {why} address")

    async def _connect(self, target: Target, addresses: Sequence[IPAddress]) -> Dialed:
        share_s = self.policy.connect_timeout_s / len(addresses)
        error: Exception | None = None
        for address in addresses:
            try:
                with anyio.fail_after(share_s):
                    sock = await _open_socket(address, target.port)
            except OSError as failure:  # TimeoutError is one
                error = failure
                continue
            return Dialed(target, sock, address, target.host if target.secure else None)
        if isinstance(error, TimeoutError):
            raise DialRefused("connect-timeout", f"{target.host} did not answer in time") from None
        detail = (error.strerror if isinstance(error, OSError) else None) or "no connection"
        raise DialRefused("unreachable", f"{target.host} cannot be reached: {detail}") from None


def _is_local_name(host: str) -> bool:
    return host.rpartition(".")[2] in _LOCAL_NAMES or host.endswith(".home.arpa")


async def _open_socket(address: IPAddress, port: int) -> socket.socket:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(sock, (str(address), port))
    except BaseException:
        sock.close()
        raise
    return sock


def system_resolver(max_lookups: int = MAX_LOOKUPS) -> Resolver:
    """Return a resolver over `getaddrinfo`, with at most `max_lookups` at a time.

    A lookup cannot be interrupted and may take the system half a minute. It runs on a daemon thread of its own: the
    loop's shared thread pool stays free for everyone else, a slot is free again only when its thread is done, and
    the process can exit meanwhile.
    """
    slots = threading.BoundedSemaphore(max_lookups)

    async def resolve(host: str, port: int) -> list[str]:
        if not slots.acquire(blocking=False):
            raise DialRefused("busy", f"{max_lookups} other names are being resolved")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[str]] = loop.create_future()

        def finish(addresses: list[str], error: OSError | None) -> None:
            if answer.done():
                return
            if error is None:
                answer.set_result(addresses)
            else:
                answer.set_exception(error)

        def look_up() -> None:
            addresses: list[str] = []
            fault: OSError | None = None
            try:
                found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
            except OSError as error:
                fault = error
            except UnicodeError:
                fault = OSError("not a host name")
            finally:
                slots.release()
            with contextlib.suppress(RuntimeError):  # the loop is gone: nobody waits
                loop.call_soon_threadsafe(finish, addresses, fault)

        threading.Thread(target=look_up, name="resolve", daemon=True).start()
        return await answer

    return resolve
