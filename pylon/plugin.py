"""What a backend plug-in is written against, and all that it may rely on; `docs/plugins.md` shows a whole one.

The names here stay as they are within one `PLUGIN_API`; everything else in Pylon may change with any release.
"""

from __future__ import annotations

from pylon.jobs.ports.backends import (
    Backend,
    BackendError,
    BackendHealth,
    BackendRefused,
    BackendState,
    BackendUnavailable,
    Chunk,
    Delta,
    Finished,
    FinishReason,
    GenerationRequest,
    Message,
    ModelInfo,
    ModelMissing,
)
from pylon.settings.kinds import PLUGIN_API, BackendKind, Site
from pylon.settings.offers import BackendSettings
from pylon.settings.values import FilePath, KeyFault, Name, Number, Secret, Section, WebUrl, Whole

__all__ = [
    "PLUGIN_API",
    "Backend",
    "BackendError",
    "BackendHealth",
    "BackendKind",
    "BackendRefused",
    "BackendSettings",
    "BackendState",
    "BackendUnavailable",
    "Chunk",
    "Delta",
    "FilePath",
    "FinishReason",
    "Finished",
    "GenerationRequest",
    "KeyFault",
    "Message",
    "ModelInfo",
    "ModelMissing",
    "Name",
    "Number",
    "Secret",
    "Section",
    "Site",
    "WebUrl",
    "Whole",
]
