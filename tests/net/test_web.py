"""The guarded GET: what it fetches, and every way in which a host may be asked for too much."""

from __future__ import annotations

import gzip
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import SocketStream
from anyio.streams.tls import TLSListener

from pylon.net.web import Web, WebAnswer, WebError, WebPolicy, WebRefused
from pylon.text import printable

LOCAL = WebPolicy(allow_private=True, timeout_s=5.0)


@dataclass
class Host:
    """A server of one canned answer; what it was asked, and by how many at once."""

    url: str
    asked: list[bytes] = field(default_factory=list)
    open: int = 0
    most_open: int = 0


Script = Callable[[SocketStream], Awaitable[None]]


def answer(
    body: bytes, *, kind: str = "application/json", status: str = "200 OK", more: Sequence[str] = ()
) -> Script:
    head = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *more]
    raw = "\r\n".join(head).encode() + b"\r\n\r\n" + body

    async def script(stream: SocketStream) -> None:
        await stream.send(raw)

    return script


@asynccontextmanager
async def host(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[Host]:
    """Serve `script` to whoever connects, once the request has come."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    served = Host(f"http://127.0.0.1:{port}" if tls is None else f"https://localhost:{port}")

    async def handle(stream: SocketStream) -> None:
        served.open += 1
        served.most_open = max(served.open, served.most_open)
        try:
            async with stream:
                request = b""
                while b"\r\n\r\n" not in request:
                    request += await stream.receive()
                served.asked.append(request)
                await script(stream)
        except (anyio.BrokenResourceError, anyio.EndOfStream, anyio.ClosedResourceError, ssl.SSLError):
            return
        finally:
            served.open -= 1

    async with anyio.create_task_group() as tasks:
        serving: Any = listener if tls is None else TLSListener(listener, tls, standard_compatible=False)
        tasks.start_soon(serving.serve, handle)
        yield served
        tasks.cancel_scope.cancel()
    await listener.aclose()


async def fault(script: Script, policy: WebPolicy = LOCAL) -> WebError:
    async with host(script) as served:
        with pytest.raises(WebError) as caught:
            await Web(policy).get_json(served.url + "/x")
        assert served.asked
    assert caught.value.sent and not isinstance(caught.value, WebRefused)
    assert printable(str(caught.value), limit=1_000) == str(caught.value)
    return caught.value


# --- what is fetched ----------------------------------------------------------------------------------------------


async def test_json_is_fetched_in_one_plain_request() -> None:
    async with host(answer(b'{"a": [1]}', kind="application/json; charset=utf-8")) as served:
        got = await Web(LOCAL).get_json(served.url + "/p?x=%20&y")
    assert got == WebAnswer("127.0.0.1", 200, {"a": [1]})
    head, *fields = served.asked[0].decode().strip().split("\r\n")
    assert head == "GET /p?x=%20&y HTTP/1.1"
    assert {field.partition(":")[0].lower() for field in fields} == {
        *("host", "accept", "accept-encoding", "user-agent", "connection"),
    }
    assert "Accept-Encoding: identity" in served.asked[0].decode()


async def test_a_long_url_and_an_answer_in_chunks() -> None:
    async def chunked(stream: SocketStream) -> None:
        await stream.send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in (b'{"a"', b": 1", b"}"):
            await stream.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        await stream.send(b"0\r\n\r\n")

    async with host(chunked) as served:
        got = await Web(LOCAL).get_json(served.url + "?nostr=" + "x" * 6_000)
    assert got.value == {"a": 1}


@pytest.mark.parametrize(
    ("body", "kind", "value"), [(b'{"b":2}', "application/json", {"b": 2}), (b"<p>", "text/html", None)]
)
async def test_an_error_status_is_an_answer_with_what_it_says(body: bytes, kind: str, value: object) -> None:
    async with host(answer(body, kind=kind, status="404 Not Found")) as served:
        got = await Web(LOCAL).get_json(served.url)
    assert (got.status, got.value) == (404, value)


async def test_an_answer_that_ends_with_the_connection() -> None:
    async def script(stream: SocketStream) -> None:
        await stream.send(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n[1]")

    async with host(script) as served:
        assert (await Web(LOCAL).get_json(served.url)).value == [1]


# --- what is not --------------------------------------------------------------------------------------------------


async def test_redirects_are_not_followed() -> None:
    for status in ("301 Moved", "302 Found", "307 Temporary", "308 Permanent", "304 Not Modified"):
        script = answer(b"{}", status=status, more=["Location: http://127.0.0.1:1/"])
        assert (await fault(script)).reason == "redirect"


@pytest.mark.parametrize("kind", ["text/html", "image/png", "application/x-tar", "multipart/form-data; boundary=x"])
async def test_only_json_is_an_answer(kind: str) -> None:
    assert (await fault(answer(b"{}", kind=kind))).reason == "content-type"


async def test_what_calls_itself_json_must_be_some() -> None:
    for body in (b"", b"<html>", b"{", b"\xff", b"[" * 5_000):
        assert (await fault(answer(body))).reason == "not-json"


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "identity, gzip", "\x1b[2J"])
async def test_compressed_answers_are_refused_unread(encoding: str) -> None:
    bomb = gzip.compress(b"[" + b" " * 5_000_000 + b"]")
    error = await fault(answer(bomb, more=[f"Content-Encoding: {encoding}"]))
    assert error.reason in ("encoding", "not-http")  # h11 takes no control characters in a field


async def test_more_than_the_limit_is_not_read() -> None:
    policy = WebPolicy(allow_private=True, max_bytes=1_000)
    assert (await fault(answer(b"[" + b" " * 999 + b"]"), policy)).reason == "too-long"
    async with host(answer(b"[" + b" " * 998 + b"]")) as served:
        assert (await Web(policy).get_json(served.url)).value == []


async def endless(stream: SocketStream, head: bytes, piece: bytes) -> None:
    await stream.send(head)
    while True:
        await stream.send(piece)


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n", b" " * 1_000),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"3e8\r\n" + b" " * 1_000 + b"\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X: " + b"y" * 1_000 + b"\r\n"),
        (b"HTTP/1.1 200 OK\r\n", b"X: " + b"y" * 1_000 + b"\r\n"),
        (b"HTTP/1.1 200 ", b"K" * 1_000),
        (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
        (b"", b"\x00" * 1_000),
    ],
)
async def test_what_has_no_end_is_left_early(head: bytes, piece: bytes) -> None:
    async def script(stream: SocketStream) -> None:
        await endless(stream, head, piece)

    with anyio.fail_after(4.0):  # by its size, before its time is over
        assert (await fault(script)).reason in ("too-long", "not-http")


async def test_an_answer_that_drips_is_left_at_the_limit() -> None:
    async def script(stream: SocketStream) -> None:
        await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n")
        while True:
            await stream.send(b" ")
            await anyio.sleep(0.02)

    assert (await fault(script, WebPolicy(allow_private=True, timeout_s=0.3))).reason == "timeout"


async def test_silence_and_a_broken_connection() -> None:
    async def silence(stream: SocketStream) -> None:
        await anyio.sleep_forever()

    async def hang_up(stream: SocketStream) -> None:
        await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")

    async def nonsense(stream: SocketStream) -> None:
        await stream.send(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")

    assert (await fault(silence, WebPolicy(allow_private=True, timeout_s=0.2))).reason == "timeout"
    assert (await fault(hang_up)).reason == "not-http"
    assert (await fault(nonsense)).reason == "not-http"


async def test_no_more_than_so_many_at_once() -> None:
    release, full = anyio.Event(), anyio.Event()

    async def script(stream: SocketStream) -> None:
        if served.open == 2:
            full.set()
        await release.wait()
        await answer(b"{}")(stream)

    web = Web(WebPolicy(allow_private=True, max_concurrent=2))
    async with host(script) as served, anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(web.get_json, served.url)
        with anyio.fail_after(5):
            await full.wait()
        release.set()
    assert (len(served.asked), served.most_open) == (5, 2)


# --- where it goes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        *("http://example.com", "ftp://example.com", "https://127.0.0.1", "https://localhost", "https://10.0.0.1"),
        *(
            "https://169.254.169.254/latest/meta-data",
            "https://router",
            "https://x.onion",
            "https://example.com:25",
        ),
        *("https://user@example.com", "https://example.com/" + "a" * 9_000, "https://[::ffff:127.0.0.1]"),
    ],
)
async def test_a_strangers_url_is_refused_before_anything_is_asked(url: str) -> None:
    async def resolver(name: str, port: int) -> Sequence[str]:
        raise AssertionError("nothing is resolved")

    with pytest.raises(WebRefused) as caught:
        await Web(resolver=resolver).get_json(url)
    assert not caught.value.sent


async def test_a_name_at_a_private_address_is_refused() -> None:
    async def resolver(name: str, port: int) -> Sequence[str]:
        return ["8.8.8.8", "10.0.0.7"]

    with pytest.raises(WebRefused, match=r"10\.0\.0\.7, a private address"):
        await Web(resolver=resolver).get_json("https://pay.example.com/x")


async def test_plain_http_stays_on_this_machine() -> None:
    with pytest.raises(WebRefused, match="https"):
        await Web(LOCAL).get_json("http://192.168.1.1/")


async def test_a_name_is_resolved_once_and_the_socket_goes_where_it_was_checked() -> None:
    asked: list[str] = []

    async with host(answer(b"{}")) as served:
        port = int(served.url.rpartition(":")[2])

        async def resolver(name: str, port: int) -> Sequence[str]:
            asked.append(name)
            return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.9"]  # rebinds after the first answer

        await Web(LOCAL, resolver=resolver).get_json(f"http://localhost:{port}/")
    assert asked == ["localhost"] and b"Host: localhost:" in served.asked[0]


async def test_nothing_was_sent_where_nobody_listens() -> None:
    async with host(answer(b"{}")) as served:
        url = served.url
    with pytest.raises(WebError) as caught:
        await Web(LOCAL).get_json(url)
    assert caught.value.reason == "unreachable" and not caught.value.sent


async def test_a_name_that_does_not_resolve_may_later() -> None:
    async def resolver(name: str, port: int) -> Sequence[str]:
        raise OSError

    with pytest.raises(WebError) as caught:
        await Web(resolver=resolver).get_json("https://pay.example.com/x")
    assert not isinstance(caught.value, WebRefused) and not caught.value.sent


# --- TLS ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for `localhost` and its key, in one file."""
    folder = tmp_path_factory.mktemp("tls")
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    )
    parts = [*command.split(), "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(
        [*parts, "-keyout", str(folder / "key"), "-out", str(folder / "cert")], check=True, capture_output=True
    )
    (folder / "both").write_bytes((folder / "key").read_bytes() + (folder / "cert").read_bytes())
    return folder / "both"


def serving(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


async def test_tls_is_verified_for_the_name(certificate: Path) -> None:
    trusting = ssl.create_default_context(cafile=str(certificate))
    async with host(answer(b'{"tls": true}'), serving(certificate)) as served:
        assert (await Web(LOCAL, tls=trusting).get_json(served.url)).value == {"tls": True}
        with pytest.raises(WebError) as caught:
            await Web(LOCAL, tls=trusting).get_json(served.url.replace("localhost", "127.0.0.1"))
        assert caught.value.reason == "tls" and not caught.value.sent
        with pytest.raises(WebError, match="TLS") as caught:
            await Web(LOCAL).get_json(served.url)
        assert caught.value.reason == "tls" and not caught.value.sent
    assert len(served.asked) == 1
