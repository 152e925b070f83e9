"""The daemon as a service: when it refuses to start, how it stops, what it tells, and what it never tells."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import anyio
import anyio.to_thread
import pytest
import tomlkit

from pylon.nostr.keys import SecretKey
from pylon.nostr.nip90 import ErrorPrefix
from pylon.store.records import Money, Work
from tests.support.gated_server import GatedServer
from tests.support.openai_server import scripted_server
from tests.support.provider import MODEL, Provider, market_settings, provider
from tests.support.relay import relay_process
from tests.support.shop import Shop, shop
from tests.support.wallet import WalletProcess

pytestmark = pytest.mark.e2e

IDLE_LIMIT_MB = 120
PUBLIC = ("wss://relay.example.com",)


@asynccontextmanager
async def market(
    folder: Path, *, paid: bool = False, backend_url: str = "", **tables: Any
) -> AsyncIterator[tuple[Provider, Shop, WalletProcess]]:
    """Have a provider, a customer and, for a paid one, a wallet on one relay."""
    wallet = WalletProcess(folder)
    with relay_process() as relay:
        try:
            if paid:
                wallet.start()
            settings = market_settings(
                relay.url, paid_to=wallet if paid else None, backend_url=backend_url, slots=2, **tables
            )
            async with (
                provider(folder, settings, wallet=wallet if paid else None) as daemon,
                shop(relay.url, provider=daemon.pubkey) as customer,
            ):
                yield daemon, customer, wallet
        finally:
            wallet.kill()


def one_line(done: CompletedProcess[str]) -> str:
    """Return what a command said on stderr, which is one line without a traceback."""
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("pylon: ")
    return done.stderr


# --- starting -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["none", "fake"])
async def test_work_is_not_prepaid_to_nobody(tmp_path: Path, kind: str) -> None:
    """Nobody works for nothing by accident: the refusal names the three ways out."""
    settings = market_settings(
        *PUBLIC, payment={"mode": "prepay"}, wallet={"kind": kind, "url": "http://127.0.0.1:1"}
    )
    async with provider(tmp_path, settings, started=False) as daemon:
        done = await daemon.pylon("start")
        said = one_line(done)
        assert done.returncode == 2
        assert all(way in said for way in ("connect a wallet", "--free", "pylon demo"))
        assert not daemon.paths.database.exists()


async def test_one_daemon_a_home_and_no_stale_lock(tmp_path: Path) -> None:
    async with market(tmp_path) as (daemon, customer, _):
        second = await daemon.pylon("start")
        assert second.returncode == 1
        assert f"already runs in this home: process {daemon.pid}" in one_line(second)
        await (await customer.order()).result()
        daemon.kill()
        assert daemon.paths.control_socket.exists(), "a crash leaves its socket behind: else this shows nothing"
        status = await daemon.pylon("status")
        assert (status.returncode, status.stdout) == (3, "pylon is not running (start it: pylon start)\n")
        await daemon.start()
        await (await customer.order()).result()
        assert await daemon.stop() == 0
        assert not daemon.paths.control_socket.exists()


# --- stopping -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["pylon stop", "SIGTERM", "SIGINT"])
async def test_a_graceful_stop_delivers_what_runs_and_keeps_what_waits(tmp_path: Path, how: str) -> None:
    async with scripted_server() as script:
        gate = GatedServer(script)
        async with market(tmp_path, backend_url=gate.url) as (daemon, customer, _):
            orders = [await customer.order() for _ in range(5)]
            await gate.until_waiting(2)
            async with anyio.create_task_group() as tasks:
                said: list[CompletedProcess[str]] = []

                async def stop() -> None:
                    if how == "pylon stop":
                        said.append(await daemon.pylon("stop"))
                    else:
                        daemon.send(signal.Signals[how])

                tasks.start_soon(stop)
                await daemon.until(lambda status: status.state == "stopping", "stopping")
                late = await customer.order(providers=[daemon.pubkey])
                assert await late.error() == ErrorPrefix.PAUSED
                assert daemon.running, "it must wait for the jobs that run"
                gate.open.set()
            assert await daemon.ended() == 0
            if said:
                assert (said[0].returncode, said[0].stdout) == (0, "pylon has stopped\n")
            for order in orders[:2]:
                assert (await order.result()).content == "done"
            jobs = json.loads((await daemon.pylon("jobs", "list", "--json")).stdout)
            works = {job["id"]: job["work"] for job in jobs}
            assert [works[order.id] for order in orders] == [Work.DELIVERED] * 2 + [Work.QUEUED] * 3
            assert gate.waiting == 2
            await daemon.start()
            for order in orders:
                assert (await order.result()).content == "done"


async def test_nothing_begins_while_a_silent_relay_holds_up_the_stop(tmp_path: Path) -> None:
    """The last word to customers is waited for; a slot that is free meanwhile stays free."""
    async with scripted_server() as script:
        gate = GatedServer(script)
        with relay_process() as relay:
            settings = market_settings(relay.url, backend_url=gate.url, slots=1)
            async with (
                provider(tmp_path, settings) as daemon,
                shop(relay.url, provider=daemon.pubkey) as customer,
            ):
                orders = [await customer.order() for _ in range(2)]
                await gate.until_waiting(1)
                await daemon.until(lambda status: status.intake.accepted == 2, "with a job that waits")
                relay.pause()
                daemon.send(signal.SIGTERM)
                await daemon.until(lambda status: status.state == "stopping", "stopping")
                gate.open.set()
                assert await daemon.ended() == 0
                details = [daemon.reports().detail(order.id) for order in orders]
                assert [each and each.job.work for each in details] == [Work.PRODUCED, Work.QUEUED]
                assert gate.waiting == 1


async def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    async with scripted_server() as script:
        gate = GatedServer(script)
        async with market(tmp_path, backend_url=gate.url) as (daemon, customer, _):
            order = await customer.order()
            await gate.until_waiting(1)
            daemon.send(signal.SIGTERM)
            await daemon.until(lambda status: status.state == "stopping", "stopping")
            with anyio.fail_after(5):  # a graceful stop would wait for 30 s
                assert await daemon.stop() == 0
            gate.open.set()
            await daemon.start()
            assert (await order.result()).content == "done"


# --- telling --------------------------------------------------------------------------------------------------


async def test_status_tells_all_that_matters_and_costs_little(tmp_path: Path) -> None:
    async with market(tmp_path, paid=True) as (daemon, customer, wallet):
        order = await customer.order(params=[("max_tokens", ["100"])])
        await wallet.payer().pay(await order.invoice())
        await order.result()
        refused = await customer.order(params=[("model", ["gpt-99"])], providers=[daemon.pubkey])
        await refused.error()
        done = await daemon.pylon("status", "--json")
        assert done.returncode == 0
        told = json.loads(done.stdout)
        assert told["pid"] == daemon.pid
        assert told["pubkey"] == daemon.pubkey
        assert (told["state"], told["payment_mode"]) == ("ready", "prepay")
        assert [relay["status"] for relay in told["relays"]] == ["connected"]
        assert [(each["name"], each["health"], each["models"]) for each in told["backends"]] == [
            ("b", "ready", ["echo"])
        ]
        assert (told["wallet"]["kind"], told["wallet"]["ready"], told["wallet"]["network"]) == (
            "fake",
            True,
            "regtest",
        )
        assert [(each["model"], each["slots"]) for each in told["queue"]] == [(MODEL, 2)]
        assert told["jobs_by_state"] == {"delivered/settled": 1}
        assert told["books"]["received_msats"] == told["books"]["earned_msats"] == 2000
        assert told["books"]["owed_msats"] == 0
        assert told["refused"] == {"unsupported-model": 1}
        assert told["intake"] == {"accepted": 1, "paused": ""}
        assert told["store"]["healthy"]
        shown = await daemon.pylon("status")
        assert "ready" in shown.stdout
        assert daemon.rss_mb < IDLE_LIMIT_MB


async def test_the_database_answers_what_the_daemon_answers(tmp_path: Path) -> None:
    """`pylon jobs` and `pylon earnings` say the same with and without a daemon."""
    async with scripted_server() as script:
        gate = GatedServer(script)
        async with market(tmp_path, paid=True, backend_url=gate.url) as (daemon, customer, wallet):
            paid = await customer.order()
            unpaid = await customer.order()
            await wallet.payer().pay(await paid.invoice())
            await unpaid.invoice()
            await gate.until_waiting(1)
            cancelled = await daemon.pylon("jobs", "cancel", paid.id[:8])
            assert (cancelled.returncode, cancelled.stderr) == (0, "")
            assert cancelled.stdout == f"{paid.id[:12]}: work cancelled, money refund_due\n"
            assert await paid.error() == ErrorPrefix.REFUND_DUE
            gate.open.set()
            served = await customer.order()
            await wallet.payer().pay(await served.invoice())
            await served.result()
            await daemon.until(lambda status: not status.outbox_pending, "done with publishing")
            too_late = await daemon.pylon("jobs", "cancel", served.id)
            assert too_late.returncode == 1
            assert "cannot be cancelled any more: it is delivered" in one_line(too_late)

            questions = [
                ["jobs", "list", "--json"],
                ["jobs", "list", "--money", "refund_due"],
                ["jobs", "show", paid.id, "--json"],
                ["jobs", "show", served.id[:10]],
                ["earnings", "--json"],
                ["earnings", "--by", "model"],
            ]
            online = [await daemon.pylon(*question) for question in questions]
            assert await daemon.stop() == 0
            offline = [await daemon.pylon(*question) for question in questions]
            for question, live, stored in zip(questions, online, offline, strict=True):
                assert (live.returncode, live.stderr) == (0, ""), question
                assert live.stdout == stored.stdout, question
            listed = {job["id"]: (job["work"], job["money"]) for job in json.loads(online[0].stdout)}
            assert listed == {
                paid.id: (Work.CANCELLED, Money.REFUND_DUE),
                unpaid.id: (Work.AWAITING_PAYMENT, Money.INVOICED),
                served.id: (Work.DELIVERED, Money.SETTLED),
            }
            total = json.loads(online[4].stdout)["total"]
            price = total["earned_msats"]
            assert price > 0
            assert (total["received_msats"], total["refund_due_msats"]) == (2 * price, price)
            offline_cancel = await daemon.pylon("jobs", "cancel", unpaid.id)
            assert offline_cancel.returncode == 3
            assert "only a running daemon can cancel" in one_line(offline_cancel)


# --- never telling --------------------------------------------------------------------------------------------


async def test_no_secret_is_written_or_said(tmp_path: Path) -> None:
    """Not in the log at its most talkative, the database, an answer of the socket, a command's output, an event."""
    async with scripted_server() as script:
        gate = GatedServer(script)
        gate.open.set()
        async with market(tmp_path, paid=True, backend_url=gate.url, log={"level": "debug"}) as (
            daemon,
            customer,
            wallet,
        ):
            order = await customer.order()
            await wallet.payer().pay(await order.invoice())
            await order.result()
            wallet.kill()  # faults are what secrets slip into
            await daemon.until(
                lambda status: status.wallet is not None and not status.wallet.ready, "without wallet"
            )
            said = [order.request.to_json(), *(event.to_json() for event in order.events.values())]
            for path in ("/status", "/jobs", f"/jobs/{order.id}?input=1", "/earnings?by=total", "/nothing"):
                said.append(await anyio.to_thread.run_sync(ask_socket, daemon.paths.control_socket, path))
            commands = [
                ["status"],
                ["status", "--json"],
                ["jobs", "show", order.id, "--show-input"],
                ["config", "show"],
                ["--debug", "start"],
            ]
            for command in commands:
                done = await daemon.pylon(*command)
                said += [done.stdout, done.stderr]
            # While it runs: what is only in the write-ahead log counts as well.
            files = {path: path.read_bytes() for path in daemon.paths.state_dir.iterdir() if path.is_file()}
            assert daemon.paths.database in files
            assert await daemon.stop() == 0
            said.append(daemon.log())
            assert daemon.log_lines("debug"), "the log was not at its most talkative"
            for secret in (
                daemon.key.reveal_nsec(),
                daemon.key.reveal_hex(),
                wallet.owner_token,
                wallet.payer_token,
            ):
                assert all(secret not in text for text in said)
                assert [path for path, content in files.items() if secret.encode() in content] == []
            assert bytes.fromhex(daemon.key.reveal_hex()) not in b"".join(files.values())


def ask_socket(path: Path, target: str) -> str:
    """Return the raw answer of the control socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        connection.sendall(f"GET {target} HTTP/1.1\r\nHost: pylon\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
        return answer.decode()


# --- faults of the operator -----------------------------------------------------------------------------------


def spoil_database(daemon: Provider) -> None:
    daemon.paths.database.write_bytes(b"this is not a database" * 400)


def newer_database(daemon: Provider) -> None:
    with closing(sqlite3.connect(daemon.paths.database)) as db:
        db.execute("PRAGMA user_version = 9999")


def spoil_settings(daemon: Provider) -> None:
    daemon.paths.config_file.write_text("[relays\nurls = 3")


def unknown_key(daemon: Provider) -> None:
    daemon.paths.config_file.write_text("[relays]\nurl = 'wss://relay.example.com'\n")


def home_is_open(daemon: Provider) -> None:
    (daemon.paths.state_dir / "somebody's file").write_text("")
    daemon.paths.state_dir.chmod(0o755)


def lock_is_a_folder(daemon: Provider) -> None:
    daemon.paths.lock_file.mkdir()


@pytest.mark.parametrize(
    ("spoil", "code", "words"),
    [
        (spoil_database, 1, "database"),
        (newer_database, 1, "upgrade Pylon"),
        (spoil_settings, 2, "pylon.toml"),
        (unknown_key, 2, "relays.url"),
        (home_is_open, 1, "chmod 700"),
        (lock_is_a_folder, 1, "pylon.lock"),
    ],
)
async def test_what_an_operator_can_get_wrong_is_one_line(
    tmp_path: Path, spoil: Any, code: int, words: str
) -> None:
    async with provider(tmp_path, market_settings("ws://127.0.0.1:9"), started=False) as daemon:
        spoil(daemon)
        done = await daemon.pylon("start")
        assert words in one_line(done)
        assert done.returncode == code


async def test_debug_shows_where_it_went_wrong(tmp_path: Path) -> None:
    async with provider(tmp_path, market_settings("ws://127.0.0.1:9"), started=False) as daemon:
        spoil_database(daemon)
        done = await daemon.pylon("start", "--debug")
        assert "Traceback (most recent call last)" in done.stderr
        assert done.returncode == 1


async def test_a_fault_of_the_running_daemon_is_one_line_too(tmp_path: Path) -> None:
    """A control socket whose place is taken by a folder: known only after the start."""
    async with provider(tmp_path, market_settings("ws://127.0.0.1:9"), started=False) as daemon:
        (daemon.paths.control_socket / "in the way").mkdir(parents=True)
        done = await daemon.pylon("start")
        assert done.returncode == 1
        last = done.stderr.splitlines()[-1]
        assert last.startswith("pylon: ")
        assert os.fspath(daemon.paths.control_socket) in last
        assert "Traceback" not in done.stderr


async def test_settings_are_read_again_while_jobs_run(tmp_path: Path) -> None:
    """What can change does, what cannot is told, a wrong file changes nothing; no secret is in any of it."""
    async with scripted_server() as script:
        gate = GatedServer(script)
        async with market(tmp_path, paid=True, backend_url=gate.url) as (daemon, customer, wallet):
            settings = tomlkit.parse(daemon.paths.config_file.read_text()).unwrap()
            running = await customer.order()
            await wallet.payer().pay(await running.invoice())
            await gate.until_waiting(1)
            settings["models"][0]["base_msats"] = 50_000
            settings["announce"] = {"about": "other words"}
            settings["log"] = {"format": "text"}
            settings["relays"]["publish_timeout_s"] = 3
            settings["wallet"]["token"] = "another-wallet-token"
            settings["identity"] = {"nsec": (other := SecretKey.generate().reveal_nsec())}
            daemon.configure(settings)
            daemon.paths.config_file.chmod(0o600)
            done = await daemon.pylon("reload")
            assert (done.returncode, done.stderr) == (0, "")
            assert set(done.stdout.splitlines()) == {
                "changed: announce.about: Sells inference for Lightning payments (NIP-90). -> other words",
                "changed: log.format: auto -> text",
                "changed: models[echo].base_msats: 1000 -> 50000",
                "needs a restart: relays.publish_timeout_s: 2 -> 3",
            }, "key and wallet's token come from the environment, which wins over the file"
            await daemon.until(lambda status: status.models[0].base_msats == 50_000, "dearer")
            dear = await customer.order(bid_msats=20_000, providers=[daemon.pubkey])
            assert await dear.error() == ErrorPrefix.BID_TOO_LOW
            assert "a restart is needed for relays.publish_timeout_s" in (await daemon.pylon("status")).stdout
            said = next(line for line in daemon.log().splitlines() if "the settings were read again" in line)
            assert not said.startswith("{"), "the log follows at once"

            daemon.paths.config_file.write_text("[relays]\nurl = 'wss://relay.example.com'\n")
            wrong = await daemon.pylon("reload")
            assert wrong.returncode == 1
            assert "the settings stay as they were" in one_line(wrong) and "relays.url" in wrong.stderr
            shown = await daemon.pylon("status")
            assert "as they were, what was read is wrong" in shown.stdout
            assert "a restart is needed for relays.publish_timeout_s" in shown.stdout
            daemon.configure(settings)
            daemon.paths.config_file.chmod(0o600)
            daemon.send(signal.SIGHUP)
            await daemon.until(lambda status: status.settings is not None and not status.settings.error, "content")

            gate.open.set()
            assert (await running.result()).content == "done"
            assert await daemon.stop() == 0
            everything = daemon.log() + done.stdout + wrong.stderr + shown.stdout
            assert other not in everything and "another-wallet-token" not in everything
            offline = await daemon.pylon("reload")
            assert (offline.returncode, offline.stdout) == (3, "")
            assert "it reads its settings when it starts" in one_line(offline)


async def test_the_lists_of_customers_are_read_again_on_sighup(tmp_path: Path) -> None:
    deny = tmp_path / "deny.txt"
    deny.write_text("")
    async with market(tmp_path, intake={"deny_file": str(deny)}) as (daemon, customer, _):
        await (await customer.order("first")).result()
        deny.write_text(f"{customer.key.public_hex}\n")
        daemon.send(signal.SIGHUP)
        await daemon.logged("were read again")
        order = await customer.order("second", providers=[daemon.pubkey])
        await order.until(lambda order: order.errors, "refusal")
        assert order.errors[0].startswith(ErrorPrefix.RESTRICTED)
        await customer.order("third", params=[("model", ["gpt-4o"])], key=SecretKey.generate())
        await daemon.until(lambda status: status.missed_models == {"gpt-4o": 1}, "missing a model")
        told = await daemon.pylon("jobs", "refused")
        assert told.returncode == 0
        assert "unsupported-model" in told.stdout and "restricted" in told.stdout and "gpt-4o" in told.stdout
        deny.write_text("nobody\n")
        daemon.send(signal.SIGHUP)
        await daemon.logged("stay as they were")
        order = await customer.order("fourth", providers=[daemon.pubkey])
        await order.until(lambda order: order.errors, "refusal")
