"""What can be set: every key with its unit, its bounds, its default and the line that explains it.

The annotated example (`config/pylon.toml`), the error messages and `pylon config show` are all made from these
classes; a key exists nowhere else.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, PlainValidator, SecretStr, SerializeAsAny, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from pylon.logs import LogFormat, LogLevel
from pylon.settings.announce import AnnounceSettings
from pylon.settings.intake import IntakeSettings
from pylon.settings.kinds import read_backend
from pylon.settings.offers import BackendSettings, ModelSettings
from pylon.settings.owner import OwnerSettings
from pylon.settings.payment import PaymentMode, PaymentSettings
from pylon.settings.refunds import RefundsSettings
from pylon.settings.values import (
    FilePath,
    KeyFault,
    Name,
    Number,
    RelayUrls,
    Secret,
    Section,
    Tables,
    WebUrl,
    Whole,
)
from pylon.settings.wallet import WalletSettings


class RelaysSettings(Section):
    """The relays that are listened on and published to."""

    urls: RelayUrls = Field(
        default=("wss://nexus.openagents.com", "wss://relay.damus.io", "wss://nos.lol"),
        min_length=1,
        max_length=32,
        description="Relays where job requests are awaited and announced work is published.",
        json_schema_extra={"allowed": "1 to 32 URLs that start with ws:// or wss://"},
    )
    connect_timeout_s: Number = Field(
        default=10.0, ge=1, le=120, description="How long a connection may take to open."
    )
    ping_interval_s: Number = Field(
        default=20.0, ge=1, le=600, description="How often a quiet connection is probed."
    )
    pong_timeout_s: Number = Field(default=20.0, ge=1, le=600, description="How long a probe may go unanswered.")
    backoff_min_s: Number = Field(
        default=1.0, ge=0.01, le=60, description="The first wait before connecting again; it doubles, with jitter."
    )
    backoff_max_s: Number = Field(
        default=60.0, ge=0.01, le=3600, description="The longest wait before connecting again."
    )
    max_frame_bytes: Whole = Field(
        default=132_096,
        ge=4_096,
        le=16_777_216,
        description="A larger frame from a relay is dropped. Nexus takes 131,072 bytes, and hands on a few more.",
    )
    publish_timeout_s: Number = Field(
        default=10.0, ge=1, le=120, description="How long a relay may take to answer an event."
    )
    messages_per_s: Whole = Field(
        default=45,
        ge=0,
        le=100_000,
        description="Messages sent to a relay in any second; 0 for no limit. Off with relays on this machine only.",
    )
    subscriptions_per_minute: Whole = Field(
        default=55,
        ge=0,
        le=100_000,
        description="Subscriptions among them in any minute; likewise.",
    )
    max_event_bytes: Whole = Field(
        default=65_536, ge=4_096, le=1_048_576, description="The size within which our own events are kept."
    )
    customer_relays_per_job: Whole = Field(
        default=3, ge=0, le=16, description="How many relays that a request names are answered on; 0 for none."
    )
    customer_relays_total: Whole = Field(
        default=16, ge=0, le=256, description="How many connections to such relays may be open at once."
    )
    allow_private_hosts: bool = Field(
        default=False,
        description="Let strangers' relays lie on loopback and private networks; for tests on one machine.",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.backoff_min_s > self.backoff_max_s:
            raise KeyFault("backoff_min_s", f"{self.backoff_min_s:g} is more than backoff_max_s")
        return self


class IdentitySettings(Section):
    """The secret key, where the identity file is not used (at most one of the two), or that file's passphrase."""

    nsec: Secret = Field(
        default=None,
        description="The secret key as nsec1… or hex. Better: PYLON_NSEC, or a systemd credential named nsec.",
    )
    mnemonic: Secret = Field(
        default=None,
        description="The NIP-06 words instead. Better: PYLON_MNEMONIC, or a systemd credential named mnemonic.",
    )
    passphrase: Secret = Field(
        default=None,
        description="Opens an encrypted identity file. Better: PYLON_PASSPHRASE, or a credential named passphrase.",
    )
    passphrase_file: FilePath | None = Field(
        default=None,
        description="A file that holds the passphrase instead, readable by its owner alone.",
        json_schema_extra={"allowed": "an absolute path", "example": "/etc/pylon/passphrase"},
    )

    @field_validator("nsec")
    @classmethod
    def _key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            from pylon.nostr.keys import parse_secret_key

            parse_secret_key(value.get_secret_value())
        return value

    @field_validator("mnemonic")
    @classmethod
    def _words(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            from pylon.nostr.identity import normalize_mnemonic

            normalize_mnemonic(value.get_secret_value())
        return value

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.nsec is not None and self.mnemonic is not None:
            raise KeyFault("nsec", "set together with identity.mnemonic, and only one can be the identity")
        return self


class JobsSettings(Section):
    """The life of a job."""

    timeout_s: Whole = Field(
        default=3_600, ge=1, le=604_800, description="The deadline of a job, from its acceptance."
    )
    max_attempts: Whole = Field(
        default=3, ge=1, le=20, description="Runs before a job fails, and its payment is owed back."
    )
    queue_size: Whole = Field(
        default=64, ge=1, le=10_000, description="Jobs that may wait, for each backend and model."
    )
    max_pending_intake: Whole = Field(
        default=256,
        ge=1,
        le=65_536,
        description="Requests that may wait to be checked; more are dropped and counted.",
    )
    retain_plaintext_s: Whole = Field(
        default=86_400,
        ge=0,
        le=31_536_000,
        description="How long prompts and outputs are kept once work and money are done.",
    )
    delivery_timeout_s: Whole = Field(
        default=3_600,
        ge=1,
        le=604_800,
        description="How long a result is offered to relays that do not confirm it.",
    )
    partial_interval_s: Number = Field(
        default=0.5, ge=0.05, le=60, description="The least time between two partial results of a job."
    )
    partial_min_chars: Whole = Field(
        default=16, ge=1, le=65_536, description="The least new text that is worth a partial result."
    )
    success_feedback: bool = Field(
        default=True, description="Send a success feedback after the result of a paid job."
    )


class DaemonSettings(Section):
    """The process itself."""

    stop_timeout_s: Number = Field(
        default=30.0, ge=0, le=3600, description="How long running jobs may go on after a stop was asked for."
    )


class NexusSettings(Section):
    """The Nexus that `pylon nexus` asks; its relay is one of `relays.urls`."""

    url: WebUrl = Field(
        default="https://nexus.openagents.com",
        description="Where its statistics are read.",
        json_schema_extra={"allowed": "an http:// or https:// URL"},
    )
    timeout_s: Number = Field(default=10.0, ge=0.1, le=120, description="How long it may take to answer.")


class LogSettings(Section):
    """What is logged, to standard error."""

    level: LogLevel = Field(default=LogLevel.INFO, description="The least severity that is logged.")
    format: LogFormat = Field(default=LogFormat.AUTO, description="auto: text on a terminal, else JSON.")


_LEAST_PREPAID_S = 60

_AnyBackend = Annotated[SerializeAsAny[BackendSettings], PlainValidator(read_backend)]


class Settings(BaseSettings):
    """Everything that can be set. Made by `pylon.settings.load_settings`, which knows the sources."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        str_strip_whitespace=True,
        enable_decoding=False,
        env_prefix="PYLON_",
        env_nested_delimiter="__",
        validate_default=False,
    )

    name: Name = Field(default="pylon", description="The name of this pylon, in its log and for customers.")
    relays: RelaysSettings = RelaysSettings()
    identity: IdentitySettings = IdentitySettings()
    payment: PaymentSettings = PaymentSettings()
    wallet: WalletSettings = WalletSettings()
    refunds: RefundsSettings = RefundsSettings()
    jobs: JobsSettings = JobsSettings()
    intake: IntakeSettings = IntakeSettings()
    announce: AnnounceSettings = AnnounceSettings()
    owner: OwnerSettings = OwnerSettings()
    daemon: DaemonSettings = DaemonSettings()
    nexus: NexusSettings = NexusSettings()
    log: LogSettings = LogSettings()
    backends: Annotated[tuple[_AnyBackend, ...], Tables] = Field(default=(), max_length=64)
    models: Annotated[tuple[ModelSettings, ...], Tables] = Field(default=(), max_length=256)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take what it is given: `load_settings` reads the sources itself, to keep each value's origin."""
        return (init_settings,)

    @property
    def _must_cost(self) -> bool:
        return self.payment.mode is not PaymentMode.FREE and not self.payment.min_price_msats

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.payment.mode is not PaymentMode.FREE and self.jobs.timeout_s < _LEAST_PREPAID_S:
            fault = (
                f"{self.jobs.timeout_s} leaves no time to pay and to work;"
                f" with {self.payment.mode.value} at least {_LEAST_PREPAID_S}"
            )
            raise KeyFault("jobs.timeout_s", fault)
        backends: set[str] = set()
        for index, each in enumerate(self.backends):
            if each.name in backends:
                raise KeyFault(f"backends.{index}.name", f"'{each.name}' is the name of another backend too")
            backends.add(each.name)
        taken: set[str] = set()
        for index, model in enumerate(self.models):
            place = f"models.{index}"
            routes: set[str] = set()
            for key, (backend, _) in zip(
                ("backend", *("also_on",) * len(model.also_on)), model.routes, strict=True
            ):
                if backend not in backends:
                    known = ", ".join(sorted(backends)) or "none, there is no [[backends]]"
                    raise KeyFault(f"{place}.{key}", f"'{backend}' is not a backend; allowed: {known}")
                if backend in routes:
                    raise KeyFault(f"{place}.{key}", f"'{backend}' serves this model already")
                routes.add(backend)
            for kind in model.kinds:
                if self._must_cost and not model.has_price(kind):
                    where = f"{place}.prices.{kind}" if kind in model.prices else place
                    raise KeyFault(f"{where}.base_msats", 'no price is set; set one, or payment.mode = "free"')
            for key, name in (("name", model.name), *(("aliases", alias) for alias in model.aliases)):
                if name in taken:
                    raise KeyFault(f"{place}.{key}", f"'{name}' already names a model")
                taken.add(name)
        return self


def section_types() -> dict[str, type[Section]]:
    """Return the plain tables by their names, in the order of the example."""
    return {
        name: field.annotation
        for name, field in Settings.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    }
