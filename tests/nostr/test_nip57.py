"""Zap receipts: one that fits is believed, and any one thing about it changed makes it worth nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.nostr.event import Draft, Event, Tags
from pylon.nostr.keys import SecretKey
from pylon.nostr.lnurl import description_hash
from pylon.nostr.nip57 import (
    ZAP_RECEIPT_KIND,
    ZAP_REQUEST_KIND,
    BadZap,
    Zap,
    ZapFault,
    verify_zap_receipt,
    zap_request_draft,
)
from tests.support.lnurl_node import make_invoice

HOST = SecretKey(b"\x21" * 32)
PAYER = SecretKey(b"\x22" * 32)
US = SecretKey(b"\x23" * 32)
OTHER = SecretKey(b"\x24" * 32)
EVENT = "ab" * 32
NOW = 1_700_000_000
AMOUNT = 21_000


def request(draft: Draft | None = None, *, key: SecretKey = PAYER) -> Event:
    draft = draft or zap_request_draft(
        recipient=US.public_hex, relays=("wss://r.example",), amount_msats=AMOUNT, event_id=EVENT, content="thanks"
    )
    return draft.sign(key, NOW)


def with_tags(event: Event, tags: Tags) -> Draft:
    return Draft(event.kind, event.content, tags)


def tags_for(zap: Event, *, description: str | None = None, bolt11: str | None = None) -> Tags:
    text = zap.to_json() if description is None else description
    return (
        ("p", US.public_hex),
        ("e", EVENT),
        ("P", PAYER.public_hex),
        ("bolt11", bolt11 or make_invoice(AMOUNT, description_hash=description_hash(text), created_at=NOW).bolt11),
        ("description", text),
        ("preimage", "00" * 32),
    )


REQUEST = request()
TAGS = tags_for(REQUEST)
RECEIPT = Draft(ZAP_RECEIPT_KIND, "", TAGS).sign(HOST, NOW + 5)


def judge(receipt: Event, *, event_id: str | None = EVENT, network: str = "regtest") -> Zap:
    return verify_zap_receipt(
        receipt, author=HOST.public_hex, recipient=US.public_hex, event_id=event_id, network=network
    )


def fault(receipt: Event, *, event_id: str | None = EVENT, network: str = "regtest") -> ZapFault:
    with pytest.raises(BadZap) as caught:
        judge(receipt, event_id=event_id, network=network)
    assert "\n" not in str(caught.value)
    return caught.value.fault


def signed(tags: Tags, key: SecretKey = HOST, kind: int = ZAP_RECEIPT_KIND) -> Event:
    return Draft(kind, "", tags).sign(key, NOW + 5)


def swapped(name: str, *values: str) -> Tags:
    return tuple((name, *values) if tag[0] == name else tag for tag in TAGS)


def without(name: str) -> Tags:
    return tuple(tag for tag in TAGS if tag[0] != name)


# --- what is believed ---------------------------------------------------------------------------------------------


def test_a_receipt_that_fits_is_believed() -> None:
    zap = judge(RECEIPT)
    assert (zap.receipt_id, zap.request, zap.amount_msats, zap.received_at) == (
        RECEIPT.id,
        REQUEST,
        AMOUNT,
        NOW + 5,
    )
    assert zap.invoice.description_hash == description_hash(REQUEST.to_json())


def test_the_amount_is_the_invoices_when_the_request_names_none() -> None:
    bare = request(with_tags(REQUEST, tuple(tag for tag in REQUEST.tags if tag[0] != "amount")))
    assert judge(signed(tags_for(bare))).amount_msats == AMOUNT


def test_a_receipt_need_not_name_the_sender_or_the_preimage() -> None:
    assert judge(signed(tuple(tag for tag in TAGS if tag[0] not in ("P", "preimage")))).request == REQUEST


def test_a_zap_of_a_person_names_no_event() -> None:
    draft = zap_request_draft(recipient=US.public_hex, relays=(), amount_msats=AMOUNT)
    personal = signed(tuple(tag for tag in tags_for(request(draft)) if tag[0] != "e"))
    assert judge(personal, event_id=None).amount_msats == AMOUNT
    assert fault(personal) is ZapFault.EVENT
    assert fault(RECEIPT, event_id=None) is ZapFault.EVENT


def test_a_description_spelled_otherwise_counts_when_the_invoice_commits_to_it() -> None:
    spaced = REQUEST.to_json().replace('","', '", "')
    assert judge(signed(tags_for(REQUEST, description=spaced))).request == REQUEST


# --- one reason for each fault ------------------------------------------------------------------------------------


def remade(draft: Draft, key: SecretKey = PAYER) -> Event:
    return signed(tags_for(request(draft, key=key)))


def retagged(name: str, *values: str) -> Event:
    return remade(with_tags(REQUEST, tuple((name, *values) if tag[0] == name else tag for tag in REQUEST.tags)))


OTHER_INVOICE = make_invoice(AMOUNT, description="zap", created_at=NOW).bolt11
OPEN_INVOICE_HASH = description_hash(REQUEST.to_json())
FAULTS: dict[str, tuple[Callable[[], Event], ZapFault]] = {
    "another kind": (lambda: signed(TAGS, kind=1), ZapFault.KIND),
    "signed by another key": (lambda: signed(TAGS, key=OTHER), ZapFault.AUTHOR),
    "signature of another event": (lambda: replace(RECEIPT, sig=REQUEST.sig), ZapFault.SIGNATURE),
    "other date than signed": (lambda: replace(RECEIPT, created_at=NOW), ZapFault.SIGNATURE),
    "no description": (lambda: signed(without("description")), ZapFault.REQUEST),
    "two descriptions": (lambda: signed((*TAGS, ("description", REQUEST.to_json()))), ZapFault.REQUEST),
    "description is no JSON": (lambda: signed(swapped("description", "{")), ZapFault.REQUEST),
    "description is no event": (lambda: signed(swapped("description", "[]")), ZapFault.REQUEST),
    "description is huge": (lambda: signed(swapped("description", " " * 20_000)), ZapFault.REQUEST),
    "description is a note": (lambda: remade(replace(with_tags(REQUEST, REQUEST.tags), kind=1)), ZapFault.REQUEST),
    "request with a false id": (
        lambda: signed(tags_for(replace(REQUEST, id="00" * 32))),
        ZapFault.REQUEST_SIGNATURE,
    ),
    "request with a false signature": (
        lambda: signed(tags_for(replace(REQUEST, sig=RECEIPT.sig))),
        ZapFault.REQUEST_SIGNATURE,
    ),
    "request by a key that did not sign": (
        lambda: signed(tags_for(replace(REQUEST, pubkey=OTHER.public_hex))),
        ZapFault.REQUEST_SIGNATURE,
    ),
    "receipt for another": (lambda: signed(swapped("p", OTHER.public_hex)), ZapFault.RECIPIENT),
    "receipt for nobody": (lambda: signed(without("p")), ZapFault.RECIPIENT),
    "receipt for two": (lambda: signed((*TAGS, ("p", OTHER.public_hex))), ZapFault.RECIPIENT),
    "request for another": (lambda: retagged("p", OTHER.public_hex), ZapFault.RECIPIENT),
    "receipt for another event": (lambda: signed(swapped("e", "cd" * 32)), ZapFault.EVENT),
    "receipt for no event": (lambda: signed(without("e")), ZapFault.EVENT),
    "request for another event": (lambda: retagged("e", "cd" * 32), ZapFault.EVENT),
    "another sender": (lambda: signed(swapped("P", OTHER.public_hex)), ZapFault.SENDER),
    "no invoice": (lambda: signed(without("bolt11")), ZapFault.INVOICE),
    "two invoices": (lambda: signed((*TAGS, ("bolt11", OTHER_INVOICE))), ZapFault.INVOICE),
    "invoice is garbage": (lambda: signed(swapped("bolt11", "lnbcrt1")), ZapFault.INVOICE),
    "invoice for something else": (lambda: signed(swapped("bolt11", OTHER_INVOICE)), ZapFault.DESCRIPTION),
    "request added to an old invoice": (
        lambda: signed(swapped("description", request(with_tags(REQUEST, (*REQUEST.tags, ("x", "y")))).to_json())),
        ZapFault.DESCRIPTION,
    ),
    "request names more": (lambda: retagged("amount", str(AMOUNT + 1)), ZapFault.AMOUNT),
    "request names less": (lambda: retagged("amount", str(AMOUNT - 1)), ZapFault.AMOUNT),
    "request names it oddly": (lambda: retagged("amount", f"0{AMOUNT}"), ZapFault.AMOUNT),
    "request names nothing as its amount": (lambda: retagged("amount"), ZapFault.AMOUNT),
    "receipt states more": (lambda: signed((*TAGS, ("amount", str(AMOUNT + 1)))), ZapFault.AMOUNT),
    "invoice without an amount": (
        lambda: signed(
            swapped("bolt11", make_invoice(0, description_hash=OPEN_INVOICE_HASH, created_at=NOW).bolt11)
        ),
        ZapFault.AMOUNT,
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_has_its_reason(name: str) -> None:
    make, expected = FAULTS[name]
    assert fault(make()) is expected


def test_an_invoice_of_another_network_is_no_payment() -> None:
    assert fault(RECEIPT, network="bitcoin") is ZapFault.NETWORK


# --- any one thing ------------------------------------------------------------------------------------------------


def flip(text: str, at: int) -> str:
    at %= len(text)
    return text[:at] + ("q" if text[at] != "q" else "p") + text[at + 1 :]


@given(st.sampled_from(["id", "pubkey", "sig", "content", "created_at", "kind"]), st.integers(0, 10_000))
def test_any_member_of_the_receipt_flipped_is_refused(member: str, at: int) -> None:
    value = getattr(RECEIPT, member)
    changed: Any = value + 1 + at if isinstance(value, int) else flip(value or "q", at)
    fault(replace(RECEIPT, **{member: changed}))


@given(st.sampled_from([index for index, tag in enumerate(TAGS) if tag[0] != "preimage"]), st.integers(0, 10_000))
def test_any_character_of_its_tags_flipped_and_signed_again_is_refused(index: int, at: int) -> None:
    name, value = TAGS[index]
    tags = (*TAGS[:index], (name, flip(value, at)), *TAGS[index + 1 :])
    fault(signed(tags))


@given(st.integers(0, 10_000), st.sampled_from(["tags", "content", "created_at", "kind"]))
def test_any_change_of_the_request_signed_again_is_refused_under_the_old_invoice(at: int, member: str) -> None:
    tags = REQUEST.tags
    index = at % len(tags)
    drafts = {
        "tags": (Draft(ZAP_REQUEST_KIND, REQUEST.content, tags[:index] + tags[index + 1 :]), NOW),
        "content": (Draft(ZAP_REQUEST_KIND, flip(REQUEST.content, at), tags), NOW),
        "created_at": (Draft(ZAP_REQUEST_KIND, REQUEST.content, tags), NOW + 1 + at),
        "kind": (Draft(ZAP_REQUEST_KIND + 2 + at, REQUEST.content, tags), NOW),
    }
    draft, created_at = drafts[member]
    fault(signed(swapped("description", draft.sign(PAYER, created_at).to_json())))


def test_our_own_request_says_what_it_must() -> None:
    draft = zap_request_draft(
        recipient=US.public_hex, relays=("wss://a", "wss://b"), amount_msats=7_000, lnurl="lnurl1x", content="c"
    )
    assert draft.kind == ZAP_REQUEST_KIND and draft.content == "c"
    assert draft.tags == (
        ("relays", "wss://a", "wss://b"),
        ("amount", "7000"),
        ("p", US.public_hex),
        ("lnurl", "lnurl1x"),
    )
