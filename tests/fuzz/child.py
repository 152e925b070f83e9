#!/usr/bin/env python
"""What `python -m tests.fuzz` runs: libFuzzer in this process, the target's house on a loop in a thread."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import anyio
import atheris
from anyio.abc import TaskStatus
from anyio.from_thread import start_blocking_portal

sys.path.insert(0, str(Path(__file__).parents[2]))

# Only what works on a frame at once: tasks in the background would be put down to the wrong input.
INSTRUMENTED = [
    "pylon.nostr",
    "pylon.relays.session",
    "pylon.relays.answers",
    "pylon.text",
    "pylon.jobs.intake",
    "pylon.jobs.policy",
    "pylon.jobs.access",
    "pylon.jobs.kinds",
    "pylon.jobs.textgen",
    "pylon.jobs.summarize",
    "pylon.jobs.translate",
    "pylon.jobs.pricing",
    "pylon.jobs.credit",
]
LIMIT_S = 24 * 3600.0

with atheris.instrument_imports(include=INSTRUMENTED):
    from tests.fuzz.target import Target
    from tests.support.gate import world
    from tests.support.house import open_house


async def serve(folder: Path, *, task_status: TaskStatus[Target]) -> None:
    """Keep a house open, its target within reach, until the process ends."""
    async with open_house(world(folder, limit_s=LIMIT_S)) as house:
        task_status.started(Target(house))
        await anyio.sleep_forever()


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="pylon-fuzz-") as folder, start_blocking_portal() as portal:
        _, target = portal.start_task(serve, Path(folder))
        atheris.Setup(sys.argv, lambda data: portal.call(target.feed, data))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
