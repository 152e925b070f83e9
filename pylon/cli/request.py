"""`pylon request`: buy a job from any NIP-90 provider."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TextIO

import typer

from pylon.cli.context import CliContext
from pylon.cli.options import ConfigOption
from pylon.cli.output import EXIT_USAGE, fail

if TYPE_CHECKING:
    from pylon.cli.request_resume import Resumption
    from pylon.cli.request_run import Deal
    from pylon.nostr.event import Draft
    from pylon.nostr.keys import SecretKey
    from pylon.paths import Paths
    from pylon.settings import Settings

TIMEOUT_S: Final = 300.0
MAX_PROMPT_BYTES: Final = 1_048_576

_AMOUNT: Final = re.compile(r"([0-9]{1,16}) ?(sats?|msats?)?", re.ASCII | re.IGNORECASE)
_LEAST_FEE_MSATS: Final = 5_000


def command(
    ctx: typer.Context,
    prompt: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PROMPT]", help="What to ask; - reads it from stdin, as does a pipe without one."),
    ] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option("--file", metavar="PATH", help="Put this file's text after the prompt; may be repeated."),
    ] = None,
    kind: Annotated[
        int, typer.Option("--kind", min=5000, max=5999, metavar="KIND", help="The job kind; 5050 is text.")
    ] = 5050,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="The model, as its provider names it.")
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option("--param", metavar="NAME=VALUE", help="A parameter, as max_tokens=200; may be repeated."),
    ] = None,
    provider: Annotated[
        list[str] | None,
        typer.Option(
            "--provider", metavar="NPUB", help="Ask this provider (npub or hex) and hear no other; may be repeated."
        ),
    ] = None,
    relay: Annotated[
        list[str] | None,
        typer.Option("--relay", metavar="URL", help="Use this relay instead of the settings'; may be repeated."),
    ] = None,
    bid: Annotated[
        str | None,
        typer.Option("--bid", metavar="AMOUNT", help="The most that the job may cost: sats, or 21sat, 21000msat."),
    ] = None,
    pay: Annotated[
        bool, typer.Option("--pay", help="Pay an invoice within --bid from the wallet of the settings.")
    ] = False,
    max_fee: Annotated[
        str | None,
        typer.Option(
            "--max-fee",
            metavar="AMOUNT",
            help="The most that --pay may spend on routing beside the price; 1 % of the bid, at least 5 sats.",
        ),
    ] = None,
    identity: Annotated[
        bool, typer.Option("--identity", help="Ask as this pylon, not with a throw-away key made for one request.")
    ] = False,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="ID", help="Ask nothing; wait for the result of this earlier request."),
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout",
            min=0.1,
            max=86_400,
            metavar="SECONDS",
            help="How long the result may take.",
        ),
    ] = TIMEOUT_S,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object at the end, amounts in msats.")
    ] = False,
    config: ConfigOption = None,
) -> int:
    """Buy a job: publish the request, show what the providers say, pay where that is allowed, print the result.

    The result goes to stdout and all else to stderr. Without --pay an invoice is shown for you to pay elsewhere.
    Before an invoice is shown or paid its amount, network and expiry are checked. Ctrl-C cancels the job, and so
    does the end of the time, unless the job is paid. The prompt can be read by everybody on the relays.

    Exit code: 0 the result is printed, 1 the providers said that there will be none, 2 wrong usage or settings,
    4 no result in time, 5 a payment was needed and not made, 6 no relay took the request, 130 cancelled by Ctrl-C.
    """
    from pylon.cli.request_resume import resume_request
    from pylon.cli.request_run import run_request
    from pylon.cli.request_screen import RequestScreen
    from pylon.nostr.nip90 import JobInput, request_draft

    bid_msats = None if bid is None else parse_amount(bid, "--bid")
    fee_msats = None if max_fee is None else parse_amount(max_fee, "--max-fee")
    if pay and bid_msats is None:
        fail("--pay needs --bid: the most that may be paid", EXIT_USAGE)
    providers = _public_keys(provider or ())
    context: CliContext = ctx.obj
    if resume is not None:
        if prompt or file or pay:
            fail("--resume waits for an earlier request: it takes no prompt, no --file and no --pay", EXIT_USAGE)
        settings = _settings(config, relay)
        screen = RequestScreen(sys.stdout, sys.stderr, json=json)
        return resume_request(_resumption(settings, resume, providers, timeout), screen)
    params = parse_params(param or (), model)
    text = read_prompt(prompt or (), file or (), sys.stdin)

    settings = _settings(config, relay)
    draft = request_draft(
        kind,
        [JobInput(text)],
        params=params,
        bid_msats=bid_msats,
        relays=settings.relays.urls,
        providers=providers,
    )
    if fee_msats is None:
        fee_msats = max(_LEAST_FEE_MSATS, (bid_msats or 0) // 100)
    key = _key(settings, context.paths, own=identity)
    deal = _deal(settings, key, draft, timeout, fee_msats if pay else None)
    return run_request(deal, RequestScreen(sys.stdout, sys.stderr, json=json))


def parse_amount(text: str, option: str) -> int:
    """Return msats for `21`, `21sat`, `21 sats` or `21000msat`. Raises `UserError`."""
    match = _AMOUNT.fullmatch(text.strip())
    if match is None:
        fail(f"{option}: '{text}' is not an amount: give whole sats (21 or 21sat) or msats (21000msat)", EXIT_USAGE)
    from pylon.nostr.nip90 import MAX_MONEY_MSATS

    amount_msats = int(match[1]) * (1 if (match[2] or "").lower().startswith("m") else 1000)
    if amount_msats > MAX_MONEY_MSATS:
        fail(f"{option}: {text} is more than all the money there is", EXIT_USAGE)
    return amount_msats


def parse_params(written: Sequence[str], model: str | None) -> list[tuple[str, tuple[str, ...]]]:
    """Return the parameters, each split at its first `=`. Raises `UserError`."""
    from pylon.nostr.nip90 import normal_name

    params: list[tuple[str, tuple[str, ...]]] = [] if model is None else [("model", (model,))]
    for text in written:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            fail(f"--param: '{text}' is not of the form NAME=VALUE, as max_tokens=200", EXIT_USAGE)
        if model is not None and normal_name(name) == "model":
            fail("the model is given twice: by --model and by --param", EXIT_USAGE)
        params.append((name.strip(), (value,)))
    return params


def read_prompt(words: Sequence[str], files: Sequence[Path], stdin: TextIO | None) -> str:
    """Return what is asked: words, stdin (`-`, or a pipe where nothing else is given) and files, in this order.

    Raises `UserError`.
    """
    texts = []
    piped = stdin is not None and not words and not files and not stdin.isatty()
    if stdin is not None and (piped or list(words) == ["-"]):
        texts.append(_decoded(stdin.buffer.read(MAX_PROMPT_BYTES + 1), "stdin"))
    elif words:
        texts.append(" ".join(words))
    for path in files:
        try:
            with path.expanduser().open("rb") as file:
                texts.append(_decoded(file.read(MAX_PROMPT_BYTES + 1), str(path)))
        except OSError as error:
            fail(f"--file: {path} cannot be read: {error.strerror}", EXIT_USAGE)
    if not texts:
        fail("nothing is asked: give a PROMPT, or --file PATH, or pipe it in", EXIT_USAGE)
    text = "\n\n".join(texts)
    if not text.strip():
        fail("nothing is asked: the prompt is empty", EXIT_USAGE)
    if any("\ud800" <= char <= "\udfff" for char in text):
        fail("the prompt is not UTF-8 text", EXIT_USAGE)
    return text


def _decoded(raw: bytes, place: str) -> str:
    if len(raw) > MAX_PROMPT_BYTES:
        fail(f"{place}: more than {MAX_PROMPT_BYTES} bytes, which no relay takes", EXIT_USAGE)
    try:
        return raw.decode().rstrip("\n")
    except UnicodeDecodeError:
        fail(f"{place}: not UTF-8 text", EXIT_USAGE)


def _public_keys(written: Sequence[str]) -> list[str]:
    from pylon.nostr.keys import BadKey, parse_public_key

    keys = []
    for text in written:
        try:
            keys.append(parse_public_key(text))
        except BadKey as error:
            fail(f"--provider: '{text}' is no public key ({error}): give an npub or 64 hex digits", EXIT_USAGE)
    return list(dict.fromkeys(keys))


def _settings(config: Path | None, relays: Sequence[str] | None) -> Settings:
    import os

    from pylon.settings import load_settings

    overrides: dict[str, object] = {"relays.urls": list(relays) if relays else None}
    return load_settings(config.expanduser() if config else None, overrides, os.environ).settings


def _resumption(settings: Settings, job_id: str, providers: Sequence[str], timeout_s: float) -> Resumption:
    from pylon.assembly import make_pool_config
    from pylon.cli.request_resume import Resumption
    from pylon.nostr.event import is_hex

    job_id = job_id.strip().lower()
    if not is_hex(job_id, 64):
        fail(f"--resume: '{job_id}' is no request's id: 64 hex digits", EXIT_USAGE)
    if len(providers) != 1:
        fail("--resume needs one --provider: whose result is awaited", EXIT_USAGE)
    return Resumption(job_id, providers[0], make_pool_config(settings), timeout_s)


def _key(settings: Settings, paths: Paths, *, own: bool) -> SecretKey:
    from pylon.cli.passphrase import unlock
    from pylon.nostr.keys import SecretKey
    from pylon.settings.identity_file import load_identity

    return load_identity(unlock(settings, paths), paths) if own else SecretKey.generate()


def _deal(settings: Settings, key: SecretKey, draft: Draft, timeout_s: float, max_fee_msats: int | None) -> Deal:
    """Return what is to be bought; `max_fee_msats` is None when nothing is paid from the wallet."""
    import time

    from pylon.assembly import make_pool_config, make_wallet
    from pylon.cli.request_run import Deal
    from pylon.nostr.bolt11 import Network

    wallet = None
    if max_fee_msats is not None:
        wallet = make_wallet(settings, time.time)
        if wallet is None:
            fail("--pay needs a wallet to pay from: connect one ([wallet] in pylon.toml)", EXIT_USAGE)
    request = draft.sign(key, int(time.time()))
    taken_bytes = len(request.to_json().encode())
    if taken_bytes > settings.relays.max_event_bytes:
        limit = f"relays.max_event_bytes allows {settings.relays.max_event_bytes}"
        fail(f"the request takes {taken_bytes} bytes and {limit}: shorten the prompt", EXIT_USAGE)
    return Deal(
        request=request,
        key=key,
        relays=make_pool_config(settings),
        network=Network(settings.wallet.network.value),
        timeout_s=timeout_s,
        wallet=wallet,
        max_fee_msats=max_fee_msats or 0,
    )
