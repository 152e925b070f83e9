"""Real model servers that we did not write, each a process of its own on loopback: llama.cpp's, its Python
binding's, LiteLLM's proxy and Ollama.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.support.foreign_venvs import LITELLM, LLAMA_SERVER, Foreign, find_python, foreign_python, maker_of
from tests.support.go_programs import OLLAMA, program_path
from tests.support.llama_cpp_python import llama_cpp_python
from tests.support.model import model_path

_LITELLM = "from litellm import run_server; run_server()"
READY_LIMIT_S = 180.0  # LiteLLM takes 40 s to import on a busy machine


@dataclass
class ModelProgram:
    """One server: how it is started, where it answers, and what it wrote. It may be killed and started again."""

    name: str
    command: Sequence[str]
    folder: Path
    port: int
    ready_path: str
    environ: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    ca_file: Path | None = None
    _process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"{'https' if self.ca_file else 'http'}://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it answers."""
        names = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "OLLAMA_"))}
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                env={**names, "HOME": str(self.folder), **self.environ},
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until = time.monotonic() + READY_LIMIT_S
        while not self._answers():
            assert self._process.poll() is None, f"{self.name} ended: {self.log()[-3000:]}"
            assert time.monotonic() < until, f"{self.name} does not answer: {self.log()[-3000:]}"
            time.sleep(0.1)

    def kill(self) -> None:
        """Kill it, and its children, as a crash would."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(timeout=10)
            self._process = None

    def log(self) -> str:
        """Return what it has written."""
        return (self.folder / "log").read_text(errors="replace")

    def get(self, path: str) -> httpx.Response:
        """Ask it for something."""
        verify = ssl.create_default_context(cafile=str(self.ca_file)) if self.ca_file else False
        return httpx.get(self.url + path, headers=self.headers, timeout=10, trust_env=False, verify=verify)

    def _answers(self) -> bool:
        try:
            return self.get(self.ready_path).status_code == 200
        except httpx.HTTPError:
            return False


@contextmanager
def running(program: ModelProgram) -> Iterator[ModelProgram]:
    """Run a program for the length of the `with`."""
    try:
        program.start()
        yield program
    finally:
        program.kill()


def free_port() -> int:
    """Return a port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def llama_server(folder: Path, *arguments: str, api_key: str = "", prefix: str = "") -> ModelProgram:
    """Return llama.cpp's server with the small model, or as a router over what `arguments` say (`--models-dir`)."""
    python = _python_of(LLAMA_SERVER)
    (site,) = (python.parent.parent / "lib").glob("python*/site-packages")
    program = site / LLAMA_SERVER.module / "bin" / "llama-server"
    program.chmod(0o755)
    port = free_port()
    what = () if "--models-dir" in arguments else ("-m", str(model_path()), "-a", "smollm2")
    key = ("--api-key", api_key) if api_key else ()
    below = ("--api-prefix", prefix) if prefix else ()
    common = ("--host", "127.0.0.1", "--port", str(port), "-t", "1", "-ngl", "0", "--offline")
    return ModelProgram(
        "llama-server",
        (str(program), *common, *what, *key, *below, *arguments),
        _made(folder / f"llama-{port}"),
        port,
        f"{prefix}/health",
        headers={"Authorization": f"Bearer {api_key}"} if api_key else {},  # below a prefix /health wants it too
    )


def llama_cpp_server(folder: Path, *arguments: str, api_key: str) -> ModelProgram:
    """Return the server that llama-cpp-python brings along, which is FastAPI's, with the small model."""
    python, port = llama_cpp_python(), free_port()
    model = ("--model", str(model_path()), "--model_alias", "smollm2", "--n_threads", "1", "--api_key", api_key)
    return ModelProgram(
        "llama_cpp.server",
        (str(python), "-m", "llama_cpp.server", "--host", "127.0.0.1", "--port", str(port), *model, *arguments),
        _made(folder / f"llama-cpp-python-{port}"),
        port,
        "/v1/models",
        headers={"Authorization": f"Bearer {api_key}"},
    )


def litellm(folder: Path, models: Mapping[str, Mapping[str, object]], api_key: str) -> ModelProgram:
    """Return LiteLLM's proxy: each of `models` is a name for customers and its `litellm_params`."""
    python, port = _python_of(LITELLM), free_port()
    home = _made(folder / f"litellm-{port}")
    config = {
        "model_list": [{"model_name": name, "litellm_params": dict(params)} for name, params in models.items()],
        "litellm_settings": {"telemetry": False, "num_retries": 0},
        "router_settings": {"num_retries": 0, "optional_pre_call_checks": ["enforce_model_rate_limits"]},
        "general_settings": {"master_key": api_key},
    }
    (home / "config.yaml").write_text(json.dumps(config))
    return ModelProgram(
        "LiteLLM",
        (str(python), "-c", _LITELLM, "--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port)),
        home,
        port,
        "/health/liveliness",
        headers={"Authorization": f"Bearer {api_key}"},
        environ={"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False", "NO_PROXY": "*"},
    )


def ollama(folder: Path, *, parallel: int = 1) -> ModelProgram:
    """Return a real Ollama, whose models and home lie in `folder`; it has none until `create` was called."""
    program, port = program_path(OLLAMA), free_port()
    home = _made(folder / f"ollama-{port}")
    environ = {
        "OLLAMA_HOST": f"127.0.0.1:{port}",
        "OLLAMA_MODELS": str(home / "models"),
        "OLLAMA_NUM_PARALLEL": str(parallel),
        "OLLAMA_DEBUG": "1",
    }
    return ModelProgram("Ollama", (str(program), "serve"), home, port, "/api/version", environ)


def create(server: ModelProgram, name: str) -> None:
    """Have a running Ollama make a model of the small model's file, on one thread: more wait for each other."""
    modelfile = server.folder / "Modelfile"
    modelfile.write_text(f"FROM {model_path()}\nPARAMETER num_thread 1\n")
    environ = {"PATH": os.environ["PATH"], "HOME": str(server.folder), **server.environ}
    command = [server.command[0], "create", name, "-f", str(modelfile)]
    subprocess.run(command, env=environ, check=True, capture_output=True, timeout=READY_LIMIT_S)


def _python_of(foreign: Foreign) -> Path:
    """Return a program's interpreter; skips the test where it cannot run at all."""
    if find_python(foreign) is None and maker_of(foreign) is None:
        pytest.skip(f"{foreign.name} does not run on this machine")
    return foreign_python(foreign)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
