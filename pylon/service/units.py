"""Units as text: the templates of `config/`, filled in. Pure but for reading a template.

The last line of an installed file seals what stands above it: so an older one of ours, which nobody has changed,
is told from one that somebody has.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

SYSTEM_USER: Final = "pylon"
UNIT_NAME: Final = "pylon.service"
LABEL: Final = "org.nostr.pylon"

_PLACEHOLDER: Final = re.compile(r"@([a-z]+)@")
_SEAL: Final = re.compile(r"(?:# |<!-- )sealed by pylon: ([0-9a-f]{64})(?: -->)?\n\Z")
_ODD: Final = re.compile(r"[\"'\\$\x00-\x1f\x7f]")
_DELIVERY_S: Final = 30
"""Beside running jobs a stop tells the relays, waits for their confirmations and closes what it holds."""

_GPU: Final = ("DeviceAllow=char-nvidia* rw", "DeviceAllow=char-drm rw", "DeviceAllow=char-kfd rw")


class ServiceError(Exception):
    """The service cannot be installed, asked or changed; the message is one sentence."""


class Scope(StrEnum):
    """Whose service it is."""

    USER = "user"
    SYSTEM = "system"


@dataclass(frozen=True, slots=True)
class Credential:
    """A secret in a file of its own; `encrypted` by systemd-creds."""

    name: str
    path: Path
    encrypted: bool = False


@dataclass(frozen=True, slots=True)
class UnitFacts:
    """What a unit is made of. `program` are the words that start pylon; `variables` say where its home is.

    `state`: the folder that the manager is to make, by its name; "" where it is the operator's own.
    """

    scope: Scope
    program: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)
    config: Path | None = None
    stop_timeout_s: float = 30.0
    credentials: tuple[Credential, ...] = ()
    credentials_folder: Path = Path("/etc/pylon/credentials")
    home: Path = Path("/var/lib/pylon")
    state: str = SYSTEM_USER
    gpu: bool = False
    log_file: Path = Path("/var/log/pylon.log")
    run_as: str = ""


def read_template(name: str) -> str:
    """Return a template: of the installed package, or of `config/` where this is a checkout."""
    here = Path(__file__).parent
    places = (here / "templates", here.parents[1] / "config")
    for place in places:
        path = place / name
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise ServiceError(f"this installation of pylon lacks {name}: install it again")


def systemd_unit(facts: UnitFacts) -> str:
    """Return the unit, sealed. Raises `ServiceError` for a path that no unit can hold."""
    stop_s = _stop_s(facts)
    values = {
        "pylon": " ".join(_word(word) for word in facts.program),
        "config": "" if facts.config is None else f" --config {_word(str(facts.config))}",
        "home": " ".join(_word(f"{name}={value}", always=True) for name, value in facts.variables.items()),
        "workdir": str(facts.home).replace("%", "%%"),
        "stop": str(stop_s),
        "user": SYSTEM_USER,
        "state": f"StateDirectory={facts.state}\nStateDirectoryMode=0700" if facts.state else "",
        "credentials": "\n".join(_credentials(facts)),
        "gpu": "\n".join(_GPU) if facts.gpu else "",
    }
    name = "pylon.service" if facts.scope is Scope.SYSTEM else "pylon-user.service"
    return sealed(_filled(read_template(f"systemd/{name}"), values), "# {}")


def launchd_plist(facts: UnitFacts) -> str:
    """Return the property list, sealed. Raises `ServiceError`."""
    words = (*facts.program, "start", *(() if facts.config is None else ("--config", str(facts.config))))
    values = {
        "label": LABEL,
        "arguments": "\n".join(f"        <string>{_xml(word)}</string>" for word in words),
        "environment": "\n".join(
            f"        <key>{_xml(name)}</key>\n        <string>{_xml(value)}</string>"
            for name, value in facts.variables.items()
        ),
        "user": f"    <key>UserName</key>\n    <string>{_xml(facts.run_as)}</string>" if facts.run_as else "",
        "stop": str(_stop_s(facts)),
        "log": _xml(str(facts.log_file)),
    }
    return sealed(_filled(read_template("launchd/pylon.plist"), values), "<!-- {} -->")


def is_untouched(text: str) -> bool:
    """Tell whether a file is one of ours, and nobody has changed it since."""
    found = _SEAL.search(text)
    return found is not None and found[1] == _digest(text[: found.start()])


def sealed(text: str, comment: str) -> str:
    """Return a text with its seal as the last line, in a comment of its kind."""
    return text + comment.format(f"sealed by pylon: {_digest(text)}") + "\n"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _filled(template: str, values: Mapping[str, str]) -> str:
    """Return a template with its values; a line whose values are all empty goes."""
    lines = []
    for line in template.splitlines():
        names = _PLACEHOLDER.findall(line)
        if names and not any(values[name] for name in names):
            continue
        lines.append(_PLACEHOLDER.sub(lambda found: values[found[1]], line))
    return "\n".join(lines) + "\n"


def _stop_s(facts: UnitFacts) -> int:
    return math.ceil(facts.stop_timeout_s) + _DELIVERY_S


def _credentials(facts: UnitFacts) -> list[str]:
    lines = []
    for each in facts.credentials:
        _refuse_odd(str(each.path))
        key = "LoadCredentialEncrypted" if each.encrypted else "LoadCredential"
        lines.append(f"{key}={each.name}:{str(each.path).replace('%', '%%')}")
    if not lines:
        lines.append(f"# LoadCredential=nsec:{facts.credentials_folder}/nsec")
    return lines


def _word(text: str, *, always: bool = False) -> str:
    """Return a word of a unit file, quoted where it must be."""
    _refuse_odd(text)
    escaped = text.replace("%", "%%")
    return f'"{escaped}"' if always or " " in text or ";" in text else escaped


def _refuse_odd(text: str) -> None:
    if _ODD.search(text):
        raise ServiceError(f"no unit can name {text!r}: a quote, a dollar, a backslash or a control is in it")


def _xml(text: str) -> str:
    if re.search(r"[\x00-\x1f\x7f]", text):
        raise ServiceError(f"no property list can hold {text!r}: a control character is in it")
    return escape(text)
