"""Logging: structlog to stderr, readable on a terminal and JSON lines elsewhere.

Two things hold for every line, from our own code and from libraries alike: no registered secret is in it, and
nothing a stranger wrote can steer the terminal that shows it. And no line holds the event loop up: when nobody
reads stderr, lines are dropped and counted.

Use `structlog.get_logger("pylon.relays")`, or `get_logger` here; `configure` is called once, by the daemon.
"""

from __future__ import annotations

import json
import logging
import os
import re
import select
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Protocol, cast

import orjson
import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from pylon.errors import describe_error
from pylon.text import printable

REDACTED: Final = "[secret]"
_SHORTEST_SECRET: Final = 4
_VALUE_LIMIT: Final = 1000
_TRACEBACK_LIMIT: Final = 20_000
_MOST_ITEMS: Final = 50
_DEEPEST: Final = 3
_FIRST: Final = ("timestamp", "level", "logger", "event")
_PIPE_BUF: Final = 4096  # what a writable pipe takes without blocking (select.PIPE_BUF, at least 512)
_PATIENCE_MS: Final = 100


class LogFormat(StrEnum):
    """How a line looks."""

    AUTO = "auto"  # text on a terminal, JSON lines otherwise
    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """The least serious lines that are written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogStream(Protocol):
    """Where lines go. With a file descriptor it is written to directly, so that a full pipe cannot block."""

    def write(self, text: str, /) -> object:
        """Take text."""
        ...

    def flush(self) -> object:
        """Pass on what was taken."""
        ...

    def isatty(self) -> bool:
        """Tell whether a person reads it."""
        ...


class Redactor:
    """Replaces registered secrets. Texts under four characters are not taken: they would blacken everything."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._secrets: set[str] = set()
        self._pattern: re.Pattern[str] | None = None
        self.hide(*secrets)

    def hide(self, *secrets: str) -> None:
        """Register secrets; they are hidden in either case, and as `repr` and JSON spell them."""
        for secret in secrets:
            if len(secret) >= _SHORTEST_SECRET:
                for spelling in (secret, repr(secret)[1:-1], ascii(secret)[1:-1], json.dumps(secret)[1:-1]):
                    self._secrets |= {spelling, spelling.lower(), spelling.upper()}
        # The longest first: a secret that contains another one must go whole.
        ordered = sorted(self._secrets, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def clean(self, text: str) -> str:
        """Return `text` without any registered secret."""
        return self._pattern.sub(REDACTED, text) if self._pattern else text

    def __repr__(self) -> str:
        return f"Redactor({len(self._secrets)} spellings)"


@dataclass(frozen=True, slots=True)
class Logging:
    """The logging in force: register secrets that become known later, see how many lines nobody read."""

    redactor: Redactor
    sink: LineSink


def configure(
    level: str = LogLevel.INFO,
    format: str = LogFormat.AUTO,
    stream: LogStream | None = None,
    secrets: Iterable[str] = (),
    *,
    debug: bool = False,
) -> Logging:
    """Set logging up for this process, structlog and the standard library's alike.

    `level` and `format` are the words of `LogLevel` and `LogFormat`; another one is a `ValueError`. `secrets` are
    values that must never be printed (nsec, hex secret, mnemonic, tokens). `debug` adds tracebacks; without it an
    exception is one line. Libraries are heard from WARNING up.
    """
    out: LogStream = stream or sys.stderr or _nowhere()
    look = LogFormat(format)
    text = look is LogFormat.TEXT or (look is LogFormat.AUTO and out.isatty())
    redactor = Redactor(secrets)
    chain = _chain(redactor, text=text, colors=text and _wants_colors(out), debug=debug)

    def lost_line(count: int) -> str:
        event: Any = {"event": "log lines were dropped: nobody read them", "level": "warning", "lines": count}
        for processor in chain:
            event = processor(None, "warning", event)
        return str(event)

    sink = LineSink(out, lost_line)
    number = logging.getLevelName(LogLevel(level).upper())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            _add_name,
            *chain,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *names: _LineLogger(str(names[0]) if names else "pylon", sink),
        cache_logger_on_first_use=False,
    )
    _route_standard_library(number, sink, chain)
    return Logging(redactor, sink)


def get_logger(name: str) -> FilteringBoundLogger:
    """Return the logger of one part, named like its module."""
    return cast(FilteringBoundLogger, structlog.get_logger(name))


# --- what happens to an event ---------------------------------------------------------------------------------


def _chain(redactor: Redactor, *, text: bool, colors: bool, debug: bool) -> list[Processor]:
    stamp = structlog.processors.TimeStamper(fmt="%H:%M:%S" if text else "iso", utc=not text)
    render: Processor
    if text:
        render = structlog.dev.ConsoleRenderer(
            colors=colors, pad_event_to=0, sort_keys=False, exception_formatter=structlog.dev.plain_traceback
        )
    else:
        render = structlog.processors.JSONRenderer(serializer=lambda event, **_: orjson.dumps(event).decode())

    def clean(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        error = _exception(event.pop("exc_info", None))
        ordered = {key: event.pop(key) for key in _FIRST if key in event} | dict(event)
        cleaned = {_clean_key(key, redactor): _clean_value(value, redactor) for key, value in ordered.items()}
        if error is not None and debug:
            whole = redactor.clean(_whole(error))
            cleaned["exception"] = printable(whole, limit=_TRACEBACK_LIMIT, keep_newlines=True)
        elif error is not None:
            cleaned["error"] = describe_error(error, redactor.clean)
        return cleaned

    def redact_line(_: WrappedLogger, __: str, line: EventDict) -> str:
        return redactor.clean(str(line))  # what a renderer spelled anew

    return [stamp, clean, render, redact_line]


def _whole(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)).rstrip()


def _exception(exc_info: object) -> BaseException | None:
    if isinstance(exc_info, BaseException):
        return exc_info
    if isinstance(exc_info, tuple):
        return exc_info[1] if isinstance(exc_info[1], BaseException) else None
    return sys.exc_info()[1] if exc_info else None


def _add_name(logger: WrappedLogger, _: str, event: EventDict) -> EventDict:
    event["logger"] = logger.name
    return event


def _clean_key(key: object, redactor: Redactor) -> str:
    return key if isinstance(key, str) and key.isidentifier() else _clean_text(key, redactor)


def _clean_value(value: object, redactor: Redactor, depth: int = 0) -> object:
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return int(value) if -(2**63) <= value < 2**63 else f"<integer of {value.bit_length()} bits>"
    if isinstance(value, Mapping | list | tuple | set | frozenset) and depth >= _DEEPEST:
        return "…"
    if isinstance(value, Mapping):
        items = list(value.items())[:_MOST_ITEMS]
        return {_clean_text(key, redactor): _clean_value(item, redactor, depth + 1) for key, item in items}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean_value(item, redactor, depth + 1) for item in list(value)[:_MOST_ITEMS]]
    return _clean_text(value, redactor)


def _clean_text(value: object, redactor: Redactor) -> str:
    if isinstance(value, BaseException):
        return describe_error(value, redactor.clean)
    try:
        text = value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)
    except Exception:  # noqa: BLE001  (somebody's __str__ must not break the log line)
        text = f"<{type(value).__name__}>"
    # Secrets go before the length limit: it could cut one so that it is no longer recognised.
    return printable(redactor.clean(text), limit=_VALUE_LIMIT)


def _nowhere() -> LogStream:
    # Python has no stderr when it was started with that descriptor closed. The null device takes its number,
    # which a database file must not get.
    return cast(LogStream, Path(os.devnull).open("w", encoding="utf-8"))


def _wants_colors(stream: LogStream) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


# --- where a line goes ----------------------------------------------------------------------------------------


class LineSink:
    """Writes whole lines, and waits for nobody.

    A pipe or terminal that nobody reads would block the writer and with it the event loop, so the descriptor is
    asked first. `dropped` counts lines lost since the last one that got through.
    """

    def __init__(self, stream: LogStream, lost_line: Callable[[int], str]) -> None:
        self._stream = stream
        self._lost_line = lost_line
        self._descriptor = _descriptor(stream)
        self._lock = threading.Lock()
        self._closed = False
        self._torn = False
        self.dropped = 0

    def write(self, line: str) -> None:
        """Write one line or drop it; never raises, blocks for at most 0.1 s."""
        with self._lock:
            if self._closed:
                return
            try:
                if self.dropped and self._put(self._lost_line(self.dropped)):
                    self.dropped = 0
                if not self._put(line):
                    self.dropped += 1
            except BlockingIOError:
                self.dropped += 1
            except (OSError, ValueError):
                self._closed = True  # the reader has gone, or the stream was closed: there is nobody to tell

    def _put(self, line: str) -> bool:
        if self._descriptor is None:
            self._stream.write(line + "\n")
            self._stream.flush()
            return True
        data = line.encode("utf-8", "backslashreplace") + b"\n"
        if self._torn:
            data = b"\n" + data  # the last line broke off in the middle
        # Only the rest of a long line may wait, and not for long: half a line is worse than a short wait.
        wait_ms = 0
        while data:
            if not self._writable(wait_ms):
                self._torn = wait_ms > 0
                return False
            data = data[os.write(self._descriptor, data[:_PIPE_BUF]) :]
            wait_ms = _PATIENCE_MS
        self._torn = False
        return True

    def _writable(self, wait_ms: int) -> bool:
        assert self._descriptor is not None
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        return bool(poll.poll(wait_ms))


def _descriptor(stream: LogStream) -> int | None:
    try:
        stream.flush()
        return int(cast(Any, stream).fileno())
    except (AttributeError, OSError, ValueError):
        return None


class _LineLogger:
    """What structlog hands finished lines to."""

    __slots__ = ("_sink", "name")

    def __init__(self, name: str, sink: LineSink) -> None:
        self.name = name
        self._sink = sink

    def msg(self, line: str) -> None:
        self._sink.write(line)

    debug = info = warning = warn = error = critical = exception = fatal = log = msg


class _SinkHandler(logging.Handler):
    """The standard library's lines, through the same chain to the same sink."""

    def __init__(self, sink: LineSink, chain: list[Processor]) -> None:
        super().__init__()
        self._sink = sink
        self.setFormatter(
            structlog.stdlib.ProcessorFormatter(
                foreign_pre_chain=[structlog.stdlib.add_log_level, structlog.stdlib.add_logger_name],
                processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *chain],
            )
        )

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record; a record that cannot be formatted is named instead."""
        try:
            line = self.format(record)
        except Exception as error:  # noqa: BLE001  (a library's bad format string must not raise here)
            fallback = logging.LogRecord(
                record.name, record.levelno, record.pathname, record.lineno,
                f"a log record could not be formatted: {type(error).__name__}", None, None,
            )  # fmt: skip
            line = self.format(fallback)
        self._sink.write(line)


def _route_standard_library(level: int, sink: LineSink, chain: list[Processor]) -> None:
    root = logging.getLogger()
    for handler in list(root.handlers):
        # Ours from before, and what basicConfig made; not the handlers of a test runner.
        if isinstance(handler, _SinkHandler) or type(handler) is logging.StreamHandler:
            root.removeHandler(handler)
    root.addHandler(_SinkHandler(sink, chain))
    root.setLevel(max(level, logging.WARNING))
    logging.getLogger("pylon").setLevel(level)
    logging.captureWarnings(True)
