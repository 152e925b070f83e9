"""Commands that are imported when they are used: `pylon --help` lists them all and loads none.

typer takes 0.1 s to import and each command's own needs up to another half; a help text must not wait for that.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption
from typer.main import get_command, get_group


@dataclass(frozen=True, slots=True)
class LazyCommand:
    """Where a command lies, and what the list of commands says of it.

    `attribute` is a function, or a `typer.Typer` for a noun with several verbs. `example` ends its help.
    """

    module: str
    attribute: str
    help: str
    example: str

    def load(self, name: str) -> Any:
        """Import the command."""
        target = getattr(import_module(self.module), self.attribute)
        if isinstance(target, typer.Typer):
            target.rich_markup_mode = None  # plain help, as everywhere: rich takes 0.1 s to import
            command: Any = get_group(target)
            command.epilog = command.epilog or f"Example: {self.example}"
            command.help = command.help or self.help
        else:
            app = typer.Typer(add_completion=False, rich_markup_mode=None)
            app.command(name, epilog=f"Example: {self.example}")(target)
            command = get_command(app)
        command.name = name
        return command


class LazyGroup(TyperGroup):
    """A group that knows its commands by name and loads one when it is called."""

    lazy: ClassVar[dict[str, LazyCommand]] = {}

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.params = [_as_text(param) for param in self.params]
        for name, command in self.lazy.items():
            # A stand-in: enough for the list of commands, for suggestions and for shell completion.
            self.add_command(TyperCommand(name, help=command.help, rich_markup_mode=None))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Load the command that `args` name."""
        if args and args[0] in self.lazy:
            self.add_command(self.lazy[args[0]].load(args[0]), args[0])
        return super().resolve_command(ctx, args)


class _TextOption(TyperOption):
    """An option whose value is taken as it is.

    typer imports pydantic to convert any option but a flag, a third of the time that `pylon status` has in all.
    """

    def process_value(self, ctx: Any, value: Any) -> Any:
        return self.callback(ctx, self, value) if self.callback else value


def _as_text(param: Any) -> Any:
    if not isinstance(param, TyperOption) or param.is_flag:
        return param
    text = copy.copy(param)
    text.__class__ = _TextOption
    return text
