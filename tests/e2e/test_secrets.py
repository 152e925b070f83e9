"""No secret leaves the place it is kept in: the real daemon in trouble, and then everything it wrote and said.

Backend and wallet repeat what they were given in their errors, as some do. The settings file and the identity
file are the places; all else is searched, in the spellings that a leak would have.
"""

from __future__ import annotations

import base64
import json
import signal
import socket
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from pylon.control.views import DaemonState, DaemonStatus
from pylon.nostr.identity import Identity, generate_identity
from pylon.paths import Paths
from pylon.settings.identity_file import read_stored, save_identity
from tests.support.nwc_service import nwc_service
from tests.support.openai_server import (
    DONE,
    STREAM_END,
    STREAM_HEAD,
    Handler,
    ScriptedServer,
    Wire,
    framed,
    piece,
    scripted_server,
)
from tests.support.openai_server import answer as said
from tests.support.provider import MODEL, Provider, market_settings, provider
from tests.support.relay import relay_process
from tests.support.shop import Shop, shop
from tests.support.wallet import WalletProcess

pytestmark = pytest.mark.e2e

API_KEY = "sk-live-5Zb1kq0Vd7Xw3Rt9"
PASSPHRASE = "zebra umbrella glacier 77"
WRONG_TOKEN = "wrong-token-8Hq2Lm5Yc0"
QUESTIONS = (
    "/status",
    "/jobs",
    "/earnings",
    "/earnings?by=day",
    "/announcement",
    "/nothing-here",
    "/jobs?work=x",
    "/jobs/x",
)
COMMANDS = (
    ("status",),
    ("status", "--json"),
    ("jobs", "list", "--json"),
    ("config", "show"),
    ("config", "show", "--json"),
    ("identity", "show", "--json"),
    ("backends", "list", "--json"),
    ("backends", "test"),
    ("relays", "list", "--json"),
    ("relays", "check"),
    ("announce", "show", "--json"),
    ("doctor",),
    ("reconcile",),
    ("start",),  # refused, since one runs: with a traceback
)


class Hunt:
    """Secrets to look for, each in the spellings a leak would have, and everything that was searched."""

    def __init__(self, **named: str) -> None:
        self.spellings = {
            f"{name} ({how})": text for name, secret in named.items() for how, text in spelled(secret)
        }
        self.searched = 0

    def look(self, where: str, data: bytes | str) -> None:
        """Search a text. Fails with the name of what leaked, not with the secret."""
        text = (data if isinstance(data, bytes) else data.encode()).lower()
        self.searched += len(text)
        leaked = [name for name, secret in self.spellings.items() if secret.lower().encode() in text]
        assert not leaked, f"{where} holds {', '.join(leaked)}"

    def look_at_files(self, folder: Path, *, kept: Iterable[Path]) -> None:
        """Search every file but those that keep secrets."""
        places = set(kept)
        files = [path for path in folder.rglob("*") if path.is_file() and path not in places]
        assert any(path.name == "pylon.db" for path in files)
        for path in files:
            self.look(str(path.relative_to(folder)), path.read_bytes())


def spelled(secret: str) -> Iterator[tuple[str, str]]:
    yield "as it is", secret
    yield "base64", base64.b64encode(secret.encode()).decode().rstrip("=")[:-1]
    if len(secret) > 40:
        yield "its middle", secret[8:40]


def identity_secrets(identity: Identity) -> dict[str, str]:
    assert identity.mnemonic is not None
    return {
        "nsec": identity.secret.reveal_nsec(),
        "hex key": identity.secret.reveal_hex(),
        "words": identity.mnemonic,
        "passphrase": PASSPHRASE,
    }


def encrypted_home(daemon: Provider, identity: Identity) -> None:
    """Let the daemon's key lie in an encrypted file, and its passphrase come from the environment."""
    save_identity(daemon.paths.identity_file, identity, passphrase=PASSPHRASE)
    del daemon._environ["PYLON_NSEC"]
    daemon._environ |= {"PYLON_PASSPHRASE": PASSPHRASE, "PYTHONFAULTHANDLER": "1"}
    daemon.paths.config_file.chmod(0o600)


def up(status: DaemonStatus) -> bool:
    """Tell whether it takes jobs; one of its relays never answers."""
    return status.state is DaemonState.READY and any(relay.status == "connected" for relay in status.relays)


def walletless(status: DaemonStatus) -> bool:
    """Tell whether its wallet cannot be used."""
    return status.wallet is not None and not status.wallet.ready


async def ask_socket(paths: Paths, target: str) -> bytes:
    async with await anyio.connect_unix(paths.control_socket) as stream:
        await stream.send(f"GET {target} HTTP/1.1\r\nhost: pylon\r\n\r\n".encode())
        answer = b""
        try:
            while True:
                answer += await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return answer


async def look_from_outside(daemon: Provider, hunt: Hunt) -> None:
    """Ask the running daemon everything it answers, over its socket and by every command, with tracebacks."""
    jobs = json.loads((await ask_socket(daemon.paths, "/jobs")).partition(b"\r\n\r\n")[2])["data"]
    assert jobs
    for target in (*QUESTIONS, *(f"/jobs/{job['id']}?input=1" for job in jobs)):
        answer = await ask_socket(daemon.paths, target)
        assert answer, target
        hunt.look(f"the control API's {target}", answer)
    for command in COMMANDS:
        done = await daemon.pylon("--debug", *command)
        assert done.stdout or done.stderr, command
        hunt.look(f"pylon {' '.join(command)}", done.stdout + done.stderr)
    shown = await daemon.pylon("--debug", "jobs", "show", jobs[0]["id"], "--json")
    assert shown.returncode == 0, shown.stderr
    hunt.look("pylon jobs show", shown.stdout)


def repeats_the_key(status: int) -> Handler:
    """Refuse as a careless server does: with what it was sent."""

    async def refuse(wire: Wire) -> None:
        given = wire.headers.get("authorization", "")
        assert API_KEY in given
        body = {"error": {"message": f"Incorrect API key provided: {given}", "type": "auth", "code": API_KEY}}
        await said(status, body, f"WWW-Authenticate: {given}")(wire)

    return refuse


async def works(wire: Wire) -> None:
    await wire.send(STREAM_HEAD + framed(piece("a fine answer", "stop")) + framed(DONE) + STREAM_END)


@asynccontextmanager
async def paid_market(
    folder: Path, identity: Identity, wallet: WalletProcess
) -> AsyncIterator[tuple[Provider, Shop, ScriptedServer]]:
    """Have a provider paid by a fake wallet, with an API key, an encrypted identity, and a relay nobody runs."""
    with relay_process() as relay, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"ws://127.0.0.1:{closed.getsockname()[1]}"
        async with scripted_server(works) as backend:
            backend.models = (MODEL,)
            settings: dict[str, Any] = market_settings(relay.url, nobody, paid_to=wallet, backend_url=backend.url)
            settings["backends"] = [{**settings["backends"][0], "api_key": API_KEY}]
            async with provider(folder, settings, key=identity.secret, wallet=wallet, started=False) as daemon:
                encrypted_home(daemon, identity)
                daemon.launch("--debug", "--log-level", "debug")
                await daemon.until(up, "ready")
                async with shop(relay.url, provider=daemon.pubkey) as customer:
                    yield daemon, customer, backend


async def test_a_paid_market_in_trouble_tells_nobody(tmp_path: Path) -> None:
    identity = generate_identity()
    with WalletProcess(tmp_path) as wallet:
        hunt = Hunt(
            **identity_secrets(identity),
            wallet_token=wallet.owner_token,
            payer_token=wallet.payer_token,
            api_key=API_KEY,
            wrong_token=WRONG_TOKEN,
        )
        async with paid_market(tmp_path, identity, wallet) as (daemon, customer, backend):
            assert read_stored(daemon.paths.identity_file).encrypted
            good = await customer.order("what is salt?")
            await wallet.payer().pay(await good.invoice())
            assert "a fine answer" in (await good.result()).content
            told: list[str] = []
            for status in (400, 500, 401):
                backend.chats = [repeats_the_key(status)]
                bad = await customer.order(f"and pepper, {status}?")
                await wallet.payer().pay(await bad.invoice())
                told.append(await bad.error())
            assert any(wire.headers.get("authorization") == f"Bearer {API_KEY}" for wire in backend.posts())
            wallet.kill()
            await customer.order("and sugar?")
            await daemon.until(walletless, "without its wallet")
            await look_from_outside(daemon, hunt)
            for order in customer.orders:
                told += [event.to_json() for event in order.events.values()]
            hunt.look("what was published", "\n".join(told))
            hunt.look_at_files(tmp_path, kept=[daemon.paths.config_file])
            daemon.kill()  # the write-ahead log stays
            await wallet.restart()
            daemon._environ["PYLON_WALLET_TOKEN"] = WRONG_TOKEN
            daemon.launch("--debug", "--log-level", "debug")
            await daemon.until(walletless, "refused by its wallet")
            await daemon.logged("token")
            await look_from_outside(daemon, hunt)
            daemon.send(signal.SIGABRT)
            assert await daemon.ended() == -signal.SIGABRT
            hunt.look_at_files(tmp_path, kept=[daemon.paths.config_file])
            assert "401" in daemon.log(), "there was trouble to tell of"
            assert "Fatal Python error: Aborted" in daemon.log()
    assert hunt.searched > 100_000


async def test_a_wallet_behind_relays_that_goes_away_tells_nobody(tmp_path: Path) -> None:
    identity = generate_identity()
    with relay_process() as market, relay_process() as private:
        async with nwc_service(private.url) as service:
            hunt = Hunt(
                **identity_secrets(identity),
                wallet_uri=service.uri,
                wallet_secret=service.client.reveal_hex(),
                wallet_nsec=service.client.reveal_nsec(),
            )
            wallet = {"kind": "nwc", "network": "regtest", "timeout_s": 2}
            settings = market_settings(market.url, wallet=wallet, payment={"mode": "prepay"})
            async with provider(tmp_path, settings, key=identity.secret, started=False) as daemon:
                encrypted_home(daemon, identity)
                daemon._environ["PYLON_WALLET_URI"] = service.uri
                await daemon.start("--debug", "--log-level", "debug")
                async with shop(market.url, provider=daemon.pubkey) as customer:
                    order = await customer.order("what is salt?")
                    await service.receive(await order.invoice())
                    await order.result()
                    await service.stop()
                    private.kill()
                    await customer.order("and pepper?")
                    await daemon.until(walletless, "without its wallet")
                    await look_from_outside(daemon, hunt)
                    told = [event.to_json() for each in customer.orders for event in each.events.values()]
                    hunt.look("what was published", "\n".join(told))
                assert await daemon.stop() == 0
                hunt.look_at_files(tmp_path, kept=[daemon.paths.config_file])
    assert hunt.searched > 100_000


NSEC = "nsec10allq0gjx7fddtzef0ax00mdps9t2kmtrldkyjfs8l5xruwvh2dq0lhhkp"
WORDS = "leader monkey parrot ring guide accident before fence cannon height naive bean"
URI = f"nostr+walletconnect://{'ab' * 32}?relay=wss://relay.example&secret={'c7' * 32}"


@pytest.mark.parametrize(
    ("toml", "environ"),
    [
        (f'[identity]\nnsec = "{NSEC}x"', {}),
        (f'[identity]\nnsec = ["{NSEC}"]', {}),
        (f'identity = "{NSEC}"', {}),
        (f'[identity]\nnsec = "{NSEC}', {}),  # not even TOML
        (f'[identity]\n"{NSEC}" = 1', {}),
        (f'[identity]\nmnemonic = "{WORDS} zoo"', {}),
        (f'[wallet]\nkind = "nwc"\nuri = "{URI}x"', {}),
        (f'[wallet]\nkind = "nwc"\nurl = "{URI}"', {}),
        (f'[wallet]\ntoken = {{ a = "{API_KEY}" }}', {}),
        (f'[[backends]]\nname = "b"\nkind = "openai"\nurl = "http://u:{API_KEY}@127.0.0.1/v1"', {}),
        (f'[[backends]]\nname = "b"\nkind = "openai"\nurl = "http://127.0.0.1/v1"\napi_key = ["{API_KEY}"]', {}),
        ("", {"PYLON_NSEC": WORDS}),
        ("", {"PYLON_MNEMONIC": NSEC}),
        ("", {"PYLON_WALLET_URI": NSEC}),
        ("", {"PYLON_WALLET_URI": URI.replace("secret=", "secrets=")}),
        ("", {"PYLON_BACKENDS": f'[{{"name": "b", "kind": "openai", "api_key": "{API_KEY}"}}]'}),
        ("", {"PYLON_BACKENDS": f'[{{"api_key": "{API_KEY}"'}),
    ],
)
async def test_settings_that_are_wrong_are_refused_without_their_secrets(
    tmp_path: Path, toml: str, environ: dict[str, str]
) -> None:
    """With the traceback that `--debug` shows: none of what was given is in it."""
    hunt = Hunt(nsec=NSEC, words=WORDS, uri=URI, uri_secret="c7" * 32, api_key=API_KEY)
    async with provider(tmp_path, {}, started=False) as daemon:
        daemon.paths.config_file.write_text(toml)
        daemon.paths.config_file.chmod(0o600)
        del daemon._environ["PYLON_NSEC"]
        daemon._environ |= environ
        for command in (("start", "--free"), ("config", "show")):
            done = await daemon.pylon("--debug", *command)
            assert done.returncode == 2, done.stderr
            assert "Traceback" in done.stderr
            hunt.look(f"pylon {' '.join(command)}", done.stdout + done.stderr)
