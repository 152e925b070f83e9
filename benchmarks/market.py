"""How fast the whole market is: a customer, a local relay and the real daemon, beside a bare provider.

Closed loop: so many requests are outstanding, and each result lets the next request go. The daemon runs in free
mode with the echo backend and everything durable; the bare provider (`bare_provider.py`: pynostr and websockets, as
one writes it in an hour) and the same tuned by hand (`tuned_provider.py`) store nothing. All are measured in the
same run, round by round, and the ratios to both are printed. Traffic stays on loopback and is bounded.

The local relay closes a connection at its 6,001st message, so every measured round starts new processes.

usage: python -m benchmarks.market [--jobs 2000] [--rounds 3] [--memory-jobs 20000] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson
from websockets.asyncio.client import ClientConnection, connect

from benchmarks.processes import Process, echo_daemon, relay, running
from pylon.nostr.event import Event, parse_event, verify
from pylon.nostr.keys import SecretKey
from pylon.nostr.messages import event_frame
from pylon.nostr.nip90 import JobInput, request_draft

OUTSTANDING = (1, 16, 64)
YARDSTICKS = ("bare", "tuned")
MESSAGES_PER_CONNECTION = 5000
TIME_LIMIT_S = 120
LOT = 400
PROMPT = "the quick brown fox jumps over the lazy dog and runs on through the night"


@dataclass(frozen=True)
class Figures:
    """What one round measured."""

    jobs_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    cpu_ms_per_job: float
    rss_mb: float


@contextlib.contextmanager
def provider(kind: str, url: str) -> Iterator[Process]:
    if kind in YARDSTICKS:
        with running([sys.executable, "-m", f"benchmarks.{kind}_provider", url], dict(os.environ)) as process:
            yield process
        return
    with echo_daemon(url, key=SecretKey.generate(), backoff_min_s=0.01) as (process, _):
        yield process


class Customer:
    """Publishes requests and waits for their results; signing and checking happen outside the measured time."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._key = SecretKey.generate()
        self._made = 0
        self._waiting: dict[str, tuple[float, asyncio.Future[None]]] = {}
        self.latencies_s: list[float] = []
        self.results: list[bytes] = []

    def prepare(self, count: int) -> list[Event]:
        """Sign requests; every one has another prompt, else two made in one second would be one event."""
        now = int(time.time())
        first, self._made = self._made, self._made + count
        prompts = (f"{PROMPT} {number}" for number in range(first, first + count))
        return [request_draft(5050, [JobInput(prompt)]).sign(self._key, now) for prompt in prompts]

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        async with connect(self._url, compression=None, max_size=2**22) as ear:
            wanted = {"kinds": [6050], "#p": [self._key.public_hex]}
            await ear.send(orjson.dumps(["REQ", "results", wanted]).decode())
            task = asyncio.create_task(self._listen(ear))
            try:
                yield
            finally:
                task.cancel()

    async def _listen(self, ear: ClientConnection) -> None:
        async for frame in ear:
            message = orjson.loads(frame)
            if message[0] != "EVENT":
                continue
            request_id = next(tag[1] for tag in message[2]["tags"] if tag[0] == "e")
            started, future = self._waiting.pop(request_id, (0.0, None))
            if future is not None:
                self.latencies_s.append(time.perf_counter() - started)
                self.results.append(orjson.dumps(message[2]))
                future.set_result(None)

    async def run(self, requests: list[Event], outstanding: int) -> float:
        """Send all requests, `outstanding` at a time; return the seconds it took."""
        frames = iter([(event.id, event_frame(event)) for event in requests])
        started = time.perf_counter()
        async with contextlib.AsyncExitStack() as stack:
            mouths = [
                await stack.enter_async_context(connect(self._url, compression=None))
                for _ in range(-(-len(requests) // MESSAGES_PER_CONNECTION))
            ]
            drains = [asyncio.create_task(_drain(mouth)) for mouth in mouths]
            started = time.perf_counter()
            async with asyncio.timeout(TIME_LIMIT_S), asyncio.TaskGroup() as tasks:
                for number in range(outstanding):
                    tasks.create_task(self._worker(frames, mouths[number % len(mouths)]))
            took = time.perf_counter() - started
            for drain in drains:
                drain.cancel()
        return took

    async def _worker(self, frames: Iterator[tuple[str, str]], mouth: ClientConnection) -> None:
        loop = asyncio.get_running_loop()
        for request_id, frame in frames:
            future: asyncio.Future[None] = loop.create_future()
            self._waiting[request_id] = (time.perf_counter(), future)
            await mouth.send(frame)
            await future


async def _drain(mouth: ClientConnection) -> None:
    async for _ in mouth:
        pass


async def warm_up(customer: Customer, count: int) -> None:
    """Run some jobs before measuring: the provider is up, its code and caches are warm."""
    await customer.run(customer.prepare(count), 4)
    customer.latencies_s.clear()


async def measure(url: str, process: Process, jobs: int, outstanding: int) -> Figures:
    customer = Customer(url)
    async with customer.listening():
        await warm_up(customer, 50)
        requests = customer.prepare(jobs)
        customer.results.clear()
        cpu_before = process.cpu_s
        took = await customer.run(requests, outstanding)
        cpu = process.cpu_s - cpu_before
    check(customer.results, requests)
    ordered = sorted(customer.latencies_s)
    return Figures(
        jobs_per_s=jobs / took,
        p50_ms=1000 * statistics.median(ordered),
        p95_ms=1000 * ordered[int(0.95 * len(ordered))],
        p99_ms=1000 * ordered[int(0.99 * len(ordered))],
        cpu_ms_per_job=1000 * cpu / jobs,
        rss_mb=process.rss_mb,
    )


def check(results: list[bytes], requests: list[Event]) -> None:
    """Every request has one signed result with its own prompt: a fast wrong answer is no answer."""
    prompts = {event.id: event.tags[0][1] for event in requests}
    for raw in results:
        event = parse_event(orjson.loads(raw))
        request_id = event.tag_values("e")[0]
        if not verify(event) or event.content != prompts.pop(request_id, None):
            raise SystemExit("a result is wrong")
    if prompts:
        raise SystemExit(f"{len(prompts)} results are missing")


def round_of(kind: str, port: int, jobs: int, outstanding: int) -> Figures:
    with relay(port) as url, provider(kind, url) as process:
        return asyncio.run(measure(url, process, jobs, outstanding))


async def memory_story(url: str, process: Process, jobs: int) -> list[tuple[int, float]]:
    """Return the daemon's memory after so many jobs.

    Sent in small lots: the local relay keeps closing connections, and a subscription that is opened again gets only
    the newest 500 stored events, among which all that are still to be served must be.
    """
    story = []
    for done in range(LOT, jobs + 1, LOT):
        customer = Customer(url)
        async with customer.listening():
            await customer.run(customer.prepare(LOT), 64)
        if done % (5 * LOT) == 0:
            story.append((done, process.rss_mb))
    return story


def median(rounds: list[Figures]) -> Figures:
    return Figures(**{name: statistics.median(asdict(each)[name] for each in rounds) for name in asdict(rounds[0])})


def compare(port: int, jobs: int, outstanding: int, rounds: int) -> dict[str, Figures]:
    """Measure the daemon and its yardsticks in alternating order; return each one's medians."""
    found: dict[str, list[Figures]] = {name: [] for name in (*YARDSTICKS, "pylon")}
    for number in range(rounds):
        for kind in found if number % 2 else reversed(found):
            found[kind].append(round_of(kind, port, jobs, outstanding))
    return {name: median(each) for name, each in found.items()}


def ratio(ours: Figures, theirs: Figures) -> dict[str, float]:
    """Return our figures as multiples of another's."""
    return {name: value / asdict(theirs)[name] for name, value in asdict(ours).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2000, help="jobs a round, at most 2,500")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-jobs", type=int, default=20_000, help="0 leaves the memory part out")
    parser.add_argument("--port", type=int, default=7790)
    parser.add_argument("--outstanding", type=int, nargs="*", default=list(OUTSTANDING))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    jobs = min(options.jobs, 2500)
    report: dict[str, object] = {}
    print(f"{'':12}{'outst.':>7}{'jobs/s':>9}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}{'CPU ms':>9}{'RSS MB':>9}")
    for outstanding in options.outstanding:
        count = min(jobs, 500) if outstanding == 1 else jobs
        found = compare(options.port, count, outstanding, options.rounds)
        for name, each in found.items():
            print(
                f"{name:12}{outstanding:>7}{each.jobs_per_s:>9.0f}{each.p50_ms:>9.2f}{each.p95_ms:>9.2f}"
                f"{each.p99_ms:>9.2f}{each.cpu_ms_per_job:>9.2f}{each.rss_mb:>9.1f}"
            )
        ratios = {name: ratio(found["pylon"], found[name]) for name in YARDSTICKS}
        for name, times in ratios.items():
            print(
                f"{'to ' + name:12}{outstanding:>7}{times['jobs_per_s']:>9.2f}{times['p50_ms']:>9.2f}{'':18}"
                f"{times['cpu_ms_per_job']:>9.2f}"
            )
        report[str(outstanding)] = {**{name: asdict(each) for name, each in found.items()}, "ratio": ratios}
    if options.memory_jobs:
        with relay(options.port) as url, provider("pylon", url) as process:
            story = asyncio.run(memory_story(url, process, options.memory_jobs))
        print("memory: " + ", ".join(f"{done} jobs {rss:.1f} MB" for done, rss in story))
        report["memory"] = story
    if options.json:
        options.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
