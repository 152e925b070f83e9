"""The backend kinds that come with Pylon, registered in `pyproject.toml` as those of any plug-in are.

From a kind's settings to its backend's own configuration. The backends are imported when one is made: reading the
settings must not load an HTTP client.
"""

from __future__ import annotations

from typing import Final

from pylon.plugin import Backend, BackendKind, Site
from pylon.settings.offers import (
    EchoBackendSettings,
    EmbeddedBackendSettings,
    LlamaCppBackendSettings,
    OllamaBackendSettings,
    OpenAIBackendSettings,
)


def _openai(settings: OpenAIBackendSettings, site: Site) -> Backend:
    from pylon.backends.openai import OpenAIBackend, OpenAIConfig

    return OpenAIBackend(
        OpenAIConfig(
            name=settings.name,
            url=settings.url,
            models=tuple(dict.fromkeys(site.models)),
            api_key=None if settings.api_key is None else settings.api_key.get_secret_value(),
            ca_file=settings.ca_file,
            connect_timeout_s=settings.connect_timeout_s,
            first_token_timeout_s=settings.first_token_timeout_s,
            stall_timeout_s=settings.stall_timeout_s,
        )
    )


def _ollama(settings: OllamaBackendSettings, site: Site) -> Backend:
    from pylon.backends.ollama import OllamaBackend, OllamaConfig

    return OllamaBackend(
        OllamaConfig(
            name=settings.name,
            url=settings.url,
            models=tuple(dict.fromkeys(site.models)),
            pull=settings.pull,
            keep_alive_s=settings.keep_alive_s,
            context_tokens=settings.context_tokens,
            ca_file=settings.ca_file,
            connect_timeout_s=settings.connect_timeout_s,
            first_token_timeout_s=settings.first_token_timeout_s,
            stall_timeout_s=settings.stall_timeout_s,
        )
    )


def _embedded(settings: EmbeddedBackendSettings, site: Site) -> Backend:
    from pylon.backends.embedded import EmbeddedBackend, EmbeddedConfig

    return EmbeddedBackend(
        EmbeddedConfig(
            name=settings.name,
            gguf=settings.gguf,
            model_name=site.models[0] if site.models else settings.name,
            log_path=site.state_dir / f"pylon.backend-{settings.name}.log",
            context_tokens=settings.context_tokens,
            slots=settings.slots,
            threads=settings.threads or None,
            gpu_layers=settings.gpu_layers,
            start_timeout_s=settings.start_timeout_s,
            first_token_timeout_s=settings.first_token_timeout_s,
            stall_timeout_s=settings.stall_timeout_s,
        )
    )


def _llama_cpp(settings: LlamaCppBackendSettings, site: Site) -> Backend:
    from pylon.backends.llama_cpp import LlamaCppBackend, LlamaCppConfig

    return LlamaCppBackend(
        LlamaCppConfig(
            name=settings.name,
            path=settings.path,
            log_path=site.state_dir / f"pylon.backend-{settings.name}.log",
            models=tuple(dict.fromkeys(site.models)),
            python=settings.python,
            slots=settings.slots,
            context_tokens=settings.context_tokens,
            threads=settings.threads or None,
            gpu_layers=settings.gpu_layers,
            flash_attention=settings.flash_attention,
            max_loaded=settings.max_loaded,
            idle_unload_s=settings.idle_unload_s,
            start_timeout_s=settings.start_timeout_s,
            first_token_timeout_s=settings.first_token_timeout_s,
            stall_timeout_s=settings.stall_timeout_s,
        )
    )


def _echo(settings: EchoBackendSettings, site: Site) -> Backend:
    from pylon.backends.echo import EchoBackend, EchoConfig

    return EchoBackend(EchoConfig(name=settings.name, models=site.models or ("echo",)))


_API: Final = 1  # what these are written for, which is not to follow PLUGIN_API by itself

OPENAI: Final = BackendKind(_API, OpenAIBackendSettings, _openai)
OLLAMA: Final = BackendKind(_API, OllamaBackendSettings, _ollama)
EMBEDDED: Final = BackendKind(_API, EmbeddedBackendSettings, _embedded)
LLAMA_CPP: Final = BackendKind(_API, LlamaCppBackendSettings, _llama_cpp)
ECHO: Final = BackendKind(_API, EchoBackendSettings, _echo)
