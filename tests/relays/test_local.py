"""The pool against a real relay: `nostr_sdk.LocalRelay`, as embedded and as a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from typing import Any, get_args

import anyio
import anyio.lowlevel
import pytest

from pylon.nostr.event import Draft, Event
from pylon.nostr.keys import SecretKey
from pylon.relays.local import Nip42, local_relay
from pylon.relays.state import RelayStatus
from tests.support.relay import relay_process
from tests.support.running_pool import running_pool
from tests.support.scripted_relay import until

CUSTOMER = SecretKey(b"\x05" * 32)


def event(text: str, *tags: tuple[str, ...]) -> Event:
    return Draft(kind=5050, content=text, tags=tags).sign(CUSTOMER, int(time.time()))


def requests(since: int) -> list[dict[str, Any]]:
    return [{"kinds": [5050], "since": since}]


async def test_publish_and_receive_through_the_embedded_relay() -> None:
    async with local_relay() as url, running_pool(url) as run:
        run.pool.subscribe("requests", requests)
        await run.pool.wait_caught_up("requests")
        one = event("hello", ("i", "a \u2028 prompt\x07", "text"))
        run.deliver(one)
        await until(lambda: run.heard.confirmations == 1 and len(run.heard.events) == 1)
        assert run.heard.events == [(one, url)]
        again = event("again")
        run.deliver(again)
        run.publisher.publish_live(again, ())
        await until(lambda: run.heard.confirmations == 2)


@pytest.mark.parametrize("nip42", get_args(Nip42))
async def test_auth_whenever_the_relay_demands_it(nip42: Nip42) -> None:
    async with local_relay(nip42=nip42) as url, running_pool(url) as run:
        run.pool.subscribe("requests", requests)
        await run.pool.wait_caught_up("requests")
        for number in range(200):  # LocalRelay sends a new challenge with each event it refuses
            run.deliver(event(str(number)))
        await until(lambda: run.heard.confirmations == 200 and len(run.heard.events) == 200)
        assert run.state.authenticated
        assert run.state.refused == 0


@pytest.mark.alone
async def test_a_quiet_connection_answers_without_nagle() -> None:
    async with local_relay() as url, running_pool(url) as run:
        await run.pool.wait_connected()
        took = []
        for number in range(20):
            started = time.perf_counter()
            run.deliver(event(str(number)))
            while run.heard.confirmations <= number:  # noqa: ASYNC110 - the time is what is measured
                await anyio.sleep(0.001)
            took.append(time.perf_counter() - started)
        assert sorted(took)[10] < 0.03  # with Nagle's algorithm and delayed ACKs: 44 ms


async def test_more_events_than_the_relay_takes_on_one_connection() -> None:
    count = 7000
    key = SecretKey(b"\x06" * 32)
    with relay_process() as relay:
        async with running_pool(relay.url, publish_timeout_s=10.0) as run:
            await run.pool.wait_connected()
            for number in range(count):
                run.deliver(Draft(kind=7000, content=str(number)).sign(key, 1_700_000_000))
                if number % 100 == 0:
                    await anyio.lowlevel.checkpoint()
            await until(lambda: run.heard.confirmations == count)
            assert run.state.reconnects >= 1
            assert run.state.last_error == "the connection broke"
            assert run.heard.gave == {}


async def test_a_killed_relay_is_found_again_and_events_sent_meanwhile_arrive() -> None:
    with relay_process() as relay:
        async with running_pool(relay.url) as run, running_pool(relay.url) as customer:
            run.pool.subscribe("requests", requests)
            await run.pool.wait_caught_up("requests")
            relay.kill()
            await until(lambda: run.state.status is not RelayStatus.CONNECTED)
            run.deliver(event("result"))
            relay.start()
            await customer.pool.wait_connected()
            late = event("late")
            customer.deliver(late)
            await until(lambda: run.heard.confirmations == 1 and late.id in run.heard.ids())


def test_the_command_ends_on_sigterm_and_says_when_its_port_is_taken() -> None:
    command = [sys.executable, "-m", "pylon.relays.local", "--port"]
    with relay_process() as relay:
        port = relay.url.rpartition(":")[2]
        second = subprocess.run([*command, port], capture_output=True, text=True, timeout=20, check=False)
        assert second.returncode == 1
        assert second.stderr.startswith(f"the local relay cannot listen on 127.0.0.1:{port}: ")
    first = subprocess.Popen([*command, "0"], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert first.stdout.readline().startswith("READY ws://127.0.0.1:")
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=10) == 0
    first.stdout.close()


def test_a_relay_process_ends_with_its_parent() -> None:
    script = (
        "import subprocess, sys, os\n"
        "child = subprocess.Popen([sys.executable, '-m', 'pylon.relays.local', '--die-with-parent'],"
        " stdout=subprocess.PIPE, text=True)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "os._exit(1)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=20, check=False)
    pid = int(done.stdout)
    deadline = time.monotonic() + 10
    while _alive(pid):
        assert time.monotonic() < deadline, "the relay outlived its parent"
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    listed = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return listed.returncode == 0 and not listed.stdout.strip().startswith("Z")
