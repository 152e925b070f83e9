"""Children of the demo: ready, dead, silent, talkative; and the leash that ties them to their parent."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import anyio
import pytest

from pylon.demo.processes import Child, ChildFailed, child, clean_environment

LIMIT_S = 15.0


def program(folder: Path, text: str) -> dict[str, str]:
    """Write a module called `acted` and return the environment in which it is found."""
    (folder / "acted.py").write_text(text)
    root = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), root])}


async def play(folder: Path, text: str, *, ready_s: float = 10.0, stop_s: float = 5.0) -> str:
    """Run a module until it is ready and return what it said."""
    running = child(
        "the child",
        "acted",
        ["one", "two"],
        environ=program(folder, text),
        log_path=folder / "child.log",
        says_ready=True,
        stop_s=stop_s,
    )
    with anyio.fail_after(LIMIT_S):
        async with running as process:
            return await process.ready(ready_s)


def only(raised: pytest.ExceptionInfo[BaseExceptionGroup[ChildFailed]]) -> ChildFailed:
    found = raised.value.subgroup(ChildFailed)
    assert found is not None
    first = found.exceptions[0]
    assert isinstance(first, ChildFailed)
    return first


async def test_a_child_is_ready_with_its_address_and_gets_its_arguments(tmp_path: Path) -> None:
    text = "import sys, time\nprint('READY at', *sys.argv[1:], flush=True)\ntime.sleep(60)"
    assert await play(tmp_path, text) == "at one two"


async def test_a_child_that_dies_is_named_with_its_last_words(tmp_path: Path) -> None:
    text = "import sys\nprint('\\x1b[31moh no', file=sys.stderr)\nsys.exit(3)"
    with pytest.raises(BaseExceptionGroup) as raised:
        await play(tmp_path, text)
    failure = only(raised)
    assert str(failure).startswith("the child ")
    assert failure.log_lines == ("\\x1b[31moh no",)


async def test_a_child_that_dies_later_ends_the_block(tmp_path: Path) -> None:
    text = "import os, signal\nprint('READY', flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    environ = program(tmp_path, text)
    running = child("the child", "acted", [], environ=environ, log_path=tmp_path / "child.log", says_ready=True)
    with anyio.fail_after(LIMIT_S):
        with pytest.raises(BaseExceptionGroup) as raised:
            async with running as process:
                assert await process.ready(10) == ""
                await anyio.sleep_forever()
    assert str(only(raised)) == "the child was ended by signal 9"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import time\ntime.sleep(60)", "the child was not ready within 0.7 s"),
        ("import time\nprint('HELLO', flush=True)\ntime.sleep(60)", "the child said something else than READY"),
    ],
)
async def test_a_child_that_is_not_ready_is_given_up(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(BaseExceptionGroup) as raised:
        await play(tmp_path, text, ready_s=0.7 if "0.7" in why else 10.0)
    assert str(only(raised)) == why


async def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    text = (
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('READY', flush=True)\ntime.sleep(60)"
    )
    began = time.monotonic()
    await play(tmp_path, text, stop_s=0.3)
    assert time.monotonic() - began < 10


def test_only_the_end_of_a_log_is_kept_and_no_log_is_no_fault(tmp_path: Path) -> None:
    log = tmp_path / "child.log"
    log.write_text("\n".join(f"line {number}" for number in range(10_000)))
    assert Child("x", None, log).log_lines(2) == ["line 9998", "line 9999"]  # type: ignore[arg-type]
    assert Child("x", None, tmp_path / "none").log_lines() == []  # type: ignore[arg-type]


def test_the_users_own_settings_do_not_reach_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYLON_NSEC", "PYLON_HOME", "CREDENTIALS_DIRECTORY"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("LANG", "C")
    environ = clean_environment()
    assert "secret" not in environ.values()
    assert environ["LANG"] == "C"


def test_a_leash_whose_holder_is_gone_does_not_even_start(tmp_path: Path) -> None:
    environ = program(tmp_path, "print('started')")
    done = subprocess.run(
        [sys.executable, "-m", "pylon.demo.leash", "1", "acted"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
