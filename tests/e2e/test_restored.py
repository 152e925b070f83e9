"""An old copy of the books comes back: no job is delivered twice, no settlement is lost or booked twice."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from pylon.control.views import DaemonState, DaemonStatus
from pylon.nostr.event import verify
from pylon.nostr.nip90 import FEEDBACK_KIND, FeedbackStatus
from pylon.nostr.nip90_replies import parse_result
from pylon.store.records import RESTORED_MARK, Money, Work
from tests.e2e.test_market import until_state
from tests.support.openai_server import DONE, STREAM_END, STREAM_HEAD, Wire, framed, piece, scripted_server
from tests.support.provider import MODEL, Provider, market_settings, provider
from tests.support.relay import relay_process
from tests.support.shop import RESULT_KIND, Order, Shop, shop, stored_events
from tests.support.wallet import WalletProcess

pytestmark = pytest.mark.e2e

SLOW = "take your time"
BEFORE = "take your time, it begins before the backup"


class Model:
    """A model's server that answers at once, but for slow prompts, each of which waits until it may go on."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.go_on = {SLOW: anyio.Event(), BEFORE: anyio.Event()}
        self.begun = {SLOW: anyio.Event(), BEFORE: anyio.Event()}

    async def chat(self, wire: Wire) -> None:
        prompt = wire.json["messages"][-1]["content"]
        self.asked.append(prompt)
        if prompt in self.go_on:
            self.begun[prompt].set()
            await self.go_on[prompt].wait()
        await wire.send(STREAM_HEAD + framed(piece(f"Echo: {prompt}", "stop")) + framed(DONE) + STREAM_END)


def place_of_backup(folder: Path) -> tuple[str, tuple[str, ...]]:
    """Return where a backup goes, and the options that open it."""
    secret = folder / "passphrase"
    secret.write_text("correct horse battery\n")
    secret.chmod(0o600)
    return str(folder / "pylon.backup"), ("--passphrase-file", str(secret))


async def sold(wallet: WalletProcess, customer: Shop, prompt: str) -> Order:
    order = await customer.order(prompt)
    await wallet.payer().pay(await order.invoice())
    await order.until(lambda order: order.feedback(FeedbackStatus.SUCCESS), "success")
    return order


async def ran(daemon: Provider, *arguments: str, code: int = 0) -> str:
    done = await daemon.pylon(*arguments)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def is_quiet(status: DaemonStatus) -> bool:
    return status.state is DaemonState.READY and status.outbox_pending == 0


async def test_an_old_copy_comes_back(tmp_path: Path) -> None:
    model = Model()
    file, keys = place_of_backup(tmp_path)
    async with scripted_server() as server, WalletProcess(tmp_path) as wallet:
        server.models, server.chats = (MODEL,), [model.chat]
        with relay_process() as relay:
            settings = market_settings(relay.url, paid_to=wallet, backend_url=server.url)
            async with (
                provider(tmp_path, settings, wallet=wallet) as daemon,
                shop(relay.url, provider=daemon.pubkey) as customer,
            ):
                before = await sold(wallet, customer, "before the backup")
                invoiced = await customer.order("invoiced before, paid after")
                bolt11 = await invoiced.invoice()
                begun = await customer.order(BEFORE)
                await wallet.payer().pay(await begun.invoice())
                await model.begun[BEFORE].wait()
                await ran(daemon, "backup", file, *keys)

                # What the copy does not know: paid and delivered, only invoiced, paid and under way.
                await wallet.payer().pay(bolt11)
                await invoiced.result()
                model.go_on[BEFORE].set()
                await begun.result()
                after = await sold(wallet, customer, "after the backup")
                unpaid = await customer.order("paid while nobody runs")
                unpaid_bolt11 = await unpaid.invoice()
                running = await customer.order(SLOW)
                await wallet.payer().pay(await running.invoice())
                await model.begun[SLOW].wait()
                await daemon.until(lambda status: status.outbox_pending == 0, "published")
                daemon.kill()
                await wallet.payer().pay(unpaid_bolt11)
                model.go_on[SLOW].set()

                out = await ran(daemon, "restore", file, "--force", *keys)
                assert "It asks the wallet about every invoice" in out
                assert RESTORED_MARK in daemon.reports().marks()
                for times in range(1, 4):  # killed as soon as it compares: it begins again
                    daemon.launch()
                    with anyio.fail_after(30):
                        while daemon.log().count("restored books: relays and wallet are asked") < times:  # noqa: ASYNC110
                            await anyio.sleep(0.01)
                    daemon.kill()
                await daemon.start()
                await running.result()
                await unpaid.result()
                await daemon.until(is_quiet, "quiet")

                orders = [before, invoiced, begun, after, unpaid, running]
                ids = [order.id for order in orders]
                results = await stored_events(relay.url, daemon.pubkey, ids, [RESULT_KIND])
                assert all(verify(event) for event in results)
                assert sorted(event.tag_values("e")[0] for event in results) == sorted(ids)  # one each
                asked = await stored_events(relay.url, daemon.pubkey, ids, [FEEDBACK_KIND])
                refused = [event for event in asked if event.tag_values("status")[0] == "error"]
                assert refused == []
                done = [prompt for prompt in model.asked if prompt != SLOW]
                assert len(done) == len(set(done)) == 5
                for order in orders:
                    detail = daemon.reports().detail(order.id)
                    assert detail is not None
                    assert (detail.job.work, detail.job.money) == (Work.DELIVERED, Money.SETTLED)
                    assert detail.job.result_id in {event.id for event in results}
                    assert order.invoices == [row.bolt11 for row in detail.invoices]

                books, truth = (await daemon.status()).books, await wallet.books()
                assert books.received_msats == books.earned_msats == truth["received_msats"]
                assert books.owed_msats == 0
                assert RESTORED_MARK not in daemon.reports().marks()
                assert "agree" in await ran(daemon, "reconcile")
                assert await daemon.stop() == 0
                assert daemon.log_lines("error") == []
                assert "Traceback" not in daemon.log()


async def test_without_the_wallet_it_waits_and_says_so(tmp_path: Path) -> None:
    file, keys = place_of_backup(tmp_path)
    with relay_process() as relay, WalletProcess(tmp_path) as wallet:
        async with (
            provider(tmp_path, market_settings(relay.url, paid_to=wallet), wallet=wallet) as daemon,
            shop(relay.url, provider=daemon.pubkey) as customer,
        ):
            order = await customer.order("paid while nobody runs")
            bolt11 = await order.invoice()
            await ran(daemon, "backup", file, *keys)
            assert await daemon.stop() == 0
            await wallet.payer().pay(bolt11)
            await ran(daemon, "restore", file, "--force", *keys)
            wallet.kill()

            daemon.launch()
            status = await daemon.until(
                lambda status: "the wallet does not answer" in status.intake.paused, "waiting"
            )
            assert status.state is DaemonState.DEGRADED
            assert any(
                "the books come from a backup and are compared first" in each for each in status.state_reasons
            )
            assert status.intake.accepted == 0
            assert await daemon.stop() == 0  # it need not wait to be stopped
            assert RESTORED_MARK in daemon.reports().marks()

            daemon.launch()
            await daemon.until(lambda status: "the wallet does not answer" in status.intake.paused, "waiting again")
            asked_meanwhile = await customer.order("asked meanwhile")
            assert order.results == []
            await wallet.restart()
            await order.result()
            assert await asked_meanwhile.invoice()
            await daemon.until(is_quiet, "quiet")
            assert (await daemon.status()).books.received_msats == (await wallet.books())["received_msats"]


async def test_work_on_credit_of_the_lost_history_is_still_billed(tmp_path: Path) -> None:
    file, keys = place_of_backup(tmp_path)
    with relay_process() as relay, WalletProcess(tmp_path) as wallet:
        settings = market_settings(relay.url, paid_to=wallet, payment={"mode": "postpay", "credit_msats": 40_000})
        async with (
            provider(tmp_path, settings, wallet=wallet) as daemon,
            shop(relay.url, provider=daemon.pubkey) as customer,
        ):
            await ran(daemon, "backup", file, *keys)
            order = await customer.order("on credit")
            bolt11 = parse_result(await order.result()).bolt11
            assert bolt11 is not None
            await daemon.until(lambda status: status.outbox_pending == 0, "published")
            daemon.kill()
            await ran(daemon, "restore", file, "--force", *keys)
            await daemon.start()
            await until_state(daemon, order, (Work.DELIVERED, Money.INVOICED))
            await wallet.payer().pay(bolt11)
            await until_state(daemon, order, (Work.DELIVERED, Money.SETTLED))
            assert len(await stored_events(relay.url, daemon.pubkey, [order.id], [RESULT_KIND])) == 1
            assert "agree" in await ran(daemon, "reconcile")
