"""From the settings to the wallet, and to the lightning addresses that are paid or announced."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Final, assert_never

from pydantic import SecretStr

from pylon.assembly.relays import make_pool_config, make_web
from pylon.jobs.ports import Clock, Payees, Wallet
from pylon.net.urls import DialRefused
from pylon.nostr.keys import SecretKey
from pylon.nostr.lnurl import BadLnurl, parse_lightning_address
from pylon.nostr.nip47 import WalletUri, parse_wallet_uri
from pylon.paths import Paths
from pylon.relays.line import PoolLine
from pylon.settings import Settings, SettingsError, WalletKind
from pylon.wallets.fake import FakeWallet, FakeWalletConfig

_LINE_BACKOFF_S: Final = 15.0  # jobs wait for the wallet: its relays are not left alone for long
_LINE_FRAME_BYTES: Final = 256 * 1024  # a page of transactions, encrypted
_LINE_OVERLAP_S: Final = 600  # how far a wallet's clock may be behind ours


def make_wallet(
    settings: Settings, clock: Clock, key: SecretKey | None = None, paths: Paths | None = None
) -> Wallet | None:
    """Return the configured wallet, not running yet; None when there is none. Raises `SettingsError`.

    It is connected in free mode too: invoices of an earlier, paid time may still be paid. Without the node's `key`
    and `paths` it is one to pay from, which a lightning address is not.
    """
    wallet = settings.wallet
    match wallet.kind:
        case WalletKind.NONE:
            return None
        case WalletKind.PHOENIXD:
            from pylon.wallets.phoenixd import PhoenixdConfig, PhoenixdWallet

            password = _wallet_secret(settings, "token")
            return PhoenixdWallet(PhoenixdConfig(wallet.url or "", password, wallet.timeout_s), clock)
        case WalletKind.LNBITS:
            from pylon.wallets.lnbits import LnbitsConfig, LnbitsWallet

            token = _wallet_secret(settings, "token")
            pay_token = None if wallet.pay_token is None else wallet.pay_token.get_secret_value()
            return LnbitsWallet(LnbitsConfig(wallet.url or "", token, pay_token, wallet.timeout_s), clock)
        case WalletKind.FAKE:
            token, url = _wallet_secret(settings, "token"), wallet.url or ""
            return FakeWallet(FakeWalletConfig(token=token, url=url, timeout_s=wallet.timeout_s), clock)
        case WalletKind.NWC:
            from pylon.wallets.nwc import NwcWallet

            uri = parse_wallet_uri(_wallet_secret(settings, "uri"))
            return NwcWallet(uri, _make_line(settings, uri, clock), clock, timeout_s=wallet.timeout_s)
        case WalletKind.LNURL:
            if key is None or paths is None:
                only = "a lightning address only receives; pylon doctor and pylon status tell how it is"
                raise SettingsError("wallet.kind", only)
            return _make_lnurl_wallet(settings, clock, key, paths)
        case _:
            assert_never(wallet.kind)


def _make_lnurl_wallet(settings: Settings, clock: Clock, key: SecretKey, paths: Paths) -> Wallet:
    from pylon.wallets.lnurl import LnurlConfig, LnurlWallet

    try:
        address = parse_lightning_address(settings.wallet.address or "")
    except BadLnurl as error:
        raise SettingsError("wallet.address", str(error)) from None
    config = LnurlConfig(
        address=address,
        pubkey=key.public_hex,
        relays=tuple(settings.relays.urls),
        network=settings.wallet.network.value,
        file=paths.lnurl_file,
        timeout_s=settings.wallet.timeout_s,
    )
    line = PoolLine(make_pool_config(settings), key=key, clock=clock, rng=random.Random())  # noqa: S311 - jitter
    return LnurlWallet(config, make_web(settings), line, lambda draft: draft.sign(key, int(clock())), clock)


def make_payees(settings: Settings, clock: Clock) -> Payees:
    """Return where strangers are paid: lightning addresses."""
    from pylon.wallets.lnurl_pay import LightningAddresses

    return LightningAddresses(make_web(settings), network=settings.wallet.network.value, clock=clock)


def make_zap_author(settings: Settings, clock: Clock) -> Callable[[], Awaitable[str | None]] | None:
    """Return what asks whose key signs the zap receipts of our own address; None without an address."""
    from pylon.wallets.lnurl_pay import LightningAddresses

    address = own_address(settings)
    if not address:
        return None
    addresses = LightningAddresses(make_web(settings), network=settings.wallet.network.value, clock=clock)
    return partial(addresses.zap_author, address)


def own_address(settings: Settings) -> str:
    """Return the lightning address that is announced (`lud16`): the one set for that, else the wallet's; or ""."""
    return settings.announce.lud16 or settings.wallet.address or ""


def _make_line(settings: Settings, uri: WalletUri, clock: Clock) -> PoolLine:
    """Return the line to a wallet, under the key of its connection. Raises `SettingsError`."""
    pool = make_pool_config(settings)
    config = replace(
        pool,
        urls=uri.relays,
        backoff_max_s=max(pool.backoff_min_s, min(pool.backoff_max_s, _LINE_BACKOFF_S)),
        max_frame_bytes=max(pool.max_frame_bytes, _LINE_FRAME_BYTES),
        overlap_s=_LINE_OVERLAP_S,
    )
    try:
        return PoolLine(config, key=uri.key, clock=clock, rng=random.Random())  # noqa: S311 - jitter, not secrets
    except DialRefused as refused:
        raise SettingsError("wallet.uri", f"a relay of the connection: {refused}") from None


def _wallet_secret(settings: Settings, key: str) -> str:
    """Return a secret of the wallet. Raises `SettingsError` with the ways to give it."""
    secret: SecretStr | None = getattr(settings.wallet, key)
    if secret is None:
        how = f"missing: pylon wallet connect, PYLON_WALLET_{key.upper()}, or a systemd credential wallet_{key}"
        raise SettingsError(f"wallet.{key}", how)
    return secret.get_secret_value()
