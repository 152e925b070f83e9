"""The LNbits of the tests itself: wallets that pay each other, lightning addresses, restarts, and its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from pylon.nostr.bolt11 import read_invoice
from tests.support.lnbits import CREDIT_SATS, NETWORK, Lnbits, require_lnbits


def test_two_wallets_pay_each_other(lnbits: Lnbits) -> None:
    payee, payer = lnbits.account("payee"), lnbits.account("payer", sats=100)
    bolt11 = lnbits.invoice(payee, 21)
    assert (read_invoice(bolt11).network, read_invoice(bolt11).amount_msats) == (NETWORK, 21_000)
    lnbits.pay(bolt11, payer)
    assert (lnbits.balance_msats(payee), lnbits.balance_msats(payer)) == (21_000, 79_000)
    with pytest.raises(httpx.HTTPStatusError, match="520"):
        lnbits.pay(bolt11, payer)
    assert "admin_key" not in repr(payer)


def test_a_lightning_address_gives_an_invoice(lnbits: Lnbits) -> None:
    name, host = lnbits.provider.address.split("@")
    terms = httpx.get(f"http://{host}/.well-known/lnurlp/{name}", trust_env=False).json()
    assert terms["tag"] == "payRequest"
    answer = httpx.get(terms["callback"], params={"amount": 3_000}, trust_env=False).json()
    assert read_invoice(answer["pr"]).amount_msats == 3_000


async def test_a_restart_keeps_the_port_and_the_money(fresh_lnbits: Lnbits) -> None:
    fresh_lnbits.pay(fresh_lnbits.invoice(fresh_lnbits.provider, 5))
    url = fresh_lnbits.url
    await fresh_lnbits.restart()
    assert fresh_lnbits.url == url
    assert fresh_lnbits.balance_msats(fresh_lnbits.provider) == CREDIT_SATS * 1_000 + 5_000
    fresh_lnbits.stop()
    fresh_lnbits.start()
    fresh_lnbits.pay(fresh_lnbits.invoice(fresh_lnbits.customer, 5), fresh_lnbits.provider)


def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    require_lnbits()
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom tests.support.lnbits import Lnbits\n"
        "running = Lnbits(Path(sys.argv[1]))\nrunning.launch()\nprint(running.pid, flush=True)\ntime.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    try:
        parent.send_signal(signal.SIGKILL)
        parent.wait(timeout=10)
        deadline = time.monotonic() + 20
        with pytest.raises(ProcessLookupError):
            while time.monotonic() < deadline:
                os.kill(pid, 0)
                time.sleep(0.05)
    finally:
        parent.stdout.close()
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
