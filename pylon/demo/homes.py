"""A home for the length of a block: a private temporary folder, which a daemon gets as its `PYLON_HOME`."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pylon.paths import Paths, paths_under


@contextmanager
def temporary_home(prefix: str) -> Iterator[Paths]:
    """Make a folder that only we can enter, and remove it at the end with all that lies in it."""
    home = Path(tempfile.mkdtemp(prefix=prefix))
    paths = paths_under(home)
    try:
        yield paths
    finally:
        shutil.rmtree(home, ignore_errors=True)
        if paths.control_socket.parent != home:  # where the temporary folder's own name is too long for a socket
            shutil.rmtree(paths.control_socket.parent, ignore_errors=True)
