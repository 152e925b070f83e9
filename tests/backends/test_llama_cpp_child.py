"""The child program of backend `llama_cpp`: what of it needs no model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.backends import llama_cpp_child as child
from tests.support.gguf_files import model_bytes

LIBRARY = Path(__file__).parents[1] / "support" / "llama_cpp_library"


def found(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    """Return what is said of a text that comes in pieces, and whether a stop text ended it."""
    finder, said = child.StopFinder(stops), ""
    for piece in pieces:
        text, stopped = finder.feed(piece)
        said += text
        if stopped:
            return said, True
    return said + finder.rest(), False


TEXT = st.text("ab\n", max_size=12)


@given(st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3), st.lists(TEXT, max_size=6))
def test_stop_texts_are_found_wherever_the_pieces_part(stops: list[str], pieces: list[str]) -> None:
    whole = "".join(pieces)
    ends = [(at + len(stop), at) for stop in stops if (at := whole.find(stop)) >= 0]
    said, stopped = found(stops, pieces)
    assert stopped == bool(ends)
    if not ends:
        assert said == whole
    else:
        # Piece by piece the one that is complete first counts; of those in one piece the first.
        assert whole.startswith(said)
        assert any(whole[len(said) :].startswith(stop) for stop in stops)
        assert not any(stop in said for stop in stops)


def test_only_what_may_become_a_stop_text_is_held_back() -> None:
    finder = child.StopFinder(["STOP", ""])
    assert finder.feed("one ST") == ("one ", False)
    assert finder.feed("ILL") == ("STILL", False)
    assert finder.feed(" S") == (" ", False)
    assert finder.rest() == "S"
    assert finder.rest() == ""


def answered(pieces: list[str], inside: bool = False) -> str:
    finder = child.ThoughtFinder(inside)
    return "".join([*(finder.feed(piece) for piece in pieces), finder.rest()])


@given(st.integers(0, 60), st.integers(0, 60))
def test_thoughts_are_kept_apart_wherever_the_pieces_part(first: int, second: int) -> None:
    def parted(text: str) -> list[str]:
        one, two = sorted((first, second))
        return [text[:one], text[one:two], text[two:]]

    assert answered(parted(" <think>\nHm, 2 < 3.\n</think>\n\nYes. </think>")) == "Yes. </think>"
    assert answered(parted("Hm.\n</think>\n\nYes."), inside=True) == "Yes."
    assert answered(parted("<thinks> I do <think>")) == "<thinks> I do <think>"
    assert answered(parted("<think>Hm, it is ")) == "Hm, it is", "no answer came"
    assert answered(parted("<think>Hm</think> \n")) == "Hm"
    assert answered(parted(" <thi")) == " <thi"
    assert answered(["  "], inside=True) == ""


def test_a_system_message_can_be_put_into_the_users() -> None:
    system, user = {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}
    assert child.without_system([system, user]) == [{"role": "user", "content": "Be kind.\n\nHello"}]
    assert child.without_system([user]) == [user]
    assert child.without_system([system]) == [system]


def test_a_cancellation_is_for_its_job_alone() -> None:
    desk = child.Desk()
    desk.listen([b'{"op": "generate", "id": 1}', b'{"op": "cancel", "id": 1}', b'{"op": "generate", "id": 2}'])
    for job, cancelled in ((1, True), (2, False)):
        desk.running = desk.jobs.get_nowait()["id"]
        assert (desk.running, desk.cancelled()) == (job, cancelled)


# --- the program, with a stand-in for the library ---------------------------------------------------------------


class Program:
    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    def tell(self, **message: Any) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout
        heard: dict[str, Any] = json.loads(self.process.stdout.readline())
        return heard

    def ask(self, said: str, number: int = 1, **changes: Any) -> list[dict[str, Any]]:
        """Send a job and return all that is said of it."""
        self.tell(**{**job(said, number), **changes})
        heard = [self.hear()]
        while not {"done", "refused", "fault", "cancelled"} & heard[-1].keys():
            heard.append(self.hear())
        heard = [each for each in heard if each.get("text") != ""]
        assert all(each.pop("id") == number for each in heard)
        assert heard.pop(0) == {"begun": True}
        return heard


def job(said: str, number: int = 1) -> dict[str, Any]:
    asked = dict.fromkeys(("temperature", "top_k", "top_p", "frequency_penalty", "presence_penalty", "seed"))
    messages = [{"role": "user", "content": said}]
    return {"op": "generate", "id": number, "messages": messages, "max_tokens": 100, "stop": [], **asked}


@contextmanager
def program(folder: Path, name: str = "model", library: Path = LIBRARY, **environ: str) -> Iterator[Program]:
    gguf, log = folder / f"{name}.gguf", folder / "child.log"
    gguf.write_bytes(model_bytes())
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", child.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            env={**os.environ, "PYTHONPATH": str(library), **environ},
        )
    run = Program(process, log)
    try:
        settings = {"gguf": str(gguf), "context_tokens": 1024, "threads": 2, "gpu_layers": 7}
        run.tell(parent_pid=os.getpid(), flash_attention=True, **settings)
        yield run
    finally:
        assert process.stdin
        assert process.stdout
        process.stdin.close()  # this alone must end it
        process.wait(timeout=10)
        process.stdout.close()


def test_a_job_is_answered_counted_and_its_prompt_is_not_logged(tmp_path: Path) -> None:
    with program(tmp_path) as run:
        assert run.hear() == {"loaded": {"version": "0.0.1", "context_tokens": 1024, "offloads": False}}
        *texts, end = run.ask("say one two three")
        assert [each["text"] for each in texts] == ["one ", "two ", "three"]
        # <s> user: say one two three assistant: are the prompt, and the end of the turn counts.
        assert end == {"done": "stop", "prompt_tokens": 7, "output_tokens": 4}
    log = run.log.read_text()
    assert "native code prints this to stdout" in log
    assert "two" not in log
    assert '"n_threads": 2, "n_threads_batch": 2, "n_gpu_layers": 0, "flash_attn": true' in log


def test_gpu_layers_are_asked_for_where_the_library_can_use_a_gpu(tmp_path: Path) -> None:
    with program(tmp_path, PRETEND_GPU="1") as run:
        assert run.hear()["loaded"]["offloads"] is True
    assert '"n_gpu_layers": 7' in run.log.read_text()


def test_parameters_reach_the_library_and_have_defaults_of_llama_cpps_server(tmp_path: Path) -> None:
    asked: dict[str, Any] = {
        "temperature": 0.0,
        "top_k": 0,
        "top_p": 0.5,
        "frequency_penalty": -1.0,
        "presence_penalty": 2.0,
    }
    with program(tmp_path) as run:
        run.hear()
        told, _ = run.ask("tell", seed=2**32 - 1, **asked)
        assert json.loads(told["text"]) == {
            "temp": 0.0,
            "top_k": 0,
            "top_p": 0.5,
            "min_p": 0.05,
            "frequency_penalty": -1.0,
            "presence_penalty": 2.0,
            "repeat_penalty": 1.0,
            "seed": 0,  # the greatest one means "choose one" to llama.cpp
        }
        plain, _ = run.ask("tell", 2)
        told = json.loads(plain["text"])
        assert (told["temp"], told["top_k"], told["top_p"]) == (0.8, 40, 0.95)
        other, _ = run.ask("tell", 3)
        assert json.loads(other["text"])["seed"] != told["seed"]


def test_an_answer_ends_at_max_tokens_a_stop_text_or_the_context(tmp_path: Path) -> None:
    with program(tmp_path) as run:
        run.hear()
        assert run.ask("say a b c", max_tokens=2)[-1] == {"done": "length", "prompt_tokens": 7, "output_tokens": 2}
        *texts, end = run.ask("say a b c d", 2, stop=["b c", "x"])
        assert "".join(each["text"] for each in texts) == "a "
        assert (end["done"], end["output_tokens"]) == ("stop", 3)
        *texts, end = run.ask("sing " + "w " * 1000, 3, max_tokens=10_000)
        assert (end["done"], end["prompt_tokens"] + end["output_tokens"]) == ("length", 1024)


def test_what_does_not_fit_or_the_template_does_not_take_is_refused(tmp_path: Path) -> None:
    with program(tmp_path) as run:
        run.hear()
        (end,) = run.ask("say " + "w " * 1024)
        assert end["refused"] == "its prompt has 1028 tokens, and the model takes 1024 per request"
        (end,) = run.ask("say something odd", 2)
        assert "this template takes nothing odd" in end["refused"]
        system = [{"role": "system", "content": "say I"}, {"role": "user", "content": "am"}]
        *texts, _ = run.ask("", 3, messages=system)
        assert "".join(each["text"] for each in texts) == "I\n\nam"


def test_a_thinking_model_delivers_its_answer_and_counts_its_thoughts(tmp_path: Path) -> None:
    with program(tmp_path, "thinks") as run:
        run.hear()
        *texts, end = run.ask("say <think> hm </think> yes no", stop=["no"])
        assert "".join(each["text"] for each in texts) == "yes "
        assert (end["done"], end["output_tokens"]) == ("stop", 5)
        *texts, _ = run.ask("say <think> hm hm", 2, max_tokens=2)
        assert "".join(each["text"] for each in texts) == "hm"
    with program(tmp_path) as run:
        run.hear()
        *texts, _ = run.ask("say <think> hm")
        assert "".join(each["text"] for each in texts) == "<think> hm", "its template knows of no thoughts"


def test_bytes_that_are_no_text_yet_wait_for_the_rest(tmp_path: Path) -> None:
    with program(tmp_path) as run:
        run.hear()
        *texts, end = run.ask("say so HALF ")
        assert "".join(each["text"] for each in texts) == "so \ufffd"
        assert end["output_tokens"] == 3


def test_a_job_is_broken_off_while_it_reads_and_while_it_writes_and_the_next_one_works(tmp_path: Path) -> None:
    with program(tmp_path) as run:
        run.hear()
        for number, said in ((1, "read"), (2, "sing"), (3, "read " + "w " * 900)):
            run.tell(**job(said, number))
            assert run.hear() == {"id": number, "begun": True}
            run.tell(op="cancel", id=number)
            while "text" in (heard := run.hear()):
                pass
            assert heard == {"id": number, "cancelled": True}
        assert run.ask("say yes", 4)[0] == {"text": "yes"}


def test_an_error_of_the_library_does_not_repeat_the_prompt(tmp_path: Path) -> None:
    with program(tmp_path) as run:
        run.hear()
        assert run.ask("fail the secret plan")[-1] == {"fault": "RuntimeError"}
        assert run.ask("fail llama_decode returned 1", 2)[-1] == {"fault": "RuntimeError: llama_decode returned 1"}
        assert run.ask("say yes", 3)[0] == {"text": "yes"}


def test_a_model_that_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    with program(tmp_path, "wrong") as run:
        heard = run.hear()
        assert heard["error"].startswith("ValueError: Failed to load model from file: ")
        assert heard["missing"] is False


def test_a_library_that_is_not_there_is_told(tmp_path: Path) -> None:
    (tmp_path / "llama_cpp.py").write_text("import no_such_part_of_it")
    with program(tmp_path, library=tmp_path) as run:
        assert run.hear() == {"error": "ModuleNotFoundError: No module named 'no_such_part_of_it'", "missing": True}


def test_it_ends_when_another_process_is_its_parent(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-P", child.__file__],
        input=json.dumps({"parent_pid": 1}).encode() + b"\n",
        capture_output=True,
        timeout=10,
        check=False,
    )
    assert (process.returncode, process.stdout) == (0, b"")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux is told whom to kill first")
def test_the_kernel_takes_it_rather_than_the_daemon_when_memory_runs_out(tmp_path: Path) -> None:
    with program(tmp_path) as run:
        run.hear()
        assert int(Path(f"/proc/{run.process.pid}/oom_score_adj").read_text()) >= 500
