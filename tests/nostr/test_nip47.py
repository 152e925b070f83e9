"""NIP-47: the connection URI, and what wallets of every manner say."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylon.nostr import nip47
from pylon.nostr.encryption import Conversation, Encryption
from pylon.nostr.nip47 import BadReply, BadUri, Failure, TransactionState, parse_wallet_uri
from tests.support.events import CUSTOMER, PROVIDER, event_with, json_values, surrogate_texts, texts

WALLET = PROVIDER.public_hex
SECRET = CUSTOMER.reveal_hex()
URI = f"nostr+walletconnect://{WALLET}?relay=wss%3A%2F%2Frelay.example%2Fv1&relay=ws://127.0.0.1:7&secret={SECRET}"
HASH = "ab" * 32


# --- the URI --------------------------------------------------------------------------------------------------


def test_a_connection_uri() -> None:
    uri = parse_wallet_uri(f"  {URI}&lud16=me%40wallet.example&name=shop\n")
    assert (uri.wallet, uri.relays) == (WALLET, ("wss://relay.example/v1", "ws://127.0.0.1:7"))
    assert uri.key.reveal_hex() == SECRET
    assert uri.lud16 == "me@wallet.example"
    assert SECRET not in repr(uri)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "does not start with nostr"),
        (f"nostr+walletauth://{WALLET}?relay=wss://r&secret={SECRET}", "does not start with nostr"),
        (f"nostr+walletconnect://{WALLET[:-1]}?relay=wss://r&secret={SECRET}", "is not the wallet's public key"),
        (f"nostr+walletconnect://{'ff' * 32}?relay=wss://r&secret={SECRET}", "is not the wallet's public key"),
        (f"nostr+walletconnect://{WALLET}?secret={SECRET}", "names no relay"),
        (f"nostr+walletconnect://{WALLET}?relay=http://r&secret={SECRET}", "not a ws:// or wss:// URL"),
        (f"nostr+walletconnect://{WALLET}?relay=wss://[&secret={SECRET}", "not a ws:// or wss:// URL"),
        (f"{URI}{''.join(f'&relay=wss://{n}' for n in range(7))}", "more than 8 relays"),
        (f"nostr+walletconnect://{WALLET}?relay=wss://r", "has no secret"),
        (f"nostr+walletconnect://{WALLET}?relay=wss://r&secret=", "not a secret key"),
        (f"nostr+walletconnect://{WALLET}?relay=wss://r&secret={SECRET}0", "not a secret key"),
        (f"nostr+walletconnect://{WALLET}?relay=wss://r&secret={'00' * 32}", "not a secret key"),
        (f"{URI}&secret={SECRET}", "more than one secret"),
        (URI.replace("&", " &"), "a blank"),
        (URI + "x" * 5000, "longer than 4096"),
    ],
)
def test_each_fault_of_a_uri_is_one_sentence_without_the_secret(text: str, said: str) -> None:
    with pytest.raises(BadUri) as caught:
        parse_wallet_uri(text)
    assert said in str(caught.value)
    assert SECRET[:16] not in str(caught.value)


@given(
    texts | surrogate_texts | st.text().map(lambda text: URI + text) | st.text().map(lambda text: URI[:90] + text)
)
def test_no_text_makes_the_uri_reader_raise_anything_else(text: str) -> None:
    try:
        parse_wallet_uri(text)
    except BadUri as fault:
        assert SECRET not in str(fault)


# --- the info event -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "best"),
    [
        ((("encryption", "nip44_v2 nip04"),), Encryption.NIP44),
        ((("encryption", "nip04 nip44_v2"),), Encryption.NIP44),
        ((("encryption", "nip44_v2", "nip04"),), Encryption.NIP44),
        ((("encryption", "nip04"),), Encryption.NIP04),
        ((), Encryption.NIP04),
        ((("encryption", "nip99"),), None),
        ((("encryption",),), None),
    ],
)
def test_the_best_encryption_that_is_offered_is_spoken(
    tags: tuple[tuple[str, ...], ...], best: Encryption | None
) -> None:
    assert nip47.read_info(event_with(*tags, kind=13194, content="get_info")).encryption is best


def test_an_info_event() -> None:
    event = event_with(
        ("notifications", "payment_received payment_sent"),
        kind=13194,
        content="get_info  make_invoice\nnotifications",
    )
    info = nip47.read_info(event)
    assert info.methods == {"get_info", "make_invoice", "notifications"}
    assert info.notifications == {"payment_received", "payment_sent"}
    assert info.created_at == event.created_at
    assert nip47.read_info(event_with(content="get_info")).notifications == frozenset()
    assert nip47.read_info(event_with(content="notifications")).notifications == {"payment_received"}


@given(texts | surrogate_texts, st.lists(texts, max_size=3))
def test_no_info_event_raises(content: str, members: list[str]) -> None:
    try:
        event = event_with(("encryption", *members), ("notifications", *members), kind=13194, content=content)
    except ValueError:
        return  # cannot even be signed
    nip47.read_info(event)


# --- requests and responses -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", Encryption)
def test_a_request_says_how_it_is_encrypted_and_until_when_it_counts(scheme: Encryption) -> None:
    draft = nip47.request_draft(
        Conversation(CUSTOMER, WALLET), WALLET, "get_info", {"a": 1}, encryption=scheme, expires_at=1_800_000_060
    )
    said = [("encryption", "nip44_v2")] if scheme is Encryption.NIP44 else []
    assert draft.kind == 23194
    assert list(draft.tags) == [("p", WALLET), ("expiration", "1800000060"), *said]
    text = Conversation(PROVIDER, CUSTOMER.public_hex).decrypt(draft.content)
    assert orjson.loads(text) == {"method": "get_info", "params": {"a": 1}}


def response(value: object, method: str = "get_balance") -> nip47.Result | Failure:
    return nip47.read_response(orjson.dumps(value).decode(), method)


def test_a_response() -> None:
    assert response({"result_type": "get_balance", "result": {"balance": 5}}) == {"balance": 5}
    assert response({"result": {"balance": 5}, "error": None}) == {"balance": 5}
    error = {"code": "restricted", "message": "no"}
    assert response({"result_type": "get_balance", "error": error, "result": None}) == Failure("RESTRICTED", "no")
    assert response({"error": {}}) == Failure("OTHER", "")


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        {"result": None},
        {"result": 5},
        {"error": "no"},
        {"result_type": "pay_invoice", "result": {}},
        {"result_type": 5, "result": {}},
    ],
)
def test_nonsense_is_no_response(value: object) -> None:
    with pytest.raises(BadReply):
        response(value)


def test_what_is_not_json_is_no_response() -> None:
    for text in ("", "{", "\ud800", "[" * 100_000):
        with pytest.raises(BadReply, match="not JSON"):
            nip47.read_response(text, "get_info")


# --- transactions ---------------------------------------------------------------------------------------------


def transaction(**members: Any) -> nip47.WalletTransaction:
    given: dict[str, Any] = {"type": "incoming", "payment_hash": HASH, "amount": 5_000}
    return nip47.read_transaction(given | members)


S = TransactionState


@pytest.mark.parametrize(
    ("members", "state", "settled_at"),
    [
        ({"state": "settled", "settled_at": 7}, S.SETTLED, 7),
        ({"state": "settled"}, S.SETTLED, None),
        ({"state": "SETTLED", "settled_at": None}, S.SETTLED, None),
        ({"settled_at": 7}, S.SETTLED, 7),
        ({"state": None, "settled_at": 7.0}, S.SETTLED, 7),
        ({"state": "", "settled_at": ""}, S.PENDING, None),
        ({"settled_at": 0}, S.PENDING, None),
        ({"preimage": "cd" * 32}, S.PENDING, None),  # who made an invoice knows its preimage
        ({"state": "pending", "preimage": "cd" * 32, "settled_at": 7}, S.PENDING, None),
        ({"state": "accepted"}, S.PENDING, None),
        ({"state": "expired"}, S.EXPIRED, None),
        ({"state": "failed", "settled_at": 7}, S.FAILED, None),
        ({"state": "odd"}, S.PENDING, None),
    ],
)
def test_settled_is_what_the_wallet_says_is_settled(
    members: dict[str, Any], state: TransactionState, settled_at: int | None
) -> None:
    found = transaction(**members)
    assert (found.state, found.settled_at) == (state, settled_at)


def test_what_is_absent_may_be_missing_null_or_empty() -> None:
    names = ("invoice", "description", "description_hash", "preimage", "metadata", "expires_at", "fees_paid")
    bare = transaction()
    assert transaction(**dict.fromkeys(names)) == bare
    assert transaction(**dict.fromkeys(names, "")) == bare
    assert transaction(type=None).incoming is None
    assert transaction(type="outgoing").incoming is False
    assert transaction(metadata={"pylon_id": "job-1"}).own_id == "job-1"
    assert transaction(metadata={"pylon_id": 5}).own_id == ""
    assert "cdcd" not in repr(transaction(preimage="cd" * 32))


@pytest.mark.parametrize(
    "members",
    [
        {"amount": None},
        {"amount": "5000"},
        {"amount": -1},
        {"amount": 0.5},
        {"amount": 2**63},
        {"amount": True},
        {"amount": 1e300},
        {"payment_hash": "ab"},
        {"payment_hash": 5},
        {"settled_at": "yesterday"},
        {"description": 5},
        {"invoice": "x" * 10_000},
    ],
)
def test_money_is_not_guessed_at(members: dict[str, Any]) -> None:
    with pytest.raises(BadReply):
        transaction(**members)


def test_a_list_without_what_has_no_payment_hash() -> None:
    given = {"payment_hash": HASH, "amount": 5}
    found = nip47.read_transactions({"transactions": [given, {"amount": 7, "type": "incoming"}]})
    assert [each.amount_msats for each in found] == [5]
    for nonsense in ({}, {"transactions": None}, {"transactions": [5]}, {"transactions": [{"payment_hash": HASH}]}):
        with pytest.raises(BadReply):
            nip47.read_transactions(nonsense)


def test_notifications() -> None:
    paid = {"payment_hash": HASH, "amount": 5, "settled_at": 9}
    text = orjson.dumps({"notification_type": "payment_received", "notification": paid}).decode()
    kind, found = nip47.read_notification(text)
    assert kind == "payment_received"
    assert found is not None and found.settled_at == 9
    held = orjson.dumps({"notification_type": "hold_invoice_accepted", "notification": {}}).decode()
    assert nip47.read_notification(held) == ("hold_invoice_accepted", None)
    for nonsense in ("{}", "5", '{"notification_type": "payment_received"}', '{"notification_type": "A B"}'):
        with pytest.raises(BadReply):
            nip47.read_notification(nonsense)


members = st.sampled_from(
    ("result", "error", "result_type", "transactions", "type", "state", "payment_hash", "amount", "settled_at",
     "metadata", "preimage", "notification", "notification_type", "methods", "balance")
)  # fmt: skip
objects = st.recursive(
    json_values,
    lambda inner: st.dictionaries(members, inner, max_size=6) | st.lists(inner, max_size=3),
    max_leaves=8,
)


@given(objects)
@settings(max_examples=300)
def test_no_answer_raises_anything_else(value: object) -> None:
    for read in (
        lambda: nip47.read_transaction(value),
        lambda: nip47.read_response(_json(value), "get_info"),
        lambda: nip47.read_notification(_json(value)),
    ):
        try:
            read()
        except BadReply:
            continue
    if isinstance(value, dict):
        for reader in (
            nip47.read_transactions,
            nip47.read_preimage,
            lambda each: nip47.read_msats(each, "balance"),
        ):
            try:
                reader(value)
            except BadReply:
                continue
        nip47.read_words(value, "methods")


def _json(value: object) -> str:
    try:
        return orjson.dumps(value).decode()
    except (TypeError, orjson.JSONEncodeError):
        return "{}"
