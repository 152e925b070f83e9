"""The fake wallet behind its real process: invoices, payments, settlements, tokens, life and death."""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import aclosing, suppress
from pathlib import Path

import anyio
import httpx
import pytest

from pylon.jobs.ports import (
    Direction,
    InvoiceRequest,
    PaymentState,
    Received,
    Wallet,
    WalletAbility,
    WalletError,
    WalletRefused,
    WalletUnavailable,
)
from pylon.nostr.bolt11 import check_invoice, read_invoice
from pylon.wallets.fake import FakePayer, FakeWalletConfig
from pylon.wallets.fake_server.ledger import PAGE, Ledger
from pylon.wallets.fake_server.node import Draft, Node
from tests.support.wallet import WalletProcess, listed_by


@pytest.fixture(scope="module")
def wallet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WalletProcess]:
    with WalletProcess(tmp_path_factory.mktemp("wallet")) as process:
        yield process


def order(own_id: str, amount_msats: int = 21_000, **more: object) -> InvoiceRequest:
    return InvoiceRequest(own_id, amount_msats, 600, **more)  # type: ignore[arg-type]


def foreign_invoice(amount_msats: int, description: str = "elsewhere") -> str:
    """An invoice of a node that nobody knows."""
    return Node("11" * 32).sign(Draft("x", amount_msats, 600, description, None), int(time.time())).bolt11


async def test_it_is_a_wallet(wallet: WalletProcess) -> None:
    client: Wallet = wallet.client()
    assert not client.state().ready
    async with client.running():
        state = await client.check()
    assert state.ready
    assert (state.name, state.network, state.detail) == ("fake", "regtest", "")
    assert state.abilities == frozenset(WalletAbility)


async def test_an_invoice_is_real(wallet: WalletProcess) -> None:
    client = wallet.client()
    digest = hashlib.sha256(b"request").hexdigest()
    async with client.running():
        plain = await client.create_invoice(order("real-1", 123_456_789, description="a job, paid ahead"))
        hashed = await client.create_invoice(order("real-2", 1, description_hash=digest))
    assert plain.bolt11.startswith("lnbcrt")
    facts = read_invoice(plain.bolt11)
    check_invoice(facts, amount_msats=123_456_789, network="regtest", now=time.time())
    assert facts.description == "a job, paid ahead"
    assert (facts.payment_hash, facts.created_at, facts.expires_at) == (
        plain.payment_hash,
        plain.created_at,
        plain.expires_at,
    )
    assert plain.expires_at - plain.created_at == 600
    assert (plain.state, plain.received_msats, plain.settled_at) == (PaymentState.PENDING, 0, None)
    hashed_facts = read_invoice(hashed.bolt11)
    check_invoice(hashed_facts, amount_msats=1, network="regtest", now=time.time(), description_hash=digest)
    assert hashed_facts.payee == facts.payee


async def test_a_repeated_own_id_makes_a_second_invoice_and_both_are_found(wallet: WalletProcess) -> None:
    client = wallet.client()
    async with client.running():
        first = await client.create_invoice(order("twice"))
        second = await client.create_invoice(order("twice"))
        assert first.payment_hash != second.payment_hash
        assert await client.find("twice") == (first, second)
        assert await client.find("never") == ()
        assert await client.look_up(second.payment_hash) == second
        assert await client.look_up("00" * 32) is None
        assert await client.look_up("no hash") is None


async def test_paying_settles_once_and_is_pushed(wallet: WalletProcess) -> None:
    client, payer = wallet.client(), wallet.payer()
    before = await wallet.books()
    async with client.running():
        invoice = await client.create_invoice(order("pushed", 5_000))
        pushed: list[Received] = []

        async def listen() -> None:
            async with aclosing(client.settlements()) as stream:
                pushed.append(await anext(stream))

        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(listen)
                await wallet.streams(1)
                preimage = await payer.pay(invoice.bolt11)
        assert hashlib.sha256(bytes.fromhex(preimage)).hexdigest() == invoice.payment_hash
        settled = await client.look_up(invoice.payment_hash)
        assert settled is not None
        assert settled.settled_at is not None
        assert (settled.state, settled.received_msats) == (PaymentState.SETTLED, 5_000)
        assert pushed == [Received(invoice.payment_hash, 5_000, settled.settled_at)]
        with pytest.raises(WalletRefused, match="already paid"):
            await payer.pay(invoice.bolt11)
        after = await wallet.books()
        assert after["received_msats"] - before["received_msats"] == 5_000
        assert await client.balance_msats() == after["balance_msats"]
    await wallet.streams(0)


async def test_twenty_payers_of_one_invoice_pay_it_once(wallet: WalletProcess) -> None:
    client, payer = wallet.client(timeout_s=20), wallet.payer(timeout_s=20)
    before = await wallet.books()
    outcomes: list[str] = []

    async def pay(bolt11: str) -> None:
        try:
            outcomes.append(await payer.pay(bolt11))
        except WalletRefused:
            outcomes.append("refused")

    async with client.running():
        invoice = await client.create_invoice(order("contested", 7_000))
    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(pay, invoice.bolt11)
    assert len(outcomes) == 20
    assert outcomes.count("refused") == 19
    assert (await wallet.books())["received_msats"] - before["received_msats"] == 7_000


async def test_fifty_concurrent_creates(wallet: WalletProcess) -> None:
    client = wallet.client(timeout_s=20)
    async with client.running():

        async def create(number: int) -> None:
            invoice = await client.create_invoice(order(f"many-{number}", 1_000 + number))
            assert read_invoice(invoice.bolt11).amount_msats == 1_000 + number

        async with anyio.create_task_group() as tasks:
            for number in range(50):
                tasks.start_soon(create, number)
        made = [invoice for invoice in await listed_by(client, 0) if invoice.own_id.startswith("many-")]
        assert {invoice.own_id: invoice.amount_msats for invoice in made} == {
            f"many-{number}": 1_000 + number for number in range(50)
        }
        assert len(made) == len({invoice.payment_hash for invoice in made}) == 50


async def test_a_list_goes_over_pages_oldest_first(tmp_path: Path) -> None:
    with WalletProcess(tmp_path) as process:
        process.stop()
        ledger = Ledger(process.db, lambda: 1_700_000_000)
        for number in range(PAGE + 5):
            ledger.create(Draft(f"page-{number}", 1_000, 600, "", None))
        ledger.close()
        await process.restart()
        client = process.client()
        async with client.running():
            recent = await client.create_invoice(order("recent"))
            listed = await listed_by(client, 0)
            assert [invoice.own_id for invoice in listed] == [f"page-{number}" for number in range(PAGE + 5)] + [
                "recent"
            ]
            assert await listed_by(client, recent.created_at) == (recent,)
            assert await listed_by(client, recent.created_at + 10) == ()


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (InvoiceRequest("bad", 0, 600), "amount_msats is a whole number"),
        (InvoiceRequest("bad", 10**13, 600), "amount_msats is a whole number"),
        (InvoiceRequest("bad", 1_000, 0), "expiry_s is a whole number"),
        (InvoiceRequest("", 1_000, 600), "own_id is a text"),
        (InvoiceRequest("bad", 1_000, 600, "é" * 320), "at most 639 bytes"),
        (InvoiceRequest("bad", 1_000, 600, description_hash="XY"), "64 lower-case hex"),
    ],
)
async def test_impossible_invoices_are_refused(wallet: WalletProcess, request_: InvoiceRequest, says: str) -> None:
    client = wallet.client()
    async with client.running():
        with pytest.raises(WalletRefused, match=says):
            await client.create_invoice(request_)
        assert client.state().ready, "a refusal is an answer"
        assert await client.find("bad") == ()


async def test_paying_out_is_idempotent_and_exact(tmp_path: Path) -> None:
    async with WalletProcess(tmp_path) as process:
        client, payer = process.client(), process.payer()
        bolt11 = foreign_invoice(12_345)
        async with client.running():
            with pytest.raises(WalletRefused, match="balance of 0 msats is too small"):
                await client.pay(bolt11, own_id="refund-1", max_fee_msats=1_000)
            await payer.pay((await client.create_invoice(order("income", 20_000))).bolt11)
            with pytest.raises(WalletRefused, match="route costs 13 msats, more than the 12 allowed"):
                await client.pay(bolt11, own_id="refund-1", max_fee_msats=12)
            payment = await client.pay(bolt11, own_id="refund-1", max_fee_msats=13)
            assert (payment.state, payment.amount_msats, payment.fee_msats) == (PaymentState.SETTLED, 12_345, 13)
            assert payment.payment_hash == read_invoice(bolt11).payment_hash
            assert await client.pay(bolt11, own_id="refund-1", max_fee_msats=13) == payment
            with pytest.raises(WalletRefused, match="another invoice was paid"):
                await client.pay(foreign_invoice(1), own_id="refund-1", max_fee_msats=13)
            with pytest.raises(WalletRefused, match="already paid under another own_id"):
                await client.pay(bolt11, own_id="refund-2", max_fee_msats=13)
            with pytest.raises(WalletRefused, match="not a valid invoice"):
                await client.pay("lnbcrt1qqq", own_id="refund-3", max_fee_msats=13)
            assert await client.balance_msats() == 20_000 - 12_345 - 13
            assert await client.look_up_payment(payment.payment_hash) == payment
            assert await client.look_up_payment("00" * 32) is None
        assert await process.books() == {
            "received_msats": 20_000,
            "paid_msats": 12_345,
            "fees_msats": 13,
            "balance_msats": 7_642,
        }


async def test_the_list_has_both_directions(tmp_path: Path) -> None:
    async with WalletProcess(tmp_path) as process:
        client, payer = process.client(), process.payer()
        async with client.running():
            income = await client.create_invoice(order("income", 500_000))
            await payer.pay(income.bolt11)
            unpaid = await client.create_invoice(order("unpaid", 7_000))
            for number in range(PAGE + 1):
                bolt11 = foreign_invoice(1_000, f"refund {number}")
                await client.pay(bolt11, own_id=f"refund-{number}", max_fee_msats=10)
            listed = await client.transactions(income.created_at)
            assert await client.transactions(int(time.time()) + 60) == ()
    times = [each.created_at for each in listed]
    assert times == sorted(times)
    incoming = {each.payment_hash: each for each in listed if each.direction is Direction.INCOMING}
    outgoing = [each for each in listed if each.direction is Direction.OUTGOING]
    assert incoming[income.payment_hash].amount_msats == 500_000
    assert incoming[income.payment_hash].settled_at is not None
    assert incoming[unpaid.payment_hash].state is PaymentState.PENDING
    assert [(each.amount_msats, each.fee_msats) for each in outgoing] == [(1_000, 1)] * (PAGE + 1)


async def test_paying_an_own_invoice_settles_it_without_a_fee(tmp_path: Path) -> None:
    async with WalletProcess(tmp_path) as process:
        client, payer = process.client(), process.payer()
        async with client.running():
            await payer.pay((await client.create_invoice(order("income", 20_000))).bolt11)
            inner = await client.create_invoice(order("inner", 8_000))
            payment = await client.pay(inner.bolt11, own_id="self", max_fee_msats=0)
            assert (payment.amount_msats, payment.fee_msats) == (8_000, 0)
            settled = await client.look_up(inner.payment_hash)
            assert settled is not None
            assert settled.state is PaymentState.SETTLED
            assert await client.balance_msats() == 20_000


async def test_the_payer_is_refused_what_this_wallet_did_not_make(wallet: WalletProcess) -> None:
    payer = wallet.payer()
    with pytest.raises(WalletRefused, match="knows no such invoice"):
        await payer.pay(foreign_invoice(1_000))
    with pytest.raises(WalletRefused, match="not paid"):
        await payer.pay("lnbcrt1nonsense")


async def test_tokens_divide_the_wallet(wallet: WalletProcess) -> None:
    for token in (wallet.payer_token, "wrong"):
        client = wallet.client(token=token)
        async with client.running():
            with pytest.raises(WalletRefused, match="does not accept the token") as caught:
                await client.balance_msats()
            with pytest.raises(WalletRefused, match="does not accept the token"):
                await anext(client.settlements())
            assert not client.state().ready
            assert token not in str(caught.value)
            assert token not in repr(wallet.config(token=token))
    with pytest.raises(WalletRefused, match="does not accept the token"):
        await FakePayer(wallet.url, wallet.owner_token).pay(foreign_invoice(1_000))


@pytest.mark.parametrize(
    "arguments",
    [
        {"token": ""},
        {"token": "two words", "url": "http://127.0.0.1:1"},
        {"token": "sesame\r\nX: y", "url": "http://127.0.0.1:1"},
        {"token": "sesame"},
        {"token": "sesame", "url": "http://127.0.0.1:1", "uds": Path("/tmp/x")},
        {"token": "sesame", "url": "ftp://127.0.0.1"},
        {"token": "sesame", "url": "http://user:pass@127.0.0.1"},
        {"token": "sesame", "url": "http://127.0.0.1:1", "timeout_s": 0},
    ],
)
def test_wrong_settings_are_refused_without_the_token(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="the fake wallet") as caught:
        FakeWalletConfig(**arguments)  # type: ignore[arg-type]
    assert "sesame" not in str(caught.value)


async def test_a_unix_socket_serves_as_well_and_is_the_owners_alone(tmp_path: Path) -> None:
    async with WalletProcess(tmp_path, uds=True) as process:
        assert process.uds is not None
        assert stat.S_IMODE(process.uds.stat().st_mode) & 0o077 == 0
        assert stat.S_IMODE(process.db.stat().st_mode) == 0o600
        client = process.client()
        async with client.running():
            invoice = await client.create_invoice(order("uds"))
            await process.payer().pay(invoice.bolt11)
            await process.restart()  # over the socket that the killed process left
            assert await client.balance_msats() == 21_000


async def test_kill_and_restart_keep_what_was_answered(tmp_path: Path) -> None:
    async with WalletProcess(tmp_path) as process:
        client, payer = process.client(), process.payer()
        made: dict[str, str] = {}

        async def create(number: int) -> None:
            try:
                invoice = await client.create_invoice(order(f"kill-{number}"))
            except WalletError:
                return
            made[invoice.own_id] = invoice.payment_hash
            if len(made) == 10:
                process.kill()

        async with client.running():
            paid = await client.create_invoice(order("paid", 9_000))
            await payer.pay(paid.bolt11)
            async with anyio.create_task_group() as tasks:
                for number in range(40):
                    tasks.start_soon(create, number)
            assert 10 <= len(made) < 40
            with pytest.raises(WalletUnavailable, match="cannot be reached"):
                await client.create_invoice(order("down"))
            assert not (await client.check()).ready
            assert "last answer" in client.state().detail
            await process.restart()
            assert (await client.check()).ready
            for own_id, payment_hash in made.items():
                assert [invoice.payment_hash for invoice in await client.find(own_id)] == [payment_hash]
            assert await client.find("down") == ()
            assert await client.balance_msats() == 9_000
            # The node's key is kept too.
            again = await client.create_invoice(order("again"))
            assert read_invoice(again.bolt11).payee == read_invoice(paid.bolt11).payee


async def test_a_stream_that_is_closed_or_cancelled_leaves_nothing(wallet: WalletProcess) -> None:
    client = wallet.client()

    async def listen_on() -> None:
        async for _ in client.settlements():
            pass

    async with client.running():
        stream = client.settlements()
        with anyio.move_on_after(0.5):
            await anext(stream)
        await stream.aclose()
        await wallet.streams(0)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen_on)
            tasks.start_soon(listen_on)
            await wallet.streams(2)
            tasks.cancel_scope.cancel()
        await wallet.streams(0)
        assert (await client.check()).ready


async def test_a_stream_breaks_clearly_when_the_wallet_is_killed(tmp_path: Path) -> None:
    async with WalletProcess(tmp_path) as process:
        client = process.client()
        async with client.running(), anyio.create_task_group() as tasks:

            async def listen() -> None:
                with anyio.fail_after(10), pytest.raises(WalletUnavailable, match="stream"):
                    await anext(client.settlements())

            tasks.start_soon(listen)
            await process.streams(1)
            process.kill()
    with pytest.raises(RuntimeError, match="outside of its running"):
        await client.balance_msats()


def test_sigterm_ends_it_quickly_and_cleanly(tmp_path: Path) -> None:
    with WalletProcess(tmp_path) as process, httpx.Client(trust_env=False) as http:
        headers = {"Authorization": f"Bearer {process.owner_token}"}
        with http.stream("GET", f"{process.url}/v1/settlements", headers=headers) as response:
            assert response.status_code == 200
            started = time.monotonic()
            assert process.stop() == 0
            assert time.monotonic() - started < 3


def test_one_process_per_database_and_port(tmp_path: Path) -> None:
    with WalletProcess(tmp_path) as process:
        second = subprocess.run(
            [sys.executable, "-m", "pylon.wallets.fake_server", "--db", str(process.db)],
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert second.returncode == 2
        assert "database is locked" in second.stderr
        assert second.stderr.count("\n") == 1
        port = process.url.rpartition(":")[2]
        third = subprocess.run(
            [sys.executable, "-m", "pylon.wallets.fake_server", "--db", str(tmp_path / "other"), "--port", port],
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert third.returncode == 2
        assert third.stderr.startswith("fake wallet: cannot listen: ")


def test_generated_tokens_are_kept_in_a_file_of_the_owner_and_never_printed(tmp_path: Path) -> None:
    db = tmp_path / "w.sqlite"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYLON_")}
    command = [sys.executable, "-m", "pylon.wallets.fake_server", "--db", str(db)]
    seen = set()
    for _ in range(2):
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            process.terminate()
            rest, errors = process.communicate(timeout=10)
        path = tmp_path / "w.sqlite.tokens.json"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        seen.add(path.read_text())
        assert line.startswith("READY http://127.0.0.1:")
        assert (rest, errors) == ("", "")
    assert len(seen) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the child looks twice a second")
def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys, time\n"
            "child = subprocess.Popen([sys.executable, '-m', 'pylon.wallets.fake_server', '--db', sys.argv[1],"
            " '--die-with-parent'], stdout=subprocess.PIPE, text=True)\n"
            "print(child.stdout.readline().split()[1], child.pid, flush=True)\n"
            "time.sleep(60)\n",
            str(tmp_path / "w.sqlite"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    url, pid = parent.stdout.readline().split()
    try:
        assert httpx.get(url, trust_env=False).status_code == 404
        parent.send_signal(signal.SIGKILL)
        parent.wait(timeout=10)
        deadline = time.monotonic() + 10
        with pytest.raises(httpx.TransportError):
            while time.monotonic() < deadline:
                httpx.get(url, trust_env=False)
                time.sleep(0.05)
    finally:
        parent.kill()
        parent.stdout.close()
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


def test_wrong_arguments_are_told_in_a_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pylon.wallets.fake_server", "--db", str(tmp_path / "w"), "--faults", "lost=2"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 2
    assert "fault 'lost' is a number from 0 to 1" in done.stderr
    assert not (tmp_path / "w").exists()
