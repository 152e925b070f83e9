"""The guarded dialer: what it understands, refuses and connects to."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from ipaddress import ip_address

import anyio
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pylon.net.addresses import why_not_public
from pylon.net.dialer import Dialed, Dialer, DialPolicy, DialRefused, Target, system_resolver
from pylon.net.urls import parse_target
from pylon.text import printable

WS = frozenset({"ws", "wss"})


def resolving_to(*addresses: str) -> Dialer:
    async def resolver(host: str, port: int) -> Sequence[str]:
        return addresses

    return Dialer(DialPolicy(), resolver)


def refusal(url: str) -> str:
    with pytest.raises(DialRefused) as caught:
        Dialer().check(url)
    assert printable(str(caught.value), limit=2000) == str(caught.value)
    return caught.value.reason


# --- URLs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "canonical", "port"),
    [
        ("wss://relay.example.com", "wss://relay.example.com", 443),
        ("wss://Relay.Example.COM:443/", "wss://relay.example.com", 443),
        ("ws://relay.example.com:80", "ws://relay.example.com", 80),
        ("WSS://relay.example.com:8443/path?x=1#frag", "wss://relay.example.com:8443/path?x=1", 8443),
        ("wss://bücher.example", "wss://xn--bcher-kva.example", 443),
        ("wss://8.8.8.8", "wss://8.8.8.8", 443),
        ("wss://[2606:4700:4700:0::1111]:444", "wss://[2606:4700:4700::1111]:444", 444),
        ("wss://under_score.example", "wss://under_score.example", 443),
    ],
)
def test_a_url_has_one_canonical_spelling(url: str, canonical: str, port: int) -> None:
    target = parse_target(url, WS)
    assert (target.url, target.port) == (canonical, port)
    assert parse_target(canonical, WS) == target


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "bad-scheme"),
        ("relay.example.com", "bad-scheme"),
        ("https://relay.example.com", "bad-scheme"),
        ("file:///etc/passwd", "bad-scheme"),
        ("wss://user:pass@relay.example.com", "user-info"),
        ("wss://relay.example.com@127.0.0.1", "user-info"),
        ("wss://relay.example.com:0", "bad-port"),
        ("wss://relay.example.com:", "bad-port"),
        ("wss://relay.example.com:99999", "bad-url"),
        ("wss://relay.example.com:x", "bad-url"),
        ("wss://relay.example.com:25", "bad-port"),
        ("wss://", "bad-host"),
        ("wss://relay.example.com.", "bad-host"),
        ("wss://relay..example.com", "bad-host"),
        ("wss://-relay.example.com", "bad-host"),
        ("wss://" + "a" * 64 + ".example", "bad-host"),
        ("wss://" + "a." * 150 + "example", "bad-host"),
        ("wss://relay%2eexample.com", "bad-host"),
        ("wss://[::1", "bad-url"),
        ("wss://[fe80::1%25eth0]", "bad-host"),
        ("wss://exa mple.com", "bad-url"),
        ("wss://example.com\\@evil.example", "bad-url"),
        ("wss://example.com\n", "bad-url"),
        ("wss://example.com/\x00", "bad-url"),
        ("wss://example.com/\u2028", "bad-url"),
        ("wss://example.com/ü", "bad-url"),
        ("wss://\ud800.example", "bad-host"),
        ("wss://example.com/" + "a" * 600, "bad-url"),
        ("ws://0x7f000001", "bad-host"),
        ("ws://0x7f.0.0.1", "bad-host"),
        ("ws://2130706433", "bad-host"),
        ("ws://127.1", "bad-host"),
        ("ws://0177.0.0.1", "bad-host"),
        ("ws://127.0.0.1.", "bad-host"),
        ("ws://127.0.0.256", "bad-host"),
        ("ws://①②⑦.0.0.1", "private-host"),  # UTS 46 makes digits of these
        ("ws://127.0.0.1", "private-host"),
        ("ws://[::1]", "private-host"),
        ("ws://[::ffff:127.0.0.1]", "private-host"),
        ("ws://[64:ff9b::7f00:1]", "private-host"),
        ("ws://169.254.169.254", "private-host"),
        ("ws://localhost", "private-host"),
        ("ws://LOCALHOST:8080", "private-host"),
        ("ws://a.localhost", "private-host"),
        ("ws://printer.local", "private-host"),
        ("ws://metadata.google.internal", "private-host"),
        ("ws://router.home.arpa", "private-host"),
        ("ws://expyuzz4wqqyqhjn.onion", "private-host"),
        ("ws://router", "private-host"),
    ],
)
def test_refused_without_contacting_anything(url: str, reason: str) -> None:
    assert refusal(url) == reason


schemes = ["ws://", "wss:", "//", "wss://"]
marks = [
    "@",
    ":",
    "[",
    "]",
    "%",
    "%00",
    ".",
    "..",
    "/",
    "\\",
    "?",
    "#",
    "\x00",
    "\n",
    "\u200d",
    "\ud800",
    "\u3002",
    "\u0660",
]
hosts = [
    "127.0.0.1",
    "0x7f",
    "localhost",
    "example.com",
    "xn--",
    "xn--a",
    "ß",
    "ﬀ",
    "::1",
    "[1.2.3.4]",
    "443",
    "99999",
]
pieces = st.sampled_from(schemes + marks + hosts)


@given(
    st.text() | st.lists(pieces, max_size=8).map("".join) | st.text(max_size=60).map(lambda text: f"wss://{text}")
)
@example("wss://[v1.fe80::a+en1]")
@example("wss://xn--999999999999.example")
@example("wss://℀.example")
def test_any_text_is_a_target_or_refused(url: str) -> None:
    try:
        target = Dialer().check(url)
    except DialRefused as refused:
        assert refused.reason
        assert printable(str(refused), limit=2000) == str(refused)
    else:
        assert isinstance(target, Target)
        assert target.url.isascii()
        assert 0 < target.port < 65536
        assert parse_target(target.url, WS) == target


@given(st.ip_addresses())
def test_every_literal_address_that_is_not_public_is_refused(address: object) -> None:
    text = str(address)
    url = f"ws://[{text}]" if ":" in text else f"ws://{text}"
    if why_not_public(ip_address(text)) is None:
        assert Dialer().check(url).address == address
    else:
        assert refusal(url) == "private-host"


# --- resolving ----------------------------------------------------------------------------------------------------


@given(st.lists(st.ip_addresses().map(str), min_size=1, max_size=5))
def test_one_address_that_is_not_public_refuses_the_name(addresses: list[str]) -> None:
    async def resolve() -> list[str]:
        dialer = resolving_to(*addresses)
        return [str(address) for address in await dialer.resolve(dialer.check("wss://relay.example.com"))]

    if all(why_not_public(ip_address(address)) is None for address in addresses):
        assert anyio.run(resolve) == addresses
    else:
        with pytest.raises(DialRefused, match=r"relay\.example\.com is at "):
            anyio.run(resolve)


@pytest.mark.parametrize("answer", [(), ("nonsense",), ("1.1.1.1", "")])
async def test_a_resolver_that_answers_nonsense(answer: tuple[str, ...]) -> None:
    with pytest.raises(DialRefused) as caught:
        await resolving_to(*answer).dial("wss://relay.example.com")
    assert caught.value.reason == "unresolved"


async def test_a_resolver_that_fails_or_hangs() -> None:
    async def failing(host: str, port: int) -> list[str]:
        raise socket.gaierror(-2, "Name or service not known")

    async def hanging(host: str, port: int) -> list[str]:
        await anyio.sleep_forever()
        return []

    with pytest.raises(DialRefused, match="does not resolve"):
        await Dialer(DialPolicy(), failing).dial("wss://relay.example.com")
    with pytest.raises(DialRefused, match="not resolved in time") as caught:
        await Dialer(DialPolicy(resolve_timeout_s=0.05), hanging).dial("wss://relay.example.com")
    assert caught.value.reason == "resolve-timeout"


async def test_the_name_is_resolved_once_and_the_socket_goes_where_it_said() -> None:
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        async def rebinding(host: str, port: int) -> list[str]:
            asked.append(host)
            return ["127.0.0.1"] if len(asked) == 1 else ["10.0.0.1"]

        dialed = await Dialer(DialPolicy(allow_private=True), rebinding).dial(f"wss://relay.example.com:{port}")
        with dialed.sock as sock:
            assert sock.getpeername() == ("127.0.0.1", port)
            assert not sock.getblocking()
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
        assert dialed.server_hostname == "relay.example.com"
        assert asked == ["relay.example.com"]


async def test_the_system_resolver_bounds_its_lookups(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()

    def slow(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        go_on.wait(10)
        return [(socket.AF_INET, 0, 0, "", ("1.2.3.4", port)), (socket.AF_INET, 0, 0, "", ("1.2.3.4", port))]

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    resolver = system_resolver(max_lookups=2)
    dialer = Dialer(DialPolicy(resolve_timeout_s=0.05), resolver)
    for _ in range(2):
        with pytest.raises(DialRefused, match="in time"):
            await dialer.resolve(dialer.check("wss://slow.example.com"))
    # The caller has long given up, but the threads still hang: no third one is started.
    with pytest.raises(DialRefused, match="2 other names are being resolved"):
        await dialer.resolve(dialer.check("wss://slow.example.com"))
    go_on.set()
    with anyio.fail_after(5):
        while True:
            try:
                assert await resolver("slow.example.com", 443) == ["1.2.3.4"]
                break
            except DialRefused:
                await anyio.sleep(0.01)


async def test_the_system_resolver_says_what_the_system_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await system_resolver()("127.0.0.1", 80) == ["127.0.0.1"]

    def failing(*_: object, **__: object) -> list[object]:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", failing)
    with pytest.raises(socket.gaierror):
        await system_resolver()("nowhere.example", 80)


# --- connecting ---------------------------------------------------------------------------------------------------


async def test_a_closed_port_and_a_silent_host_are_told_apart() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with pytest.raises(DialRefused, match=r"127\.0\.0\.1 cannot be reached") as caught:
            await Dialer(DialPolicy(allow_private=True)).dial(f"ws://127.0.0.1:{port}")
        assert caught.value.reason == "unreachable"

    with socket.socket() as full:  # a listener whose backlog is full answers no SYN
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        fillers = [socket.socket() for _ in range(8)]
        try:
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(("127.0.0.1", port))
            started = time.perf_counter()
            with pytest.raises(DialRefused) as caught:
                await Dialer(DialPolicy(allow_private=True, connect_timeout_s=0.2)).dial(f"ws://127.0.0.1:{port}")
            assert caught.value.reason == "connect-timeout"
            assert time.perf_counter() - started < 2
        finally:
            for filler in fillers:
                filler.close()


async def test_the_next_address_is_tried_when_one_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        async def resolver(host: str, port: int) -> list[str]:
            return ["127.0.0.2", "127.0.0.1"]

        dialed = await Dialer(DialPolicy(allow_private=True), resolver).dial(f"ws://two.example.com:{port}")
        dialed.sock.close()
        assert str(dialed.address) == "127.0.0.1"
        assert dialed.server_hostname is None


async def test_dials_are_capped_in_total() -> None:
    async def hanging(host: str, port: int) -> list[str]:
        await anyio.sleep_forever()
        return []

    dialer = Dialer(DialPolicy(max_concurrent=3, resolve_timeout_s=5), hanging)
    reasons: list[str] = []

    async def dial() -> Dialed | None:
        try:
            return await dialer.dial("wss://slow.example.com")
        except DialRefused as refused:
            reasons.append(refused.reason)
            return None

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(dial)
        with anyio.fail_after(5):
            while len(reasons) < 7:  # noqa: ASYNC110 - a time limit is around it
                await anyio.sleep(0.001)
        tasks.cancel_scope.cancel()
    assert reasons == ["busy"] * 7
    with pytest.raises(DialRefused, match=r"10\.0\.0\.1"):
        await dialer.dial("wss://10.0.0.1")  # the places are free again
