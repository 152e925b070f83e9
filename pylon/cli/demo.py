"""`pylon demo`: the whole market on this machine, with play money."""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    prompt: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="What to ask; without it, about the sea.")
    ] = None,
    serve: Annotated[bool, typer.Option("--serve", help="Keep the market open afterwards, until Ctrl-C.")] = False,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, max=1024, metavar="N", help="The longest answer.")
    ] = 128,
) -> int:
    """Show the whole market on this machine: a relay, a wallet, the real daemon, and a customer who buys an answer.

    Real keys, relay, invoices, inference and books; only the sats are play money. Nothing outside this machine is
    contacted, your own settings are left alone, and nothing stays behind.
    """
    from pylon.demo.run import DEFAULT_PROMPT, DemoOptions, run_demo

    asked = " ".join(prompt or ()).strip() or DEFAULT_PROMPT
    return run_demo(DemoOptions(prompt=asked, max_tokens=max_tokens, serve=serve))
