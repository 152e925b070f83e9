"""Scriptable stand-ins for what jobs reach through protocols: relays, an inference server, a Lightning wallet.

They outlive a house (see `house.py`): after a simulated crash the same wallet, server and relays are still there.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import anyio
import bolt11
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from pylon.jobs.ports import (
    BackendError,
    BackendHealth,
    BackendState,
    Chunk,
    DeliverySink,
    Delta,
    Direction,
    Finished,
    FinishReason,
    GenerationRequest,
    Invoice,
    InvoiceRequest,
    ModelInfo,
    Payment,
    PaymentState,
    Received,
    Transaction,
    WalletAmbiguous,
    WalletRefused,
    WalletState,
    WalletUnavailable,
)
from pylon.nostr.event import Event, parse_event, verify
from pylon.nostr.nip90 import FEEDBACK_KIND, FeedbackStatus
from pylon.nostr.nip90_replies import Feedback, parse_feedback
from tests.support.events import NOW

RELAY = "wss://relay.example"
_NODE_SECRET = "07" * 32


class FakeClock:
    """Unix seconds that move only when told."""

    def __init__(self, now: float = NOW) -> None:
        self.now = float(now)

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


# --- relays -----------------------------------------------------------------------------------------------------


class FakeRelays:
    """A `Publisher` that keeps what it was given, each event checked, and confirms what `confirms` says."""

    def __init__(self) -> None:
        self.live: list[Event] = []
        self.durable: list[Event] = []
        self.deadlines: dict[str, float] = {}
        self.named: dict[str, tuple[str, ...]] = {}
        self.confirms: Callable[[Event], bool] = lambda event: True
        self.sink: DeliverySink | None = None

    def publish_live(self, event: Event, relays: Sequence[str]) -> None:
        assert verify(event)
        self.live.append(event)
        self.named[event.id] = tuple(relays)

    def deliver(self, event_id: str, event_json: str, relays: Sequence[str], deadline_at: float) -> None:
        event = parse_event(json.loads(event_json))
        assert event.id == event_id and verify(event)
        self.durable.append(event)
        self.deadlines[event_id] = deadline_at
        self.named[event_id] = tuple(relays)
        if self.confirms(event):
            asyncio.get_running_loop().call_soon(self.confirm, event_id)

    def confirm(self, event_id: str) -> None:
        if self.sink is not None:
            self.sink.confirmed(event_id, RELAY)

    def give_up(self, event_id: str) -> None:
        assert self.sink is not None
        self.sink.gave_up(event_id, "no relay confirmed it in time")

    def hold_results(self) -> None:
        """Confirm feedback only."""
        self.confirms = lambda event: event.kind == FEEDBACK_KIND

    def results(self, job_id: str) -> list[Event]:
        """Every result that was given to relays, a re-send counted again."""
        return [event for event in self.durable if event.kind == 6050 and job_id in event.tag_values("e")]

    def feedback(self, job_id: str, status: FeedbackStatus | None = None) -> list[Feedback]:
        """What was said about a job, live and durable, each event once."""
        found = {event.id: event for event in (*self.live, *self.durable) if event.kind == FEEDBACK_KIND}
        said = [parse_feedback(event) for event in found.values() if job_id in event.tag_values("e")]
        return [each for each in said if status in (None, each.status)]

    def errors(self, job_id: str) -> list[str]:
        """The prefixes of the errors said about a job."""
        return [each.info.partition(":")[0] for each in self.feedback(job_id, FeedbackStatus.ERROR)]


# --- an inference server ----------------------------------------------------------------------------------------


class Run:
    """One call of `generate`, as the server sees it; the test says what it yields."""

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.began_at = anyio.current_time()
        self.closed = False
        self._send: MemoryObjectSendStream[Chunk | BackendError | None]
        self._receive: MemoryObjectReceiveStream[Chunk | BackendError | None]
        self._send, self._receive = anyio.create_memory_object_stream(1000)

    def say(self, *texts: str) -> None:
        for text in texts:
            self._send.send_nowait(Delta(text))

    def finish(self, reason: FinishReason = FinishReason.STOP) -> None:
        self._send.send_nowait(Finished(reason, prompt_tokens=5, output_tokens=7))

    def fail(self, error: BackendError) -> None:
        self._send.send_nowait(error)

    def break_off(self) -> None:
        """End without a `Finished`."""
        self._send.send_nowait(None)

    @property
    def waiting(self) -> bool:
        """Whether everything said so far was taken, and more is waited for."""
        return self._receive.statistics().tasks_waiting_receive > 0

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        try:
            async for item in self._receive:
                if item is None:
                    return
                if isinstance(item, BackendError):
                    raise item
                yield item
        finally:
            self.closed = True
            self._send.close()
            self._receive.close()


def prompt_of(request: GenerationRequest) -> str:
    return request.messages[-1].content


class FakeBackend:
    """Answers every request by `answer(run)`, called as it begins; without it the test drives `runs` itself."""

    def __init__(self, name: str = "local", models: Sequence[str] = ("served-model",)) -> None:
        self._name = name
        self.models = tuple(models)
        self.health = BackendHealth.READY
        self.context_tokens: int | None = None
        self.runs: list[Run] = []
        self.at_once = 0
        self.most_at_once = 0
        self.answer: Callable[[Run], None] | None = self.echo
        self.unloads = 0

    @property
    def name(self) -> str:
        return self._name

    @staticmethod
    def echo(run: Run) -> None:
        run.say(f"Echo: {prompt_of(run.request)}")
        run.finish()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        yield

    def state(self) -> BackendState:
        models = tuple(ModelInfo(model, self.context_tokens) for model in self.models)
        return BackendState(self._name, "fake", self.health, models=models)

    async def check(self) -> BackendState:
        return self.state()

    async def unload(self) -> None:
        assert self.at_once == 0, "the memory of a running attempt was given back"
        self.unloads += 1

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        run = Run(request)
        self.runs.append(run)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        if self.answer is not None:
            self.answer(run)
        try:
            async for chunk in run.chunks():
                yield chunk
        finally:
            self.at_once -= 1

    def prompts(self) -> list[str]:
        return [prompt_of(run.request) for run in self.runs]


# --- a Lightning wallet -----------------------------------------------------------------------------------------


def sign_bolt11(
    amount_msats: int | None,
    payment_hash: str,
    *,
    created_at: int,
    expiry_s: int,
    currency: str = "bcrt",
    description: str = "a job",
) -> str:
    """Return a real, signed invoice."""
    tag, char = bolt11.Tag, bolt11.TagChar
    tags = [
        tag(char.payment_hash, payment_hash),
        tag(char.payment_secret, "cd" * 32),
        *(tag(char.description, description[at : at + 600]) for at in range(0, len(description), 600)),
        tag(char.expire_time, expiry_s),
    ]
    amount = None if amount_msats is None else bolt11.MilliSatoshi(amount_msats)
    return bolt11.encode(bolt11.Bolt11(currency, created_at, bolt11.Tags(tags), amount), _NODE_SECRET)


@dataclass(frozen=True)
class Lie:
    """What is wrong with an invoice that the wallet makes."""

    amount_msats: int | None = None
    no_amount: bool = False
    currency: str = "bcrt"
    other_hash: bool = False
    expiry_s: int | None = None
    age_s: int = 0
    text: str | None = None
    repeats: bool = False  # the answer is an invoice made before
    upper_case: bool = False
    description: str = "a job"


class Unavailable:
    """The call is not carried out."""


class Ambiguous:
    """The call is carried out, `times` times or not at all, and the answer is lost."""

    def __init__(self, times: int = 1) -> None:
        self.times = times


@dataclass(frozen=True)
class Refusal:
    """The wallet says no."""


class Hang:
    """The call is carried out, and its answer never comes."""


class Bug:
    """The call raises what no wallet should."""


CreateFault = Lie | Unavailable | Ambiguous | Refusal | Hang | Bug


@dataclass
class FakeLightning:
    """A `Wallet` whose every fault is asked for by the test; `clock` dates its invoices."""

    clock: FakeClock
    down: bool = False
    down_for_find: bool = False
    ready: bool = True
    made: list[Invoice] = field(default_factory=list)
    forgotten: set[str] = field(default_factory=set)
    create_faults: deque[CreateFault] = field(default_factory=deque)
    on_create: Callable[[InvoiceRequest], None] | None = None
    calls: Counter[str] = field(default_factory=Counter)
    requests: list[InvoiceRequest] = field(default_factory=list)
    _streams: set[MemoryObjectSendStream[Received | None]] = field(default_factory=set)

    @property
    def name(self) -> str:
        return "fake"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        yield

    def state(self) -> WalletState:
        return WalletState("fake", "fake", self.ready, "" if self.ready else "away", "regtest")

    async def check(self) -> WalletState:
        return self.state()

    async def create_invoice(self, request: InvoiceRequest) -> Invoice:
        self._call("create")
        self.requests.append(request)
        if self.on_create is not None:
            self.on_create(request)
        fault = self.create_faults.popleft() if self.create_faults else None
        match fault:
            case Unavailable():
                raise WalletUnavailable("the wallet cannot be reached")
            case Refusal():
                raise WalletRefused("the wallet says no")
            case Bug():
                raise KeyError("checking_id")
            case Ambiguous():
                for _ in range(fault.times):
                    self._make(request, Lie())
                raise WalletAmbiguous("no answer came")
            case Hang():
                self._make(request, Lie())
                await anyio.sleep_forever()
                raise AssertionError
            case _:
                return self._make(request, fault or Lie())

    def _make(self, request: InvoiceRequest, lie: Lie) -> Invoice:
        if lie.repeats:
            return replace(self.made[-1], own_id=request.own_id)
        payment_hash = hashlib.sha256(f"{request.own_id}/{len(self.made)}".encode()).hexdigest()
        amount_msats = None if lie.no_amount else lie.amount_msats or request.amount_msats
        created_at = int(self.clock.now) - lie.age_s
        expiry_s = lie.expiry_s or request.expiry_s
        written_hash = "99" * 32 if lie.other_hash else payment_hash
        text = lie.text
        if text is None:
            text = sign_bolt11(
                amount_msats,
                written_hash,
                created_at=created_at,
                expiry_s=expiry_s,
                currency=lie.currency,
                description=lie.description,
            )
            text = text.upper() if lie.upper_case else text
        # Whatever the invoice says, the wallet claims that it made what was asked for.
        invoice = Invoice(
            request.own_id, payment_hash, text, request.amount_msats, created_at, created_at + expiry_s
        )
        self.made.append(invoice)
        return invoice

    async def find(self, own_id: str, description: str = "") -> tuple[Invoice, ...]:
        self._call("find")
        if self.down_for_find:
            raise WalletUnavailable("the wallet cannot be reached")
        return tuple(each for each in self.made if each.own_id == own_id)

    async def look_up(self, payment_hash: str) -> Invoice | None:
        self._call("look_up")
        if payment_hash in self.forgotten:
            return None
        return self._by_hash(payment_hash)

    async def list_invoices(self, since: int) -> AsyncGenerator[tuple[Invoice, ...], None]:
        self._call("list")
        listed = [each for each in self.made if each.created_at >= since]
        for start in range(0, len(listed), 2):
            yield tuple(listed[start : start + 2])

    async def pay(self, bolt11: str, *, own_id: str, max_fee_msats: int) -> Payment:
        raise WalletRefused("this wallet only receives")

    async def look_up_payment(self, payment_hash: str) -> Payment | None:
        self._call("look_up_payment")
        return None

    async def transactions(self, since: int) -> tuple[Transaction, ...]:
        return tuple(
            Transaction(
                Direction.INCOMING,
                each.payment_hash,
                each.state,
                each.received_msats or each.amount_msats,
                created_at=each.created_at,
                settled_at=each.settled_at,
            )
            for each in self.made
            if each.created_at >= since
        )

    async def balance_msats(self) -> int:
        return sum(each.received_msats for each in self.made)

    async def settlements(self) -> AsyncGenerator[Received, None]:
        self._call("settlements")
        send, receive = anyio.create_memory_object_stream[Received | None](1000)
        self._streams.add(send)
        try:
            async for received in receive:
                if received is None:
                    raise WalletUnavailable("the stream broke")
                yield received
        finally:
            self._streams.discard(send)
            send.close()
            receive.close()

    # --- what the test and the customer do --------------------------------------------------------------------

    def settle(self, payment_hash: str, amount_msats: int | None = None, *, push: bool = True) -> None:
        """Receive money; `push` tells who listens."""
        index = next(i for i, each in enumerate(self.made) if each.payment_hash == payment_hash)
        received = self.made[index].amount_msats if amount_msats is None else amount_msats
        self.made[index] = replace(
            self.made[index],
            state=PaymentState.SETTLED,
            received_msats=received,
            settled_at=int(self.clock.now),
        )
        if push:
            self.push(payment_hash, received)

    def push(self, payment_hash: str, amount_msats: int) -> None:
        for stream in self._streams:
            stream.send_nowait(Received(payment_hash, amount_msats, int(self.clock.now)))

    def set_state(self, payment_hash: str, state: PaymentState) -> None:
        index = next(i for i, each in enumerate(self.made) if each.payment_hash == payment_hash)
        self.made[index] = replace(self.made[index], state=state)

    def break_streams(self) -> None:
        for stream in self._streams:
            stream.send_nowait(None)

    @property
    def listeners(self) -> int:
        return len(self._streams)

    @property
    def received_msats(self) -> int:
        """The truth about the money."""
        return sum(each.received_msats for each in self.made)

    def _by_hash(self, payment_hash: str) -> Invoice | None:
        return next((each for each in self.made if each.payment_hash == payment_hash), None)

    def _call(self, name: str) -> None:
        self.calls[name] += 1
        if self.down:
            raise WalletUnavailable("the wallet cannot be reached")
