"""The wallet behind a lightning address: invoices, how it learns of payments, and what it survives."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from pylon import assembly
from pylon.jobs.ports import (
    InvoiceRequest,
    PaymentState,
    Received,
    WalletAbility,
    WalletAmbiguous,
    WalletError,
    WalletRefused,
    WalletUnavailable,
)
from pylon.net.web import Web, WebPolicy
from pylon.nostr.event import Event
from pylon.nostr.keys import SecretKey
from pylon.nostr.lnurl import parse_lightning_address
from pylon.paths import paths_under
from pylon.relays.line import PoolLine
from pylon.relays.state import PoolConfig
from pylon.settings import Settings, SettingsError, load_settings
from pylon.wallets.lnurl import LnurlConfig, LnurlWallet
from tests.support.lnbits import NETWORK, Account, Lnbits
from tests.support.lnurl_host import HOST_KEY, lnurl_host
from tests.support.lnurl_node import make_invoice
from tests.support.relay import RelayProcess, relay_process
from tests.support.running_pool import QUICK, running_pool
from tests.support.wallet import listed_by

KEY = SecretKey(b"\x07" * 32)
NOWHERE = "ws://127.0.0.1:1"
OFFER = "/.well-known/lnurlp/pylon"


@pytest.fixture
def relay() -> Iterator[RelayProcess]:
    with relay_process() as running:
        yield running


class Shifted:
    """The real time, moved on by hand."""

    by = 0.0

    def __call__(self) -> float:
        return time.time() + self.by


@asynccontextmanager
async def wallet_of(
    address: str, folder: Path, relay_url: str = NOWHERE, *, network: str = "regtest", clock: Shifted | None = None
) -> AsyncIterator[LnurlWallet]:
    clock = clock or Shifted()
    config = LnurlConfig(
        parse_lightning_address(address), KEY.public_hex, (relay_url,), network, folder / "lnurl.db", timeout_s=5.0
    )
    line = PoolLine(PoolConfig(urls=(relay_url,), **QUICK), key=KEY, clock=clock, rng=random.Random(1))
    web = Web(WebPolicy(allow_private=True, timeout_s=5.0))
    wallet = LnurlWallet(config, web, line, lambda draft: draft.sign(KEY, int(clock())), clock)
    async with wallet.running():
        yield wallet


def request(own_id: str = "own-1", amount_msats: int = 21_000) -> InvoiceRequest:
    return InvoiceRequest(own_id, amount_msats, 600, f"NIP-90 job ({own_id})")


async def publish(relay: RelayProcess, *events: Event) -> None:
    async with running_pool(relay.url, key=HOST_KEY) as pool:
        for event in events:
            pool.deliver(event)
        with anyio.fail_after(10):
            while not all(event.id in pool.heard.confirmed_by for event in events):  # noqa: ASYNC110
                await anyio.sleep(0.01)


async def until_settled(wallet: LnurlWallet, payment_hash: str) -> None:
    with anyio.fail_after(10):
        while True:
            invoice = await wallet.look_up(payment_hash)
            assert invoice is not None
            if invoice.state is PaymentState.SETTLED:
                return
            await anyio.sleep(0.01)


async def fault(wallet: LnurlWallet, kind: type[WalletError]) -> str:
    with pytest.raises(WalletError) as caught:
        await wallet.create_invoice(request())
    assert type(caught.value) is kind, repr(caught.value)
    return str(caught.value)


# --- whether it can be used ---------------------------------------------------------------------------------------


async def test_an_address_that_tells_nothing_is_refused_at_check(tmp_path: Path) -> None:
    async with lnurl_host() as host, wallet_of(host.address, tmp_path) as wallet:
        state = await wallet.check()
        assert not state.ready
        assert "this address cannot tell whether an invoice was paid" in state.detail
        assert "use nwc, lnbits or phoenixd" in state.detail
        await wallet.check()
        assert host.count("/cb") == 1, "its host is not asked for an invoice at every check"
        assert "cannot tell" in await fault(wallet, WalletRefused)


@pytest.mark.parametrize(
    ("options", "abilities"),
    [
        ({"verifies": True}, set()),
        ({"zaps": True}, {WalletAbility.PUSH}),
        ({"zaps": True, "verifies": True}, {WalletAbility.PUSH}),
    ],
)
async def test_an_address_that_tells_is_ready(
    options: dict[str, Any], abilities: set[WalletAbility], tmp_path: Path
) -> None:
    async with lnurl_host(**options) as host, wallet_of(host.address, tmp_path) as wallet:
        state = await wallet.check()
        assert (state.ready, state.detail) == (True, "")
        assert state.abilities == abilities
        asked = len(host.asked)
        await wallet.check()
        assert len(host.asked) == asked, "what is fresh is not asked again"


async def test_a_host_that_is_away_is_a_state_and_comes_back(tmp_path: Path) -> None:
    clock = Shifted()
    async with (
        lnurl_host(verifies=True, answers={OFFER: (500, None)}) as host,
        wallet_of(host.address, tmp_path, clock=clock) as wallet,
    ):
        state = await wallet.check()
        assert not state.ready and "HTTP status 500" in state.detail
        host.answers.clear()
        clock.by += 20
        assert (await wallet.check()).ready


async def test_zaps_that_the_invoice_does_not_commit_to_are_worth_nothing(tmp_path: Path) -> None:
    async with lnurl_host(zaps=True, hashes=False) as host, wallet_of(host.address, tmp_path) as wallet:
        assert (await wallet.check()).ready
        assert "cannot tell" in await fault(wallet, WalletRefused)
        assert not wallet.state().ready


# --- invoices -----------------------------------------------------------------------------------------------------


async def test_an_invoice_is_remembered_over_a_restart(tmp_path: Path) -> None:
    async with lnurl_host(verifies=True) as host:
        async with wallet_of(host.address, tmp_path) as wallet:
            made = await wallet.create_invoice(request())
            other = await wallet.create_invoice(request("own-2"))
        assert (made.own_id, made.amount_msats, made.state) == ("own-1", 21_000, PaymentState.PENDING)
        assert "own-1" in host.comments[0]
        host.settled.add(made.bolt11)
        async with wallet_of(host.address, tmp_path) as wallet:
            assert await wallet.find("own-1", "NIP-90 job (own-1)") == (made,)
            assert await wallet.find("own-3") == ()
            paid = await wallet.look_up(made.payment_hash)
            assert paid is not None and paid.settled_at is not None
            assert (paid.state, paid.received_msats) == (PaymentState.SETTLED, 21_000)
            assert await wallet.look_up(other.payment_hash) == other
            assert await wallet.look_up("00" * 32) is None
            assert await listed_by(wallet, 0) == (paid, other)
            asked = host.count("/verify")
            assert await wallet.look_up(made.payment_hash) == paid and host.count("/verify") == asked
    assert (tmp_path / "lnurl.db").stat().st_mode & 0o077 == 0


async def test_each_failure_says_whether_an_invoice_may_have_been_made(tmp_path: Path) -> None:
    async with lnurl_host(verifies=True) as host:
        async with wallet_of(host.address, tmp_path) as wallet:
            host.breaks.add("/cb")
            await wallet.check()  # the trial breaks too: nothing is known
            assert not wallet.state().ready
        host.breaks.clear()
        for answer, kind in (
            ((200, {"status": "ERROR", "reason": "no"}), WalletRefused),
            ((400, {"status": "ERROR", "reason": "no"}), WalletRefused),
            ((503, {"status": "ERROR", "reason": "no"}), WalletUnavailable),
            ((429, None), WalletUnavailable),
            ((500, None), WalletAmbiguous),
            ((200, {"pr": "lnbcrt1nonsense", "verify": "http://127.0.0.1:9/v"}), WalletAmbiguous),
            ((200, {}), WalletAmbiguous),
            ((200, {"pr": make_invoice(1_000).bolt11, "verify": "http://127.0.0.1:9/v"}), WalletRefused),
        ):
            async with wallet_of(host.address, tmp_path) as wallet:
                assert (await wallet.check()).ready
                host.answers["/cb"] = answer
                await fault(wallet, kind)
                host.answers.clear()
        async with wallet_of(host.address, tmp_path) as wallet:
            assert (await wallet.check()).ready
            host.breaks.add("/cb")
            assert "may have made an invoice" in await fault(wallet, WalletAmbiguous)
            assert await wallet.find("own-1") == ()
    async with wallet_of(host.address, tmp_path) as wallet:  # nobody listens any more
        await fault(wallet, WalletUnavailable)


async def test_an_amount_out_of_range_and_an_invoice_given_twice_are_refused(tmp_path: Path) -> None:
    async with lnurl_host(verifies=True) as host, wallet_of(host.address, tmp_path) as wallet:
        with pytest.raises(WalletRefused, match="1000 to 10000000 msats"):
            await wallet.create_invoice(request(amount_msats=999))
        made = await wallet.create_invoice(request())
        host.answers["/cb"] = (200, {"pr": made.bolt11.upper(), "verify": f"http://127.0.0.1:{host.port}/verify/x"})
        with pytest.raises(WalletRefused, match="gave before"):
            await wallet.create_invoice(request("own-2"))
        assert await wallet.find("own-2") == ()


async def test_a_verify_url_that_leads_inside_counts_for_nothing(tmp_path: Path) -> None:
    async with lnurl_host(verifies=True) as host, wallet_of(host.address, tmp_path) as wallet:
        await wallet.check()
        host.answers["/cb"] = (200, {"pr": make_invoice(21_000).bolt11, "verify": "http://10.0.0.1/verify"})
        assert "cannot tell" in await fault(wallet, WalletRefused)


# --- verify -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        ((200, {"settled": False}), PaymentState.PENDING),
        ((200, {"status": "ERROR", "reason": "Not found"}), PaymentState.UNKNOWN),
        ((404, {"detail": "x"}), PaymentState.UNKNOWN),
        ((200, {"status": "ERROR", "reason": "node is down"}), None),
        ((500, {"status": "ERROR", "reason": "not found"}), None),
        ((500, None), None),
        ((200, {"settled": "yes"}), None),
        ((200, {"settled": True, "pr": "lnbcrt1other"}), None),
        ((200, {"settled": True, "preimage": "00" * 32}), None),
    ],
)
async def test_only_a_clear_answer_says_anything(
    answer: tuple[int, Any], state: PaymentState | None, tmp_path: Path
) -> None:
    async with lnurl_host(verifies=True) as host, wallet_of(host.address, tmp_path) as wallet:
        made = await wallet.create_invoice(request())
        host.answers["/verify/" + (await verify_name(wallet, made.payment_hash))] = answer
        if state is None:
            with pytest.raises(WalletUnavailable):
                await wallet.look_up(made.payment_hash)
        else:
            found = await wallet.look_up(made.payment_hash)
            assert found is not None and found.state is state
        assert (await wallet.find("own-1"))[0].state is PaymentState.PENDING


async def verify_name(wallet: LnurlWallet, payment_hash: str) -> str:
    row = await wallet._on_disk(lambda file: file.get(payment_hash))
    assert row is not None and row.verify_url is not None
    assert row.verify_url not in repr(row)
    return row.verify_url.rpartition("/")[2]


async def test_an_invoice_past_its_expiry_is_still_asked_about(tmp_path: Path) -> None:
    clock = Shifted()
    async with lnurl_host(verifies=True) as host, wallet_of(host.address, tmp_path, clock=clock) as wallet:
        made = await wallet.create_invoice(request())
        clock.by += 601
        late = await wallet.look_up(made.payment_hash)
        assert late is not None and late.state is PaymentState.EXPIRED
        host.settled.add(made.bolt11)
        await until_settled(wallet, made.payment_hash)


# --- zap receipts -------------------------------------------------------------------------------------------------


async def test_a_zap_receipt_is_pushed_and_noted(relay: RelayProcess, tmp_path: Path) -> None:
    async with lnurl_host(zaps=True) as host, wallet_of(host.address, tmp_path, relay.url) as wallet:
        made = await wallet.create_invoice(request())
        async with aclosing(wallet.settlements()) as settlements, anyio.create_task_group() as tasks:
            got: list[Received] = []
            heard = anyio.Event()

            async def listen() -> None:
                async for received in settlements:
                    got.append(received)
                    heard.set()

            tasks.start_soon(listen)
            await publish(relay, host.receipt(made.bolt11))
            with anyio.fail_after(10):
                await heard.wait()
            tasks.cancel_scope.cancel()
        assert [(each.payment_hash, each.amount_msats) for each in got] == [(made.payment_hash, 21_000)]
        paid = await wallet.look_up(made.payment_hash)
        assert paid is not None and paid.state is PaymentState.SETTLED and paid.settled_at == got[0].settled_at
        assert host.count("/verify") == 0


async def test_a_receipt_that_came_while_we_were_away_is_found(relay: RelayProcess, tmp_path: Path) -> None:
    async with lnurl_host(zaps=True) as host:
        async with wallet_of(host.address, tmp_path, relay.url) as wallet:
            made = await wallet.create_invoice(request())
            unpaid = await wallet.create_invoice(request("own-2"))
        await publish(relay, host.receipt(made.bolt11))
        async with wallet_of(host.address, tmp_path, relay.url) as wallet:
            # The first answer counts: it waits for what the relay has stored.
            paid = await wallet.look_up(made.payment_hash)
            assert paid is not None and paid.state is PaymentState.SETTLED
            assert await wallet.look_up(unpaid.payment_hash) == unpaid


async def test_forged_receipts_settle_nothing(relay: RelayProcess, tmp_path: Path) -> None:
    async with lnurl_host(zaps=True) as host, wallet_of(host.address, tmp_path, relay.url) as wallet:
        made = await wallet.create_invoice(request())
        other = await wallet.create_invoice(request("own-2"))
        host.zap_requests[made.bolt11], right = host.zap_requests[other.bolt11], host.zap_requests[made.bolt11]
        mixed = host.receipt(made.bolt11)
        host.zap_requests[made.bolt11] = right
        await publish(relay, host.receipt(made.bolt11, key=KEY), mixed)
        for each in (made, other):
            assert await wallet.look_up(each.payment_hash) == each
        await publish(relay, host.receipt(other.bolt11))
        await until_settled(wallet, other.payment_hash)
        assert wallet.counters == {"other-description": 1}
        assert await wallet.look_up(made.payment_hash) == made


async def test_receipts_are_not_awaited_for_ever(tmp_path: Path) -> None:
    clock = Shifted()
    async with lnurl_host(zaps=True) as host, wallet_of(host.address, tmp_path, clock=clock) as wallet:
        made = await wallet.create_invoice(request())
        receipt = host.receipt(made.bolt11)
        clock.by += 6 * 86_400
        await wallet.check()
        assert wallet._receipts.filters(int(clock()))[0]["since"] < made.created_at
        clock.by += 2 * 86_400
        await wallet.check()
        assert wallet._receipts.offer(receipt, NOWHERE) == "not-awaited"
        assert wallet._receipts.filters(int(clock()))[0]["since"] > made.expires_at


async def test_without_a_relay_nothing_is_known_of_a_zap(tmp_path: Path) -> None:
    async with lnurl_host(zaps=True) as host, wallet_of(host.address, tmp_path) as wallet:
        made = await wallet.create_invoice(request())
        with pytest.raises(WalletUnavailable, match="zap receipts"):
            await wallet.look_up(made.payment_hash)
        with pytest.raises(WalletUnavailable):
            async with aclosing(wallet.settlements()) as settlements:
                await anext(settlements)


async def test_the_listening_ends_when_the_relay_goes(relay: RelayProcess, tmp_path: Path) -> None:
    async with lnurl_host(zaps=True) as host, wallet_of(host.address, tmp_path, relay.url) as wallet:
        made = await wallet.create_invoice(request())
        await wallet.look_up(made.payment_hash)  # the relay is ready
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, relay.kill)
            with anyio.fail_after(10), pytest.raises(WalletUnavailable):
                async with aclosing(wallet.settlements()) as settlements:
                    await anext(settlements)


async def test_what_an_address_cannot_do_is_refused(tmp_path: Path) -> None:
    async with lnurl_host(verifies=True) as host, wallet_of(host.address, tmp_path) as wallet:
        with pytest.raises(WalletRefused, match="only receives"):
            await wallet.pay("lnbc1", own_id="x", max_fee_msats=0)
        assert await wallet.look_up_payment("00" * 32) is None
        for call in (wallet.balance_msats(), wallet.transactions(0)):
            with pytest.raises(WalletRefused):
                await call


# --- settings -----------------------------------------------------------------------------------------------------


def settings(**wallet: Any) -> Settings:
    given = {"wallet": {"kind": "lnurl", **wallet}, "relays": {"urls": ["ws://127.0.0.1:7"]}}
    return Settings.model_validate(given)


def test_the_wallet_of_the_settings(tmp_path: Path) -> None:
    made = assembly.make_wallet(
        settings(address="You@Example.com", timeout_s=3), Shifted(), KEY, paths_under(tmp_path)
    )
    assert isinstance(made, LnurlWallet)
    config = made._config
    assert (str(config.address), config.pubkey, config.timeout_s) == ("you@example.com", KEY.public_hex, 3)
    assert config.file == tmp_path / "pylon.lnurl.db" and config.relays == ("ws://127.0.0.1:7",)
    with pytest.raises(SettingsError, match="only receives"):
        assembly.make_wallet(settings(address="you@example.com"), Shifted())


def test_an_lnurl_wallet_needs_an_address(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"wallet\.address: missing, and a lnurl wallet needs it"):
        load_settings(None, {"wallet.kind": "lnurl"}, {"PYLON_HOME": str(tmp_path)})
    loaded = load_settings(
        None, {"wallet.kind": "lnurl"}, {"PYLON_HOME": str(tmp_path), "PYLON_WALLET__ADDRESS": "you@example.com"}
    )
    assert loaded.settings.wallet.address == "you@example.com"


# --- a real LNbits ------------------------------------------------------------------------------------------------


async def test_a_real_lnbits_address_alone_cannot_tell(lnbits: Lnbits, tmp_path: Path) -> None:
    async with wallet_of(lnbits.provider.address, tmp_path, network=NETWORK) as wallet:
        state = await wallet.check()
    assert not state.ready and "cannot tell whether an invoice was paid" in state.detail


async def test_payments_to_a_real_lnbits_show_by_verify(lnbits: Lnbits, tmp_path: Path) -> None:
    """LNbits itself offers no `verify`: the host here does, over invoices that LNbits makes and settles."""
    payee = lnbits.account("seller")
    async with lnurl_host(verifies=True, make=maker(lnbits, payee), paid=judge(lnbits, payee)) as host:
        async with wallet_of(host.address, tmp_path, network=NETWORK) as wallet:
            assert (await wallet.check()).ready
            made = await wallet.create_invoice(request())
            assert await wallet.look_up(made.payment_hash) == made
        lnbits.pay(made.bolt11)
        async with wallet_of(host.address, tmp_path, network=NETWORK) as wallet:
            paid = await wallet.look_up(made.payment_hash)
            assert paid is not None and (paid.state, paid.received_msats) == (PaymentState.SETTLED, 21_000)
    assert lnbits.balance_msats(payee) == 21_000


def maker(lnbits: Lnbits, payee: Account) -> Any:
    async def make(amount_msats: int, hashed: str | None) -> str:
        return lnbits.invoice(payee, amount_msats // 1000)

    return make


def judge(lnbits: Lnbits, payee: Account) -> Any:
    async def paid(bolt11: str) -> bool:
        return any(each["bolt11"] == bolt11 and each["status"] == "success" for each in lnbits.payments(payee))

    return paid
