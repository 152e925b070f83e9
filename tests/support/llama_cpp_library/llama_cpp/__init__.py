"""A stand-in for the library `llama-cpp-python`: the part of it that Pylon's child program calls, without a model.

Put its folder on PYTHONPATH and the real child program runs with it. A token is a word with the white space after
it. What the "model" does is said by the first word of the last message (`_BEHAVIOURS`), and by its file's name.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

__version__ = "0.0.1"
EOG = 0
_words = ["", "<s>"]


def _token(word: str) -> int:
    if word not in _words:
        _words.append(word)
    return _words.index(word)


def llama_supports_gpu_offload() -> bool:
    return "PRETEND_GPU" in os.environ


def llama_model_get_vocab(model: object) -> object:
    return model


def llama_get_memory(ctx: Any) -> Any:
    return ctx


def llama_memory_clear(memory: Any, data: bool) -> None:
    assert data
    memory.cleared += 1


def llama_vocab_is_eog(vocab: object, token: int) -> bool:
    return token == EOG


def llama_vocab_get_text(vocab: object, token: int) -> bytes:
    return _words[token].encode()


def llama_vocab_get_add_bos(vocab: object) -> bool:
    return True


def llama_token_to_piece(vocab: object, token: int, buffer: Any, size: int, lstrip: int, special: bool) -> int:
    data = b"\xc3" if _words[token].strip() == "HALF" else _words[token].encode()
    if len(data) > size:
        return -len(data)
    ctypes.memmove(buffer, data, len(data))
    return len(data)


def ggml_abort_callback(call: Callable[[object], bool] | None = None) -> Callable[[object], bool]:
    return call or (lambda _: False)


def llama_set_abort_callback(ctx: Any, call: Callable[[object], bool], data: object) -> None:
    ctx.abort = call


class Llama:
    def __init__(self, model_path: str, *, n_ctx: int, n_batch: int, verbose: bool, **settings: Any) -> None:
        print(f"settings {json.dumps(settings)}", file=sys.stderr, flush=True)
        print("native code prints this to stdout", flush=True)
        name = Path(model_path).stem
        if name.startswith("wrong"):
            raise ValueError(f"Failed to load model from file: {model_path}")
        if name.startswith("crashes"):
            os.kill(os.getpid(), signal.SIGSEGV)
        while name.startswith("waits") and not Path(model_path).with_suffix(".go").exists():
            time.sleep(0.005)
        self.ctx = SimpleNamespace(abort=lambda _: False, cleared=0)
        self.model = object()
        template = "the template, <think>" if name.startswith("thinks") else "the template"
        self.metadata: dict[str, str] = {"tokenizer.chat_template": template}
        self.n_batch = min(n_ctx, n_batch)
        self.seed = -1
        self._n_ctx = n_ctx
        self._known: list[int] = []
        self._busy = False

    def n_ctx(self) -> int:
        return self._n_ctx

    def token_bos(self) -> int:
        return 1

    def token_eos(self) -> int:
        return EOG

    def tokenize(self, text: bytes, *, add_bos: bool, special: bool) -> list[int]:
        assert special
        return [1] * add_bos + [_token(word) for word in re.findall(r"\S+\s*", text.decode())]

    def reset(self) -> None:
        self._known = []

    def set_seed(self, seed: int) -> None:
        self.seed = seed

    def eval(self, tokens: list[int]) -> None:
        assert len(self._known) % self.n_batch == 0
        self._known += tokens
        if self.ctx.abort(None):
            raise RuntimeError("llama_decode returned 2")

    def generate(self, tokens: list[int], **sampling: Any) -> Iterator[int]:
        assert not self._busy, "two calls into one model"
        assert tokens[: len(self._known)] == self._known
        assert len(tokens) - len(self._known) <= self.n_batch
        self._busy = True
        said = "".join(_words[token] for token in tokens).rpartition("user: ")[2].removesuffix("assistant:").strip()
        behaviour, _, rest = said.partition(" ")
        print(f"generating, {behaviour}", file=sys.stderr, flush=True)
        try:
            yield from _BEHAVIOURS[behaviour](self, rest, sampling)
        finally:
            self._busy = False


def _say(llm: Llama, rest: str, sampling: dict[str, Any]) -> Iterator[int]:
    yield from (_token(word) for word in re.findall(r"\S+\s*", rest))
    yield EOG


def _tell(llm: Llama, rest: str, sampling: dict[str, Any]) -> Iterator[int]:
    yield _token(json.dumps({**sampling, "seed": llm.seed}))
    yield EOG


def _sing(llm: Llama, rest: str, sampling: dict[str, Any]) -> Iterator[int]:
    for _ in itertools.count():
        yield _token("la ")
        time.sleep(0.001)


def _read(llm: Llama, rest: str, sampling: dict[str, Any]) -> Iterator[int]:
    while not llm.ctx.abort(None):
        time.sleep(0.001)
    raise RuntimeError("llama_decode returned 2")


def _crash(llm: Llama, rest: str, sampling: dict[str, Any]) -> Iterator[int]:
    yield _token("half ")
    os.kill(os.getpid(), signal.SIGSEGV)


def _sleep(llm: Llama, rest: str, sampling: dict[str, Any]) -> Iterator[int]:
    yield _token("zzz ")
    time.sleep(3600)


def _fail(llm: Llama, rest: str, sampling: dict[str, Any]) -> Iterator[int]:
    yield _token("well ")
    raise RuntimeError(rest)


_BEHAVIOURS = {
    "say": _say,
    "Say": _say,
    "tell": _tell,
    "sing": _sing,
    "read": _read,
    "crash": _crash,
    "sleep": _sleep,
    "fail": _fail,
}
