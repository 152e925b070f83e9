"""`pylon price`: what a job costs by the settings, line by line, as intake would price it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from pylon.cli.context import CliContext
from pylon.cli.layout import Cell, Colour, Screen, moment, sats
from pylon.cli.options import ConfigOption
from pylon.cli.output import EXIT_USAGE, fail, say, say_json
from pylon.text import printable

if TYPE_CHECKING:
    from pylon.jobs.catalogue import Offer
    from pylon.jobs.pricing import Quote, QuoteLine
    from pylon.jobs.textgen import TextGeneration
    from pylon.paths import Paths
    from pylon.settings import Settings

_SHORTEST: Final = "?"
_MICROSATS_PER_SAT: Final = 1_000_000


def command(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model that is sold, by its name or an alias.")],
    kind: Annotated[
        int | None,
        typer.Option(
            "--kind", min=5000, max=5999, metavar="KIND", help="The job kind; the model's first if not given."
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", metavar="TEXT", help="The prompt; the shortest there is if not given.")
    ] = None,
    prompt_file: Annotated[
        str | None, typer.Option("--prompt-file", metavar="FILE", help='The prompt from a file; "-" is stdin.')
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, metavar="N", help="What the customer asks for.")
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option("--param", metavar="NAME=VALUE", help="A parameter, as language=es; may be repeated."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON, amounts in msats.")] = False,
    config: ConfigOption = None,
) -> None:
    """Explain what a job costs, line by line, from the settings.

    The tokens are upper bounds, as they are priced before the work. No daemon and no backend is asked: where the
    settings name no context_tokens, a prompt that is too long for the model is not noticed here.
    """
    from pylon.assembly import make_offers
    from pylon.cli.request import parse_params
    from pylon.settings import load_settings

    params = parse_params(param or (), None)
    if max_tokens is not None:
        params.append(("max_tokens", (str(max_tokens),)))
    text = _prompt(prompt, prompt_file)
    settings = load_settings(config.expanduser() if config else None).settings
    offer = _find(make_offers(settings), model, kind)
    chosen = offer.kinds[0] if kind is None else kind
    quoted, asked = _quote(settings, offer, chosen, text, params)
    context: CliContext = ctx.obj
    work = _work(settings, context.paths, offer, quoted)
    if json:
        say_json({**_plain(settings, offer, chosen, quoted, asked), "work": work and asdict(work)})
        return
    screen = Screen()
    show(settings, offer, chosen, quoted, screen)
    for line in _hints(work, quoted):
        screen.line(line)
    say(screen.text())


@dataclass(frozen=True, slots=True)
class Work:
    """What a job takes of the machine, as a bench has it, or why none tells.

    `seconds` are those of a job that uses all of its tokens while it is alone; `msats_per_hour` is what such jobs
    bring, one after another. `measured_at` is unix seconds.
    """

    stale: str = ""
    seconds: float | None = None
    msats_per_hour: int | None = None
    tokens_per_s: float | None = None
    measured_at: int | None = None


def _work(settings: Settings, paths: Paths, offer: Offer, quoted: Quote) -> Work | None:
    """Return what the slowest of the model's benches says of a job; None when the model was never measured."""
    from pylon.benches import holding
    from pylon.cli.configured import known_benches

    fresh, stale = holding(known_benches(paths), settings)
    places = [(route.backend, route.backend_model) for route in offer.routes]
    benches = [fresh[place] for place in places if place in fresh]
    if not benches:
        return next((Work(stale[place]) for place in places if place in stale), None)
    slowest = min(benches, key=lambda bench: bench.claim.tokens_per_s)
    speed = slowest.speed
    seconds = speed.first_token_s + quoted.output_tokens * speed.token_s
    return Work(
        seconds=round(seconds, 3),
        msats_per_hour=round(quoted.amount_msats * 3600 / max(seconds, 0.001)),
        tokens_per_s=slowest.claim.tokens_per_s,
        measured_at=slowest.at,
    )


def _hints(work: Work | None, quoted: Quote) -> Iterator[str]:
    """Yield what the speed of this machine means to the price."""
    if work is None:
        return
    if work.seconds is None or work.measured_at is None or work.msats_per_hour is None:
        yield f"How long it takes is not known: {printable(work.stale)}; measure again: pylon backends bench."
        return
    day, speed = moment(work.measured_at)[:10], f"{work.tokens_per_s:g} tokens/s"
    yield f"It takes this machine {work.seconds:,.1f} s at most ({speed}, measured on {day})."
    if quoted.amount_msats:
        yield f"An hour of such jobs, one after another, brings {sats(work.msats_per_hour // 1000 * 1000)}."


def show(settings: Settings, offer: Offer, kind: int, quoted: Quote, screen: Screen) -> None:
    """Put the sum on the screen, and what it means to a bid."""
    from pylon.jobs.kinds import KINDS

    screen.line(f"{printable(offer.name)}, kind {kind} ({KINDS[kind].name})", Colour.BOLD)
    total = Cell(sats(quoted.amount_msats), Colour.GOOD, right=True)
    screen.table([*(_row(line) for line in quoted.lines), [Cell("total"), Cell(""), total]], indent="  ")
    screen.line(_meaning(settings, quoted))


def _quote(
    settings: Settings, offer: Offer, kind: int, text: str, params: list[tuple[str, tuple[str, ...]]]
) -> tuple[Quote, TextGeneration]:
    """Return the price of a request with this text. Raises `UserError` where intake would refuse it."""
    from pylon.assembly import make_intake_config
    from pylon.jobs import facts
    from pylon.jobs.access import Access
    from pylon.jobs.kinds import parse_job
    from pylon.jobs.policy import check_prompt, check_prompt_tokens
    from pylon.jobs.quoting import fitting_tokens, quote_job
    from pylon.nostr.keys import SecretKey
    from pylon.nostr.nip90 import BadRequest, JobInput, parse_request, request_draft

    rules = make_intake_config(settings, facts.Mode(settings.payment.mode.value), Access())
    draft = request_draft(kind, [JobInput(text)], params=params)
    try:
        # Read from an event, as a customer's is; nobody ever sees it.
        asked = parse_job(parse_request(draft.sign(SecretKey.generate(), 0)))
        if (denial := check_prompt(asked.texts, rules.policy)) is not None:
            fail(f"this would be refused: {denial.sentence}")
        quoted = quote_job(
            offer,
            kind,
            asked,
            context_tokens=offer.context_tokens,
            most_tokens=fitting_tokens(rules.limit_bytes),
            free=rules.mode is facts.Mode.FREE,
        )
        if (denial := check_prompt_tokens(quoted.input_tokens, rules.policy)) is not None:
            fail(f"this would be refused: {denial.sentence}")
    except BadRequest as refused:
        fail(f"this would be refused: {refused.denial.sentence}")
    return quoted, asked


def _find(offers: tuple[Offer, ...], model: str, kind: int | None) -> Offer:
    """Return the offer of this name or alias. Raises `UserError`."""
    offer = next((each for each in offers if model in (each.name, *each.aliases)), None)
    if offer is None:
        names = ", ".join(each.name for each in offers) or "nothing ([[models]] in pylon.toml)"
        fail(f"'{model}' is not sold; sold are: {names}", EXIT_USAGE)
    if kind is not None and kind not in offer.kinds:
        kinds = ", ".join(map(str, offer.kinds))
        fail(f"--kind: {offer.name} is not sold for {kind}; it is for: {kinds}", EXIT_USAGE)
    return offer


def _prompt(prompt: str | None, file: str | None) -> str:
    from pylon.cli.request import read_prompt

    if prompt is not None and file is not None:
        fail("--prompt and --prompt-file are given both: one is enough", EXIT_USAGE)
    if file == "-":
        return read_prompt(("-",), (), sys.stdin)
    if file is not None:
        return read_prompt((), (Path(file),), None)
    return _SHORTEST if prompt is None else read_prompt((prompt,), (), None)


def _row(line: QuoteLine) -> list[Cell]:
    how = (
        "" if line.tokens is None else f"at most {line.tokens:,} tokens at {line.msats_per_1k or 0:,} msats per 1k"
    )
    return [Cell(line.label), Cell(how), Cell(_exact_sats(line.amount_microsats), right=True)]


def _exact_sats(amount_microsats: int) -> str:
    """Return an amount in sats, exact to the microsat: `1.0585 sats`."""
    whole, rest = divmod(amount_microsats, _MICROSATS_PER_SAT)
    decimals = f"{rest:06d}".rstrip("0")
    return f"{whole:,}{'.' if decimals else ''}{decimals} sats"


def _meaning(settings: Settings, quoted: Quote) -> str:
    from pylon.settings import PaymentMode

    if settings.payment.mode is PaymentMode.FREE:
        return 'payment.mode is "free": nobody pays, whatever the prices.'
    least = f"{quoted.amount_msats} msats ({sats(quoted.amount_msats)})"
    bid = f"A bid must be at least {least}; without one it is taken."
    if settings.payment.mode is PaymentMode.POSTPAY:
        return f"{bid} On credit its real use is billed: never more than this."
    return bid


def _plain(settings: Settings, offer: Offer, kind: int, quoted: Quote, asked: TextGeneration) -> dict[str, object]:
    return {
        "model": offer.name,
        "kind": kind,
        "mode": settings.payment.mode.value,
        "max_tokens_asked": asked.max_tokens,
        "input_tokens": quoted.input_tokens,
        "output_tokens": quoted.output_tokens,
        "lines": [
            {
                "label": line.label,
                "amount_microsats": line.amount_microsats,
                "tokens": line.tokens,
                "msats_per_1k": line.msats_per_1k,
            }
            for line in quoted.lines
        ],
        "amount_msats": quoted.amount_msats,
        "least_bid_msats": quoted.amount_msats,
    }
