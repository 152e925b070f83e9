"""`pylon completion`: the script that lets a shell complete commands and options."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from pylon.cli.output import say

_VARIABLE = "_PYLON_COMPLETE"  # what typer looks for under the name of our program


def command(
    shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(metavar="SHELL", help="bash, zsh or fish.")],
) -> None:
    """Print the script that lets a shell complete what is typed after `pylon`.

    bash: put `source <(pylon completion bash)` into ~/.bashrc. zsh: put `source <(pylon completion zsh)` into
    ~/.zshrc, after compinit. fish: pylon completion fish > ~/.config/fish/completions/pylon.fish
    """
    from typer._completion_shared import get_completion_script  # what its own --show-completion prints

    say(get_completion_script(prog_name="pylon", complete_var=_VARIABLE, shell=shell))
