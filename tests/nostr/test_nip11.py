"""NIP-11 documents: what is taken, and what nonsense in them is worth."""

from __future__ import annotations

import json

import pytest

from pylon.nostr.nip11 import BadDocument, RelayDocument, parse_relay_document


def test_names_limits_and_demands_are_read() -> None:
    limitation = {
        "max_message_length": 131_072, "max_subscriptions": 20, "max_limit": 500,
        "auth_required": True, "payment_required": False, "restricted_writes": True,
    }  # fmt: skip
    told = {"name": "n", "software": "s", "version": "1", "limitation": limitation, "fees": {}}
    assert parse_relay_document(json.dumps(told).encode()) == RelayDocument(
        "n", "s", "1", 131_072, 20, 500, auth_required=True, payment_required=False, restricted_writes=True
    )


@pytest.mark.parametrize("limitation", [None, [], "none", {"max_message_length": "big", "auth_required": 1}, {}])
def test_what_is_of_another_type_counts_as_not_there(limitation: object) -> None:
    assert parse_relay_document(json.dumps({"name": 7, "limitation": limitation}).encode()) == RelayDocument()


@pytest.mark.parametrize("number", [True, 0, -1, 2**60, 1.5])
def test_no_limit_that_is_none(number: object) -> None:
    told = {"limitation": {"max_message_length": number}}
    assert parse_relay_document(json.dumps(told).encode()).max_message_bytes is None


@pytest.mark.parametrize("raw", [b"", b"<html>", b"[1]", b"\xff", b'"text"', b"[" * 5000])
def test_anything_else_is_one_error(raw: bytes) -> None:
    with pytest.raises(BadDocument):
        parse_relay_document(raw)
