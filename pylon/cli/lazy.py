"""Commands that are imported when they are used: `pylon --help` lists them all and loads none.

typer takes 0.1 s to import and each command's own needs up to another half; a help text must not wait for that.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption
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
            app.command(name, cls=LazyTyperCommand, epilog=f"Example: {self.example}")(target)
            command = get_command(app)
        command.name = name
        return command


class LazyGroup(TyperGroup):
    """A group that knows its commands by name and loads one when it is called."""

    lazy: ClassVar[dict[str, LazyCommand]] = {}

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, command in self.lazy.items():
            # A stand-in: enough for the list of commands, for suggestions and for shell completion.
            self.add_command(TyperCommand(name, help=command.help, rich_markup_mode=None))

    def get_params(self, ctx: Any) -> Any:
        """Return the options, those of `--help` and shell completion among them."""
        return _plain(super().get_params(ctx))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Load the command that `args` name."""
        if args and args[0] in self.lazy:
            self.add_command(self.lazy[args[0]].load(args[0]), args[0])
        return super().resolve_command(ctx, args)


class LazyTyperCommand(TyperCommand):
    """A command that imports pydantic only to convert an option that was given and is neither text nor a flag."""

    def get_params(self, ctx: Any) -> Any:
        """Return the arguments and options, `--help` among them."""
        return _plain(super().get_params(ctx))


class _PlainOption(TyperOption):
    """An option whose value is taken as it is when there is nothing to convert.

    typer imports pydantic for any value but a bool, even for an option not given: a third of the time that
    `pylon status` has in all.
    """

    def process_value(self, ctx: Any, value: Any) -> Any:
        missing = value is None and not self.required and not self.multiple
        text = isinstance(value, str) and self.type_descriptor.annotation is str
        if missing or text or isinstance(value, bool):
            return self.callback(ctx, self, value) if self.callback else value
        return super().process_value(ctx, value)


class _PlainArgument(TyperArgument):
    """An argument of text, or none given: the same."""

    def process_value(self, ctx: Any, value: Any) -> Any:
        missing = value is None and not self.required and self.nargs == 1
        text = isinstance(value, str) and self.type_descriptor.annotation is str
        if missing or text:
            return self.callback(ctx, self, value) if self.callback else value
        return super().process_value(ctx, value)


def _plain(params: list[Any]) -> list[Any]:
    for param in params:
        # In place, since typer knows its parameters by identity and makes them itself.
        if type(param) is TyperOption:
            param.__class__ = _PlainOption
        elif type(param) is TyperArgument:
            param.__class__ = _PlainArgument
    return params
