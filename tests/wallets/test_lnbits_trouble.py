"""An LNbits that answers anything at all: the right kind of `WalletError`, in one clear sentence."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pylon import assembly
from pylon.jobs.ports import (
    InvoiceRequest,
    PaymentState,
    WalletAmbiguous,
    WalletError,
    WalletRefused,
    WalletUnavailable,
)
from pylon.nostr.bolt11 import read_invoice
from pylon.nostr.keys import SecretKey
from pylon.settings import Settings, SettingsError, load_settings
from pylon.wallets import lnbits_wire as wire
from pylon.wallets.answers import BadAnswer
from pylon.wallets.fake_server.node import Draft, Node
from pylon.wallets.http import TokenRefused
from pylon.wallets.lnbits import LnbitsConfig, LnbitsWallet
from tests.support.stand_ins import FakeClock
from tests.support.wallet import listed_by

KEY, ADMIN = "invoicekey", "adminkey"
SIGNED = Node("11" * 32).sign(Draft("x", 21_000, 600, "own", None), int(time.time()))
BOLT11, HASH = SIGNED.bolt11, SIGNED.payment_hash
ORDER = InvoiceRequest("own", 21_000, 600, "a job")
ROW: dict[str, Any] = {
    "payment_hash": HASH,
    "bolt11": BOLT11,
    "amount": -21_000,
    "fee": -1_000,
    "status": "success",
    "memo": "a job",
    "expiry": "2026-11-26T12:49:08+00:00",
    "time": "2026-11-26T11:49:08.1+00:00",
    "created_at": "2026-11-26T11:49:08.1",
    "updated_at": "2026-11-26T11:50:08.1",
    "extra": {},
    "external_id": None,
    "preimage": "ab" * 32,
}
Answers = dict[str, list[tuple[int, object]]]


def http(status: int, value: object, headers: str = "") -> bytes:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


@asynccontextmanager
async def serving(answer: Callable[[str], bytes | None]) -> AsyncIterator[tuple[str, list[str]]]:
    """A server's url and the request lines it got; `answer` makes the answer to one, None is silence."""
    asked: list[str] = []
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                for line in head.split("\r\n"):
                    if line.lower().startswith("content-length:"):
                        await reader.readexactly(int(line.split(":")[1]))
                asked.append(head.split("\r\n")[0].rsplit(" ", 1)[0])
                raw = answer(asked[-1])
                if raw is None:
                    await reader.read()
                    return
                writer.write(raw)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked
    finally:
        server.close()
        for writer in writers:
            writer.close()


def scripted(answers: Answers) -> Callable[[str], bytes | None]:
    """Answer by the start of the request line, each list's last entry again and again; 0 is silence."""

    def answer(line: str) -> bytes | None:
        for start, left in answers.items():
            if line.startswith(start):
                status, value = left.pop(0) if len(left) > 1 else left[0]
                return http(status, value) if status else None
        raise AssertionError(f"not in the script: {line}")

    return answer


def client(url: str, *, timeout_s: float = 5, pays: bool = True) -> LnbitsWallet:
    return LnbitsWallet(LnbitsConfig(url, KEY, ADMIN if pays else None, timeout_s), time.time)


async def pay(wallet: LnbitsWallet) -> Any:
    return await wallet.pay(BOLT11, own_id="mine", max_fee_msats=2_000)


Kinds = tuple[type[WalletError], type[WalletError]]
"""What is raised by a question, and by the making of an invoice."""

KEY_REFUSED: Kinds = (TokenRefused, TokenRefused)
REFUSED: Kinds = (WalletRefused, WalletRefused)
UNDONE: Kinds = (WalletUnavailable, WalletUnavailable)
UNCLEAR: Kinds = (WalletUnavailable, WalletAmbiguous)

TOLD: list[tuple[str, bytes, str, Kinds]] = [
    ("401", http(401, {"detail": "No key"}), "does not accept the key: No key; check wallet.token", KEY_REFUSED),
    ("403", http(403, {"detail": "No"}), "does not accept the key: No; check wallet.token", KEY_REFUSED),
    ("404", http(404, b"<html>"), "does not answer at this address: HTTP status 404", UNDONE),
    ("400", http(400, {"detail": "bad \x1b[31m"}), r"refused: bad \x1b[31m", REFUSED),
    ("422", http(422, {"detail": [{"msg": "x"}]}), "refused: HTTP status 422", REFUSED),
    ("520", http(520, {"detail": "Too much", "status": "failed"}), "refused: Too much", REFUSED),
    ("520 node", http(520, {"detail": "Node", "status": "pending"}), "status 520: Node", UNCLEAR),
    ("520 proxy", http(520, b"unknown error"), "HTTP status 520", UNCLEAR),
    ("500", http(500, {"detail": "Oops"}), "HTTP status 500: Oops", UNCLEAR),
    ("502", http(502, b"<html>"), "HTTP status 502", UNCLEAR),
    ("307", http(307, b"", "Location: http://169.254.169.254/\r\n"), "HTTP status 307", UNCLEAR),
    ("429", http(429, {"error": "x"}), "too many calls (HTTP status 429)", UNDONE),
    ("no json", http(200, b"<html>"), "answered something that is not JSON", UNCLEAR),
    ("a list", http(200, []), "answered", UNCLEAR),
    ("empty", http(200, {}), "answered a", UNCLEAR),
    ("garbage", b"\x00\xff\r\n\r\n", "gave no answer", UNCLEAR),
    ("cut off", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", "gave no answer", UNCLEAR),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "sentence", "kinds"), [each[1:] for each in TOLD], ids=[e[0] for e in TOLD])
async def test_each_trouble_is_one_sentence_of_the_right_kind(raw: bytes, sentence: str, kinds: Kinds) -> None:
    asked, made = kinds
    async with serving(lambda _: raw) as (url, _):
        wallet = client(url, timeout_s=0.5, pays=False)
        async with wallet.running():
            state = await wallet.check()
            with pytest.raises(WalletError) as caught:
                await wallet.balance_msats()
            assert type(caught.value) is asked
            said = str(caught.value)
            assert said.startswith("LNbits ") and sentence in said and said.isprintable()
            told_in_state = asked is not WalletRefused
            assert state.ready is not told_in_state
            assert (sentence in state.detail) is told_in_state
            with pytest.raises(WalletError) as caught:
                await wallet.create_invoice(ORDER)
            assert type(caught.value) is made
            assert KEY not in str(caught.value)


async def test_silence_is_told() -> None:
    async with serving(lambda _: None) as (url, _):
        wallet = client(url, timeout_s=0.3, pays=False)
        async with wallet.running():
            with pytest.raises(WalletUnavailable, match="gave no answer: TimeoutError"):
                await wallet.balance_msats()
            with pytest.raises(WalletAmbiguous, match="it may have done what was asked"):
                await wallet.create_invoice(ORDER)
            with pytest.raises(WalletUnavailable):
                await anext(wallet.settlements())


async def test_a_fault_of_tls_is_told_as_such() -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 this is no TLS\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        wallet = client(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}", pays=False)
        async with wallet.running():
            for call in (wallet.create_invoice(ORDER), wallet.balance_msats()):
                with pytest.raises(WalletUnavailable, match=r"cannot be reached: .*SSL"):
                    await call
            with pytest.raises(WalletUnavailable, match="TLS") as caught:
                await anext(wallet.settlements())
            assert KEY not in str(caught.value)


async def test_retry_after_is_obeyed() -> None:
    answers = [http(429, b"", "Retry-After: 60\r\n")]
    async with serving(lambda _: answers[0]) as (url, asked):
        wallet = client(url)
        async with wallet.running():
            with pytest.raises(WalletUnavailable, match="429"):
                await wallet.balance_msats()
            with pytest.raises(WalletUnavailable, match="asked us to wait 60 s"):
                await wallet.create_invoice(ORDER)
            assert len(asked) == 1, "nothing is sent while it wants rest"


# --- paying: what is unclear is asked -----------------------------------------------------------------------------

LOOK, PAY, RESERVE = f"GET /api/v1/payments/{HASH}", "POST /api/v1/payments", "GET /api/v1/payments/fee-reserve"
NONE = (404, {"detail": "Payment does not exist."})


def row(status: str) -> dict[str, Any]:
    return {**ROW, "status": status}


def seen(status: str) -> tuple[int, object]:
    return 200, {"paid": status == "success", "details": row(status)}


OUTCOMES: list[tuple[str, tuple[int, object], tuple[int, object], PaymentState | type[WalletError]]] = [
    ("paid unheard", (500, {}), seen("success"), PaymentState.SETTLED),
    ("lost", (0, None), NONE, WalletAmbiguous),
    ("timed out and paid", (0, None), seen("success"), PaymentState.SETTLED),
    ("timed out and on its way", (0, None), seen("pending"), PaymentState.PENDING),
    ("timed out and failed", (0, None), seen("failed"), WalletRefused),
    ("failed", (520, {"detail": "no route", "status": "failed"}), seen("failed"), WalletRefused),
    ("refused", (520, {"detail": "Insufficient balance.", "status": "failed"}), NONE, WalletRefused),
    ("still pending", (520, {"detail": "pending", "status": "pending"}), seen("pending"), PaymentState.PENDING),
    ("paid before", (520, {"detail": "already paid", "status": "success"}), seen("success"), PaymentState.SETTLED),
    ("and then away", (520, {"detail": "no route", "status": "failed"}), (502, b""), WalletAmbiguous),
    ("nonsense", (201, {}), NONE, WalletAmbiguous),
    ("too many calls", (429, {}), NONE, WalletUnavailable),
    ("not an admin key", (403, {"detail": "Invoice key"}), NONE, TokenRefused),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "then", "truth"), [e[1:] for e in OUTCOMES], ids=[e[0] for e in OUTCOMES])
async def test_what_became_of_a_payment_is_asked(
    answer: tuple[int, object], then: tuple[int, object], truth: PaymentState | type[WalletError]
) -> None:
    script: Answers = {RESERVE: [(200, {"fee_reserve": 2_000})], LOOK: [NONE, then], PAY: [answer]}
    async with serving(scripted(script)) as (url, asked):
        wallet = client(url, timeout_s=0.4)
        async with wallet.running():
            if isinstance(truth, PaymentState):
                payment = await pay(wallet)
                assert (payment.state, payment.amount_msats) == (truth, 21_000)
                settled = truth is PaymentState.SETTLED
                assert (payment.fee_msats, payment.preimage) == ((1_000, "ab" * 32) if settled else (0, None))
            else:
                with pytest.raises(WalletError) as caught:
                    await pay(wallet)
                assert type(caught.value) is truth
            assert asked.count(PAY) == 1


@pytest.mark.parametrize("status", ["success", "pending"])
async def test_what_is_paid_or_being_paid_is_not_sent_again(status: str) -> None:
    async with serving(scripted({LOOK: [seen(status)]})) as (url, asked):
        wallet = client(url)
        async with wallet.running():
            assert (await pay(wallet)).state == {"success": "settled"}.get(status, status)
            assert asked == [LOOK]


async def test_an_old_failure_that_times_out_again_stays_unclear() -> None:
    script: Answers = {
        RESERVE: [(200, {"fee_reserve": 0})],
        LOOK: [seen("failed")],
        PAY: [(500, {}), (201, row("failed"))],
    }
    async with serving(scripted(script)) as (url, _):
        wallet = client(url)
        async with wallet.running():
            for _ in range(2):
                with pytest.raises(WalletAmbiguous):
                    await pay(wallet)


async def test_an_answer_about_another_payment_is_not_believed() -> None:
    other = {"paid": True, "details": {**ROW, "payment_hash": "cd" * 32}}
    async with serving(scripted({"GET": [(200, other)]})) as (url, _):
        wallet = client(url)
        async with wallet.running():
            for ask in (wallet.look_up, wallet.look_up_payment):
                with pytest.raises(WalletUnavailable, match="other than the one asked for"):
                    await ask(HASH)


async def test_a_look_up_without_details_is_a_wrong_key_and_not_a_payment() -> None:
    """LNbits tells anybody whether a hash is paid, also who has no key of the wallet."""
    async with serving(scripted({"GET": [(200, {"paid": True, "preimage": "ab" * 32})]})) as (url, _):
        wallet = client(url)
        async with wallet.running():
            with pytest.raises(TokenRefused, match=r"check wallet\.token"):
                await wallet.look_up(HASH)


async def test_a_preimage_of_an_unpaid_invoice_proves_nothing() -> None:
    unpaid = {"paid": False, "details": {**ROW, "amount": 21_000, "status": "pending"}}
    async with serving(scripted({"GET": [(200, unpaid)]})) as (url, _):
        wallet = client(url)
        async with wallet.running():
            found = await wallet.look_up(HASH)
            assert found is not None
            assert (found.state, found.received_msats, found.settled_at) == (PaymentState.PENDING, 0, None)


async def test_a_list_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pylon.wallets.lnbits.MAX_LISTED", 1_000)
    async with serving(scripted({"GET": [(200, {"data": [ROW], "total": 10**6})]})) as (url, asked):
        wallet = client(url)
        async with wallet.running():
            with pytest.raises(WalletUnavailable, match="more than 1000 entries"):
                await listed_by(wallet, 0)
            assert len(asked) == 2


# --- reading ------------------------------------------------------------------------------------------------------


def test_times_without_a_zone_are_utc() -> None:
    read = wire.row(ROW)
    assert (read.created_at, read.changed_at, read.expires_at) == (1795693748, 1795693808, 1795697348)
    local = wire.row({**ROW, "expiry": "2026-11-26T12:49:08"})
    assert local.expires_at is None, "of an invoice just made it is the server's local time"
    assert local.invoice(0).expires_at == read_invoice(BOLT11).expires_at


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*ROW, "details"]), inner, max_size=9)
    ),
    max_leaves=15,
)


@given(name=st.sampled_from(sorted(ROW)), value=_JSON)
@hypothesis_settings(max_examples=200)
def test_any_member_is_read_or_refused(name: str, value: object) -> None:
    try:
        read = wire.row({**ROW, name: value})
        assert read.amount_msats >= 0 and read.created_at >= 0
        read.invoice(time.time())
    except BadAnswer as error:
        assert str(error)


@given(value=_JSON)
@hypothesis_settings(max_examples=100)
def test_any_push_is_a_hash_or_nothing(value: object) -> None:
    found = wire.pushed_hash(json.dumps({"payment": value}))
    assert found is None or len(found) == 64


# --- settings -----------------------------------------------------------------------------------------------------


def settings(**wallet: Any) -> Settings:
    return Settings.model_validate({"wallet": {"kind": "lnbits", "url": "http://127.0.0.1:5000/", **wallet}})


def test_the_wallet_of_the_settings_and_its_secrets() -> None:
    given = settings(token=KEY, pay_token=ADMIN, timeout_s=3.5)
    wallet = assembly.make_wallet(given, FakeClock())
    assert isinstance(wallet, LnbitsWallet)
    assert wallet._config == LnbitsConfig("http://127.0.0.1:5000", KEY, ADMIN, 3.5)
    assert {KEY, ADMIN} <= set(assembly.secrets_of(given, SecretKey(b"\x05" * 32)))
    assert ADMIN not in repr(given) + repr(wallet._config) and KEY not in repr(given) + repr(wallet._config)


def test_a_missing_key_is_told_with_the_ways_to_give_it() -> None:
    with pytest.raises(SettingsError, match="PYLON_WALLET_TOKEN"):
        assembly.make_wallet(settings(), FakeClock())
    with pytest.raises(ValueError, match="a lnbits wallet needs it"):
        Settings.model_validate({"wallet": {"kind": "lnbits"}})


def test_the_keys_may_come_from_the_environment_or_credentials(tmp_path: Path) -> None:
    (tmp_path / "wallet_pay_token").write_text(ADMIN + "\n")
    (tmp_path / "pylon.toml").write_text('[wallet]\nkind = "lnbits"\nurl = "http://127.0.0.1:5000"\n')
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path), "PYLON_WALLET_TOKEN": KEY}
    wallet = load_settings(tmp_path / "pylon.toml", {}, environ).settings.wallet
    assert wallet.token is not None and wallet.pay_token is not None
    assert (wallet.token.get_secret_value(), wallet.pay_token.get_secret_value()) == (KEY, ADMIN)
    wallet = load_settings(tmp_path / "pylon.toml", {}, {"PYLON_WALLET_PAY_TOKEN": "fromhere"}).settings.wallet
    assert wallet.pay_token is not None and wallet.pay_token.get_secret_value() == "fromhere"


async def test_a_scripted_server_that_is_gone_is_unavailable() -> None:
    async with serving(lambda _: None) as (url, _):
        pass
    wallet = client(url)
    async with wallet.running():
        for call in (pay(wallet), wallet.create_invoice(ORDER), anext(wallet.settlements())):
            with pytest.raises(WalletUnavailable), anyio.fail_after(5):
                await call
