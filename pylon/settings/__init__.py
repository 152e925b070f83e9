"""The only place that reads configuration: TOML file, environment, flags, and the secrets beside them.

Importing it loads pydantic (about 0.3 s): commands that must answer at once import `pylon.paths` instead.
"""

from pylon.logs import LogFormat, LogLevel
from pylon.settings.announce import AnnounceSettings, ProfileMode
from pylon.settings.errors import SettingsError
from pylon.settings.intake import IntakeSettings
from pylon.settings.load import LoadedSettings, Origin, OriginKind, load_settings
from pylon.settings.model import (
    DaemonSettings,
    IdentitySettings,
    JobsSettings,
    LogSettings,
    NexusSettings,
    RelaysSettings,
    Settings,
)
from pylon.settings.offers import (
    BackendSettings,
    EchoBackendSettings,
    EmbeddedBackendSettings,
    LlamaCppBackendSettings,
    ModelSettings,
    OllamaBackendSettings,
    OpenAIBackendSettings,
)
from pylon.settings.owner import OwnerSettings, WhenUnknown
from pylon.settings.payment import PaymentMode, PaymentSettings
from pylon.settings.wallet import Network, WalletKind, WalletSettings

__all__ = [
    "AnnounceSettings",
    "BackendSettings",
    "DaemonSettings",
    "EchoBackendSettings",
    "EmbeddedBackendSettings",
    "IdentitySettings",
    "IntakeSettings",
    "JobsSettings",
    "LlamaCppBackendSettings",
    "LoadedSettings",
    "LogFormat",
    "LogLevel",
    "LogSettings",
    "ModelSettings",
    "Network",
    "NexusSettings",
    "OllamaBackendSettings",
    "OpenAIBackendSettings",
    "Origin",
    "OriginKind",
    "OwnerSettings",
    "PaymentMode",
    "PaymentSettings",
    "ProfileMode",
    "RelaysSettings",
    "Settings",
    "SettingsError",
    "WalletKind",
    "WalletSettings",
    "WhenUnknown",
    "load_settings",
]
