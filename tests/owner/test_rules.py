"""What the state of the machine makes of the owner's rules, and that no wavering makes the provider waver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.owner.hours import Hours, parse_window, wall_of
from pylon.owner.rules import MB, ONSET_S, OwnerRules, Readings, Rule, Track, Unknown, Verdict, judge, settle

UTC_WALL = wall_of(UTC)
NIGHT = Hours((parse_window("18:00-08:00"),))
ALL = OwnerRules(NIGHT, 600.0, True, 4_000 * MB)
GOOD = Readings(idle_s=600.0, on_mains=True, gpu_bytes=4_000 * MB)
AT_NIGHT = datetime(2026, 11, 26, 20, 0, tzinfo=UTC).timestamp()
BY_DAY = datetime(2026, 11, 26, 12, 0, tzinfo=UTC).timestamp()
WHY = Unknown("nobody told")


def said(seen: Readings, now: float = AT_NIGHT) -> dict[Rule, bool | None]:
    return {each.rule: each.allows for each in judge(ALL, seen, now, UTC_WALL)}


def test_all_that_is_well_allows_work() -> None:
    assert said(GOOD) == dict.fromkeys(Rule, True)


@pytest.mark.parametrize(
    ("rule", "seen", "now", "allows"),
    [
        (Rule.HOURS, GOOD, BY_DAY, False),
        (Rule.IDLE, replace(GOOD, idle_s=599.9), AT_NIGHT, False),
        (Rule.IDLE, replace(GOOD, idle_s=float("inf")), AT_NIGHT, True),
        (Rule.POWER, replace(GOOD, on_mains=False), AT_NIGHT, False),
        (Rule.GPU, replace(GOOD, gpu_bytes=4_000 * MB - 1), AT_NIGHT, False),
        (Rule.IDLE, replace(GOOD, idle_s=WHY), AT_NIGHT, None),
        (Rule.POWER, replace(GOOD, on_mains=WHY), AT_NIGHT, None),
        (Rule.GPU, replace(GOOD, gpu_bytes=WHY), AT_NIGHT, None),
    ],
)
def test_each_rule_looks_at_its_own_and_at_nothing_else(
    rule: Rule, seen: Readings, now: float, allows: bool | None
) -> None:
    expected: Mapping[Rule, bool | None] = {**dict.fromkeys(Rule, True), rule: allows}
    assert said(seen, now) == expected
    (verdict,) = [each for each in judge(ALL, seen, now, UTC_WALL) if each.rule is rule]
    assert verdict.why
    if allows is None:
        assert "it cannot be told" in verdict.why and "nobody told" in verdict.why


def test_the_hours_tell_when_they_change() -> None:
    (verdict,) = judge(OwnerRules(NIGHT), Readings(), BY_DAY, UTC_WALL)
    assert verdict.until == BY_DAY + 6 * 3_600


def test_no_rule_says_nothing() -> None:
    assert judge(OwnerRules(), GOOD, BY_DAY, UTC_WALL) == ()
    assert OwnerRules().named == ()
    assert ALL.named == tuple(Rule)


# --- settling ---------------------------------------------------------------------------------------------------


class Watched:
    """The rules over time; `at_s` moves as told."""

    def __init__(self, rules: OwnerRules = ALL) -> None:
        self.rules = rules
        self.at_s = 1_000.0
        self.tracks: Mapping[Rule, Track] = {}

    def sees(self, rule: Rule, allows: bool | None, after_s: float = 0.0) -> bool:
        """Return whether the rule pauses after so many seconds, at which it says this."""
        self.at_s += after_s
        self.tracks = settle(self.tracks, [Verdict(rule, allows, "")], self.at_s, self.rules)
        return self.tracks[rule].pauses


@pytest.mark.parametrize("rule", Rule)
def test_what_a_start_finds_counts_at_once(rule: Rule) -> None:
    assert Watched().sees(rule, False)
    assert not Watched().sees(rule, True)


@pytest.mark.parametrize("rule", [Rule.HOURS, Rule.IDLE, Rule.POWER])
def test_the_owner_waits_for_nothing(rule: Rule) -> None:
    watched = Watched()
    assert not watched.sees(rule, True)
    assert watched.sees(rule, False)


@pytest.mark.parametrize("rule", [Rule.HOURS, Rule.IDLE])
def test_hours_and_idleness_end_when_they_end(rule: Rule) -> None:
    watched = Watched()
    assert watched.sees(rule, False)
    assert not watched.sees(rule, True)


@pytest.mark.parametrize("rule", [Rule.POWER, Rule.GPU])
def test_power_and_memory_must_be_back_for_a_while(rule: Rule) -> None:
    watched = Watched()
    assert watched.sees(rule, False)
    assert watched.sees(rule, True)
    assert watched.sees(rule, True, 59)
    assert watched.sees(rule, False, 1), "a plug that wavers begins anew"
    assert watched.sees(rule, True, 59)
    assert watched.sees(rule, True, 59)
    assert not watched.sees(rule, True, 1)


def test_a_moment_without_gpu_memory_is_no_reason() -> None:
    watched = Watched()
    assert not watched.sees(Rule.GPU, True)
    assert not watched.sees(Rule.GPU, False)
    assert not watched.sees(Rule.GPU, False, ONSET_S - 1)
    assert not watched.sees(Rule.GPU, True, 0.5)
    assert not watched.sees(Rule.GPU, False, 5)
    assert watched.sees(Rule.GPU, False, ONSET_S)


@pytest.mark.parametrize("rule", [Rule.IDLE, Rule.POWER, Rule.GPU])
def test_what_cannot_be_told_does_as_it_is_set(rule: Rule) -> None:
    assert Watched().sees(rule, None)
    assert not Watched(replace(ALL, unknown_allows=True)).sees(rule, None)
    watched = Watched()
    assert not watched.sees(rule, True)
    assert not watched.sees(rule, None), "a program that fails once says nothing"
    assert watched.sees(rule, None, ONSET_S)
    lenient = Watched(replace(ALL, unknown_allows=True))
    assert lenient.sees(rule, False)
    assert lenient.sees(rule, None) is (rule is not Rule.IDLE)
    assert not lenient.sees(rule, None, 60)


def test_a_rule_that_is_taken_away_is_forgotten() -> None:
    watched = Watched()
    assert watched.sees(Rule.POWER, False)
    assert set(settle(watched.tracks, [Verdict(Rule.IDLE, True, "")], 0.0, ALL)) == {Rule.IDLE}


@given(
    rule=st.sampled_from(Rule),
    steps=st.lists(st.tuples(st.sampled_from([True, False, None]), st.floats(0, 40)), max_size=60),
    unknown_allows=st.booleans(),
)
def test_it_never_flaps_and_always_arrives(
    rule: Rule, steps: list[tuple[bool | None, float]], unknown_allows: bool
) -> None:
    rules = replace(ALL, unknown_allows=unknown_allows)
    watched = Watched(rules)
    changes: list[tuple[float, bool]] = []
    agreed_s = 0.0
    before: bool | None = None
    for allows, after_s in steps:
        pauses = watched.sees(rule, allows, after_s)
        wanted = not (unknown_allows if allows is None else allows)
        agreed_s = agreed_s + after_s if before is wanted else 0.0
        before = wanted
        if not changes or changes[-1][1] is not pauses:
            changes.append((watched.at_s, pauses))
        # Whatever was before: what lasts long enough holds.
        if agreed_s >= max(rules.settle_s, ONSET_S):
            assert pauses is wanted
    if rule in (Rule.POWER, Rule.GPU):
        for (_, _), (since, _), (until, pauses) in zip(changes, changes[1:], changes[2:], strict=False):
            if not pauses:
                assert until - since >= rules.settle_s, "between a pause and its end lies the time to settle"
