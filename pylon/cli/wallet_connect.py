"""`pylon wallet connect`: a wallet tried with its secret, and only then written down."""

from __future__ import annotations

import getpass
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pylon.cli.output import EXIT_USAGE, fail, say, warn
from pylon.cli.wallet_use import Asked, make_invoice, with_wallet
from pylon.jobs.ports import Wallet, WalletState, WalletUnavailable
from pylon.settings import OriginKind, Settings, SettingsError, WalletKind, load_settings
from pylon.settings.edit import set_values
from pylon.settings.wallet_file import WalletSecret, read_wallet_secret, save_wallet_secret
from pylon.text import printable

if TYPE_CHECKING:
    from pylon.paths import Paths

_URI_SCHEME: Final = "nostr+walletconnect:"
_TEST_EXPIRY_S: Final = 600
_MAX_SECRET_CHARS: Final = 8_192


@dataclass(frozen=True, slots=True)
class _Way:
    """How a kind of wallet is connected: its secret's key, what that is called, and whether it has a URL."""

    key: str
    prompt: str
    has_url: bool = True


_WAYS: Final = {
    "nwc": _Way("uri", "The connection (nostr+walletconnect://…)", has_url=False),
    "lnbits": _Way("token", "The wallet's key"),
    "phoenixd": _Way("token", "http-password of its phoenix.conf"),
    "fake": _Way("token", "Its token"),
}


def connect(
    paths: Paths, config: Path | None, what: str | None, url: str | None, network: str | None, *, test: bool
) -> None:
    """Ask for the secret, try the wallet, and store it. Raises `UserError`, `SettingsError`, `WalletError`."""
    kind, given = ("nwc", what) if what is None or what.startswith(_URI_SCHEME) else (what, None)
    way = _way(kind, url)
    if given is not None:
        warn("the connection was an argument: it stays in the shell's history, and others could see it")
    secret = (_read_secret(way.prompt) if given is None else given).strip()
    if not secret:
        fail("no secret was given", EXIT_USAGE)
    plain = (
        {"wallet.kind": kind}
        | ({"wallet.url": url} if url else {})
        | ({"wallet.network": network} if network else {})
    )
    _refuse_stronger(config, [*plain, f"wallet.{way.key}"])
    tried = load_settings(config, {**plain, f"wallet.{way.key}": secret}, os.environ).settings
    if test:
        _try(tried)
    file = config or paths.config_file
    place = str(tried.wallet.url or "") if way.has_url else ""
    _store(paths.wallet_file, file, WalletSecret(kind, place, way.key, secret), plain)
    say(f"connected: {kind}, in {printable(file, limit=500)}")
    say(f"its secret: in {printable(paths.wallet_file, limit=500)}")
    say("it holds from the next start of pylon on; restart one that runs (pylon stop, pylon start)")


def _way(kind: str, url: str | None) -> _Way:
    known = [each for each in _WAYS if each in set(WalletKind)]
    if kind not in known:
        fail(f"'{printable(kind)}' is no wallet that can be connected; allowed: {', '.join(known)}", EXIT_USAGE)
    way = _WAYS[kind]
    if way.has_url and url is None:
        fail(f"--url is missing: where the {kind} wallet answers", EXIT_USAGE)
    if not way.has_url and url is not None:
        fail(f"a {kind} wallet has no --url", EXIT_USAGE)
    return way


def _read_secret(prompt: str) -> str:
    if not sys.stdin.isatty():
        return sys.stdin.readline(_MAX_SECRET_CHARS)
    return getpass.getpass(f"{prompt}: ")


def _refuse_stronger(config: Path | None, keys: list[str]) -> None:
    """End the command where what it stores would not hold."""
    loaded = load_settings(config, None, os.environ)
    for key in keys:
        origin = loaded.origin(key)
        if origin.kind not in (OriginKind.DEFAULT, OriginKind.FILE, OriginKind.WALLET_FILE):
            fail(f"{origin} sets {key} and is stronger than what is stored: change it there", EXIT_USAGE)


def _try(settings: Settings) -> None:
    from pylon.assembly import make_wallet

    try:
        wallet = make_wallet(settings, time.time)
    except SettingsError:
        raise
    except ValueError as error:
        fail(str(error), EXIT_USAGE)
    assert wallet is not None
    asked = Asked(1_000, _TEST_EXPIRY_S, settings.wallet.network.value, "pylon: test, not to be paid")

    async def test(wallet: Wallet) -> WalletState:
        state = await wallet.check()
        if not state.ready:
            raise WalletUnavailable(f"nothing is stored, the wallet is not ready: {state.detail}")
        if state.network and state.network != asked.network:
            fail(f"nothing is stored: the wallet is on {state.network}; add --network {state.network}", EXIT_USAGE)
        await make_invoice(wallet, asked)
        return state

    state = with_wallet(wallet, test)
    abilities = ", ".join(sorted(state.abilities)).replace("_", " ")
    say(f"tested: an invoice over 1 sat was made; it can {abilities}")


def _store(wallet_file: Path, file: Path, secret: WalletSecret, plain: dict[str, str]) -> None:
    """Write the secret, then the settings; what the wallet file held comes back where these cannot be written."""
    before = read_wallet_secret(wallet_file)
    save_wallet_secret(wallet_file, secret)
    try:
        set_values(file, plain, os.environ)
    except BaseException:
        if before is None:
            wallet_file.unlink(missing_ok=True)
        else:
            save_wallet_secret(wallet_file, before)
        raise
