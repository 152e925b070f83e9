"""PyPI's `nostr-dvm`, a provider that we did not write: `pylon request` buys from it, its functions buy from us."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from websockets.asyncio.client import connect

from pylon.nostr.event import Event, parse_event, verify
from pylon.nostr.keys import SecretKey, encode_npub
from tests.support.foreign_relay import foreign_relay
from tests.support.foreign_venvs import NOSTR_DVM, foreign_python
from tests.support.provider import ROOT, market_settings, provider
from tests.support.relay import relay_process
from tests.support.shop import RESULT_KIND, stored_events

pytestmark = [pytest.mark.e2e, pytest.mark.live]

HERE = Path(__file__).parent
SAMPLE = HERE.parent / "nostr" / "samples" / "announcement-nostr-dvm-1.1.8.json"
HEARTBEAT_KIND = 11998  # nostr-dvm's own; the last that it publishes before it takes requests
ANNOUNCEMENT_KIND = 31990
LIMIT_S = 90.0


def foreign_environ(home: Path) -> dict[str, str]:
    names = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYLON_"))}
    return {**names, "HOME": str(home), "PYTHONUNBUFFERED": "1"}


class ForeignProvider:
    """The running provider: its key, what it has written."""

    def __init__(self, folder: Path, relay_url: str, price_sats: int) -> None:
        self.key = SecretKey.generate()
        self.npub = encode_npub(self.key.public_hex)
        self.relay_url = relay_url
        self._folder = folder / "nostr-dvm"
        self._folder.mkdir()
        with (self._folder / "log").open("wb") as log:
            script = [str(foreign_python(NOSTR_DVM)), str(HERE / "foreign_provider.py")]
            self.process = subprocess.Popen(
                [*script, relay_url, self.key.reveal_nsec(), str(price_sats)],
                cwd=self._folder,
                env=foreign_environ(self._folder),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def log(self) -> str:
        return (self._folder / "log").read_text(errors="replace")

    async def published(self, kind: int) -> Event:
        """Wait until it has published an event of a kind."""
        async with connect(self.relay_url) as socket:
            await socket.send(json.dumps(["REQ", "its", {"kinds": [kind], "authors": [self.key.public_hex]}]))
            with anyio.move_on_after(LIMIT_S):
                while True:
                    message = json.loads(await socket.recv())
                    if message[0] == "EVENT":
                        return parse_event(message[2])
        raise AssertionError(f"nostr-dvm published no {kind} within {LIMIT_S:g} s:\n{self.log()[-2000:]}")


@contextmanager
def foreign_provider(folder: Path, relay_url: str, *, price_sats: int = 0) -> Iterator[ForeignProvider]:
    """Run the provider until the block ends."""
    made = ForeignProvider(folder, relay_url, price_sats)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait(timeout=10)


async def run(command: Sequence[str], environ: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    def wait() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT_S, env=environ, cwd=folder, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    return await anyio.to_thread.run_sync(wait)


async def pylon(folder: Path, *arguments: str) -> tuple[int, Any]:
    """Run a command of `pylon` with `--json` on a home without settings; return exit code and JSON."""
    home = folder / "customer"
    home.mkdir(mode=0o700, exist_ok=True)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYLON_")}
    environ |= {"PYLON_HOME": str(home), "NO_COLOR": "1"}
    command = [sys.executable, "-m", "pylon", *arguments, "--json"]
    done = await run(command, environ, ROOT)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout)


async def test_pylon_request_buys_from_nostr_dvm(tmp_path: Path) -> None:
    with relay_process() as relay, foreign_provider(tmp_path, relay.url) as dvm:
        await dvm.published(HEARTBEAT_KIND)
        code, told = await pylon(
            tmp_path, "request", "Say it back.", "--relay", relay.url, "--provider", dvm.npub, "--timeout", "60"
        )
        assert (code, told["status"]) == (0, "result"), dvm.log()[-2000:]
        assert (told["result"], told["provider"]) == ("dvm: Say it back.", dvm.npub)
        assert (told["payment"], told["amount_msats"]) == ("none", 0)
        (result,) = await stored_events(relay.url, dvm.key.public_hex, [told["request_id"]], [RESULT_KIND])
        assert verify(result)
        assert (result.id, result.content) == (told["result_id"], told["result"])

        # One that is addressed to nobody is answered too.
        code, told = await pylon(tmp_path, "request", "Anybody?", "--relay", relay.url, "--timeout", "60")
        assert (code, told["result"], told["provider"]) == (0, "dvm: Anybody?", dvm.npub)


async def test_nobody_of_the_market_but_the_customer_is_ours(tmp_path: Path) -> None:
    with foreign_relay(tmp_path) as relay, foreign_provider(tmp_path, relay.url) as dvm:
        await dvm.published(HEARTBEAT_KIND)
        code, told = await pylon(
            tmp_path, "request", "Over there.", "--relay", relay.url, "--provider", dvm.npub, "--timeout", "60"
        )
        assert (code, told["result"], told["provider"]) == (0, "dvm: Over there.", dvm.npub)
        code, told = await pylon(tmp_path, "providers", "--relay", relay.url)
        assert code == 0
        (found,) = told["providers"]
        announced = found["announcement"]
        assert (found["npub"], announced["name"], announced["kinds"]) == (dvm.npub, "Foreign Echo", [5050])


async def test_a_price_without_an_invoice_is_told_and_not_paid(tmp_path: Path) -> None:
    with relay_process() as relay, foreign_provider(tmp_path, relay.url, price_sats=7) as dvm:
        await dvm.published(HEARTBEAT_KIND)
        code, told = await pylon(
            tmp_path, "request", "What is it?", "--relay", relay.url, "--provider", dvm.npub, "--timeout", "60"
        )
        assert (code, told["exit_reason"], told["payment"]) == (5, "not-paid", "unpaid")
        assert (told["unpaid_msats"], told["unpaid_invoice"], told["result"]) == (7000, None, None)
        assert "the provider asks for payment without an invoice" in told["explanation"]


async def test_its_announcement_is_the_one_that_the_codec_is_tested_with(tmp_path: Path) -> None:
    sample = parse_event(json.loads(SAMPLE.read_text()))
    assert verify(sample)
    with relay_process() as relay, foreign_provider(tmp_path, relay.url) as dvm:
        announced = await dvm.published(ANNOUNCEMENT_KIND)
    assert verify(announced)
    assert (announced.kind, announced.tags, announced.content) == (sample.kind, sample.tags, sample.content)


async def test_nostr_dvm_functions_buy_from_pylon(tmp_path: Path) -> None:
    with relay_process() as relay:
        async with provider(tmp_path, market_settings(relay.url)) as daemon:
            script = [str(foreign_python(NOSTR_DVM)), str(HERE / "foreign_customer.py")]
            done = await run(
                [*script, relay.url, daemon.pubkey, "Say it back."], foreign_environ(tmp_path), tmp_path
            )
            assert done.returncode == 0, done.stderr
            heard = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
            assert heard[-1] == {"kind": RESULT_KIND, "status": [], "content": "Say it back."}
            await daemon.until(lambda status: status.jobs_by_state == {"delivered/none": 1}, "done with the job")
