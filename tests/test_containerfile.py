"""The container image's file, as far as it can be checked without an engine; `tests/live` runs its steps."""

from __future__ import annotations

import json
import re

from tests.support.containerfile import ROOT, stages, values

KNOWN = {
    "FROM",
    "ENV",
    "WORKDIR",
    "COPY",
    "RUN",
    "USER",
    "VOLUME",
    "STOPSIGNAL",
    "HEALTHCHECK",
    "ENTRYPOINT",
    "CMD",
}


def test_what_runs_is_small_and_without_rights() -> None:
    build, final = stages()
    assert {name for stage in (build, final) for name, _ in stage} <= KNOWN
    assert all(
        re.match(r"docker\.io/library/python:3\.\d+-slim", values(each, "FROM")[0]) for each in (build, final)
    )
    assert values(build, "FROM")[0].endswith(" AS build")
    (user,) = values(final, "USER")
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user)
    order = [name for name, _ in final]
    assert order.index("RUN") < order.index("USER") < order.index("ENTRYPOINT")
    assert values(final, "VOLUME") == ["/var/lib/pylon"]
    assert "-o 10001 -g 10001 /var/lib/pylon" in values(final, "RUN")[0]
    assert values(final, "STOPSIGNAL") == ["SIGTERM"]
    assert json.loads(values(final, "ENTRYPOINT")[0]) == ["pylon"]
    assert json.loads(values(final, "CMD")[0]) == ["start"]
    assert "CMD pylon status" in values(final, "HEALTHCHECK")[0]
    assert [value for value in values(final, "COPY") if "--from=build" not in value] == []


def test_nothing_is_compiled() -> None:
    build, _ = stages()
    (run,) = values(build, "RUN")
    assert "--only-binary :all: --no-binary tlv8" in run
    assert "apt" not in run and "gcc" not in run


def test_what_it_copies_is_there_and_nothing_else_is_sent() -> None:
    build, _ = stages()
    copied = {word for value in values(build, "COPY") for word in value.split()[:-1]}
    assert all((ROOT / word).exists() for word in copied)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == copied


def test_it_starts_from_a_python_that_pylon_runs_on() -> None:
    wanted = re.search(r'requires-python = ">=3\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    assert wanted is not None
    for stage in stages():
        found = re.search(r"python:3\.(\d+)", values(stage, "FROM")[0])
        assert found is not None and int(found[1]) >= int(wanted[1])
