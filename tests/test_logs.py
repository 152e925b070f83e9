"""Logging: secrets, hostile text, valid JSON, and a reader who does not read."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from pylon.logs import REDACTED, LineSink, LogFormat, Logging, LogLevel, Redactor, configure, get_logger
from pylon.text import printable

NSEC = "nsec1vl029mgpspedva04g90vltkh6fvh240zqtv9k0t9af8935ke9laqsnlfe5"
HEX = "67dea2ed018072d675f5415ecfaed7d2597555e202d85b3d65ea4e58d2d92ffa"
MNEMONIC = "leader monkey parrot ring guide accident before fence cannon height naive bean"
SECRETS = (NSEC, HEX, MNEMONIC, 'tok\u00e9n "quoted"\\', "")
ANY_TEXT = st.text(st.characters(exclude_categories=()))


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    """Logging is the process's own: leave it as it was found."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)
    logging.getLogger("pylon").setLevel(logging.NOTSET)
    logging.captureWarnings(False)
    structlog.reset_defaults()


class Terminal(io.StringIO):
    """Text that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_lines_have_time_level_name_and_values() -> None:
    out = io.StringIO()
    configure(stream=out)
    get_logger("pylon.relays").info("connected", url="wss://x", tries=2, ok=True, ms=1.5, none=None)
    (line,) = lines(out)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "connected", "level": "info", "logger": "pylon.relays",
        "url": "wss://x", "tries": 2, "ok": True, "ms": 1.5, "none": None,
    }  # fmt: skip


def test_auto_is_text_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = Terminal()
    configure(stream=out)
    get_logger("pylon.relays").info("connected", url="wss://x", detail="two words")
    assert "\x1b[" in out.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    configure(stream=out)
    get_logger("pylon.relays").info("connected", url="wss://x", detail="two words")
    text = out.getvalue()
    assert text.isprintable() or text.rstrip("\n").isprintable()
    assert "url=wss://x detail='two words'" in text
    assert "pylon.relays" in text


def test_level() -> None:
    out = io.StringIO()
    configure("warning", "json", out)
    log = get_logger("pylon.x")
    log.info("no")
    log.warning("yes")
    logging.getLogger("pylon.y").info("no")
    logging.getLogger("pylon.y").warning("yes")
    assert [line["event"] for line in lines(out)] == ["yes", "yes"]


@pytest.mark.parametrize("format", [LogFormat.JSON, LogFormat.TEXT])
@pytest.mark.parametrize("debug", [True, False])
def test_secrets_never_appear(format: LogFormat, debug: bool) -> None:
    out = io.StringIO()
    logging_now = configure(LogLevel.DEBUG, format, out, SECRETS, debug=debug)
    logging_now.redactor.hide("later-known-token")
    log = get_logger("pylon.x")
    for secret in (*SECRETS[:-1], HEX.upper(), "later-known-token"):
        log.info(
            f"event {secret}", value=secret, nested={"deep": {"er": [secret]}, secret: 1}, listed=[secret, [secret]]
        )
        log.info("cut", value="x" * 985 + secret, error=ValueError("y" * 480 + secret))
        log.info("object", value=Holder(secret), raw=secret.encode())
        try:
            raise RuntimeError(f"with {secret}") from ValueError(secret)
        except RuntimeError:
            log.exception("failed")
            logging.getLogger("httpx").exception("failed %s", secret)
        logging.getLogger("websockets").warning("saw %s", secret)
    text = out.getvalue()
    assert REDACTED in text
    for secret in (*SECRETS[:3], HEX.upper(), "later-known-token", "quoted", "tok"):
        assert secret not in text
    for head in (NSEC[:12], HEX[:12], MNEMONIC[:12]):
        assert head not in text  # nor a piece that a length limit left over
    assert NSEC not in repr(logging_now)


class Holder:
    """An object whose text holds a secret."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return f"Holder({self.text})"


@given(ANY_TEXT, ANY_TEXT)
@pytest.mark.parametrize("format", [LogFormat.JSON, LogFormat.TEXT])
def test_hostile_text_is_one_printable_line(format: LogFormat, text: str, other: str) -> None:
    out = io.StringIO()
    configure(LogLevel.DEBUG, format, out)
    log = get_logger("pylon.x")
    log.warning(text, value=other, nested={text: other}, listed=[text, {other: text}], error=ValueError(text))
    logging.getLogger("library").warning("%s", other)
    first, second, *rest = out.getvalue().split("\n")
    assert rest == [""]
    for line in (first, second):
        assert printable(line, limit=len(line)) == line
        if format is LogFormat.JSON:
            assert json.loads(line)["level"] == "warning"


def test_odd_values_do_not_raise() -> None:
    class Broken:
        def __str__(self) -> str:
            raise RuntimeError

    out = io.StringIO()
    configure(stream=out)
    log = get_logger("pylon.x")
    log.info(
        "odd",
        huge=10**5000,
        nan=float("nan"),
        data=b"\x1b[0m",
        broken=Broken(),
        level_=LogLevel.INFO,
        many=range(3),
    )
    log.info("long", value="x" * 10**6, items=list(range(10**5)))
    odd, long = lines(out)
    assert odd["huge"] == "<integer of 16610 bits>"
    assert odd["broken"] == "<Broken>"
    assert odd["level_"] == "info"
    assert len(json.dumps(long)) < 2000


def test_exceptions_are_one_line_unless_debug() -> None:
    out = io.StringIO()
    configure(stream=out)
    try:
        raise ExceptionGroup("unhandled errors in a TaskGroup", [OSError("disk\nfull")])
    except ExceptionGroup:
        get_logger("pylon.x").exception("store failed")
        logging.getLogger("asyncio").exception("library failed")
    ours, theirs = lines(out)
    assert ours["error"] == theirs["error"] == "OSError: disk\\x0afull"
    assert "Traceback" not in out.getvalue()

    out = io.StringIO()
    configure(stream=out, format=LogFormat.TEXT, debug=True)
    try:
        raise OSError("disk \x1b[31mfull")
    except OSError:
        get_logger("pylon.x").exception("store failed")
    assert "Traceback (most recent call last)" in out.getvalue()
    assert "OSError: disk \\x1b[31mfull" in out.getvalue()


def test_libraries_go_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    # The test runner's own handlers raise on what ours has to survive.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    out = io.StringIO()
    logging.getLogger().addHandler(logging.StreamHandler())
    configure(stream=out)
    configure(stream=out)  # twice must not double the lines
    logging.getLogger("some.server").warning("Invalid HTTP \x1b[31mrequest")
    logging.getLogger("httpx").info("HTTP Request: …")
    logging.getLogger("broken").warning("%d", "not a number")
    warnings.warn("old API", stacklevel=1)
    events = lines(out)
    assert [line["logger"] for line in events] == ["some.server", "broken", "py.warnings"]
    assert events[0]["event"] == "Invalid HTTP \\x1b[31mrequest"
    assert events[1]["event"] == "a log record could not be formatted: TypeError"


def test_short_secrets_do_not_blacken_everything() -> None:
    assert Redactor(["a", "abc", ""]).clean("abacus") == "abacus"
    assert Redactor(["token", "token-long"]).clean("token-long token") == f"{REDACTED} {REDACTED}"


# --- readers that do not read -----------------------------------------------------------------------------------


def pipe_sink() -> tuple[int, Any, Logging]:
    reading, writing = os.pipe()
    stream = os.fdopen(writing, "w")
    return reading, stream, configure(stream=stream)


def test_full_pipe_drops_lines_and_says_so_later() -> None:
    reading, stream, logging_now = pipe_sink()
    log = get_logger("pylon.x")
    started = time.monotonic()
    for number in range(3000):
        log.info("line", number=number)
    assert time.monotonic() - started < 5  # blocking would be for ever
    lost = logging_now.sink.dropped
    assert lost > 0
    first = os.read(reading, 1 << 20)
    log.info("back")
    log.info("normal")
    assert logging_now.sink.dropped == 0
    told, back, normal = [json.loads(line) for line in os.read(reading, 1 << 20).splitlines()]
    assert told["lines"] == lost
    assert (back["event"], normal["event"]) == ("back", "normal")
    assert all(json.loads(line) for line in first.splitlines())
    stream.close()
    os.close(reading)


def test_long_line_into_a_stuck_pipe_waits_only_briefly() -> None:
    reading, stream, _ = pipe_sink()
    sink = LineSink(stream, str)
    started = time.monotonic()
    for _ in range(5):
        sink.write("x" * 50_000)
    assert time.monotonic() - started < 2
    assert sink.dropped > 0
    os.read(reading, 1 << 20)
    sink.write("whole")
    assert os.read(reading, 1 << 20).splitlines()[-1] == b"whole"
    stream.close()
    os.close(reading)


def test_reader_gone_is_not_our_end() -> None:
    reading, stream, _ = pipe_sink()
    os.close(reading)
    log = get_logger("pylon.x")
    log.info("one")
    log.info("two")
    stream.close()


def test_stderr_closed_in_a_real_process() -> None:
    program = (
        "from pylon.logs import configure, get_logger\nconfigure()\nget_logger('x').info('hello')\nprint('alive')"
    )
    done = subprocess.run(
        ["sh", "-c", '"$0" -c "$1" 2>&-', sys.executable, program], capture_output=True, timeout=20
    )
    assert done.stdout == b"alive\n"
    assert done.returncode == 0
