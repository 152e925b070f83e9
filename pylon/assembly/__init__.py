"""From the settings to the parts' own configurations; nothing in here runs anything.

Here: what is sold, and the rules of its jobs. `relays` has the ways out, `wallets` the purse and the addresses.
"""

from __future__ import annotations

from pylon.assembly.owner import make_owner_rules, make_sensors, make_wall
from pylon.assembly.relays import is_local, make_pool_config, make_web
from pylon.assembly.wallets import make_payees, make_wallet, make_zap_author, own_address
from pylon.jobs import facts
from pylon.jobs.access import Access
from pylon.jobs.allowance import Allowance, AllowanceRules
from pylon.jobs.announcement import AnnounceConfig, ProfileMode
from pylon.jobs.cashier import CashierConfig
from pylon.jobs.catalogue import Catalogue, Offer, Route
from pylon.jobs.credit import Credit, CreditRules
from pylon.jobs.intake import IntakeConfig
from pylon.jobs.lanes import RunnerConfig
from pylon.jobs.lifecycle import Rules
from pylon.jobs.policy import IntakePolicy
from pylon.jobs.ports import Backend
from pylon.jobs.pricing import Price
from pylon.jobs.recorder import RecorderConfig
from pylon.jobs.refund_case import RefunderConfig
from pylon.jobs.repayment import RepaymentConfig
from pylon.jobs.salvage import Terms
from pylon.nostr.keys import SecretKey
from pylon.nostr.nip47 import parse_wallet_uri
from pylon.paths import Paths
from pylon.settings import (
    ModelSettings,
    PaymentMode,
    Settings,
    SettingsError,
    WalletKind,
)
from pylon.settings.kinds import BadKind, Site, make_backend

__all__ = [
    "check_startable",
    "make_allowance",
    "make_allowance_rules",
    "make_announce_config",
    "make_backends",
    "make_cashier_config",
    "make_credit",
    "make_credit_rules",
    "make_intake_config",
    "make_offers",
    "make_owner_rules",
    "make_payees",
    "make_pool_config",
    "make_recorder_config",
    "make_refunder_config",
    "make_runner_config",
    "make_salvage_terms",
    "make_sensors",
    "make_wall",
    "make_wallet",
    "make_web",
    "make_zap_author",
    "own_address",
    "secrets_of",
]


def check_startable(settings: Settings) -> None:
    """Raise `SettingsError` when starting would sell nothing, or for nothing."""
    if not settings.models:
        raise SettingsError(
            "models", "nothing is declared for sale: add [[backends]] and [[models]] (pylon init proposes them)"
        )
    if settings.payment.mode is PaymentMode.FREE:
        return
    out = "connect a wallet (pylon wallet connect), give the work away (--free), or try the market (pylon demo)"
    if settings.wallet.kind is WalletKind.NONE:
        raise SettingsError("payment.mode", f"work is to be paid and no wallet is connected: {out}")
    if settings.wallet.kind is WalletKind.FAKE and not all(is_local(url) for url in settings.relays.urls):
        raise SettingsError("wallet.kind", f"the fake wallet takes play money and the relays are public: {out}")


def secrets_of(settings: Settings, key: SecretKey) -> list[str]:
    """Return every secret in use, for the log's redactor."""
    identity, wallet = settings.identity, settings.wallet
    given = [identity.nsec, identity.mnemonic, identity.passphrase, wallet.token, wallet.pay_token, wallet.uri]
    given += [secret for each in settings.backends for secret in each.secrets()]
    keys = [key]
    if settings.wallet.uri is not None:
        keys.append(parse_wallet_uri(settings.wallet.uri.get_secret_value()).key)
    shown = [form for each in keys for form in (each.reveal_nsec(), each.reveal_hex())]
    return [*shown, *(each.get_secret_value() for each in given if each is not None)]


def make_offers(settings: Settings) -> tuple[Offer, ...]:
    """Return what is for sale."""
    slots = {backend.name: backend.slots for backend in settings.backends}
    return tuple(
        Offer(
            name=model.name,
            backend=model.backend,
            backend_model=model.name_at_backend,
            price=_price(settings, model, model.kinds[0]),
            kind_prices={kind: _price(settings, model, kind) for kind in model.kinds},
            aliases=tuple(model.aliases),
            max_output_tokens=model.max_output_tokens,
            default_output_tokens=model.unasked_output_tokens,
            context_tokens=model.context_tokens,
            slots=slots[model.backend],
            kinds=model.kinds,
            also=tuple(Route(backend, name, slots[backend]) for backend, name in model.routes[1:]),
        )
        for model in settings.models
    )


def _price(settings: Settings, model: ModelSettings, kind: int) -> Price:
    """Return what a model's jobs of a kind cost: no less than the operator takes for any job."""
    told = model.price_of(kind)
    return Price(**{**told, "min_msats": max(told["min_msats"], settings.payment.min_price_msats)})


def make_backends(settings: Settings, paths: Paths) -> dict[str, Backend]:
    """Return the configured backends by name, none of them running yet. Raises `SettingsError`."""
    made: dict[str, Backend] = {}
    for index, each in enumerate(settings.backends):
        sold = tuple(name for model in settings.models for backend, name in model.routes if backend == each.name)
        try:
            made[each.name] = make_backend(each, Site(sold, paths.state_dir))
        except BadKind as bad:
            raise SettingsError(f"backends.{index}", str(bad)) from None
    return made


def make_recorder_config(settings: Settings) -> RecorderConfig:
    """Return what storing steps needs."""
    jobs, payment = settings.jobs, settings.payment
    return RecorderConfig(
        rules=Rules(max_attempts=jobs.max_attempts, max_invoices=payment.max_invoices_per_job),
        retain_plaintext_s=jobs.retain_plaintext_s,
        delivery_timeout_s=jobs.delivery_timeout_s,
        invoice_expiry_s=payment.invoice_expiry_s,
        limit_bytes=settings.relays.max_event_bytes,
        success_feedback=jobs.success_feedback,
        relay_hint=settings.relays.urls[0],
    )


def make_salvage_terms(settings: Settings, catalogue: Catalogue) -> Terms:
    """Return what putting lost jobs back needs."""
    return Terms(catalogue, settings.jobs.timeout_s, settings.relays.customer_relays_per_job)


def make_intake_config(settings: Settings, mode: facts.Mode, access: Access) -> IntakeConfig:
    """Return the rules of the way in."""
    intake, jobs, payment = settings.intake, settings.jobs, settings.payment
    return IntakeConfig(
        mode=mode,
        policy=IntakePolicy(
            max_age_s=intake.max_age_s,
            max_future_s=intake.max_future_s,
            replies_per_minute=intake.replies_per_minute,
            requests_per_customer_per_minute=intake.requests_per_customer_per_minute,
            max_queued=jobs.queue_size,
            max_queued_per_customer=intake.open_jobs_per_customer or jobs.queue_size,
            max_open_invoices=payment.max_open_invoices,
            max_open_invoices_per_customer=payment.max_open_invoices_per_customer,
            max_prompt_bytes=intake.max_prompt_bytes,
            max_prompt_tokens=intake.max_prompt_tokens or None,
            requests_per_minute=intake.requests_per_minute,
        ),
        access=access,
        job_timeout_s=jobs.timeout_s,
        max_pending=jobs.max_pending_intake,
        limit_bytes=settings.relays.max_event_bytes,
        customer_relays=settings.relays.customer_relays_per_job,
        relay_hint=settings.relays.urls[0],
    )


def make_credit(settings: Settings) -> Credit | None:
    """Return who keeps account of the customers' credit; None where none is given."""
    return Credit(make_credit_rules(settings)) if settings.payment.mode is PaymentMode.POSTPAY else None


def make_credit_rules(settings: Settings) -> CreditRules:
    """Return how much credit customers have, with postpay."""
    payment = settings.payment
    return CreditRules(
        credit_msats=payment.credit_msats,
        history_percent=payment.credit_history_percent,
        max_credit_msats=payment.credit_max_msats,
        daily_msats=payment.credit_daily_msats,
    )


def make_allowance(settings: Settings) -> Allowance | None:
    """Return who keeps account of what is given away; None where nothing is, or without limit."""
    rules = make_allowance_rules(settings)
    return None if rules is None else Allowance(rules)


def make_allowance_rules(settings: Settings) -> AllowanceRules | None:
    """Return what is given away within a day; None where nothing is, or without limit."""
    payment = settings.payment
    per_customer, in_all = payment.free_output_tokens_per_customer, payment.free_output_tokens
    if payment.mode is PaymentMode.FREE:
        return AllowanceRules(per_customer or None, in_all or None) if per_customer or in_all else None
    return AllowanceRules(per_customer, in_all) if per_customer else None


def make_runner_config(settings: Settings) -> RunnerConfig:
    """Return what running jobs needs."""
    return RunnerConfig(
        limit_bytes=settings.relays.max_event_bytes,
        partial_interval_s=settings.jobs.partial_interval_s,
        partial_min_chars=settings.jobs.partial_min_chars,
        running_per_customer=settings.intake.running_per_customer or None,
        relay_hint=settings.relays.urls[0],
    )


def make_announce_config(settings: Settings) -> AnnounceConfig:
    """Return what is announced, and how often."""
    announce = settings.announce
    return AnnounceConfig(
        name=settings.name,
        about=announce.about,
        picture=announce.picture or "",
        lud16=own_address(settings),
        topics=tuple(announce.topics),
        relays=tuple(settings.relays.urls),
        free=settings.payment.mode is PaymentMode.FREE,
        enabled=announce.enabled,
        profile=ProfileMode(announce.profile.value),
        debounce_s=announce.debounce_s,
        republish_s=announce.republish_s,
        limit_bytes=settings.relays.max_event_bytes,
    )


def make_cashier_config(settings: Settings) -> CashierConfig:
    """Return what the till needs."""
    return CashierConfig(
        network=settings.wallet.network.value,
        invoice_expiry_s=settings.payment.invoice_expiry_s,
        invoice_grace_s=settings.payment.invoice_grace_s,
        lookup_min_s=settings.payment.lookup_min_s,
        lookup_max_s=settings.payment.lookup_max_s,
    )


def make_refunder_config(settings: Settings) -> RefunderConfig:
    """Return what refunds need."""
    limits = settings.refunds
    return RefunderConfig(
        network=settings.wallet.network.value,
        auto=limits.auto,
        max_msats_per_job=limits.max_msats_per_job,
        max_msats_per_day=limits.max_msats_per_day,
        repayment=RepaymentConfig(max_fee_msats=limits.max_fee_msats, grace_s=settings.payment.invoice_grace_s),
    )
