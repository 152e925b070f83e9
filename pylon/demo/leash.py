"""Runs a module as a program that dies with the process that started it, however that one ends.

`python -m pylon.demo.leash PARENT_PID MODULE [ARGUMENT...]`. On Linux the kernel kills it; elsewhere a thread
watches for its parent to change. PARENT_PID closes the gap while this process starts.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys
import threading
import time
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_CHECK_EVERY_S: Final = 0.5


def main() -> None:
    """Tie this process to its parent, then become the module."""
    parent = int(sys.argv[1])
    tie_to(parent)
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def tie_to(parent: int) -> None:
    """End this process when its parent is gone, now or later."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:
        sys.exit(0)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_CHECK_EVERY_S)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
