"""The annotated example: every key with its default and what it means, made from the model.

`config/pylon.toml` is this text (a test keeps it so) and `pylon init` writes it. A line `#key = value` shows a
default; taking the `#` away sets it. After a change of the model: `python -m pylon.settings.example`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any, Final

import tomlkit
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from pylon.settings.errors import allowed
from pylon.settings.model import Settings, section_types
from pylon.settings.offers import BACKEND_TYPES, KindPriceSettings, ModelSettings

_HEAD: Final = """\
# The settings of Pylon, a Nostr NIP-90 service provider. Every key is here with its default.
#
# A line that starts with "#" and a letter shows a default: take the "#" away to change it.
# In rising order, later ones win: this file, systemd credentials, environment, flags.
# The environment spells a key PYLON_<TABLE>__<KEY>, such as PYLON_PAYMENT__MODE=free; lists are parted by commas,
# and [[backends]] and [[models]] are given whole, as JSON, in PYLON_BACKENDS and PYLON_MODELS.
# `pylon config show` tells what holds and where it came from. A file with a secret in it must be chmod 600.
"""

_BACKENDS_HEAD: Final = """\
# What runs the models: one [[backends]] for each server. There is none by default; these show every key.
"""

_MODELS_HEAD: Final = """\
# What is sold: one [[models]] for each model. What is not listed here is not offered, and its name stays private.
# A job costs base_msats, input_msats_per_1k and output_msats_per_1k for its tokens, at least min_msats, rounded up
# to whole sats. `pylon price` explains it.
"""

_WIDTH: Final = 112


def render_example() -> str:
    """Return the annotated example as TOML text."""
    blocks = [_HEAD, "\n".join(_lines({"name": Settings.model_fields["name"]}, set()))]
    for name, section in section_types().items():
        blocks.append("\n".join([f"# {section.__doc__}", f"[{name}]", *_lines(section.model_fields, set())]))
    said: set[tuple[str, str]] = set()
    blocks.append(_BACKENDS_HEAD.rstrip("\n"))
    for kind, backend in BACKEND_TYPES.items():
        fields = {
            "name": backend.model_fields["name"],
            "kind": backend.model_fields["kind"],
            **backend.model_fields,
        }
        blocks.append("\n".join(["#[[backends]]", *_lines(fields, said, {"kind": kind, "name": _NAMES[kind]})]))
    fields = {key: field for key, field in ModelSettings.model_fields.items() if key != "prices"}
    blocks.append("\n".join([_MODELS_HEAD.rstrip("\n"), "#[[models]]", *_lines(fields, set())]))
    blocks.append("\n".join([*_kind_price_head(), *_lines(KindPriceSettings.model_fields, set())]))
    return "\n\n".join(block.strip("\n") for block in blocks) + "\n"


_NAMES: Final = {"openai": "local", "ollama": "ollama", "embedded": "own", "llama_cpp": "files", "echo": "echo"}


def _kind_price_head() -> Iterator[str]:
    yield from _wrapped(_explained(ModelSettings.model_fields["prices"]))
    yield f"#[models.prices.{ModelSettings.model_fields['kinds'].default[0]}]"


def uncommented(text: str) -> str:
    """Return an example with every shown default made real."""
    return re.sub(r"^#(?=\[|[a-z])", "", text, flags=re.MULTILINE)


def toml_value(value: Any) -> str:
    """Return a plain value of the settings as TOML."""
    return str(tomlkit.item(plain(value)).as_string())


def plain(value: Any) -> Any:
    """Return a value of the settings as TOML knows it. Secrets are not plain: `TypeError`."""
    match value:
        case StrEnum() | Path():
            return str(value)
        case bool() | int() | str():
            return value
        case float():
            return int(value) if value.is_integer() else value
        case tuple() | list():
            return [plain(item) for item in value]
        case BaseModel() | Mapping():
            items = value.items() if isinstance(value, Mapping) else iter(value)
            return {str(key): plain(item) for key, item in items if item is not None}
        case SecretStr():
            raise TypeError("a secret is not a plain value")
        case _:
            return str(value.value if isinstance(value, Enum) else value)  # a plug-in's own: a date, an address


def _lines(
    fields: Mapping[str, FieldInfo], said: set[tuple[str, str]], values: Mapping[str, Any] | None = None
) -> Iterator[str]:
    """Yield each key's explanation, once for the same key and words, and its commented default."""
    for key, field in fields.items():
        text = _explained(field)
        if (key, text) not in said:
            said.add((key, text))
            yield from _wrapped(text)
        yield f"#{key} = {toml_value(_shown_value(key, field, values or {}))}"


def _explained(field: FieldInfo) -> str:
    rule = allowed(field)
    absent = "Not set by default." if field.default is None and not field.is_required() else ""
    needed = "Needed." if field.is_required() else ""
    return " ".join(filter(None, [field.description, needed, f"Allowed: {rule}." if rule else "", absent]))


def _shown_value(key: str, field: FieldInfo, values: Mapping[str, Any]) -> Any:
    if key in values:
        return values[key]
    if field.is_required() or field.default is None:
        extra = field.json_schema_extra
        return extra.get("example", "") if isinstance(extra, dict) else ""
    return field.default


def _wrapped(text: str) -> Iterator[str]:
    line = "#"
    for word in text.split():
        if len(line) + len(word) >= _WIDTH:
            yield line
            line = "#"
        line += f" {word}"
    yield line


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "config/pylon.toml")
    target.write_text(render_example(), encoding="utf-8")
