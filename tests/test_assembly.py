"""From the settings to the parts: what refuses to start, what is secret, and that every setting arrives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from pylon import assembly
from pylon.backends.echo import EchoBackend
from pylon.backends.embedded import EmbeddedBackend
from pylon.backends.llama_cpp import LlamaCppBackend
from pylon.backends.ollama import OllamaBackend
from pylon.backends.openai import OpenAIBackend
from pylon.jobs import facts
from pylon.jobs.access import Access
from pylon.jobs.allowance import Allowance, AllowanceRules
from pylon.jobs.announcement import AnnounceConfig
from pylon.jobs.cashier import CashierConfig
from pylon.jobs.catalogue import Offer
from pylon.jobs.credit import Credit, CreditRules
from pylon.jobs.intake import IntakeConfig
from pylon.jobs.lanes import RunnerConfig
from pylon.jobs.ports import Backend, Wallet
from pylon.jobs.recorder import RecorderConfig
from pylon.jobs.refund_case import RefunderConfig
from pylon.nostr.keys import SecretKey
from pylon.owner.hours import Wall
from pylon.owner.rules import OwnerRules
from pylon.paths import paths_under
from pylon.relays.state import PoolConfig
from pylon.settings import Settings, SettingsError
from pylon.settings.model import section_types
from pylon.settings.offers import BACKEND_TYPES, ModelSettings
from pylon.settings.values import Section
from pylon.wallets.fake import FakeWallet, FakeWalletConfig
from pylon.wallets.phoenixd import PhoenixdConfig, PhoenixdWallet
from tests.support.stand_ins import FakeClock

KEY = SecretKey(b"\x05" * 32)
ROOT = Path(__file__).parents[1]
LOCAL = {"urls": ["ws://127.0.0.1:7777"]}
PUBLIC = {"urls": ["wss://relay.example"]}
FAKE = {"kind": "fake", "url": "http://127.0.0.1:3338", "token": "wallet-token-1"}
SELLS: dict[str, Any] = {
    "backends": [{"name": "e", "kind": "echo"}],
    "models": [{"name": "m", "backend": "e", "base_msats": 1_000}],
}


def settings(**given: Any) -> Settings:
    return Settings.model_validate(given)


# --- starting -------------------------------------------------------------------------------------------------


def refusal(**given: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        assembly.check_startable(settings(**given))
    said = str(caught.value)
    assert "\n" not in said
    return said


def test_with_nothing_for_sale_it_does_not_start() -> None:
    said = refusal(payment={"mode": "free"})
    assert "models" in said and "pylon init" in said


@pytest.mark.parametrize("relays", [LOCAL, PUBLIC])
def test_prepaid_without_a_wallet_it_does_not_start_and_names_three_ways_out(relays: dict[str, Any]) -> None:
    said = refusal(**SELLS, relays=relays)
    for way_out in ("connect a wallet", "--free", "pylon demo"):
        assert way_out in said


def test_on_credit_too_it_does_not_start_without_a_wallet_or_for_play_money_in_public() -> None:
    payment = {"mode": "postpay"}
    assert "connect a wallet" in refusal(**SELLS, relays=LOCAL, payment=payment)
    assert "play money" in refusal(**SELLS, wallet=FAKE, relays=PUBLIC, payment=payment)


@pytest.mark.parametrize("mode", ["prepay", "free"])
def test_only_with_postpay_anybody_has_credit(mode: str) -> None:
    assert assembly.make_credit(settings(payment={"mode": mode, "credit_msats": 1_000})) is None


@pytest.mark.parametrize(
    "urls",
    [
        ["wss://relay.example"],
        ["ws://127.0.0.1:1", "wss://relay.example"],
        ["ws://10.0.0.1:1"],
        ["ws://127.0.0.1.example:1"],
        ["ws://localhost.example"],
    ],
)
def test_play_money_is_not_taken_on_public_relays(urls: list[str]) -> None:
    said = refusal(**SELLS, wallet=FAKE, relays={"urls": urls})
    assert "play money" in said and "--free" in said


@pytest.mark.parametrize(
    "given",
    [
        {"wallet": FAKE, "relays": {"urls": ["ws://127.0.0.1:1", "ws://localhost:2", "ws://[::1]:3"]}},
        {"payment": {"mode": "free"}, "relays": PUBLIC},
        {"payment": {"mode": "free"}, "wallet": FAKE, "relays": PUBLIC},
    ],
)
def test_what_sells_and_is_paid_or_free_starts(given: dict[str, Any]) -> None:
    assembly.check_startable(settings(**SELLS, **given))


def test_a_wallet_without_its_token_says_where_that_comes_from() -> None:
    wallet = {key: value for key, value in FAKE.items() if key != "token"}
    with pytest.raises(SettingsError, match="PYLON_WALLET_TOKEN"):
        assembly.make_wallet(settings(**SELLS, wallet=wallet), FakeClock())


def test_a_phoenixd_is_made_from_its_settings() -> None:
    wallet = {"kind": "phoenixd", "url": "http://127.0.0.1:9740", "token": "wallet-token-1", "timeout_s": 16.0}
    made = assembly.make_wallet(settings(**SELLS, wallet=wallet), FakeClock())
    assert isinstance(made, PhoenixdWallet)
    assert made._config == PhoenixdConfig("http://127.0.0.1:9740", "wallet-token-1", 16.0)
    assert "wallet-token" not in repr(made._config)


# --- secrets --------------------------------------------------------------------------------------------------


def test_every_secret_setting_is_hidden_in_logs() -> None:
    other = SecretKey(b"\x06" * 32).reveal_nsec()
    words = "leader monkey parrot ring guide accident before fence cannon height naive bean"
    backends = [
        {"name": "o", "kind": "openai", "url": "http://127.0.0.1:1/v1", "api_key": "api-key-1"},
        {"name": "p", "kind": "openai", "url": "http://127.0.0.1:2/v1"},
        {"name": "e", "kind": "echo"},
    ]
    found: set[str] = set()
    for identity in ({"nsec": other}, {"mnemonic": words}):
        made = settings(identity=identity, wallet=FAKE, backends=backends)
        found |= set(assembly.secrets_of(made, KEY))
    assert found == {KEY.reveal_nsec(), KEY.reveal_hex(), other, words, "wallet-token-1", "api-key-1"}


def test_no_secret_is_shown_by_a_part_that_holds_it(tmp_path: Path) -> None:
    made = make(settings(**EVERYTHING), tmp_path)
    for part in (made, *made.backends.values(), made.wallet, *map(config_of, made.backends.values())):
        assert "api-key" not in repr(part) and "wallet-token" not in repr(part)


# --- every setting arrives ------------------------------------------------------------------------------------


@dataclass
class Made:
    """Everything that is made from settings."""

    offers: tuple[Offer, ...]
    backends: dict[str, Backend]
    wallet: Wallet | None
    wallet_config: FakeWalletConfig | None
    pool: PoolConfig
    recorder: RecorderConfig
    intake: IntakeConfig
    runner: RunnerConfig
    cashier: CashierConfig
    refunder: RefunderConfig
    credit: Credit | None
    allowance: Allowance | None
    announce: AnnounceConfig
    owner: OwnerRules
    wall: Wall


def make(given: Settings, folder: Path) -> Made:
    with patch.object(assembly.wallets, "FakeWallet", wraps=FakeWallet) as maker:
        wallet = assembly.make_wallet(given, FakeClock())
    return Made(
        wallet=wallet,
        wallet_config=maker.call_args.args[0] if maker.called else None,
        offers=assembly.make_offers(given),
        backends=assembly.make_backends(given, paths_under(folder)),
        pool=assembly.make_pool_config(given),
        recorder=assembly.make_recorder_config(given),
        intake=assembly.make_intake_config(given, facts.Mode.PREPAY, Access()),
        runner=assembly.make_runner_config(given),
        cashier=assembly.make_cashier_config(given),
        refunder=assembly.make_refunder_config(given),
        credit=assembly.make_credit(given),
        allowance=assembly.make_allowance(given),
        announce=assembly.make_announce_config(given),
        owner=assembly.make_owner_rules(given),
        wall=assembly.make_wall(given),
    )


def config_of(part: object) -> Any:
    """The configuration that a backend or wallet was made with."""
    assert isinstance(part, EchoBackend | EmbeddedBackend | LlamaCppBackend | OllamaBackend | OpenAIBackend)
    return part._config


# A value for every setting, none of them its default.
EVERYTHING: dict[str, Any] = {
    "name": "shop",
    "announce": {
        "enabled": False,
        "about": "Answers.",
        "picture": "https://shop.example/a.png?size=2",
        "lud16": "shop@ln.example",
        "topics": ["llm", "chat"],
        "profile": "never",
        "debounce_s": 31.0,
        "republish_s": 21_601.0,
    },
    "owner": {
        "hours": ["mon-fri 18:00-08:00", "sat 00:00-24:00"],
        "time_zone": "Asia/Kathmandu",
        "idle_only": True,
        "idle_after_s": 601.0,
        "ac_only": True,
        "gpu_memory_floor_mb": 4_000,
        "settle_s": 61.0,
        "put_back": True,
        "when_unknown": "run",
    },
    "relays": {
        "urls": ["wss://first.example", "wss://second.example"],
        "connect_timeout_s": 11.0,
        "ping_interval_s": 21.0,
        "pong_timeout_s": 22.0,
        "backoff_min_s": 2.0,
        "backoff_max_s": 61.0,
        "max_frame_bytes": 131_073,
        "publish_timeout_s": 12.0,
        "messages_per_s": 46,
        "subscriptions_per_minute": 56,
        "max_event_bytes": 65_537,
        "customer_relays_per_job": 4,
        "customer_relays_total": 17,
        "allow_private_hosts": True,
    },
    "refunds": {
        "auto": True,
        "max_msats_per_job": 71_000,
        "max_msats_per_day": 72_000,
        "max_fee_msats": 73,
    },
    "payment": {
        "invoice_expiry_s": 601,
        "invoice_grace_s": 61,
        "max_open_invoices": 257,
        "max_open_invoices_per_customer": 5,
        "max_invoices_per_job": 4,
        "lookup_min_s": 3.0,
        "lookup_max_s": 31.0,
        "mode": "postpay",
        "min_price_msats": 4_000,
        "credit_msats": 1_001,
        "credit_history_percent": 11,
        "credit_max_msats": 1_000_002,
        "credit_daily_msats": 1_000_003,
        "free_output_tokens_per_customer": 501,
        "free_output_tokens": 50_001,
    },
    "wallet": {**FAKE, "timeout_s": 16.0, "network": "regtest"},
    "jobs": {
        "timeout_s": 3_601,
        "max_attempts": 4,
        "queue_size": 65,
        "max_pending_intake": 255,
        "retain_plaintext_s": 86_401,
        "delivery_timeout_s": 3_602,
        "partial_interval_s": 0.6,
        "partial_min_chars": 17,
        "success_feedback": False,
    },
    "intake": {
        "max_age_s": 901,
        "max_future_s": 602,
        "replies_per_minute": 121,
        "requests_per_customer_per_minute": 61,
        "max_prompt_bytes": 32_769,
        "max_prompt_tokens": 8_001,
        "requests_per_minute": 60_001,
        "open_jobs_per_customer": 7,
        "running_per_customer": 3,
    },
    "backends": [
        {
            "name": "o",
            "kind": "openai",
            "url": "http://127.0.0.1:8080/v1",
            "api_key": "api-key-1",
            "slots": 2,
            "ca_file": "/etc/pylon/first-ca.pem",
            "connect_timeout_s": 6.0,
            "first_token_timeout_s": 121.0,
            "stall_timeout_s": 62.0,
        },
        {
            "name": "l",
            "kind": "embedded",
            "gguf": "/srv/model.gguf",
            "slots": 3,
            "context_tokens": 4_097,
            "threads": 5,
            "gpu_layers": 7,
            "start_timeout_s": 301.0,
            "first_token_timeout_s": 122.0,
            "stall_timeout_s": 63.0,
        },
        {"name": "e", "kind": "echo", "slots": 9},
        {
            "name": "ol",
            "kind": "ollama",
            "url": "http://127.0.0.1:11435",
            "slots": 4,
            "context_tokens": 4_099,
            "keep_alive_s": 301,
            "pull": True,
            "ca_file": "/etc/pylon/second-ca.pem",
            "connect_timeout_s": 7.0,
            "first_token_timeout_s": 123.0,
            "stall_timeout_s": 64.0,
        },
        {
            "name": "f",
            "kind": "llama_cpp",
            "path": "/srv/models",
            "python": "/opt/llama/bin/python",
            "slots": 5,
            "context_tokens": 4_100,
            "threads": 6,
            "gpu_layers": 8,
            "flash_attention": True,
            "max_loaded": 2,
            "idle_unload_s": 299.0,
            "start_timeout_s": 302.0,
            "first_token_timeout_s": 124.0,
            "stall_timeout_s": 65.0,
        },
    ],
    "models": [
        {
            "name": "m",
            "aliases": ["a", "b"],
            "backend": "o",
            "backend_model": "m-at-o",
            "also_on": ["l=m-at-l", "e"],
            "kinds": [5001, 5050],
            "base_msats": 1,
            "input_msats_per_1k": 2,
            "output_msats_per_1k": 3,
            "min_msats": 5_000,
            "prices": {5001: {"base_msats": 6, "input_msats_per_1k": 7, "output_msats_per_1k": 8, "min_msats": 0}},
            "max_output_tokens": 1_025,
            "default_output_tokens": 513,
            "context_tokens": 4_098,
        },
        {"name": "n", "backend": "l", "base_msats": 1},
        {"name": "x", "backend": "e", "base_msats": 1},
        {"name": "y", "backend": "ol", "backend_model": "y:1b", "base_msats": 1},
    ],
}

Place = Callable[[Made], object]

ARRIVES: dict[str, Place | tuple[Place, ...]] = {
    "name": lambda made: made.announce.name,
    "announce.enabled": lambda made: made.announce.enabled,
    "announce.about": lambda made: made.announce.about,
    "announce.picture": lambda made: made.announce.picture,
    "announce.lud16": lambda made: made.announce.lud16,
    "announce.topics": lambda made: list(made.announce.topics),
    "announce.profile": lambda made: made.announce.profile,
    "announce.debounce_s": lambda made: made.announce.debounce_s,
    "announce.republish_s": lambda made: made.announce.republish_s,
    "owner.hours": lambda made: ["mon-fri 18:00-08:00", "sat 00:00-24:00"] if _works_at_night(made) else [],
    "owner.time_zone": lambda made: "Asia/Kathmandu" if made.wall(0).strftime("%H:%M") == "05:30" else "",
    "owner.idle_only": lambda made: made.owner.idle_s is not None,
    "owner.idle_after_s": lambda made: made.owner.idle_s,
    "owner.ac_only": lambda made: made.owner.ac_only,
    "owner.gpu_memory_floor_mb": lambda made: (made.owner.gpu_floor_bytes or 0) // 1_000_000,
    "owner.settle_s": lambda made: made.owner.settle_s,
    "owner.put_back": lambda made: made.owner.put_back,
    "owner.when_unknown": lambda made: "run" if made.owner.unknown_allows else "pause",
    "relays.urls": (
        lambda made: list(made.pool.urls),
        lambda made: [made.recorder.relay_hint, "wss://second.example"],
        lambda made: [made.intake.relay_hint, "wss://second.example"],
        lambda made: [made.runner.relay_hint, "wss://second.example"],
        lambda made: list(made.announce.relays),
    ),
    "relays.connect_timeout_s": lambda made: made.pool.connect_timeout_s,
    "relays.ping_interval_s": lambda made: made.pool.ping_interval_s,
    "relays.pong_timeout_s": lambda made: made.pool.pong_timeout_s,
    "relays.backoff_min_s": lambda made: made.pool.backoff_min_s,
    "relays.backoff_max_s": lambda made: made.pool.backoff_max_s,
    "relays.max_frame_bytes": lambda made: made.pool.max_frame_bytes,
    "relays.publish_timeout_s": lambda made: made.pool.publish_timeout_s,
    "relays.messages_per_s": lambda made: made.pool.messages_per_s,
    "relays.subscriptions_per_minute": lambda made: made.pool.subscriptions_per_minute,
    "relays.max_event_bytes": (
        lambda made: made.intake.limit_bytes,
        lambda made: made.runner.limit_bytes,
        lambda made: made.announce.limit_bytes,
        lambda made: made.recorder.limit_bytes,
    ),
    "relays.customer_relays_per_job": (
        lambda made: made.pool.customer_relays_per_job,
        lambda made: made.intake.customer_relays,
    ),
    "relays.customer_relays_total": lambda made: made.pool.customer_relays_total,
    "relays.allow_private_hosts": lambda made: made.pool.allow_private_hosts,
    "payment.invoice_expiry_s": (
        lambda made: made.recorder.invoice_expiry_s,
        lambda made: made.cashier.invoice_expiry_s,
    ),
    "payment.invoice_grace_s": (
        lambda made: made.cashier.invoice_grace_s,
        lambda made: made.refunder.repayment.grace_s,
    ),
    "refunds.auto": lambda made: made.refunder.auto,
    "refunds.max_msats_per_job": lambda made: made.refunder.max_msats_per_job,
    "refunds.max_msats_per_day": lambda made: made.refunder.max_msats_per_day,
    "refunds.max_fee_msats": lambda made: made.refunder.repayment.max_fee_msats,
    "payment.max_open_invoices": lambda made: made.intake.policy.max_open_invoices,
    "payment.max_open_invoices_per_customer": lambda made: made.intake.policy.max_open_invoices_per_customer,
    "payment.max_invoices_per_job": lambda made: made.recorder.rules.max_invoices,
    "payment.lookup_min_s": lambda made: made.cashier.lookup_min_s,
    "payment.lookup_max_s": lambda made: made.cashier.lookup_max_s,
    "payment.min_price_msats": lambda made: made.offers[0].price_of(5001).min_msats,
    "payment.credit_msats": lambda made: credit_rules(made).credit_msats,
    "payment.credit_history_percent": lambda made: credit_rules(made).history_percent,
    "payment.credit_max_msats": lambda made: credit_rules(made).max_credit_msats,
    "payment.credit_daily_msats": lambda made: credit_rules(made).daily_msats,
    "wallet.kind": lambda made: made.wallet.name if made.wallet else None,
    "wallet.url": lambda made: wallet_config(made).url,
    "wallet.token": lambda made: wallet_config(made).token,
    "wallet.timeout_s": lambda made: wallet_config(made).timeout_s,
    "wallet.network": (lambda made: made.cashier.network, lambda made: made.refunder.network),
    "jobs.timeout_s": lambda made: made.intake.job_timeout_s,
    "jobs.max_attempts": lambda made: made.recorder.rules.max_attempts,
    "jobs.queue_size": lambda made: made.intake.policy.max_queued,
    "jobs.max_pending_intake": lambda made: made.intake.max_pending,
    "jobs.retain_plaintext_s": lambda made: made.recorder.retain_plaintext_s,
    "jobs.delivery_timeout_s": lambda made: made.recorder.delivery_timeout_s,
    "jobs.partial_interval_s": lambda made: made.runner.partial_interval_s,
    "jobs.partial_min_chars": lambda made: made.runner.partial_min_chars,
    "jobs.success_feedback": lambda made: made.recorder.success_feedback,
    "intake.max_age_s": lambda made: made.intake.policy.max_age_s,
    "intake.max_future_s": lambda made: made.intake.policy.max_future_s,
    "intake.replies_per_minute": lambda made: made.intake.policy.replies_per_minute,
    "intake.requests_per_customer_per_minute": (lambda made: made.intake.policy.requests_per_customer_per_minute),
    "payment.free_output_tokens_per_customer": lambda made: allowance_rules(made).per_customer,
    "payment.free_output_tokens": lambda made: allowance_rules(made).in_all,
    "intake.max_prompt_tokens": lambda made: made.intake.policy.max_prompt_tokens,
    "intake.requests_per_minute": lambda made: made.intake.policy.requests_per_minute,
    "intake.open_jobs_per_customer": lambda made: made.intake.policy.max_queued_per_customer,
    "intake.running_per_customer": lambda made: made.runner.running_per_customer,
    "intake.max_prompt_bytes": lambda made: made.intake.policy.max_prompt_bytes,
    "backends.0.name": lambda made: config_of(made.backends["o"]).name,
    "backends.0.kind": lambda made: "openai" if isinstance(made.backends["o"], OpenAIBackend) else None,
    "backends.0.url": lambda made: config_of(made.backends["o"]).url,
    "backends.0.api_key": lambda made: config_of(made.backends["o"]).api_key,
    "backends.0.slots": lambda made: made.offers[0].slots,
    "backends.0.ca_file": lambda made: str(config_of(made.backends["o"]).ca_file),
    "backends.0.connect_timeout_s": lambda made: config_of(made.backends["o"]).connect_timeout_s,
    "backends.0.first_token_timeout_s": lambda made: config_of(made.backends["o"]).first_token_timeout_s,
    "backends.0.stall_timeout_s": lambda made: config_of(made.backends["o"]).stall_timeout_s,
    "backends.1.name": lambda made: config_of(made.backends["l"]).name,
    "backends.1.kind": lambda made: "embedded" if isinstance(made.backends["l"], EmbeddedBackend) else None,
    "backends.1.gguf": lambda made: str(config_of(made.backends["l"]).gguf),
    "backends.1.slots": (lambda made: made.offers[1].slots, lambda made: config_of(made.backends["l"]).slots),
    "backends.1.context_tokens": lambda made: config_of(made.backends["l"]).context_tokens,
    "backends.1.threads": lambda made: config_of(made.backends["l"]).threads,
    "backends.1.gpu_layers": lambda made: config_of(made.backends["l"]).gpu_layers,
    "backends.1.start_timeout_s": lambda made: config_of(made.backends["l"]).start_timeout_s,
    "backends.1.first_token_timeout_s": lambda made: config_of(made.backends["l"]).first_token_timeout_s,
    "backends.1.stall_timeout_s": lambda made: config_of(made.backends["l"]).stall_timeout_s,
    "backends.2.name": lambda made: config_of(made.backends["e"]).name,
    "backends.2.kind": lambda made: "echo" if isinstance(made.backends["e"], EchoBackend) else None,
    "backends.2.slots": lambda made: made.offers[2].slots,
    "backends.3.name": lambda made: config_of(made.backends["ol"]).name,
    "backends.3.kind": lambda made: "ollama" if isinstance(made.backends["ol"], OllamaBackend) else None,
    "backends.3.url": lambda made: config_of(made.backends["ol"]).url,
    "backends.3.slots": lambda made: made.offers[3].slots,
    "backends.3.context_tokens": lambda made: config_of(made.backends["ol"]).context_tokens,
    "backends.3.keep_alive_s": lambda made: config_of(made.backends["ol"]).keep_alive_s,
    "backends.3.pull": lambda made: config_of(made.backends["ol"]).pull,
    "backends.3.ca_file": lambda made: str(config_of(made.backends["ol"]).ca_file),
    "backends.3.connect_timeout_s": lambda made: config_of(made.backends["ol"]).connect_timeout_s,
    "backends.3.first_token_timeout_s": lambda made: config_of(made.backends["ol"]).first_token_timeout_s,
    "backends.3.stall_timeout_s": lambda made: config_of(made.backends["ol"]).stall_timeout_s,
    "backends.4.name": lambda made: config_of(made.backends["f"]).name,
    "backends.4.kind": lambda made: "llama_cpp" if isinstance(made.backends["f"], LlamaCppBackend) else None,
    "backends.4.path": lambda made: str(config_of(made.backends["f"]).path),
    "backends.4.python": lambda made: str(config_of(made.backends["f"]).python),
    "backends.4.slots": lambda made: config_of(made.backends["f"]).slots,
    "backends.4.context_tokens": lambda made: config_of(made.backends["f"]).context_tokens,
    "backends.4.threads": lambda made: config_of(made.backends["f"]).threads,
    "backends.4.gpu_layers": lambda made: config_of(made.backends["f"]).gpu_layers,
    "backends.4.flash_attention": lambda made: config_of(made.backends["f"]).flash_attention,
    "backends.4.max_loaded": lambda made: config_of(made.backends["f"]).max_loaded,
    "backends.4.idle_unload_s": lambda made: config_of(made.backends["f"]).idle_unload_s,
    "backends.4.start_timeout_s": lambda made: config_of(made.backends["f"]).start_timeout_s,
    "backends.4.first_token_timeout_s": lambda made: config_of(made.backends["f"]).first_token_timeout_s,
    "backends.4.stall_timeout_s": lambda made: config_of(made.backends["f"]).stall_timeout_s,
    "models.0.name": lambda made: made.offers[0].name,
    "models.0.aliases": lambda made: list(made.offers[0].aliases),
    "models.0.backend": lambda made: made.offers[0].backend,
    "models.0.backend_model": lambda made: made.offers[0].backend_model,
    "models.0.kinds": lambda made: list(made.offers[0].kinds),
    "models.0.also_on": lambda made: [
        route.backend if route.backend_model == "m-at-o" else f"{route.backend}={route.backend_model}"
        for route in made.offers[0].also
    ],
    "models.0.base_msats": lambda made: made.offers[0].price_of(5050).base_msats,
    "models.0.input_msats_per_1k": lambda made: made.offers[0].price_of(5050).input_msats_per_1k,
    "models.0.output_msats_per_1k": lambda made: made.offers[0].price_of(5050).output_msats_per_1k,
    "models.0.min_msats": lambda made: made.offers[0].price_of(5050).min_msats,
    # No minimum of its own for this kind: what holds is the least for any job.
    "models.0.prices": lambda made: {5001: asdict(made.offers[0].price_of(5001)) | {"min_msats": 0}},
    "models.0.max_output_tokens": lambda made: made.offers[0].max_output_tokens,
    "models.0.default_output_tokens": lambda made: made.offers[0].default_output_tokens,
    "models.0.context_tokens": lambda made: made.offers[0].context_tokens,
}

READ_ELSEWHERE = {
    "payment.mode": ("pylon/daemon.py", "settings.payment.mode"),
    "identity.nsec": ("pylon/settings/identity_file.py", "given.nsec"),
    "identity.mnemonic": ("pylon/settings/identity_file.py", "given.mnemonic"),
    "identity.passphrase": ("pylon/settings/passphrase.py", "identity.passphrase"),
    "identity.passphrase_file": ("pylon/settings/passphrase.py", "identity.passphrase_file"),
    "wallet.address": ("pylon/assembly/wallets.py", "parse_lightning_address(settings.wallet.address"),
    **{
        f"intake.{key}": ("pylon/access_files.py", f"intake.{key}")
        for key in ("allow_file", "allow_only", "deny_file", "targeted_only", "min_pow_bits")
    },
    "wallet.uri": ("pylon/assembly/wallets.py", '_wallet_secret(settings, "uri")'),
    "wallet.pay_token": ("pylon/assembly/wallets.py", "wallet.pay_token.get_secret_value()"),
    "daemon.stop_timeout_s": ("pylon/daemon.py", "daemon.stop_timeout_s"),
    "nexus.url": ("pylon/cli/nexus.py", "nexus.url"),
    "nexus.timeout_s": ("pylon/cli/nexus.py", "nexus.timeout_s"),
    "log.level": ("pylon/daemon.py", "settings.log.level"),
    "log.format": ("pylon/daemon.py", "settings.log.format"),
}


def wallet_config(made: Made) -> FakeWalletConfig:
    assert made.wallet_config is not None
    return made.wallet_config


def credit_rules(made: Made) -> CreditRules:
    assert made.credit is not None
    return made.credit._rules


def allowance_rules(made: Made) -> AllowanceRules:
    assert made.allowance is not None
    return made.allowance._rules


def _works_at_night(made: Made) -> bool:
    hours = made.owner.hours
    assert hours is not None
    asked = (
        datetime(2026, 11, day, hour) for day, hour in ((23, 17), (23, 18), (24, 7), (24, 8), (28, 12), (29, 12))
    )
    return [hours.allow(each) for each in asked] == [False, True, True, False, True, False]


def every_setting() -> Iterator[str]:
    """The key of every setting; those of `EVERYTHING`'s arrays by their index."""
    for name in Settings.model_fields:
        if name in section_types():
            yield from (f"{name}.{key}" for key in section_types()[name].model_fields)
        elif name not in ("backends", "models"):
            yield name
    for index, backend in enumerate(EVERYTHING["backends"]):
        yield from (f"backends.{index}.{key}" for key in BACKEND_TYPES[backend["kind"]].model_fields)
    yield from (f"models.0.{key}" for key in ModelSettings.model_fields)


def value_at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree[int(part)] if part.isdigit() else tree[part]
    return tree


@pytest.mark.parametrize("key", sorted(ARRIVES))
def test_a_setting_arrives_where_it_works(key: str, tmp_path: Path) -> None:
    given = value_at(EVERYTHING, key)
    made = make(settings(**EVERYTHING), tmp_path)
    places = ARRIVES[key]
    for place in places if isinstance(places, tuple) else (places,):
        assert place(made) == given


def test_no_setting_is_forgotten_here() -> None:
    assert set(every_setting()) == ARRIVES.keys() | READ_ELSEWHERE.keys()


def test_no_value_here_is_the_default() -> None:
    for name, section in section_types().items():
        for key, field in section.model_fields.items():
            if key in EVERYTHING.get(name, {}):
                assert EVERYTHING[name][key] != field.get_default(call_default_factory=True), f"{name}.{key}"
    tables: list[tuple[type[Section], dict[str, Any]]] = [(ModelSettings, EVERYTHING["models"][0])]
    tables += [(BACKEND_TYPES[each["kind"]], each) for each in EVERYTHING["backends"]]
    for table, given in tables:
        for key, field in table.model_fields.items():
            assert given[key] != field.get_default(call_default_factory=True), key


@pytest.mark.parametrize("key", sorted(READ_ELSEWHERE))
def test_a_setting_is_read_where_it_is_said_to_be(key: str) -> None:
    file, words = READ_ELSEWHERE[key]
    assert words in (ROOT / file).read_text()


@pytest.mark.parametrize(
    ("urls", "paced"),
    [(["ws://127.0.0.1:1", "ws://localhost:2"], False), (["ws://127.0.0.1:1", "wss://relay.example"], True)],
)
def test_relays_on_this_machine_alone_are_written_to_without_a_limit(urls: list[str], paced: bool) -> None:
    config = assembly.make_pool_config(settings(relays={"urls": urls}))
    assert (config.messages_per_s > 0) is paced
    assert (config.subscriptions_per_minute > 0) is paced


@pytest.mark.parametrize(("mode", "free"), [("prepay", False), ("free", True)])
def test_what_is_announced_as_free_is_free(mode: str, free: bool) -> None:
    assert assembly.make_announce_config(settings(payment={"mode": mode})).free is free


def test_the_mode_of_payment_is_intakes() -> None:
    for mode in facts.Mode:
        assert assembly.make_intake_config(settings(**EVERYTHING), mode, Access()).mode is mode


def test_a_customer_may_fill_the_queue_that_is_there() -> None:
    given = {**EVERYTHING, "intake": {}}
    policy = assembly.make_intake_config(settings(**given), facts.Mode.FREE, Access()).policy
    assert policy.max_queued_per_customer == policy.max_queued == 65


@pytest.mark.parametrize(
    ("mode", "per_customer", "in_all", "rules"),
    [
        ("free", 0, 0, None),
        ("free", 5, 0, AllowanceRules(5, None)),
        ("free", 0, 9, AllowanceRules(None, 9)),
        ("prepay", 0, 9, None),
        ("prepay", 5, 9, AllowanceRules(5, 9)),
    ],
)
def test_what_is_given_away(mode: str, per_customer: int, in_all: int, rules: AllowanceRules | None) -> None:
    payment = {"mode": mode, "free_output_tokens_per_customer": per_customer, "free_output_tokens": in_all}
    allowance = assembly.make_allowance(settings(payment=payment))
    assert (allowance and allowance._rules) == rules


def test_a_gift_to_each_needs_a_limit_for_all() -> None:
    with pytest.raises(ValueError, match="needs a limit"):
        settings(payment={"mode": "prepay", "free_output_tokens_per_customer": 5})


def test_what_an_invoice_leaves_for_work_is_what_intake_asks_for() -> None:
    given = settings(**EVERYTHING)
    intake = assembly.make_intake_config(given, facts.Mode.PREPAY, Access())
    assert assembly.make_recorder_config(given).min_work_s == intake.min_work_s
    assert assembly.make_cashier_config(given).min_expiry_s <= intake.min_work_s


def test_what_is_left_out_has_sensible_values(tmp_path: Path) -> None:
    backends = [
        {"name": "l", "kind": "embedded", "gguf": "/srv/model.gguf"},
        {"name": "e", "kind": "echo"},
        {"name": "ol", "kind": "ollama"},
    ]
    models = [{"name": "m", "backend": "l", "base_msats": 1, "max_output_tokens": 77}]
    made = make(settings(backends=backends, models=models), tmp_path)
    (offer,) = made.offers
    assert (offer.backend_model, offer.default_output_tokens, offer.context_tokens) == ("m", 77, None)
    assert config_of(made.backends["l"]).threads is None
    assert config_of(made.backends["l"]).model_name == "m"
    assert config_of(made.backends["e"]).models == ("echo",)
    ollama = config_of(made.backends["ol"])
    assert (ollama.url, ollama.models, ollama.pull) == ("http://127.0.0.1:11434", (), False)
    assert (ollama.keep_alive_s, ollama.context_tokens) == (None, 0)
    assert made.wallet is None


def test_a_backend_is_told_what_is_sold_of_it(tmp_path: Path) -> None:
    made = make(settings(**EVERYTHING), tmp_path)
    assert config_of(made.backends["l"]).model_name == "m-at-l"
    assert config_of(made.backends["e"]).models == ("m-at-o", "x")
    assert config_of(made.backends["ol"]).models == ("y:1b",)
