"""What a reload changes at once and what waits for a restart, and that running parts go on by the new rules."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from pylon import assembly
from pylon.control.views import ViewError
from pylon.jobs.announcer import Announcer
from pylon.jobs.refund_case import RefunderConfig
from pylon.jobs.refunder import Refunder
from pylon.nostr.nip90 import ErrorPrefix
from pylon.owner.hours import Wall
from pylon.owner.rules import OwnerRules
from pylon.relays.pool import RelayPool
from pylon.relays.state import PoolConfig
from pylon.reloading import Changeable, Outside, Plan, Reloader, plan
from pylon.service.notify import Notifier
from pylon.settings import Settings, SettingsError
from pylon.settings.load import merge_settings
from pylon.store.records import Work
from pylon.subscriptions import Subscriptions
from tests.support.events import CUSTOMER, PROVIDER, STRANGER
from tests.support.house import House, World, open_house, until
from tests.support.running_pool import Heard

OPEN = {"name": "local", "kind": "openai", "url": "http://127.0.0.1:1/v1"}
CLOSED = {"name": "closed", "kind": "ollama"}
SMALL = {"name": "small", "backend": "local", "base_msats": 1000, "backend_model": "served-model"}
RENAMED = {**SMALL, "name": "new"}
WALLET = {"kind": "fake", "url": "http://127.0.0.1:2", "network": "regtest", "token": "t0ken"}


def settings(*models: dict[str, Any], **tables: Any) -> Settings:
    """Return settings of a provider that may start."""
    document: dict[str, Any] = {
        "relays": {"urls": ["ws://127.0.0.1:9"]},
        "backends": [OPEN, CLOSED],
        "models": list(models) or [SMALL],
        "wallet": WALLET,
        **tables,
    }
    made = merge_settings(None, {}, document, {}).settings
    assembly.check_startable(made)
    return made


def planned(before: Settings, after: Settings) -> tuple[Plan, list[str], list[str]]:
    """Return a plan, and the keys that it applies and that wait."""
    made = plan(before, after, {model.name: model.routes for model in before.models})
    return made, [each.key for each in made.applied], [each.key for each in made.restart]


LIVE: list[tuple[str, Any]] = [
    ("name", "other"),
    ("payment", {"invoice_expiry_s": 60, "max_open_invoices": 1, "min_price_msats": 5, "lookup_min_s": 1}),
    ("refunds", {"auto": True, "max_fee_msats": 1}),
    ("jobs", {"timeout_s": 100, "max_attempts": 9, "queue_size": 1, "success_feedback": False}),
    ("intake", {"max_age_s": 60, "requests_per_minute": 5, "targeted_only": True, "running_per_customer": 1}),
    ("announce", {"about": "other", "enabled": False, "topics": ["x"], "profile": "never"}),
    ("owner", {"hours": ["mon-fri 18:00-08:00"], "ac_only": True}),
    ("daemon", {"stop_timeout_s": 1}),
    ("nexus", {"timeout_s": 1}),
    ("log", {"level": "debug", "format": "json"}),
]


@pytest.mark.parametrize(("name", "value"), LIVE, ids=[name for name, _ in LIVE])
def test_what_changes_at_once(name: str, value: Any) -> None:
    wanted = settings(**{name: value})
    made, applied, waits = planned(settings(), wanted)
    assert made.settings == wanted
    assert waits == []
    assert applied == ([name] if isinstance(value, str) else [f"{name}.{key}" for key in applied_keys(name, value)])


def applied_keys(name: str, value: dict[str, Any]) -> list[str]:
    """Return the keys of a table in the order of the settings."""
    order = list(type(getattr(Settings(), name)).model_fields)
    return sorted(value, key=order.index)


WAITS: list[tuple[str, Any]] = [
    ("relays", {"urls": ["ws://127.0.0.1:10"], "max_event_bytes": 10_000}),
    ("identity", {"nsec": "11" * 32}),
    ("payment", {"mode": "free"}),
    ("payment", {"mode": "postpay", "credit_msats": 5}),
    ("payment", {"free_output_tokens_per_customer": 5, "free_output_tokens": 10}),
    ("announce", {"lud16": "me@example.com"}),
    ("wallet", {**WALLET, "token": "other-t0ken"}),
    ("backends", [{**OPEN, "slots": 7}, CLOSED]),
]


@pytest.mark.parametrize(("name", "value"), WAITS)
def test_what_waits_for_a_restart(name: str, value: Any) -> None:
    before = settings()
    made, applied, waits = planned(before, settings(**{name: value}))
    assert waits and all(key.startswith(name) for key in waits)
    assert set(applied) <= {"payment.credit_msats"}, "credit that nobody is given yet"
    assert made.settings.payment.mode == before.payment.mode
    # The next reading says so again, and taking it back leaves nothing to do.
    _, again, still = planned(made.settings, settings(**{name: value}))
    assert (again, still) == ([], waits)


def test_a_gift_that_is_counted_already_may_grow() -> None:
    def gift(tokens: int) -> Settings:
        return settings(payment={"free_output_tokens_per_customer": tokens, "free_output_tokens": 100})

    _, applied, waits = planned(gift(5), gift(50))
    assert (applied, waits) == (["payment.free_output_tokens_per_customer"], [])


@pytest.mark.parametrize(
    ("models", "applied", "waits"),
    [
        ([{**SMALL, "base_msats": 7}], ["models[small].base_msats"], []),
        (
            [{**SMALL, "kinds": [5050, 5001], "aliases": ["s"]}],
            ["models[small].aliases", "models[small].kinds"],
            [],
        ),
        ([SMALL, RENAMED], ["models[new]"], []),
        ([SMALL, {"name": "new", "backend": "local", "base_msats": 1}], [], ["models[new]"]),
        ([SMALL, {**RENAMED, "also_on": ["closed"]}], [], ["models[new]"]),
        ([RENAMED], ["models[small]", "models[new]"], []),
        (
            [{**SMALL, "backend_model": "elsewhere", "base_msats": 7}],
            [],
            ["models[small].base_msats", "models[small].backend_model"],
        ),
        ([{"name": "new", "backend": "closed", "base_msats": 1}], [], ["models[small]", "models[new]"]),
    ],
)
def test_what_is_sold(models: list[dict[str, Any]], applied: list[str], waits: list[str]) -> None:
    """The last one would leave nothing for sale: then nothing changes."""
    _, now, later = planned(settings(), settings(*models))
    assert (sorted(now), sorted(later)) == (sorted(applied), sorted(waits))


def test_a_model_that_was_sold_before_keeps_its_routes() -> None:
    """Its lane may still hold jobs: it comes back as it was, or waits for a restart."""
    other = {"name": "other", "backend": "local", "base_msats": 1}
    routes = {"small": (("local", "served-model"),), "other": (("local", "other"),)}
    moved = settings(other, {**SMALL, "backend_model": "elsewhere"})
    assert [each.key for each in plan(settings(other), moved, routes).restart] == ["models[small]"]
    back = settings(other, SMALL)
    assert [each.key for each in plan(settings(other), back, routes).applied] == ["models[small]"]


def test_what_would_contradict_what_waits_waits_too() -> None:
    """Prices go and nobody pays: were only the prices applied, paid work would cost nothing."""
    gone = {key: value for key, value in SMALL.items() if key != "base_msats"}
    wanted = settings(gone, payment={"mode": "free"}, name="other")
    made, applied, waits = planned(settings(), wanted)
    assert applied == []
    assert made.settings == settings()
    assert waits == ["name", "payment.mode", "models[small].base_msats"]


# --- the running parts ----------------------------------------------------------------------------------------


class Reload:
    """A house whose settings are read again; `wanted` is what stands in the files."""

    def __init__(self, house: House, before: Settings) -> None:
        world = house.world
        pool = RelayPool(
            PoolConfig(urls=("ws://127.0.0.1:9",)),
            key=world.key,
            sink=Heard(),
            clock=world.clock,
            rng=random.Random(1),
        )
        refunder = Refunder(
            house.engine,
            world.wallet,
            None,
            None,
            world.key.public_hex,
            RefunderConfig(),
            world.clock,
            random.Random(1),
        )
        subscriptions = Subscriptions(
            pool, house.store, house.engine, refunder, world.clock,
            kinds=[5050], pubkey=world.key.public_hex, max_age_s=900, zaps=False,
        )  # fmt: skip
        announcer = Announcer(
            assembly.make_announce_config(before), assembly.make_offers(before), world.key, world.relays,
            house.engine, world.clock,
            states=lambda: {}, paused=lambda: False, connected=list, all_found=lambda: True,
        )  # fmt: skip
        self.wanted: Settings | Exception = before
        self.logged: list[Settings] = []
        parts = Changeable(
            house.recorder, house.runner, house.intake, announcer, refunder, subscriptions, house.cashier
        )
        outside = Outside(Notifier(), self._read, lambda now, read: self.logged.append(now))
        self.reloader = Reloader(before, outside, parts, world.clock, shut=None)

    def _read(self) -> Settings:
        if isinstance(self.wanted, Exception):
            raise self.wanted
        return self.wanted


@pytest.fixture
def world(tmp_path: Path) -> World:
    before = settings()
    return World(tmp_path / "db", offers=assembly.make_offers(before))


async def test_the_next_request_meets_the_new_rules(world: World) -> None:
    async with open_house(world) as house:
        reload = Reload(house, settings())
        first = house.ask("at the old price")
        assert (await house.invoiced(first.id)).amount_msats == 1000
        reload.wanted = settings({**SMALL, "base_msats": 5000}, intake={"max_prompt_bytes": 20})
        line = await reload.reloader.reload()
        assert [each.key for each in line.applied] == ["intake.max_prompt_bytes", "models[small].base_msats"]
        second = house.ask("at the new one")
        assert (await house.invoiced(second.id)).amount_msats == 5000
        house.ask("longer than it may be from now on")
        assert house.intake.counters.as_dict() == {ErrorPrefix.TOO_LARGE: 1}
        await house.pay(first.id)
        await house.reaches(first.id, Work.DELIVERED)


async def test_a_model_that_is_no_longer_sold_does_its_jobs(world: World) -> None:
    world.backend.answer = None
    async with open_house(world) as house:
        reload = Reload(house, settings())
        promised = house.ask("promised")
        await house.invoiced(promised.id)
        reload.wanted = settings(RENAMED)
        await reload.reloader.reload()
        house.ask("too late", params=[("model", ["small"])])
        assert house.intake.counters.as_dict() == {ErrorPrefix.UNSUPPORTED_MODEL: 1}
        assert [(name, lane.sold) for name, lane in house.runner.lanes.items()] == [("small", False), ("new", True)]
        await house.pay(promised.id)
        (await house.run()).finish()
        await house.reaches(promised.id, Work.DELIVERED)


@pytest.mark.parametrize(
    "wrong",
    [
        SettingsError("relays.url", "unknown key"),
        RecursionError("tables in tables in tables"),
        PermissionError(13, "Permission denied"),
        "nothing for sale",
        "no such list",
    ],
)
async def test_a_wrong_file_changes_nothing_and_says_so(world: World, wrong: Any, tmp_path: Path) -> None:
    async with open_house(world) as house:
        reload = Reload(house, settings())
        if wrong == "nothing for sale":
            reload.wanted = settings().model_copy(update={"models": ()})
        elif wrong == "no such list":
            reload.wanted = settings(name="other", intake={"deny_file": str(tmp_path / "none.txt")})
        else:
            reload.wanted = wrong
        line = await reload.reloader.reload()
        assert line.error
        assert "\n" not in line.error
        assert line.applied == ()
        assert reload.reloader.settings == settings()
        assert reload.reloader.line is line, "pylon status shows it"
        assert reload.logged == []
        reload.wanted = settings(name="other")
        assert (await reload.reloader.reload()).error == ""


class Keeper:
    """Stands for the owner's desk: what rules it was given."""

    def __init__(self) -> None:
        self.rules: list[OwnerRules] = []

    async def set_rules(self, rules: OwnerRules, wall: Wall) -> None:
        self.rules.append(rules)


async def test_the_owner_is_obeyed_by_new_rules_and_not_disturbed_by_others(world: World) -> None:
    async with open_house(world) as house:
        reload = Reload(house, settings())
        keeper = reload.reloader.parts.owner = Keeper()
        reload.wanted = settings(name="other")
        await reload.reloader.reload()
        assert keeper.rules == []
        reload.wanted = settings(name="other", owner={"ac_only": True})
        await reload.reloader.reload()
        assert [rules.ac_only for rules in keeper.rules] == [True]


async def test_lists_are_read_again_with_nothing_else_changed(world: World, tmp_path: Path) -> None:
    allow = tmp_path / "allow.txt"
    allow.write_text(f"{CUSTOMER.public_hex}\n")
    same = settings(intake={"allow_file": str(allow)})
    async with open_house(world) as house:
        reload = Reload(house, settings())
        reload.wanted = same
        await reload.reloader.reload()
        allow.write_text(f"{STRANGER.public_hex}\n{PROVIDER.public_hex}\n")
        line = await reload.reloader.reload()
        assert [each.text for each in line.applied] == ["customers on intake.allow_file: 1 -> 2 (2 new, 1 gone)"]
        assert house.intake.access.allow == {STRANGER.public_hex, PROVIDER.public_hex}


async def test_while_it_starts_or_stops_nothing_is_reloaded(world: World) -> None:
    async with open_house(world) as house:
        reload = Reload(house, settings())
        reload.reloader.shut = "the provider is stopping"
        with pytest.raises(ViewError, match="the provider is stopping: try again"):
            await reload.reloader.reload()
        assert reload.reloader.asked_too_early


async def test_two_at_once_go_one_after_the_other(world: World) -> None:
    async with open_house(world) as house:
        reload = Reload(house, settings())
        names: Callable[[], str] = lambda: reload.reloader.settings.name  # noqa: E731
        reload.wanted = settings(name="other")
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(reload.reloader.reload)
        assert await until(lambda: names() == "other")
        assert len(reload.logged) == 3
