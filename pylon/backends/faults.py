"""What can go wrong between us and an HTTP backend, turned into the errors of `jobs.ports`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from httpx_sse import SSEError

from pylon.backends.sse import BadStream
from pylon.jobs.ports import BackendUnavailable
from pylon.text import printable


class NoAnswer(BackendUnavailable):
    """The connection failed or nothing came in time."""


@contextmanager
def connection_faults(name: str, root: str, late: str, broken: str) -> Iterator[None]:
    """Turn every way in which a connection or a stream can fail into a `BackendUnavailable`.

    `late` and `broken` end the sentences "NAME at ROOT …" for a time-out and for a connection that failed.
    """
    try:
        yield
    except (TimeoutError, httpx.TimeoutException) as error:
        raise NoAnswer(f"{name} at {root} {late}") from error
    except (BadStream, SSEError) as error:
        raise BackendUnavailable(f"{name} {printable(error)}") from error
    except (httpx.HTTPError, httpx.StreamError, OSError) as error:
        said = printable(error) or type(error).__name__
        raise NoAnswer(f"{name} at {root} {broken}: {said}") from error
