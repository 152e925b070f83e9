"""`pylon` at a terminal of its own, where a prompt waits for an answer."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
from pathlib import Path


def at_a_terminal(words: list[str], home: Path, prompt: str, answer: str) -> tuple[int, str]:
    """Run `pylon WORDS` at a terminal, answer its prompt, and return exit code and everything shown."""
    leader, follower = pty.openpty()
    environ = {**os.environ, "PYLON_HOME": str(home)}
    command = [sys.executable, "-m", "pylon", *words]
    process = subprocess.Popen(
        command, env=environ, stdin=follower, stdout=follower, stderr=follower, start_new_session=True
    )
    os.close(follower)
    shown = b""
    try:
        while select.select([leader], [], [], 30)[0]:
            try:
                piece = os.read(leader, 4096)
            except OSError:  # how Linux says that the other end is closed
                break
            if not piece:
                break
            shown += piece
            if prompt and prompt.encode() in shown:
                os.write(leader, f"{answer}\n".encode())
                prompt = ""
        return process.wait(30), shown.decode()
    finally:
        process.kill()
        os.close(leader)
