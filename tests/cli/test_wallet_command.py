"""`pylon wallet` with the fake wallet as a real process: looking, invoicing, paying once, doubt."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from anyio.from_thread import start_blocking_portal

from pylon.cli import wallet_use
from pylon.cli.app import run
from pylon.jobs.ports import Invoice, Wallet
from pylon.nostr.bolt11 import read_invoice
from pylon.wallets.fake_server.node import Draft, Node
from tests.support.terminal import at_a_terminal
from tests.support.wallet import WalletProcess

Captured = pytest.CaptureFixture[str]

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def wallet(process: WalletProcess, monkeypatch: pytest.MonkeyPatch) -> Iterator[WalletProcess]:
    """The wallet of the settings, with something in it."""
    for name, value in (("KIND", "fake"), ("URL", process.url), ("NETWORK", "regtest"), ("TIMEOUT_S", "2")):
        monkeypatch.setenv(f"PYLON_WALLET__{name}", value)
    monkeypatch.setenv("PYLON_WALLET_TOKEN", process.owner_token)
    yield process
    with start_blocking_portal() as portal:
        portal.call(process.set_faults)


def foreign_invoice(amount_msats: int = 21_000, *, expiry_s: int = 600, created_at: int | None = None) -> str:
    at = int(time.time()) if created_at is None else created_at
    return Node("11" * 32).sign(Draft("x", amount_msats, expiry_s, "for\x1b[31m you", None), at).bolt11


def fill(wallet: WalletProcess, capsys: Captured, amount_sats: int = 1_000) -> str:
    """Have an invoice made by the command, and paid; return its payment hash."""
    assert run(["wallet", "invoice", str(amount_sats)]) == 0
    bolt11 = capsys.readouterr().out.strip()
    with start_blocking_portal() as portal:
        portal.call(wallet.payer().pay, bolt11)
    return read_invoice(bolt11).payment_hash


def set_faults(wallet: WalletProcess, **faults: object) -> None:
    async def put() -> None:
        await wallet.set_faults(**faults)

    with start_blocking_portal() as portal:
        portal.call(put)


def books(wallet: WalletProcess) -> dict[str, int]:
    with start_blocking_portal() as portal:
        return portal.call(wallet.books)


# --- looking --------------------------------------------------------------------------------------------------


def test_without_a_wallet_every_command_says_how_to_connect_one(capsys: Captured) -> None:
    for words in (["status"], ["balance"], ["invoice", "1"], ["history"]):
        assert run(["wallet", *words]) == 2
        assert capsys.readouterr().err == "pylon: no wallet is connected: pylon wallet connect\n"


def test_status_and_balance(wallet: WalletProcess, capsys: Captured) -> None:
    fill(wallet, capsys)
    assert run(["wallet", "status", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["kind"], shown["ready"], shown["network"]) == ("fake", True, "regtest")
    assert shown["balance_msats"] == books(wallet)["balance_msats"] and "pay" in shown["abilities"]
    assert run(["wallet", "status"]) == 0
    assert "ready" in capsys.readouterr().out
    assert run(["wallet", "balance"]) == 0
    assert capsys.readouterr().out.endswith(f"({shown['balance_msats']} msats)\n")


def test_a_wallet_of_another_network_is_told(
    wallet: WalletProcess, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("PYLON_WALLET__NETWORK", "bitcoin")
    assert run(["wallet", "status"]) == 0
    assert "it is on regtest, and wallet.network is bitcoin" in capsys.readouterr().err
    assert run(["wallet", "invoice", "1"]) == 1
    said = capsys.readouterr()
    assert said.out == "" and "wrong invoice, which is not shown" in said.err


def test_a_wallet_that_is_not_there_is_one_sentence(
    wallet: WalletProcess, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("PYLON_WALLET_TOKEN", "wrong-token")
    for words in (["status"], ["balance"], ["invoice", "1"], ["history"], ["pay", foreign_invoice(), "--yes"]):
        assert run(["wallet", *words]) == 1
        said = capsys.readouterr()
        assert "token" in said.out + said.err and "wrong-token" not in said.out + said.err


def test_history_shows_both_directions(wallet: WalletProcess, capsys: Captured) -> None:
    received = fill(wallet, capsys)
    bolt11 = foreign_invoice(33_000)
    assert run(["wallet", "pay", bolt11, "--yes"]) == 0
    capsys.readouterr()
    assert run(["wallet", "history", "--json", "--limit", "50"]) == 0
    lines = {each["payment_hash"]: each for each in json.loads(capsys.readouterr().out)}
    assert (lines[received]["direction"], lines[received]["amount_msats"]) == ("incoming", 1_000_000)
    sent = lines[read_invoice(bolt11).payment_hash]
    assert (sent["direction"], sent["state"], sent["amount_msats"]) == ("outgoing", "settled", 33_000)
    assert run(["wallet", "history", "--limit", "1"]) == 0
    text = capsys.readouterr().out
    assert "older ones are not shown" in text and " 33 sats " in text
    assert run(["wallet", "history", "--since", "soon"]) == 2


# --- invoices -------------------------------------------------------------------------------------------------


def test_an_invoice_alone_goes_to_stdout(wallet: WalletProcess, capsys: Captured) -> None:
    assert run(["wallet", "invoice", "1500", "--msats", "--description", "tea", "--expiry", "90"]) == 0
    said = capsys.readouterr()
    facts = read_invoice(said.out.strip())
    assert (facts.amount_msats, facts.expires_at - facts.created_at) == (1_500, 90)
    assert facts.description is not None and facts.description.startswith("tea (cli-")
    assert said.err.startswith("1.500 sats, can be paid until ")
    assert run(["wallet", "invoice", str(10**18)]) == 2


def test_an_invoice_whose_answer_is_lost_is_found_and_not_made_twice(
    wallet: WalletProcess, capsys: Captured
) -> None:
    set_faults(wallet, ambiguous=1, acts=["create"])
    assert run(["wallet", "invoice", "7"]) == 0
    assert read_invoice(capsys.readouterr().out.strip()).amount_msats == 7_000


@pytest.mark.parametrize("pushed", [True, False])
async def test_the_wait_ends_by_push_and_by_look_up_alike(
    wallet: WalletProcess, pushed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wallet_use, "LOOK_EVERY_S", 3600 if pushed else 0.05)
    if not pushed:
        await wallet.set_faults(notice_loss=1)
    client = wallet.client()
    async with client.running(), anyio.create_task_group() as tasks:
        made = await wallet_use.make_invoice(client, wallet_use.Asked(9_000, 600, "regtest", "tea"))

        async def pay() -> None:
            await wallet.streams(1)
            await wallet.payer().pay(made.bolt11)

        tasks.start_soon(pay)
        with anyio.fail_after(20):
            paid = await wallet_use.wait_until_paid(client, made, time.time() + 3600)
        assert paid is not None and paid.received_msats == 9_000
        assert await wallet_use.wait_until_paid(client, replace(made, payment_hash="00" * 32), time.time()) is None


def test_wait_says_when_it_is_paid_and_when_not(
    wallet: WalletProcess, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    wait = wallet_use.wait_until_paid

    async def pay_first(client: Wallet, invoice: Invoice, deadline_at: float) -> Invoice | None:
        await wallet.payer().pay(invoice.bolt11)
        return await wait(client, invoice, deadline_at)

    async def wait_in_vain(client: Wallet, invoice: Invoice, deadline_at: float) -> Invoice | None:
        return await wait(client, invoice, time.time())

    monkeypatch.setattr(wallet_use, "wait_until_paid", pay_first)
    assert run(["wallet", "invoice", "9", "--wait"]) == 0
    assert "paid: 9 sats at " in capsys.readouterr().err
    monkeypatch.setattr(wallet_use, "wait_until_paid", wait_in_vain)
    assert run(["wallet", "invoice", "9", "--wait"]) == 4
    assert "the invoice has expired unpaid" in capsys.readouterr().err


# --- paying ---------------------------------------------------------------------------------------------------


def test_pay_pays_once_however_often_it_is_said(wallet: WalletProcess, capsys: Captured) -> None:
    fill(wallet, capsys)
    bolt11 = foreign_invoice()
    before = books(wallet)
    assert run(["wallet", "pay", bolt11, "--yes"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("paid: 21 sats, fee ")
    assert "payee    02" in said.err or "payee    03" in said.err
    assert "for\\x1b[31m you" in said.err and "\x1b" not in said.err
    assert run(["wallet", "pay", f"lightning:{bolt11.upper()}", "--yes"]) == 0
    assert capsys.readouterr().out.startswith("was paid before: 21 sats")
    assert books(wallet)["paid_msats"] - before["paid_msats"] == 21_000


def test_without_a_terminal_a_yes_is_needed(wallet: WalletProcess, capsys: Captured) -> None:
    before = books(wallet)
    assert run(["wallet", "pay", foreign_invoice()]) == 2
    assert "--yes is needed" in capsys.readouterr().err
    assert books(wallet) == before


@pytest.mark.parametrize(
    ("bolt11", "code", "said"),
    [
        ("lnbcrt1nonsense", 2, "nothing is paid: "),
        (foreign_invoice(created_at=1_700_000_000), 1, "nothing is paid: the invoice expired "),
    ],
)
def test_what_should_not_be_paid_is_not(
    wallet: WalletProcess, bolt11: str, code: int, said: str, capsys: Captured
) -> None:
    assert run(["wallet", "pay", bolt11, "--yes"]) == code
    assert said in capsys.readouterr().err


def test_an_invoice_of_another_network_is_not_paid(
    wallet: WalletProcess, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("PYLON_WALLET__NETWORK", "signet")
    assert run(["wallet", "pay", foreign_invoice(), "--yes"]) == 2
    assert "is for regtest, and wallet.network is signet" in capsys.readouterr().err


def test_a_payment_whose_answer_is_lost_is_asked_about_and_not_made_again(
    wallet: WalletProcess, capsys: Captured
) -> None:
    fill(wallet, capsys)
    before = books(wallet)
    set_faults(wallet, ambiguous=1, acts=["pay"])
    assert run(["wallet", "pay", foreign_invoice(), "--yes"]) == 0
    assert capsys.readouterr().out.startswith("paid: 21 sats")
    assert books(wallet)["paid_msats"] - before["paid_msats"] == 21_000


def test_a_payment_in_doubt_has_an_exit_code_of_its_own_and_may_be_repeated(
    wallet: WalletProcess, capsys: Captured
) -> None:
    fill(wallet, capsys)
    before = books(wallet)
    bolt11 = foreign_invoice()
    set_faults(wallet, lost=1, acts=["pay"])
    assert run(["wallet", "pay", bolt11, "--yes", "--timeout", "0.2"]) == 4
    assert "may have been made or still be made: repeat this command" in capsys.readouterr().err
    assert books(wallet) == before
    set_faults(wallet)
    assert run(["wallet", "pay", bolt11, "--yes"]) == 0
    assert books(wallet)["paid_msats"] - before["paid_msats"] == 21_000


def test_a_refusal_is_exit_code_1(wallet: WalletProcess, capsys: Captured) -> None:
    before = books(wallet)
    too_much = foreign_invoice(before["balance_msats"] + 1_000_000)
    assert run(["wallet", "pay", too_much, "--yes"]) == 1
    assert "refused" in capsys.readouterr().err
    assert books(wallet) == before


@pytest.mark.parametrize(("answer", "code", "said"), [("y", 0, "paid: 21 sats"), ("n", 1, "nothing is paid")])
def test_pay_asks_for_a_yes(
    wallet: WalletProcess, home: Path, answer: str, code: int, said: str, capsys: Captured
) -> None:
    fill(wallet, capsys)
    before = books(wallet)
    ended, shown = at_a_terminal(["wallet", "pay", foreign_invoice()], home, "Pay? ", answer)
    assert (ended, said in shown) == (code, True), shown
    assert books(wallet)["paid_msats"] - before["paid_msats"] == (21_000 if code == 0 else 0)
