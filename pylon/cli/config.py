"""`pylon config`: show what holds and where it came from, tell where the file lies, change one key."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pylon.cli.output import EXIT_USAGE, fail, say, say_json
from pylon.text import printable

if TYPE_CHECKING:
    from pylon.settings.show import ShownValue

app = typer.Typer(help="Show and change the settings.", no_args_is_help=True)

_ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Another settings file than the one of `pylon config path`."),
]


@app.command(epilog="Example: pylon config show --json")
def show(
    config: _ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for other programs.")] = False,
) -> None:
    """Show every key, its value and where that came from. Secrets are masked."""
    from pylon.settings import load_settings
    from pylon.settings.show import shown_values

    loaded = load_settings(config.expanduser() if config else None)
    shown = shown_values(loaded)
    if as_json:
        values = {
            item.key: {"value": item.value, "source": item.origin.kind, "place": item.origin.place or None}
            for item in shown
        }
        say_json({"file": str(loaded.config_file) if loaded.config_file else None, "settings": values})
        return
    for line in _table(shown):
        say(line)


@app.command(epilog="Example: pylon config path")
def path() -> None:
    """Tell where the settings file lies, whether it exists or not."""
    from pylon.paths import resolve_paths

    say(str(resolve_paths().config_file))


@app.command("set", epilog="Example: pylon config set payment.mode free")
def set_key(
    key: Annotated[str, typer.Argument(metavar="KEY", help="A dotted key, such as payment.mode or models.0.name.")],
    value: Annotated[
        str, typer.Argument(metavar="VALUE", help='Its value; lists are parted by commas; "-" reads it from stdin.')
    ],
    config: _ConfigOption = None,
) -> None:
    """Change one key in the settings file; comments and layout stay. Nothing is written unless all is valid."""
    from pylon.paths import resolve_paths
    from pylon.settings.edit import holds_secret_key, set_value

    secret = holds_secret_key(key)
    if secret and value != "-":
        fail(f'{key}: others can see a secret in the arguments; give "-" and type it, or pipe it in', EXIT_USAGE)
    text = _read_value(key, secret=secret) if value == "-" else value
    file = config.expanduser() if config else resolve_paths().config_file
    now = set_value(file, key, text, os.environ)
    say(f"{key} = {'(a secret)' if secret else _toml(now)}  # {printable(file, limit=500)}")


def _read_value(key: str, *, secret: bool) -> str:
    if sys.stdin.isatty():
        return str(typer.prompt(key, hide_input=secret))
    return sys.stdin.readline().strip()


def _table(shown: list[ShownValue]) -> list[str]:
    cells = [(item.key, _toml(item.value), str(item.origin)) for item in shown]
    key_width = max(len(key) for key, _, _ in cells)
    value_width = min(40, max(len(value) for _, value, _ in cells))
    return [
        f"{key:<{key_width}} = {printable(value, limit=1_000):<{value_width}}  # {printable(origin, limit=500)}"
        for key, value, origin in cells
    ]


def _toml(value: Any) -> str:
    from pylon.settings.example import toml_value

    return "(not set)" if value is None else printable(toml_value(value), limit=1_000)
