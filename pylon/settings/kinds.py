"""The kinds of backends that are installed: plug-ins under the entry point group `pylon.backends`, ours among them.

Names are all that is looked at until a kind is configured; its plug-in alone is then imported, and reads its own
keys. Whatever is wrong with a plug-in is one sentence about the backend that wanted it. Authors see `pylon.plugin`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from pydantic import ValidationError
from pydantic_core import PydanticKnownError

from pylon.errors import describe_error
from pylon.jobs.ports.backends import Backend
from pylon.settings.offers import BackendSettings
from pylon.settings.values import KeyFault
from pylon.text import printable

GROUP: Final = "pylon.backends"
"""The entry point group; an entry point's name is the `kind` that the settings name."""

PLUGIN_API: Final = 1
"""The version of the protocol between Pylon and a plug-in. A plug-in for another one is refused."""

S = TypeVar("S", bound=BackendSettings)


@dataclass(frozen=True, slots=True)
class Site:
    """What a backend is told beside its own settings.

    `models` are the names, as the backend has them, of what is sold on it; `state_dir` is where it may keep a log
    or the like (the folder may not exist yet).
    """

    models: tuple[str, ...]
    state_dir: Path


@dataclass(frozen=True, slots=True)
class BackendKind(Generic[S]):
    """One kind of backend: what an entry point names. `api` is the `PLUGIN_API` that the plug-in is written for.

    `settings` reads one `[[backends]]`; `make` returns a backend that does not run yet, and contacts nobody.
    """

    api: int
    settings: type[S]
    make: Callable[[S, Site], Backend]


class BadKind(ValueError):
    """A kind cannot be used; the message is one sentence for the operator."""


def installed_kinds() -> tuple[str, ...]:
    """Return the names of the kinds that are installed. Nothing is imported for it."""
    return tuple(_found(tuple(sys.path)))


def load_kind(name: str) -> BackendKind[Any]:
    """Import the plug-in of a kind that is installed. Raises `BadKind`."""
    points = _found(tuple(sys.path)).get(name, ())
    if not points:
        raise BadKind(f"'{printable(name, limit=64)}' is not installed; installed: {', '.join(installed_kinds())}")
    if len(points) > 1:
        owners = " and ".join(_owner(each) for each in points)
        raise BadKind(f"two plug-ins are installed for '{name}': {owners}; uninstall one of them")
    (point,) = points
    plugin = f"the plug-in {_owner(point)}"
    try:
        found = point.load()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - somebody else's code: whatever it does is told
        raise BadKind(f"{plugin} cannot be imported: {describe_error(error)}") from None
    api = getattr(found, "api", None)
    if api != PLUGIN_API and isinstance(api, int):
        raise BadKind(
            f"{plugin} is written for version {api} of the plug-in protocol, and this Pylon has version"
            f" {PLUGIN_API}: install versions of the two that go together"
        )
    if not isinstance(found, BackendKind):
        raise BadKind(f"{plugin} registers {printable(point.value)}, which is no pylon.plugin.BackendKind")
    if not (isinstance(found.settings, type) and issubclass(found.settings, BackendSettings)):
        raise BadKind(f"{plugin} has settings that are no subclass of pylon.plugin.BackendSettings")
    return found


def settings_type(kind: object) -> type[BackendSettings] | None:
    """Return the class that reads a kind's keys, None where there is none that can be used."""
    try:
        return load_kind(kind).settings if isinstance(kind, str) else None
    except BadKind:
        return None


def read_backend(value: object) -> BackendSettings:
    """Return one `[[backends]]` as its kind reads it. A validator: raises what pydantic makes its own errors of."""
    if isinstance(value, BackendSettings):
        return value
    if not isinstance(value, Mapping):
        raise PydanticKnownError("model_attributes_type")
    names = installed_kinds()
    if not names:
        raise KeyFault("kind", "no kind is installed, not even Pylon's own: pip install pylon-nostr once more")
    if "kind" not in value:
        raise PydanticKnownError("union_tag_not_found", {"discriminator": "'kind'"})
    kind = value["kind"]
    if not isinstance(kind, str) or kind not in names:
        told = {"discriminator": "'kind'", "tag": str(kind), "expected_tags": ", ".join(names)}
        raise PydanticKnownError("union_tag_invalid", told)
    try:
        read: BackendSettings = load_kind(kind).settings.model_validate(dict(value))
    except BadKind as bad:
        raise KeyFault("kind", str(bad)) from None
    except ValidationError:
        raise
    except Exception as error:  # noqa: BLE001 - likewise
        # Its text is not told: it may repeat a secret that the validator was looking at.
        raise KeyFault("", f"the plug-in of '{kind}' broke on reading it ({type(error).__name__})") from None
    return read


def make_backend(settings: BackendSettings, site: Site) -> Backend:
    """Return a backend that does not run yet. Raises `BadKind`."""
    kind = load_kind(settings.kind)
    try:
        made: Backend = kind.make(settings, site)
    except Exception as error:  # noqa: BLE001 - likewise

        def redact(text: str) -> str:
            for secret in settings.secrets():
                text = text.replace(secret.get_secret_value(), "[secret]")
            return text

        said = describe_error(error, redact)
        raise BadKind(f"the plug-in of '{settings.kind}' cannot make it: {said}") from None
    lacking = [
        name for name in ("name", "running", "state", "check", "unload", "generate") if not hasattr(made, name)
    ]
    if lacking:
        raise BadKind(f"the plug-in of '{settings.kind}' makes something that has no {', '.join(lacking)}")
    return made


@lru_cache(maxsize=4)
def _found(_path: tuple[str, ...]) -> dict[str, tuple[EntryPoint, ...]]:
    """Return the entry points by name, sorted; one that is found twice on the same path counts once."""
    found: dict[str, dict[str, EntryPoint]] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda each: each.name):
        found.setdefault(point.name, {}).setdefault(point.value, point)
    return {name: tuple(points.values()) for name, points in found.items()}


def _owner(point: EntryPoint) -> str:
    return printable(f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.value)
