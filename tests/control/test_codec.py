"""The JSON of the control API, by property."""

from __future__ import annotations

import json
from dataclasses import replace

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.control.codec import BadShape, decode, dump_json
from pylon.control.views import DaemonStatus, JobDetail, RelayLine
from tests.support.control_views import STATUS

ANY_TEXT = st.text(st.characters(exclude_categories=()))
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
)


@given(ANY_TEXT, st.integers(0, 2**63), st.none() | st.floats(0, 1e6))
def test_round_trip_keeps_every_value_and_prints_only_ascii(text: str, number: int, latency: float | None) -> None:
    relay = RelayLine(text, text, True, text, received=number, latency_ms=latency)
    status = replace(STATUS, relays=(relay,), refused={text: number}, wallet=None, state_reasons=(text,))
    dumped = dump_json(status)
    assert dumped.isascii()
    assert dumped.isprintable()
    assert decode(DaemonStatus, json.loads(dumped)) == status


@given(ANY_JSON)
def test_any_json_decodes_or_is_a_bad_shape(value: object) -> None:
    for cls in (DaemonStatus, JobDetail, RelayLine):
        with pytest.raises(BadShape):
            decode(cls, value)


@given(st.sampled_from(sorted(json.loads(dump_json(STATUS)))), ANY_JSON)
def test_any_wrong_field_decodes_or_is_a_bad_shape(name: str, value: object) -> None:
    wire = json.loads(orjson.dumps(replace(STATUS, relays=(), refused={})))
    wire[name] = value
    try:
        decoded = decode(DaemonStatus, wire)
    except BadShape as error:
        assert str(error).startswith(f"DaemonStatus.{name}")
    else:
        assert json.loads(dump_json(decoded))[name] == value or isinstance(value, list | dict)


def test_unknown_fields_are_skipped_and_missing_ones_named() -> None:
    assert decode(RelayLine, {"url": "u", "status": "s", "from_the_future": 1}) == RelayLine("u", "s")
    with pytest.raises(BadShape, match="RelayLine has no status"):
        decode(RelayLine, {"url": "u"})
    with pytest.raises(BadShape, match=r"RelayLine\.sent is not int"):
        decode(RelayLine, {"url": "u", "status": "s", "sent": True})
