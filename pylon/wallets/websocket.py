"""The websocket by which a wallet pushes: text messages in, nothing out, every end an error of the port."""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncGenerator, Mapping
from typing import Final

import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from pylon.jobs.ports import WalletUnavailable
from pylon.text import printable
from pylon.wallets.http import TokenRefused

MAX_MESSAGE_BYTES: Final = 256 * 1024
PING_S: Final = 10.0

_silent = logging.getLogger("pylon.wallets.websockets")
_silent.setLevel(logging.CRITICAL + 1)  # it would hold the token; `disabled` is undone by any dictConfig()


class _Connect(connect):
    def process_redirect(self, exc: Exception) -> Exception:
        return exc  # the token goes nowhere else


def websocket_url(url: str) -> str:
    """Return the websocket's URL for an http or https one."""
    parsed = httpx.URL(url)
    return str(parsed.copy_with(scheme="wss" if parsed.scheme == "https" else "ws"))


async def messages(
    url: str, *, label: str, headers: Mapping[str, str], open_timeout_s: float, ping_s: float = PING_S
) -> AsyncGenerator[str, None]:
    """Yield the text messages of a wallet's websocket. `headers` may hold the token; `label` names the wallet.

    Raises `TokenRefused` on 401 and 403, `WalletUnavailable` when it cannot be opened, breaks, ends, or does not
    answer a ping within `ping_s`.
    """
    try:
        async with _Connect(
            url,
            additional_headers=dict(headers),
            open_timeout=open_timeout_s,
            ping_interval=ping_s,
            ping_timeout=ping_s,
            close_timeout=1,
            max_size=MAX_MESSAGE_BYTES,
            compression=None,
            proxy=None,  # one of the environment would see the token
            logger=_silent,
        ) as connection:
            while True:
                message = await connection.recv()
                if isinstance(message, str):
                    yield message
    except InvalidStatus as error:
        status = error.response.status_code
        if status in {401, 403}:
            raise TokenRefused(
                f"{label} does not accept the token on its websocket (HTTP status {status})"
            ) from error
        raise WalletUnavailable(f"{label}: the websocket answered HTTP status {status}") from error
    except (OSError, TimeoutError, WebSocketException) as error:
        raise WalletUnavailable(f"{label}: the websocket broke: {_why(error)}") from error


def _why(error: Exception) -> str:
    match error:
        case ConnectionClosed(rcvd=rcvd) if rcvd is not None:
            return printable(f"closed by the wallet: {rcvd.code} {rcvd.reason}".rstrip())
        case ConnectionClosed():
            return "the connection ended"
        case ssl.SSLError():
            return printable(f"TLS: {getattr(error, 'verify_message', '') or error.reason or error}")
        case TimeoutError():
            return "no answer in time"
        case _:
            return printable(str(error) or type(error).__name__)
