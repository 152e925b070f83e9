"""Fuzz what a relay may send, guided by the code that is reached: frames, through the session, into the intake.

    make fuzz                                   # 10 minutes; what it finds out stays in tests/fuzz/corpus
    python -m tests.fuzz --minutes 1 --discard  # the corpus is only read

Needs `atheris`, libFuzzer for Python (`make fuzz` installs it). Inputs that reach code which the corpus did not are
added to it. One that makes something raise, hang or grow is written to a file (`crash-...`), and the exit code is
1; once the fault is mended, put it into the corpus: `make test` feeds all of these to the same target.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

CORPUS: Final = Path(__file__).parent / "corpus"
WORDS: Final = Path(__file__).parent / "words.txt"
CHILD: Final = Path(__file__).parent / "child.py"
LIMITS: Final = ("-timeout=20", "-rss_limit_mb=2000", "-max_len=4000")


def fuzz(*options: str | Path) -> tuple[int, str]:
    """Run libFuzzer in a process of its own, which it ends; return its exit code and the end of what it said."""
    command = [sys.executable, str(CHILD), *LIMITS, *map(str, options)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        assert child.stdout is not None
        said = [line for line in child.stdout if show(line)]
    return child.returncode, "".join(said[-100:])


def show(line: str) -> bool:
    """Print what tells how it goes; return whether a line is worth keeping."""
    if "pulse" in line or "DONE" in line:
        print(line.rstrip(), flush=True)
    return not line.startswith(("INFO: Instrumenting", "#"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="at most 600")
    parser.add_argument("--discard", action="store_true", help="leave the corpus as it is")
    parser.add_argument(
        "--crashes", type=Path, default=Path.cwd(), help="where an input that breaks something goes"
    )
    options = parser.parse_args()
    crashes = f"-artifact_prefix={options.crashes}/"
    with tempfile.TemporaryDirectory(prefix="pylon-fuzz-") as folder:
        seconds = f"-max_total_time={int(60 * min(options.minutes, 600.0))}"
        code, said = fuzz(seconds, f"-dict={WORDS}", crashes, folder, CORPUS)
        if code == 0 and not options.discard:
            code, merged = fuzz("-merge=1", crashes, CORPUS, folder)
            said += merged
    if code != 0:
        print(said, file=sys.stderr)
        return 1
    tried = re.search(r"Done (\d+) runs", said)
    print(
        f"{tried[1] if tried else 'no'} inputs tried, none broke anything; {len(list(CORPUS.iterdir()))} are kept"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
