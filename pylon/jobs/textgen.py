"""Kind 5050, text generation: from a job request to what a backend is asked for.

Every parameter is honoured or refused, never ignored: a customer who sets one pays for what it does. Units and
ranges are those that every OpenAI-compatible server and llama.cpp understand alike.

The prompt is the text inputs in their order, joined by a blank line; markers and relay hints say nothing about
text. A request without any `i` tag whose content is text is taken as its own prompt, as some clients write it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from pylon.jobs.ports import GenerationRequest, Message
from pylon.nostr.event import Event
from pylon.nostr.nip90 import BadRequest, ErrorPrefix, InputType, JobRequest
from pylon.text import printable

KIND: Final = 5050

MAX_TOKENS: Final = 10_000_000
MAX_TOP_K: Final = 1_000_000
MAX_SEED: Final = 2**32 - 2  # llama.cpp reads 2**32 - 1 as "choose at random"
MAX_STOPS: Final = 4
MAX_STOP_CHARS: Final = 256
MAX_MODEL_CHARS: Final = 200

Reader = Callable[[str, tuple[str, ...]], Any]
"""Reads the values of one parameter, given its name. Raises `BadRequest`."""

_SHOWN = 60  # characters of a stranger's text that a sentence repeats
_WHOLE: Final = re.compile(r"[0-9]{1,12}", re.ASCII)
_DECIMAL: Final = re.compile(r"-?(?:[0-9]{1,20}(?:\.[0-9]{0,20})?|\.[0-9]{1,20})(?:[eE][+-]?[0-9]{1,2})?", re.ASCII)
_OUTPUTS: Final = frozenset({"text/plain", "text/markdown", "text/*", "*/*"})


@dataclass(frozen=True, slots=True)
class TextGeneration:
    """What a customer asks for. None means that the customer leaves it to the model or the operator."""

    prompt: str
    system: str | None = None
    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """The messages' texts in their order, as `pricing.input_token_bound` counts them."""
        return (self.prompt,) if self.system is None else (self.system, self.prompt)


@dataclass(frozen=True, slots=True)
class TextJob:
    """A request that was read and checked: what a runner needs of it."""

    event: Event
    asked: TextGeneration


def parse_textgen(request: JobRequest) -> TextGeneration:
    """Return what a kind 5050 request asks for. Raises `BadRequest` with the reason, and nothing else."""
    if request.kind != KIND:
        raise BadRequest(ErrorPrefix.UNSUPPORTED_KIND, f"kind {request.kind} is not text generation")
    return TextGeneration(read_text(request), **read_params(request, READERS))


def to_generation(asked: TextGeneration, backend_model: str, max_tokens: int) -> GenerationRequest:
    """Return what the backend is asked. `max_tokens` is what was priced: the customer's figure or the default."""
    system = () if asked.system is None else (Message("system", asked.system),)
    return GenerationRequest(
        model=backend_model,
        messages=(*system, Message("user", asked.prompt)),
        max_tokens=max_tokens,
        temperature=asked.temperature,
        top_k=asked.top_k,
        top_p=asked.top_p,
        frequency_penalty=asked.frequency_penalty,
        presence_penalty=asked.presence_penalty,
        seed=asked.seed,
        stop=asked.stop,
    )


def read_text(request: JobRequest) -> str:
    """Return the text inputs in their order. Raises `BadRequest` when there is none, or something else is asked."""
    if request.encrypted:
        raise BadRequest(ErrorPrefix.UNSUPPORTED_ENCRYPTION, "encrypted requests are not taken: send plain tags")
    _check_output(request.output)
    for each in request.inputs:
        if each.type is not InputType.TEXT:
            sentence = f"input type {each.type.value} is not taken: send the text itself"
            raise BadRequest(ErrorPrefix.UNSUPPORTED_INPUT, sentence)
    texts = [each.data for each in request.inputs] if request.inputs else [request.event.content]
    prompt = "\n\n".join(text for text in texts if text)
    if not prompt.strip():
        raise BadRequest(ErrorPrefix.INVALID, "no prompt: put it in an i tag of type text")
    return prompt


def read_params(request: JobRequest, readers: Mapping[str, Reader]) -> dict[str, Any]:
    """Return the value of each parameter that is given, by its name. Raises `BadRequest` on any other one."""
    given: dict[str, tuple[str, ...]] = {}
    for name, values in request.params:
        if name not in readers:
            raise BadRequest(ErrorPrefix.UNSUPPORTED_PARAM, f"'{_show(name)}' is not a parameter that is honoured")
        if not values:
            raise _invalid(name, "has no value")
        given[name] = given.get(name, ()) + values
    return {name: readers[name](name, values) for name, values in given.items()}


def _check_output(output: str | None) -> None:
    if output is None:
        return
    mime = output.partition(";")[0].strip().lower()
    if mime not in _OUTPUTS:
        sentence = f"output '{_show(output)}' is not offered: text/plain and text/markdown are"
        raise BadRequest(ErrorPrefix.UNSUPPORTED_OUTPUT, sentence)


def _stops(name: str, stops: tuple[str, ...]) -> tuple[str, ...]:
    if len(stops) > MAX_STOPS:
        raise _invalid(name, f"has {len(stops)} texts: at most {MAX_STOPS} are taken")
    if any(not 0 < len(text) <= MAX_STOP_CHARS for text in stops):
        raise _invalid(name, f"takes texts of 1 to {MAX_STOP_CHARS} characters")
    return stops


def _only(name: str, values: tuple[str, ...]) -> str:
    if len(values) > 1:
        raise _invalid(name, f"has {len(values)} values: one is taken")
    return values[0]


def one_text(name: str, values: tuple[str, ...], *, limit: int | None) -> str:
    """Read a parameter that is one text, not blank, of at most `limit` characters."""
    value = _only(name, values)
    if not value.strip():
        raise _invalid(name, "is empty")
    if limit is not None and len(value) > limit:
        raise _invalid(name, f"is longer than {limit} characters")
    return value


def _whole(name: str, values: tuple[str, ...], *, low: int, high: int) -> int:
    value = _only(name, values)
    # The pattern comes first: int() would also take other scripts' digits, underscores and spaces.
    if _WHOLE.fullmatch(value) is None or not low <= int(value) <= high:
        raise _invalid(name, f"is '{_show(value)}': give a whole number from {low} to {high}")
    return int(value)


def _decimal(name: str, values: tuple[str, ...], *, low: float, high: float, above_low: bool = False) -> float:
    value = _only(name, values)
    # The pattern bounds the exponent, so that the number is finite, and keeps out nan and inf.
    number = float(value) if _DECIMAL.fullmatch(value) else None
    if number is None or not low <= number <= high or (above_low and number == low):
        words = f"above {low:g} up to {high:g}" if above_low else f"from {low:g} to {high:g}"
        raise _invalid(name, f"is '{_show(value)}': give a number {words}")
    return number


def _invalid(name: str, sentence: str) -> BadRequest:
    return BadRequest(ErrorPrefix.INVALID, f"{name} {sentence}")


def _show(text: str) -> str:
    return printable(text, limit=_SHOWN)


READERS: Final[Mapping[str, Reader]] = {
    "model": partial(one_text, limit=MAX_MODEL_CHARS),
    "system": partial(one_text, limit=None),  # counts as input: its size is bounded and priced with the prompt's
    "max_tokens": partial(_whole, low=1, high=MAX_TOKENS),
    "temperature": partial(_decimal, low=0.0, high=2.0),
    "top_k": partial(_whole, low=0, high=MAX_TOP_K),  # 0 turns it off
    "top_p": partial(_decimal, low=0.0, high=1.0, above_low=True),
    "frequency_penalty": partial(_decimal, low=-2.0, high=2.0),
    "presence_penalty": partial(_decimal, low=-2.0, high=2.0),
    "seed": partial(_whole, low=0, high=MAX_SEED),
    "stop": _stops,
}
"""How each parameter is read, by its normalised name, which is also the field's name in `TextGeneration`."""

PARAMS: Final = frozenset(READERS)
"""The parameters that are honoured; an announcement lists them."""
