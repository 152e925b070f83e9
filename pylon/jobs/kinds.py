"""The job kinds that can be sold: each is a small module that turns a request into text generation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from pylon.jobs import summarize, textgen, translate
from pylon.jobs.textgen import TextGeneration, TextJob
from pylon.nostr.event import Event
from pylon.nostr.nip90 import BadRequest, ErrorPrefix, JobRequest, parse_request


@dataclass(frozen=True, slots=True)
class JobKind:
    """One kind: its name for people, how a request is read, and the parameters that are honoured."""

    name: str
    parse: Callable[[JobRequest], TextGeneration]
    params: frozenset[str]


KINDS: Final[Mapping[int, JobKind]] = {
    textgen.KIND: JobKind("text generation", textgen.parse_textgen, textgen.PARAMS),
    summarize.KIND: JobKind("summarization", summarize.parse_summarize, frozenset(summarize.READERS)),
    translate.KIND: JobKind("translation", translate.parse_translate, frozenset(translate.READERS)),
}


def parse_job(request: JobRequest) -> TextGeneration:
    """Return what a request of any kind that is known asks for. Raises `BadRequest`."""
    kind = KINDS.get(request.kind)
    if kind is None:
        raise BadRequest(ErrorPrefix.UNSUPPORTED_KIND, f"kind {request.kind} is not offered")
    return kind.parse(request)


def read_text_job(event: Event) -> TextJob:
    """Return what a stored request asks for. Raises `BadRequest`."""
    return TextJob(event, parse_job(parse_request(event)))
