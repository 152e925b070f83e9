"""The rules of the owner: whether they can be told on this machine, and whether they ever let any work be done."""

from __future__ import annotations

import os

from pylon import assembly
from pylon.backends.gpu_memory import read_gpu_memory
from pylon.doctor.findings import Finding, Scene, ok, warn
from pylon.owner.rules import MB, OwnerRules, Rule, Verdict, judge
from pylon.owner.words import shown_time
from pylon.text import printable

_CHECK = "owner"


async def check_owner(scene: Scene) -> list[Finding]:
    """Look at each rule once, as the daemon does; what it says now is no fault, what it cannot say is."""
    rules = assembly.make_owner_rules(scene.settings)
    if not rules.named:
        return []
    seen = await assembly.make_sensors(scene.clock, os.environ, lambda: []).read(rules)
    wall, now = assembly.make_wall(scene.settings), scene.clock()
    findings = []
    for verdict in judge(rules, seen, now, wall):
        until = "" if verdict.until is None else f", until {shown_time(verdict.until, now, wall)}"
        findings.append(_finding(rules, verdict, until))
    return findings + await _check_for_ever(rules)


def _finding(rules: OwnerRules, verdict: Verdict, until: str) -> Finding:
    said = f"{verdict.rule.value}: {printable(verdict.why, limit=300)}{until}"
    if verdict.allows is None:
        does = "works all the same" if rules.unknown_allows else "pauses for as long as that is so"
        fix = f"take the rule away, or choose what it does then with owner.when_unknown (now: pylon {does})"
        return warn(_CHECK, said, fix)
    return ok(_CHECK, said if verdict.allows else f"{said}: no work now")


async def _check_for_ever(rules: OwnerRules) -> list[Finding]:
    """Return the rules that say nothing, or never yes."""
    findings = []
    if rules.hours is not None and rules.hours.always:
        findings.append(
            warn(_CHECK, f"{Rule.HOURS.value}: all hours are allowed", "take them away: they say nothing")
        )
    floor = rules.gpu_floor_bytes
    memory = None if floor is None else await read_gpu_memory()
    if floor is not None and memory is not None and memory.total_bytes < floor:
        said = (
            f"{Rule.GPU.value}: {floor // MB:,} MB are more than the {memory.total_bytes // MB:,} MB that there are"
        )
        findings.append(warn(_CHECK, said, "lower it: like this no work is ever done"))
    return findings
