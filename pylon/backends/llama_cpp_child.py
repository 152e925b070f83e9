"""The child program of backend `llama_cpp`: one model in memory, through the library `llama-cpp-python`.

Run by file name, so it imports nothing of pylon and runs in any Python that has the library. Both directions are
lines of JSON. In come the settings, once, then `{"op": "generate", "id": n, …}` and `{"op": "cancel", "id": n}`;
out go `{"loaded": {…}}` or `{"error": …}`, then for each job `begun`, `text` as it is made (empty while the model
thinks), and one of `done`, `refused`, `fault` and `cancelled`. Jobs run one after another: two calls into one model
end the process. A thread listens meanwhile, so a cancellation is heard in the middle of one. Everything that
llama.cpp prints goes to stderr, the log. The process ends when its parent does: stdin closes, and on Linux the
kernel kills it.
"""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import faulthandler
import json
import os
import queue
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, TextIO

BATCH_TOKENS: Final = 512
"""How many tokens of a prompt are read at once; a cancellation waits for them where work cannot be broken off."""
_PR_SET_PDEATHSIG: Final = 1
_OOM_SCORE: Final = 500
_MAX_PIECE: Final = 256
_RANDOM_SEED: Final = 0xFFFFFFFF  # this one means to llama.cpp that it is to choose itself
# What a request leaves open, as llama.cpp's own server has it; a model's chat template when it has none likewise.
_TEMPERATURE, _TOP_K, _TOP_P, _MIN_P = 0.8, 40, 0.95, 0.05
_THINK, _THOUGHT = "<think>", "</think>"
_CHATML: Final = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)

Say = Callable[[dict[str, Any]], None]


class Refused(Exception):
    """The request cannot be carried out, ever; the message is a clause for the operator."""


class Cancelled(Exception):
    """The parent wants this job no more."""


class Desk:
    """Which job runs, and which one is not wanted any more. The two threads share it; ids only ever grow."""

    def __init__(self) -> None:
        self.running = 0
        self.unwanted = 0
        self.jobs: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def listen(self, lines: Iterable[bytes]) -> None:
        """Take what the parent says until it is gone, or wants this process to end."""
        for line in lines:
            message = json.loads(line)
            if message["op"] == "cancel":
                self.unwanted = message["id"]
            else:
                self.jobs.put(message)

    def cancelled(self) -> bool:
        """Whether the job that runs is not wanted any more."""
        return self.unwanted >= self.running


class StopFinder:
    """Finds stop texts in a text that comes in pieces, holding back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""

    def feed(self, piece: str) -> tuple[str, bool]:
        """Return what may be said now, and whether a stop text was found: then nothing follows."""
        text = self._held + piece
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def rest(self) -> str:
        """Return what was held back, once nothing follows."""
        held, self._held = self._held, ""
        return held


class ThoughtFinder:
    """Keeps what a model thinks before its answer apart from the answer; a text comes in pieces.

    With `inside` the prompt has begun the thoughts already. They are told only where no answer comes.
    """

    def __init__(self, inside: bool) -> None:
        self._thoughts = ""
        self._held = _THINK if inside else ""
        self._answers = False

    def feed(self, piece: str) -> str:
        """Return what of the answer may be said now."""
        if self._answers:
            return piece
        self._held += piece
        text = self._held.lstrip()
        if not text or _THINK.startswith(text):
            return ""
        answer = self._held
        if text.startswith(_THINK):
            thoughts, end, answer = text.removeprefix(_THINK).partition(_THOUGHT)
            answer = answer.lstrip()
            if not end or not answer:
                self._thoughts = thoughts.strip()
                return ""
        self._answers, self._held = True, ""
        return answer

    def rest(self) -> str:
        """Return what is to be said instead of an answer, once nothing follows."""
        if self._answers:
            return ""
        return self._thoughts or ("" if self._held.lstrip().startswith(_THINK) else self._held)


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of the text are the beginning of the stop text."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)


def without_system(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return the messages with what the system says put before what the user says first, for some templates."""
    said = [message["content"] for message in messages if message["role"] == "system"]
    rest = [message for message in messages if message["role"] != "system"]
    first = next((at for at, message in enumerate(rest) if message["role"] == "user"), None)
    if not said or first is None:
        return messages
    rest[first] = {"role": "user", "content": "\n\n".join([*said, rest[first]["content"]])}
    return rest


class Engine:
    """One loaded model. Raises whatever the library does when it cannot be loaded."""

    def __init__(self, settings: dict[str, Any], cancelled: Callable[[], bool]) -> None:
        import llama_cpp

        self._lib: Any = llama_cpp
        self._cancelled = cancelled
        self.offloads = bool(llama_cpp.llama_supports_gpu_offload())
        self._llm: Any = llama_cpp.Llama(
            settings["gguf"],
            n_ctx=settings["context_tokens"],
            n_batch=BATCH_TOKENS,
            n_threads=settings["threads"],
            n_threads_batch=settings["threads"],
            n_gpu_layers=settings["gpu_layers"] if self.offloads else 0,
            flash_attn=settings["flash_attention"],
            verbose=True,  # into the log: without it the library closes our files while it works
        )
        self.context_tokens = int(self._llm.n_ctx())
        self._vocab = llama_cpp.llama_model_get_vocab(self._llm.model)
        # Called by the threads that compute, in the middle of it: only true ends a llama_decode that has begun.
        self._abort = llama_cpp.ggml_abort_callback(lambda _: cancelled())
        self._no_abort = llama_cpp.ggml_abort_callback()
        self._render = self._make_renderer()

    @property
    def version(self) -> str:
        """The library's version."""
        return str(self._lib.__version__)

    def prompt(self, messages: list[dict[str, str]]) -> str:
        """Return the chat as the model's own template writes it. Raises `Refused`."""
        try:
            try:
                return self._render(messages)
            except Exception:  # noqa: BLE001 - a template raises what it likes
                return self._render(without_system(messages))
        except Exception as error:  # noqa: BLE001
            raise Refused(f"the model's chat template does not take it: {error}") from None

    def tokens(self, prompt: str) -> list[int]:
        """Return a prompt in tokens."""
        # The template writes the beginning of the text itself, if it wants one.
        starts = bool(self._bos) and prompt.startswith(self._bos)
        add_bos = not starts and bool(self._lib.llama_vocab_get_add_bos(self._vocab))
        tokens: list[int] = self._llm.tokenize(prompt.encode(), add_bos=add_bos, special=True)
        return tokens

    def generate(self, job: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
        """Say the answer piece by piece and return how it ended. Raises `Refused` and `Cancelled`."""
        text = self.prompt(job["messages"])
        prompt = self.tokens(text)
        if len(prompt) >= self.context_tokens:
            raise Refused(
                f"its prompt has {len(prompt)} tokens, and the model takes {self.context_tokens} per request"
            )
        room = min(job["max_tokens"], self.context_tokens - len(prompt))
        finder, decoder = StopFinder(job["stop"]), codecs.getincrementaldecoder("utf-8")("replace")
        thoughts = ThoughtFinder(inside=text.rstrip().endswith(_THINK)) if self._thinks else None
        reason, count, cut = "length", 0, False
        with contextlib.closing(self._tokens(prompt, job)) as tokens:
            for token in tokens:
                count += 1
                if self._lib.llama_vocab_is_eog(self._vocab, token):
                    reason = "stop"
                    break
                text = decoder.decode(self._piece(token))
                text, cut = finder.feed(thoughts.feed(text) if thoughts else text)
                say(text)  # an empty one too: it tells that the model is at work
                if cut or count >= room:
                    break
        if not cut:
            text = decoder.decode(b"", final=True)
            text, cut = finder.feed(thoughts.feed(text) + thoughts.rest() if thoughts else text)
            if text := text if cut else text + finder.rest():
                say(text)
        if cut:
            reason = "stop"
        return {"done": reason, "prompt_tokens": len(prompt), "output_tokens": count}

    def _tokens(self, prompt: list[int], job: dict[str, Any]) -> Generator[int, None, None]:
        """Yield what the model says, token by token. Raises `Cancelled`."""
        llm = self._llm
        self._forget()  # customers share nothing, and the same seed gives the same text
        llm.set_seed(secrets.randbelow(_RANDOM_SEED) if job["seed"] is None else job["seed"] % _RANDOM_SEED)
        self._may_abort(True)
        try:
            # All but the last batch here, so that work that cannot be broken off (on a GPU) ends between two.
            whole = (len(prompt) - 1) // llm.n_batch * llm.n_batch
            for start in range(0, whole, llm.n_batch):
                self._go_on()
                llm.eval(prompt[start : start + llm.n_batch])
            made = llm.generate(
                prompt,
                temp=_or(job["temperature"], _TEMPERATURE),
                top_k=_or(job["top_k"], _TOP_K),
                top_p=_or(job["top_p"], _TOP_P),
                min_p=_MIN_P,
                frequency_penalty=_or(job["frequency_penalty"], 0.0),
                presence_penalty=_or(job["presence_penalty"], 0.0),
                repeat_penalty=1.0,
            )
            for at, token in enumerate(made):
                if at == 0:  # from here on a look between two tokens is enough, and costs less
                    self._may_abort(False)
                self._go_on()
                yield token
        except RuntimeError:
            self._go_on()  # what was broken off ends as an error
            raise
        finally:
            self._may_abort(False)
            self._forget()

    def _go_on(self) -> None:
        if self._cancelled():
            raise Cancelled

    def _may_abort(self, wanted: bool) -> None:
        self._lib.llama_set_abort_callback(self._llm.ctx, self._abort if wanted else self._no_abort, None)

    def _forget(self) -> None:
        self._llm.reset()
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._llm.ctx), True)

    def _piece(self, token: int) -> bytes:
        size = _MAX_PIECE
        while True:
            buffer = ctypes.create_string_buffer(size)
            wrote = self._lib.llama_token_to_piece(self._vocab, token, buffer, size, 0, False)
            if wrote >= 0:
                return buffer.raw[:wrote]
            size = -wrote

    def _make_renderer(self) -> Callable[[list[dict[str, str]]], str]:
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        def text_of(token: int) -> str:
            return self._lib.llama_vocab_get_text(self._vocab, token).decode() if token >= 0 else ""

        self._bos = text_of(self._llm.token_bos())
        template = self._llm.metadata.get("tokenizer.chat_template", _CHATML)
        self._thinks = _THINK in template
        write = Jinja2ChatFormatter(template, eos_token=text_of(self._llm.token_eos()), bos_token=self._bos)
        return lambda messages: str(write(messages=messages).prompt)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def serve(engine: Any, job: dict[str, Any], say: Say) -> None:
    """Run one job and say everything about it."""
    number = job["id"]
    say({"id": number, "begun": True})
    try:
        end = engine.generate(job, lambda text: say({"id": number, "text": text}))
    except Cancelled:
        end = {"cancelled": True}
    except Refused as refused:
        end = {"refused": str(refused)}
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent must hear of it
        # Its words may repeat the prompt; llama_decode's own are a number.
        words = str(error) if str(error).startswith("llama_decode returned") else ""
        end = {"fault": f"{type(error).__name__}{': ' if words else ''}{words}"}
    say({"id": number, **end})


def main() -> None:
    """Serve until killed or until the parent closes stdin."""
    die_with_parent()
    faulthandler.enable()
    reports = keep_stdout_for_reports()
    line = sys.stdin.buffer.readline()
    if not line:
        return
    settings = json.loads(line)
    if os.name == "posix" and os.getppid() != settings["parent_pid"]:
        return  # it died before we asked the kernel to be told
    desk = Desk()

    def listen() -> None:
        try:
            desk.listen(sys.stdin.buffer)
        finally:
            os._exit(0)

    def say(value: dict[str, Any]) -> None:
        reports.write(json.dumps(value) + "\n")
        reports.flush()

    threading.Thread(target=listen, daemon=True).start()
    try:
        engine = Engine(settings, desk.cancelled)
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent must hear of it
        say({"error": f"{type(error).__name__}: {error}", "missing": isinstance(error, ModuleNotFoundError)})
        return
    say(
        {
            "loaded": {
                "version": engine.version,
                "context_tokens": engine.context_tokens,
                "offloads": engine.offloads,
            }
        }
    )
    while True:
        job = desk.jobs.get()
        desk.running = job["id"]
        serve(engine, job, say)


def die_with_parent() -> None:
    """Have Linux kill this process when its parent dies, and rather than its parent when memory runs out."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        with contextlib.suppress(OSError):
            score = Path("/proc/self/oom_score_adj")
            score.write_text(str(max(_OOM_SCORE, int(score.read_text()))))


def keep_stdout_for_reports() -> TextIO:
    """Return the parent's pipe and send what C++ code prints to the log instead."""
    reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return reports


if __name__ == "__main__":
    main()
