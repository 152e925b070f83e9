"""The way in: what is taken, what is refused with which words, what is dropped, and what none of it may cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pylon.jobs import facts
from pylon.jobs.ports import BackendHealth
from pylon.jobs.pricing import Price
from pylon.nostr.event import Draft, Event
from pylon.nostr.keys import SecretKey
from pylon.nostr.nip90 import FeedbackStatus
from pylon.nostr.nip90_replies import parse_feedback
from pylon.store.records import Money, Work
from tests.support.events import CUSTOMER, PROVIDER, STRANGER, event_with, job_request, signed
from tests.support.house import OFFER, PRICE_MSATS, House, World, open_house, rows, until
from tests.support.stand_ins import RELAY

TO_US = ("p", PROVIDER.public_hex)
PROMPT = ("i", "Hi", "text")


def free(path: Path, **policy: Any) -> World:
    world = World(path / "db", mode=facts.Mode.FREE)
    world.policy = replace(world.policy, **policy)
    return world


def prepaid(path: Path, **policy: Any) -> World:
    world = World(path / "db")
    world.policy = replace(world.policy, **policy)
    return world


def waiting(world: World) -> World:
    """Let jobs be taken but not run."""
    world.backend.health = BackendHealth.LOADING
    return world


def customer(number: int) -> SecretKey:
    return SecretKey(number.to_bytes(32, "big"))


def replies(world: World, request: Event) -> list[str]:
    """Everything said about a request, as `status` or `prefix`."""
    said = world.relays.feedback(request.id)
    return [each.prefix.value if each.prefix else each.status.value for each in said]


async def is_served(house: House, prompt: str = "and now a good one") -> None:
    request = house.ask(prompt)
    if house.world.mode is facts.Mode.PREPAY:
        await house.pay(request.id)
    await house.reaches(request.id, Work.DELIVERED)


# --- refused --------------------------------------------------------------------------------------------------

REFUSED: list[tuple[str, tuple[tuple[str, ...], ...]]] = [
    ("invalid", (PROMPT, ("bid", "abc"))),
    ("invalid", (PROMPT, ("bid", "-1"))),
    ("invalid", (PROMPT, ("bid", "1e3"))),
    ("invalid", (PROMPT, ("bid", "NaN"))),
    ("invalid", (PROMPT, ("bid", "9" * 40))),
    ("invalid", (PROMPT, ("bid", "1000"), ("bid", "2000"))),
    ("invalid", (PROMPT, ("expiration", "soon"))),
    ("invalid", ()),
    ("invalid", (("i", " "),)),
    ("invalid", (PROMPT, ("param", "temperature", "warm"))),
    ("invalid", (PROMPT, ("param", "max_tokens", "0"))),
    ("unsupported-input", (("i", "http://127.0.0.1/secret", "url"),)),
    ("unsupported-input", (("i", "00" * 32, "event"),)),
    ("unsupported-input", (("i", "00" * 32, "job"),)),
    ("unsupported-param", (PROMPT, ("param", "logit_bias", "1"))),
    ("unsupported-output", (PROMPT, ("output", "image/png"))),
    ("unsupported-encryption", (PROMPT, ("encrypted",))),
    ("unsupported-model", (PROMPT, ("param", "model", "gpt-5"))),
    ("too-large", (("i", "x" * 32_769, "text"),)),
    ("too-large", (PROMPT, ("param", "max_tokens", "513"))),
]


@pytest.mark.parametrize(("prefix", "tags"), REFUSED)
async def test_a_refused_request_gets_one_reply_and_the_next_one_is_served(
    tmp_path: Path, prefix: str, tags: tuple[tuple[str, ...], ...]
) -> None:
    world = free(tmp_path)
    async with open_house(world) as house:
        event = event_with(*tags, TO_US)
        assert house.offer(event) is None
        for _ in range(4):
            assert house.offer(event) == "duplicate"
        (reply,) = world.relays.live
        said = parse_feedback(reply)
        assert (said.status, said.prefix) == (FeedbackStatus.ERROR, prefix)
        assert said.info.partition(": ")[2]
        assert reply.tag("e") == ("e", event.id, RELAY)
        assert reply.tag("p") == ("p", CUSTOMER.public_hex)
        assert house.intake.counters.as_dict() == {prefix: 1, "duplicate": 4}
        assert rows(world.path, "SELECT * FROM jobs") == []
        assert len(house.engine.open_jobs) == 0
        await is_served(house)


@pytest.mark.parametrize(("prefix", "tags"), REFUSED)
async def test_a_broadcast_that_is_refused_is_left_alone_and_counted(
    tmp_path: Path, prefix: str, tags: tuple[tuple[str, ...], ...]
) -> None:
    world = free(tmp_path)
    async with open_house(world) as house:
        assert house.offer(event_with(*tags)) is None
        assert world.relays.live == []
        assert house.intake.counters.as_dict() == {prefix: 1}


@pytest.mark.parametrize(
    ("prefix", "age_s", "expires_in_s"),
    [("too-old", 3_601, None), ("in-future", -301, None), ("expired", 0, 0), ("expired", 100, -1)],
)
async def test_requests_of_another_time_are_refused(
    tmp_path: Path, prefix: str, age_s: int, expires_in_s: int | None
) -> None:
    world = free(tmp_path)
    now = int(world.clock.now)
    async with open_house(world) as house:
        expires_at = None if expires_in_s is None else now + expires_in_s
        request = house.ask(created_at=now - age_s, expires_at=expires_at)
        assert replies(world, request) == [prefix]
        await is_served(house)


async def test_a_reply_goes_to_our_relays_only(tmp_path: Path) -> None:
    world = free(tmp_path)
    async with open_house(world) as house:
        house.ask(relays=["wss://stranger.example"], params=[("model", ["gpt-5"])])
        (reply,) = world.relays.live
        assert world.relays.named[reply.id] == ()


# --- dropped --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "others",
    [
        (("p", STRANGER.public_hex),),
        (("p", STRANGER.public_hex), ("p", "someone")),
        (("p",),),
        (("p", ""),),
        (("p", PROVIDER.public_hex.upper()),),
        (("p", STRANGER.public_hex, PROVIDER.public_hex),),
    ],
)
async def test_a_request_for_others_is_left_alone(tmp_path: Path, others: tuple[tuple[str, ...], ...]) -> None:
    world = free(tmp_path)
    async with open_house(world) as house:
        house.offer(event_with(PROMPT, *others))
        house.offer(event_with(("bid", "abc"), *others))
        await house.quiet()
        assert house.intake.counters.as_dict() == {"other-provider": 2}
        assert (world.backend.runs, world.relays.live) == ([], [])


async def test_a_request_for_us_among_others_is_served(tmp_path: Path) -> None:
    world = free(tmp_path)
    async with open_house(world) as house:
        event = event_with(PROMPT, ("p", STRANGER.public_hex), TO_US)
        house.offer(event)
        await house.reaches(event.id, Work.DELIVERED)


async def test_a_broadcast_is_served(tmp_path: Path) -> None:
    world = free(tmp_path)
    async with open_house(world) as house:
        event = event_with(PROMPT)
        house.offer(event)
        await house.reaches(event.id, Work.DELIVERED)


@pytest.mark.parametrize("kind", [0, 1, 5000, 5049, 5051, 5100, 6050, 7000, 31990])
async def test_kinds_that_nobody_asked_for_are_dropped(tmp_path: Path, kind: int) -> None:
    world = free(tmp_path)
    async with open_house(world) as house:
        assert house.offer(event_with(PROMPT, TO_US, kind=kind)) == "unwanted-kind"
        assert world.relays.live == []


async def test_the_same_event_from_five_relays_is_worked_on_once(tmp_path: Path) -> None:
    world = free(tmp_path)
    async with open_house(world) as house:
        event = job_request()
        outcomes = [house.intake.offer(event, f"wss://relay{number}.example") for number in range(5)]
        assert outcomes == [None, *["duplicate"] * 4]
        await house.reaches(event.id, Work.DELIVERED)
        assert len(world.backend.runs) == 1
        assert house.intake.accepted == 1
        assert house.intake.counters.as_dict() == {"duplicate": 4}


async def test_a_forgery_does_not_make_us_deaf_to_the_real_event(tmp_path: Path) -> None:
    world = free(tmp_path)
    async with open_house(world) as house:
        event = job_request()
        for forged in (
            replace(event, sig="00" * 64),
            replace(event, content="altered"),
            replace(event, pubkey=STRANGER.public_hex),
            replace(event, pubkey=PROVIDER.public_hex),
            replace(event, pubkey="ff" * 32),
            replace(event, created_at=event.created_at + 1),
        ):
            assert house.offer(forged) == "bad-signature"
        assert world.relays.live == []
        assert house.offer(event) is None
        await house.reaches(event.id, Work.DELIVERED)
        assert house.intake.counters.as_dict() == {"bad-signature": 6}


# --- models ---------------------------------------------------------------------------------------------------


def selling(world: World) -> World:
    """Sell gemma-2 from a backend that has more than it is meant to tell."""
    world.offers = (replace(OFFER, name="gemma-2", aliases=("gemma-2b",), backend_model="private-gemma-finetune"),)
    world.backend.models = ("private-gemma-finetune", "gemma", "secret-experiment")
    return world


@pytest.mark.parametrize(
    "name",
    ["gemma", "gemma-2-9b", "Gemma-2", "gemma-2 ", "gemma_2", "*", "private-gemma-finetune", "secret-experiment"],
)
async def test_a_model_that_is_not_declared_is_refused_and_never_replaced(tmp_path: Path, name: str) -> None:
    world = selling(free(tmp_path))
    async with open_house(world) as house:
        request = house.ask(params=[("model", [name])])
        assert replies(world, request) == ["unsupported-model"]
        await house.quiet()
        assert world.backend.runs == []
        said = "".join(parse_feedback(event).info for event in world.relays.live)
        assert "gemma" not in said and "secret" not in said


@pytest.mark.parametrize("name", ["gemma-2", "gemma-2b", None])
async def test_a_declared_name_an_alias_and_no_name_get_the_model(tmp_path: Path, name: str | None) -> None:
    world = selling(free(tmp_path))
    async with open_house(world) as house:
        request = house.ask(params=[("model", [name])] if name else [])
        await house.reaches(request.id, Work.DELIVERED)
        assert [run.request.model for run in world.backend.runs] == ["private-gemma-finetune"]
        said = "".join(event.to_json() for event in (*world.relays.live, *world.relays.durable))
        assert "private" not in said


async def test_private_names_appear_in_no_reply(tmp_path: Path) -> None:
    world = selling(free(tmp_path))
    async with open_house(world) as house:
        house.ask("a", params=[("model", ["nothing"])])
        world.backend.models = ("secret-experiment",)
        house.ask("b")
        world.backend.health = BackendHealth.DOWN
        house.ask("c")
        world.backend.health, world.backend.models = BackendHealth.READY, ("private-gemma-finetune",)
        world.backend.context_tokens = 100
        house.ask("d")
        assert [parse_feedback(each).prefix for each in world.relays.live] == [
            "unsupported-model",
            "backend-unavailable",
            "backend-unavailable",
            "too-large",
        ]
        for event in world.relays.live:
            assert "private" not in event.to_json() and "secret" not in event.to_json()


async def test_with_no_offer_at_all_every_kind_is_unwanted(tmp_path: Path) -> None:
    world = free(tmp_path)
    world.offers = ()
    async with open_house(world) as house:
        assert house.offer(job_request(providers=[PROVIDER.public_hex])) == "unwanted-kind"


@pytest.mark.parametrize(
    ("context", "asked", "max_tokens"),
    [(None, None, 64), (1_000, None, 64), (150, None, 44), (None, 300, 300), (406, 300, 300), (405, 300, None)],
)
async def test_the_output_that_is_priced_fits_the_context(
    tmp_path: Path, context: int | None, asked: int | None, max_tokens: int | None
) -> None:
    world = free(tmp_path)
    world.backend.context_tokens = context
    async with open_house(world) as house:
        request = house.ask("Hi", params=[("max_tokens", [str(asked)])] if asked else [])  # 106 tokens at most
        if max_tokens is None:
            assert replies(world, request) == ["too-large"]
        else:
            assert (await house.reaches(request.id, Work.DELIVERED)).max_tokens == max_tokens


async def test_the_operators_word_on_the_context_comes_before_the_backends(tmp_path: Path) -> None:
    world = free(tmp_path)
    world.backend.context_tokens = 100_000
    world.offers = (replace(OFFER, context_tokens=150),)
    async with open_house(world) as house:
        request = house.ask("Hi")
        assert (await house.reaches(request.id, Work.DELIVERED)).max_tokens == 44


async def test_no_more_output_is_sold_than_fits_a_relay(tmp_path: Path) -> None:
    world = free(tmp_path)
    world.intake = replace(world.intake, limit_bytes=6_000)
    async with open_house(world) as house:
        assert replies(world, house.ask(params=[("max_tokens", ["300"])])) == ["too-large"]
        request = house.ask("Hi", params=[("max_tokens", ["199"])])
        await house.reaches(request.id, Work.DELIVERED)


# --- money ----------------------------------------------------------------------------------------------------


async def test_a_bid_below_the_price_gets_the_price_in_one_reply(tmp_path: Path) -> None:
    world = prepaid(tmp_path)
    async with open_house(world) as house:
        request = house.ask(bid_msats=PRICE_MSATS - 1)
        (said,) = world.relays.feedback(request.id)
        assert said.info.startswith("bid-too-low: ")
        assert said.amount_msats == PRICE_MSATS
        assert said.bolt11 is None
        await house.quiet()
        assert world.wallet.made == []
        assert rows(world.path, "SELECT * FROM jobs") == []


async def test_a_broadcast_with_a_bid_below_the_price_is_left_alone(tmp_path: Path) -> None:
    world = prepaid(tmp_path)
    async with open_house(world) as house:
        house.offer(job_request(bid_msats=PRICE_MSATS - 1))
        await house.quiet()
        assert (world.relays.live, world.relays.durable, world.wallet.made) == ([], [], [])
        assert house.intake.counters.as_dict() == {"bid-too-low": 1}


@pytest.mark.parametrize("bid_msats", [PRICE_MSATS, PRICE_MSATS + 1, 1_000_000, None])
async def test_a_bid_is_a_ceiling_and_no_price(tmp_path: Path, bid_msats: int | None) -> None:
    world = prepaid(tmp_path)
    async with open_house(world) as house:
        request = house.ask(bid_msats=bid_msats)
        assert (await house.invoiced(request.id)).amount_msats == PRICE_MSATS


async def test_nothing_is_invoiced_above_its_bid(tmp_path: Path) -> None:
    world = prepaid(tmp_path, max_open_invoices_per_customer=1_000)
    async with open_house(world) as house:
        bids = {}
        for number in range(60):
            tokens = 1 + number * 8
            request = house.ask(bid_msats=number * 50, params=[("max_tokens", [str(tokens)])])
            bids[request.id] = number * 50
        await until(lambda: len(world.wallet.requests) >= house.intake.accepted > 10)
        await house.quiet()
        for invoice in world.wallet.requests:
            job_id = next(each for each in bids if each.startswith(invoice.description.split()[2]))
            assert invoice.amount_msats <= bids[job_id]
        refused = house.intake.counters.as_dict()["bid-too-low"]
        assert refused + house.intake.accepted == 60


async def test_the_price_follows_the_tokens_asked_for(tmp_path: Path) -> None:
    world = prepaid(tmp_path)
    world.offers = (replace(OFFER, price=Price(1, 10_000, 20_000)),)
    async with open_house(world) as house:
        request = house.ask("Hi", params=[("max_tokens", ["100"])])
        # 96 for the template, 8 for the message, 2 for its bytes; in whole sats
        assert (await house.invoiced(request.id)).amount_msats == -(-(1 + 106 * 10 + 100 * 20) // 1000) * 1000


async def test_a_free_model_beside_paid_ones_needs_no_wallet(tmp_path: Path) -> None:
    world = prepaid(tmp_path)
    world.offers = (replace(OFFER, price=Price()),)
    world.wallet.ready = False
    async with open_house(world) as house:
        request = house.ask()
        await house.reaches(request.id, Work.DELIVERED, Money.NONE)


async def test_without_a_wallet_that_answers_nothing_is_sold(tmp_path: Path) -> None:
    world = prepaid(tmp_path)
    world.wallet.ready = False
    async with open_house(world) as house:
        assert replies(world, house.ask()) == ["payment-unavailable"]
        world.wallet.ready = True
        await is_served(house)


async def test_a_request_that_expires_too_soon_to_be_paid_is_refused(tmp_path: Path) -> None:
    world = prepaid(tmp_path)
    now = int(world.clock.now)
    async with open_house(world) as house:
        assert replies(world, house.ask(expires_at=now + 59)) == ["expired"]
        await house.invoiced(house.ask(expires_at=now + 60).id)


async def test_a_free_request_that_expires_soon_is_tried(tmp_path: Path) -> None:
    world = free(tmp_path)
    async with open_house(world) as house:
        request = house.ask(expires_at=int(world.clock.now) + 5)
        await house.reaches(request.id, Work.DELIVERED)


# --- limits ---------------------------------------------------------------------------------------------------


async def test_a_customer_may_ask_so_often_and_others_go_on(tmp_path: Path) -> None:
    world = free(tmp_path, requests_per_customer_per_minute=3)
    async with open_house(world) as house:
        requests = [house.ask(f"number {number}") for number in range(5)]
        assert [replies(world, each) for each in requests[3:]] == [["rate-limited"]] * 2
        other = house.ask("another's", key=STRANGER)
        world.clock.advance(20)
        later = house.ask("later")
        for request in (*requests[:3], other, later):
            await house.reaches(request.id, Work.DELIVERED)


async def test_replies_have_a_budget_in_all(tmp_path: Path) -> None:
    world = free(tmp_path, replies_per_minute=3)
    async with open_house(world) as house:
        for number in range(8):
            house.ask(f"number {number}", key=customer(number + 1), params=[("model", ["gpt-5"])])
        assert len(world.relays.live) == 3
        assert house.intake.counters.as_dict() == {"unsupported-model": 8, "no-reply-budget": 5}
        world.clock.advance(60)
        house.ask("later", params=[("model", ["gpt-5"])])
        assert len(world.relays.live) == 4
        await is_served(house)


async def test_the_queue_has_an_end(tmp_path: Path) -> None:
    world = waiting(free(tmp_path, max_queued=5))
    async with open_house(world) as house:
        requests = [house.ask(f"number {number}", key=customer(number + 1)) for number in range(8)]
        assert [replies(world, each) for each in requests] == [[]] * 5 + [["queue-full"]] * 3
        world.backend.health = BackendHealth.READY
        for request in requests[:5]:
            await house.reaches(request.id, Work.DELIVERED)
        await is_served(house)


async def test_one_customer_cannot_fill_the_queue(tmp_path: Path) -> None:
    world = waiting(free(tmp_path, max_queued_per_customer=2))
    async with open_house(world) as house:
        mine = [house.ask(f"number {number}") for number in range(4)]
        assert [replies(world, each) for each in mine] == [[], [], ["queue-full"], ["queue-full"]]
        assert replies(world, house.ask("another's", key=STRANGER)) == []


async def test_each_model_has_its_own_queue(tmp_path: Path) -> None:
    world = waiting(free(tmp_path, max_queued=1))
    world.offers = (OFFER, replace(OFFER, name="large", aliases=()))
    async with open_house(world) as house:
        assert replies(world, house.ask("a")) == []
        assert replies(world, house.ask("b")) == ["queue-full"]
        assert replies(world, house.ask("c", params=[("model", ["large"])])) == []


async def test_an_open_invoice_holds_its_place_in_the_queue(tmp_path: Path) -> None:
    world = prepaid(tmp_path, max_queued=2)
    async with open_house(world) as house:
        first, second = house.ask("first"), house.ask("second", key=STRANGER)
        for request in (first, second):
            await house.invoiced(request.id)
        assert replies(world, house.ask("third", key=customer(9))) == ["queue-full"]
        await house.pay(first.id)
        await house.reaches(first.id, Work.DELIVERED)
        fourth = house.ask("fourth", key=customer(10))
        await house.pay(fourth.id)
        await house.pay(second.id)
        for request in (second, fourth):
            await house.reaches(request.id, Work.DELIVERED)


@pytest.mark.parametrize(
    ("limit", "same_customer"), [("max_open_invoices", False), ("max_open_invoices_per_customer", True)]
)
async def test_unpaid_invoices_are_capped(tmp_path: Path, limit: str, same_customer: bool) -> None:
    world = prepaid(tmp_path, **{limit: 2})
    async with open_house(world) as house:
        keys = [CUSTOMER if same_customer else customer(number + 1) for number in range(3)]
        requests = [house.ask(f"number {number}", key=key) for number, key in enumerate(keys)]
        await house.invoiced(requests[0].id)
        assert replies(world, requests[2]) == ["queue-full"]
        house.cancel(requests[0].id, keys[0])
        await house.reaches(requests[0].id, Work.CANCELLED, Money.CANCELLING)
        # Until the wallet has been asked, the cancelled one may still be paid.
        assert replies(world, house.ask("still", key=keys[0])) == ["queue-full"]
        await house.pay(requests[1].id)
        await house.reaches(requests[1].id, Work.DELIVERED)
        assert replies(world, house.ask("now", key=keys[0])) == []


@pytest.mark.parametrize("mode", [facts.Mode.FREE, facts.Mode.PREPAY])
async def test_a_thousand_requests_at_once_cannot_overfill_anything(tmp_path: Path, mode: facts.Mode) -> None:
    limits = {"max_queued": 40, "max_queued_per_customer": 1_000, "max_open_invoices": 20}
    world = waiting(free(tmp_path, **limits) if mode is facts.Mode.FREE else prepaid(tmp_path, **limits))
    world.wallet.down = True
    room = 40 if mode is facts.Mode.FREE else 20
    now = int(world.clock.now)
    events = [job_request(f"number {n}", key=customer(n % 100 + 1), created_at=now) for n in range(1_000)]
    async with open_house(world) as house:
        assert [house.offer(event) for event in events] == [None] * 1_000
        assert len(house.engine.open_jobs) == room
        await until(lambda: house.intake.accepted == room)
        assert rows(world.path, "SELECT count(*) FROM jobs") == [(room,)]
        assert house.intake.counters.as_dict() == {"queue-full": 1_000 - room}


async def test_what_waits_for_the_database_is_bounded_and_not_forgotten(tmp_path: Path) -> None:
    world = free(tmp_path)
    world.intake = replace(world.intake, max_pending=2)
    async with open_house(world) as house:
        events = [job_request(f"number {number}") for number in range(4)]
        assert [house.offer(event) for event in events] == [None, None, "intake-full", "intake-full"]
        await until(lambda: house.intake.accepted == 2)
        assert [house.offer(event) for event in events[2:]] == [None, None]
        for event in events:
            await house.reaches(event.id, Work.DELIVERED)


async def test_nothing_is_left_behind_of_those_who_came(tmp_path: Path) -> None:
    world = free(tmp_path)
    async with open_house(world) as house:
        requests = [house.ask(f"number {number}", key=customer(number + 1)) for number in range(30)]
        for request in requests:
            await house.reaches(request.id, Work.DELIVERED)
        await house.engine.outbox_empty()
        table = house.engine.open_jobs
        assert len(table) == 0
        for counter in (table._lane, table._customer, table._invoices):
            assert dict(counter) == {}
        assert house.engine.outbox_pending == 0


# --- stops ----------------------------------------------------------------------------------------------------


async def test_a_stopping_provider_says_that_it_takes_nothing(tmp_path: Path) -> None:
    world = free(tmp_path)
    async with open_house(world) as house:
        house.intake.stopped = "the provider is stopping"
        request = house.ask()
        assert replies(world, request) == ["paused"]
        assert "stopping" in world.relays.feedback(request.id)[0].info


async def test_a_model_whose_server_is_down_is_not_sold(tmp_path: Path) -> None:
    world = prepaid(tmp_path)
    world.backend.health = BackendHealth.DOWN
    async with open_house(world) as house:
        assert replies(world, house.ask()) == ["backend-unavailable"]
        world.backend.health = BackendHealth.READY
        await is_served(house)


async def test_hostile_words_come_back_harmless(tmp_path: Path) -> None:
    world = free(tmp_path)
    async with open_house(world) as house:
        nasty = "\x1b[2J\u202e\x00" * 40
        for tag in (("i", "Hi", nasty), ("param", nasty, "1"), ("output", nasty), ("bid", nasty)):
            house.offer(event_with(*(() if tag[0] == "i" else (PROMPT,)), tag, TO_US))
        assert len(world.relays.live) == 4
        for event in world.relays.live:
            assert parse_feedback(event).info.isprintable()


async def test_a_deletion_of_nothing_of_ours_costs_no_signature_check(tmp_path: Path) -> None:
    world = free(tmp_path)
    async with open_house(world) as house:
        unsigned = replace(signed(Draft(5, "", (("e", "00" * 32),))), sig="00" * 64)
        assert house.offer(unsigned) == "unknown-job"
