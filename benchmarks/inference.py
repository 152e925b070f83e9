"""What the market costs a customer in speed: the same model asked directly, and through the whole market.

The bare side asks a model server (or a backend's child program) and reads its stream; the market side publishes
kind 5050 requests to a local relay, where the real daemon, in free mode and with everything durable, takes them to
the same kind of backend and streams partial results back. Both are measured in the same run, round by round, with
the same prompts and parameters, and the ratios are printed: tokens/s over all jobs at once, and the median time to
the first token. Tokens are counted by one tokenizer, for both sides alike. Traffic stays on loopback.

Jobs have different lengths, the same ones on both sides: equal ones march in step, and whether they do decides over
the time to the first token more than anything that is measured here.

usage: python -m benchmarks.inference [--backend openai|embedded|llama_cpp|ollama] [--rounds 4] [--concurrent 1 4 8]
       [--tokens 64] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import orjson
from websockets.asyncio.client import ClientConnection, connect

from benchmarks.inference_ollama import ollama_side
from benchmarks.inference_sides import MODEL, SIDES, TIME_LIMIT_S, Answer, Session, Side
from benchmarks.processes import relay, running, wait_ready
from pylon.nostr.event import Event
from pylon.nostr.keys import SecretKey
from pylon.nostr.messages import event_frame
from pylon.nostr.nip90 import FEEDBACK_KIND, JobInput, request_draft

LENGTHS = (2, 6, 3, 5, 4)  # quarters of the tokens asked for, job by job
JOBS_EACH = 10  # jobs a round for each one that runs at once
PROMPT = "Write a short story about a lighthouse keeper and the sea. Story number {number}."

CONFIG = """
[relays]
urls = ["{relay}"]
backoff_min_s = 0.01
[payment]
mode = "free"
[jobs]
partial_interval_s = 0.1
[log]
level = "warning"
[[backends]]
name = "local"
slots = {slots}
{backend}
[[models]]
name = "{name}"
backend = "local"
backend_model = "{model}"
"""


@dataclass(frozen=True)
class Round:
    """What one side did in one round."""

    tokens: int
    took_s: float
    first_s: tuple[float, ...]


@dataclass(frozen=True)
class Figures:
    """What all rounds of one side say."""

    tokens_per_s: float
    first_token_ms: float

    @classmethod
    def of(cls, rounds: Sequence[Round]) -> Figures:
        firsts = [first_s for each in rounds for first_s in each.first_s]
        tokens, took_s = sum(each.tokens for each in rounds), sum(each.took_s for each in rounds)
        return cls(tokens / took_s, 1000 * statistics.median(firsts))


# --- the market side --------------------------------------------------------------------------------------------


class Market:
    """A customer on the relay with many orders at once."""

    def __init__(self, ear: ClientConnection, mouth: ClientConnection, key: SecretKey) -> None:
        self._ear, self._mouth, self._key = ear, mouth, key
        self._first: dict[str, float] = {}
        self._results: dict[str, asyncio.Future[tuple[str, float]]] = {}

    async def listen(self) -> None:
        async for frame in self._ear:
            message = orjson.loads(frame)
            if message[0] != "EVENT":
                continue
            tags = dict(tag[:2] for tag in reversed(message[2]["tags"]))
            now = time.perf_counter()
            if message[2]["kind"] != FEEDBACK_KIND:
                self._first.setdefault(tags["e"], now)
                self._results[tags["e"]].set_result((message[2]["content"], now))
            elif tags["status"] == "partial":
                self._first.setdefault(tags["e"], now)
            elif tags["status"] == "error":
                raise SystemExit(f"the provider answered: {message[2]['tags']}")

    async def drain(self) -> None:
        async for _ in self._mouth:
            pass

    def request(self, prompt: str, tokens: int) -> Event:
        params = [("model", [MODEL]), ("max_tokens", [str(tokens)]), ("temperature", ["0"]), ("seed", ["1"])]
        return request_draft(5050, [JobInput(prompt)], params=params).sign(self._key, int(time.time()))

    async def ask(self, request: Event) -> Answer:
        future = self._results[request.id] = asyncio.get_running_loop().create_future()
        started = time.perf_counter()
        await self._mouth.send(event_frame(request))
        text, ended = await future
        return Answer(text, self._first[request.id] - started, ended - started)


@contextlib.asynccontextmanager
async def market(url: str) -> AsyncIterator[Market]:
    key = SecretKey.generate()
    async with connect(url, compression=None, max_size=2**22) as ear, connect(url, compression=None) as mouth:
        await ear.send(
            orjson.dumps(["REQ", "replies", {"kinds": [6050, FEEDBACK_KIND], "#p": [key.public_hex]}]).decode()
        )
        customer = Market(ear, mouth, key)
        tasks = [asyncio.create_task(customer.listen()), asyncio.create_task(customer.drain())]
        try:
            yield customer
        finally:
            for task in tasks:
                task.cancel()


# --- a round ----------------------------------------------------------------------------------------------------


async def closed_loop(
    jobs: Sequence[Callable[[], Awaitable[Answer]]], concurrent: int
) -> tuple[list[Answer], float]:
    """Run the jobs, so many at once; return the answers and the seconds."""
    answers: list[Answer] = []
    waiting = iter(jobs)

    async def worker() -> None:
        for job in waiting:
            answers.append(await job())

    started = time.perf_counter()
    async with asyncio.timeout(TIME_LIMIT_S), asyncio.TaskGroup() as tasks:
        for _ in range(concurrent):
            tasks.create_task(worker())
    return answers, time.perf_counter() - started


async def counted(session: Session, answers: list[Answer], took_s: float) -> Round:
    tokens = sum([await session.count(answer.text) for answer in answers])
    return Round(tokens, took_s, tuple(answer.first_s for answer in answers))


async def one_round(name: str, side: Side, url: str, concurrent: int, tokens: int, number: int) -> Round:
    jobs = [
        (PROMPT.format(number=1000 * number + at), tokens * LENGTHS[at % len(LENGTHS)] // 4)
        for at in range(JOBS_EACH * concurrent)
    ]
    async with side.session() as session:
        if name == "bare":
            asked = [partial(session.ask, prompt, length) for prompt, length in jobs]
            return await counted(session, *await closed_loop(asked, concurrent))
        async with market(url) as customer:
            await customer.ask(customer.request(f"Say hello to number {number}.", 4))  # connections are up
            requests = [customer.request(prompt, length) for prompt, length in jobs]
            orders = [partial(customer.ask, request) for request in requests]
            return await counted(session, *await closed_loop(orders, concurrent))


def main() -> None:
    sides = {**SIDES, "ollama": ollama_side}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=sides, default="openai")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--concurrent", type=int, nargs="*", help="jobs at once; 1, 4 and 8 where it runs so many")
    parser.add_argument("--tokens", type=int, default=64, help="max_tokens of the jobs, on average")
    parser.add_argument("--port", type=int, default=7791)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report: dict[str, object] = {}
    print(f"{'':8}{'at once':>8}{'tokens/s':>10}{'first token ms':>16}")
    with (
        sides[options.backend]() as side,
        relay(options.port) as url,
        tempfile.TemporaryDirectory(prefix="pylon-bench-") as home,
    ):
        Path(home).chmod(0o700)
        backend = "\n".join(f"{key} = {json.dumps(value)}" for key, value in side.backend.items())
        config = CONFIG.format(relay=url, backend=backend, slots=side.slots, name=MODEL, model=side.model)
        file = Path(home, "pylon.toml")
        file.write_text(config)
        file.chmod(0o600)  # it holds the server's key
        env = {**os.environ, "PYLON_HOME": home, "PYLON_NSEC": SecretKey.generate().reveal_nsec()}
        with running([sys.executable, "-m", "pylon", "start"], env, None):
            wait_ready(Path(home))
            asyncio.run(one_round("bare", side, url, 2, 8, 999))  # the model's pages are in memory
            for concurrent in options.concurrent or [each for each in (1, 4, 8) if each <= side.slots]:
                found: dict[str, list[Round]] = {"bare": [], "market": []}
                for number in range(options.rounds):
                    for name in found if number % 2 else reversed(found):
                        made = one_round(name, side, url, concurrent, options.tokens, number)
                        found[name].append(asyncio.run(made))
                bare, through = Figures.of(found["bare"]), Figures.of(found["market"])
                for name, each in (("bare", bare), ("market", through)):
                    print(f"{name:8}{concurrent:>8}{each.tokens_per_s:>10.1f}{each.first_token_ms:>16.1f}")
                ratio = through.tokens_per_s / bare.tokens_per_s
                more_ms = through.first_token_ms - bare.first_token_ms
                print(f"{'ratio':8}{concurrent:>8}{ratio:>10.3f}{more_ms:>+16.1f}", flush=True)
                report[str(concurrent)] = {"bare": asdict(bare), "market": asdict(through), "ratio": ratio}
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
