"""The child program of backend `embedded`: llama.cpp's own HTTP server, from the `xllamacpp` wheel, on loopback.

Run by file name, so it imports nothing of pylon. Its settings come as one JSON line on stdin, not as arguments,
because they hold the API key. On stdout it writes one JSON line, `{"url": …}` once the model is loaded or
`{"error": …}`; everything that llama.cpp prints goes to stderr, the log. It ends when its parent does: on Linux
the kernel kills it, elsewhere it sees stdin close (once loaded: xllamacpp loads without releasing the GIL).
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
from typing import Any, Final, TextIO

HOST: Final = "127.0.0.1"
_PR_SET_PDEATHSIG: Final = 1
_SPARE_HTTP_THREADS: Final = 8  # an idle kept connection holds one, and /health must always find one


def main() -> None:
    """Serve until killed or until the parent closes stdin."""
    die_with_parent()
    reports = keep_stdout_for_reports()
    line = sys.stdin.buffer.readline()
    if not line:
        return
    settings = json.loads(line)
    if os.name == "posix" and os.getppid() != settings["parent_pid"]:
        return  # it died before we asked the kernel to be told
    threading.Thread(target=exit_at_end_of_stdin, daemon=True).start()
    try:
        server = start_server(settings)
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent must hear of it
        report(reports, {"error": f"{type(error).__name__}: {error}"})
        return
    report(reports, {"url": server.listening_address})
    threading.Event().wait()


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent dies, however that happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def keep_stdout_for_reports() -> TextIO:
    """Return the parent's pipe and send what C++ code prints to the log instead."""
    reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return reports


def report(reports: TextIO, value: dict[str, str]) -> None:
    """Tell the parent one thing."""
    reports.write(json.dumps(value) + "\n")
    reports.flush()


def exit_at_end_of_stdin() -> None:
    """End this process, threads of llama.cpp included, when the parent is gone or wants it to."""
    while sys.stdin.buffer.read(4096):
        pass
    os._exit(0)


def start_server(settings: dict[str, Any]) -> Any:
    """Load the model and return the listening server; takes as long as the model is big."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = settings["gguf"]
    params.model_alias = {settings["model_name"]}
    params.hostnames, params.port = [HOST], 0
    params.api_keys = [settings["api_key"]]
    params.n_parallel = settings["slots"]
    params.n_ctx = settings["context_tokens"] * settings["slots"]  # llama.cpp divides it by the slots
    params.kv_unified = False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
    params.n_gpu_layers = settings["gpu_layers"]
    params.n_threads_http = 2 * settings["slots"] + _SPARE_HTTP_THREADS
    params.endpoint_slots = params.endpoint_props = True
    params.ui = False
    params.offline = True
    # Prompts of different customers share nothing: no timing tells what another one asked, the same seed gives
    # the same text, and up to 8 GiB of cached prompts stay the operator's.
    params.cache_prompt = False
    params.cache_ram_mib = 0
    return xllamacpp.Server(params)


if __name__ == "__main__":
    main()
