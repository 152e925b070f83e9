"""`pylon request` against providers that a test scripts: what it prints, what it believes, how it ends."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal

from pylon.cli.app import run
from pylon.cli.request import parse_amount, parse_params, read_prompt
from pylon.cli.request_screen import GrowingText
from pylon.jobs.ports import InvoiceRequest
from pylon.nostr.event import Draft, parse_event
from pylon.nostr.keys import SecretKey, encode_npub
from pylon.nostr.nip90 import FeedbackStatus
from pylon.nostr.nip90_replies import result_draft
from tests.support.events import PROVIDER, STRANGER
from tests.support.scripted_relay import Peer, scripted_relay
from tests.support.stall import Script, Stall, invoice, stall
from tests.support.wallet import WalletProcess

Captured = pytest.CaptureFixture[str]

NPUB = encode_npub(PROVIDER.public_hex)
TO_PROVIDER = ("--provider", NPUB)
HOSTILE = "calm \x1b[2J\x1b]0;owned\x07 sea\u202e\nline two\tend"
HARMLESS = "calm \\x1b[2J\\x1b]0;owned\\x07 sea\\u202e\nline two\tend"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("PYLON_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYLON_HOME", str(tmp_path))
    monkeypatch.setenv("PYLON_WALLET__NETWORK", "regtest")
    monkeypatch.setenv("PYLON_RELAYS__BACKOFF_MIN_S", "0.05")
    return tmp_path


@pytest.fixture(scope="module")
def wallet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WalletProcess]:
    with WalletProcess(tmp_path_factory.mktemp("wallet")) as process:
        yield process


@pytest.fixture
def paying(wallet: WalletProcess, monkeypatch: pytest.MonkeyPatch) -> WalletProcess:
    """Let the settings name a wallet that answers."""
    monkeypatch.setenv("PYLON_WALLET__KIND", "fake")
    monkeypatch.setenv("PYLON_WALLET__URL", wallet.url)
    monkeypatch.setenv("PYLON_WALLET_TOKEN", wallet.owner_token)
    return wallet


async def answer(shop: Stall) -> None:
    shop.result("Salt is salt.")


async def silence(shop: Stall) -> None:
    return


def ask(shop: Stall, *arguments: str, prompt: str = "What is salt?") -> int:
    return run(["request", prompt, "--relay", shop.url, *arguments])


def ended(script: Script, capsys: Captured, *arguments: str) -> tuple[int, str, str]:
    """Run the command against a script; return exit code, stdout and stderr."""
    with stall(script) as shop:
        code = ask(shop, *arguments)
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err


# --- a result -------------------------------------------------------------------------------------------------


def test_the_result_and_nothing_else_goes_to_stdout(capsys: Captured) -> None:
    async def script(shop: Stall) -> None:
        shop.feedback(FeedbackStatus.PROCESSING, "thinking")
        shop.partial("Salt", 1)
        shop.partial("Salt is", 2)
        shop.result("Salt is salt.")

    code, out, err = ended(script, capsys, *TO_PROVIDER, "--model", "m", "--param", "stop=a=b", "--bid", "21")
    assert (code, out) == (0, "Salt is salt.\n")
    assert f"to {NPUB}" in err
    assert "processing: thinking" in err
    assert "bid 21 sats" in err
    assert f"{NPUB}: kind 6050" in err
    assert "Salt is" in err, "without a terminal partials are shown beside the result"


def test_the_request_says_what_was_asked(capsys: Captured) -> None:
    flags = ["--kind", "5100", "--model", "m", "--param", "Top-K=4", "--bid", "1500msat", *TO_PROVIDER]

    async def script(shop: Stall) -> None:
        shop.say(result_draft(shop.request, "a picture"))

    with stall(script, kind=5100) as shop:
        assert ask(shop, *flags) == 0
        tags = shop.request.tags
    assert ("i", "What is salt?", "text") in tags
    assert ("param", "model", "m") in tags
    assert ("param", "Top-K", "4") in tags
    assert ("bid", "1500") in tags
    assert ("p", PROVIDER.public_hex) in tags
    assert ("relays", shop.url) in tags
    assert capsys.readouterr().out == "a picture\n"


def test_a_new_key_every_time_and_the_own_one_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    own = SecretKey.generate()
    monkeypatch.setenv("PYLON_NSEC", own.reveal_nsec())
    seen = []
    for flags in ((), (), ("--identity",)):
        with stall(answer) as shop:
            assert ask(shop, *flags) == 0
            seen.append(shop.request.pubkey)
    assert len(set(seen)) == 3
    assert seen[2] == own.public_hex


def test_json_is_one_object_and_nothing_else(capsys: Captured) -> None:
    async def script(shop: Stall) -> None:
        shop.partial("Sa", 1)
        shop.result(HOSTILE)

    with stall(script) as shop:
        assert ask(shop, "--json", *TO_PROVIDER) == 0
        request = shop.request
    out, err = capsys.readouterr()
    told: dict[str, Any] = json.loads(out)
    assert out.isascii()
    assert "\x1b" not in out + err
    assert (told["request_id"], told["kind"], told["provider"]) == (request.id, 5050, NPUB)
    assert told["customer"] == encode_npub(request.pubkey)
    assert (told["status"], told["result"], told["exit_reason"], told["exit_code"]) == (
        *("result", HOSTILE, "result"),
        0,
    )
    assert (told["payment"], told["amount_msats"], told["payment_hash"], told["preimage"]) == (
        "none",
        0,
        None,
        None,
    )
    assert 0 < told["timings"]["published_s"] <= told["timings"]["result_s"] <= told["timings"]["total_s"]
    assert set(told["dropped"]) <= {"duplicate"}


def test_forged_replies_of_a_lying_relay_are_dropped_and_counted(capsys: Captured) -> None:
    async def lies(peer: Peer) -> None:
        name = ""
        while True:
            match await peer.get():
                case ["REQ", str(name), *_]:
                    await peer.send("EOSE", name)
                case ["EVENT", {"kind": 5050} as request]:
                    await peer.ok(request["id"])
                    true = result_draft(parse_event(request), "the truth").sign(PROVIDER, 5)
                    for event in (replace(true, content="a lie"), replace(true, sig="0" * 128), true):
                        await peer.send("EVENT", name, event.as_dict())

    with start_blocking_portal() as portal, portal.wrap_async_context_manager(scripted_relay(lies)) as relay:
        assert run(["request", "hi", "--relay", relay.url, "--json", *TO_PROVIDER]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["result"], told["dropped"]) == ("the truth", {"forged": 2})


def test_text_of_providers_cannot_steer_the_terminal(capsys: Captured) -> None:
    async def script(shop: Stall) -> None:
        shop.feedback(FeedbackStatus.PROCESSING, HOSTILE)
        shop.say(Draft(7000, "", (("status", "\x1b[31mred", HOSTILE), ("e", shop.request.id))))
        shop.partial(HOSTILE, 1)
        shop.result(HOSTILE)

    code, out, err = ended(script, capsys, *TO_PROVIDER)
    assert (code, out) == (0, HARMLESS + "\n")
    assert HARMLESS in err
    assert "'\\x1b[31mred', a status that NIP-90 does not know" in err
    assert "\x1b" not in out + err


def test_a_result_without_request_tag_and_one_that_names_its_request_only_by_a_copy(capsys: Captured) -> None:
    async def bare(shop: Stall) -> None:
        shop.say(Draft(6050, "bare", (("e", shop.request.id), ("p", shop.request.pubkey))))

    assert ended(bare, capsys)[:2] == (0, "bare\n")


def test_lies_are_not_printed(capsys: Captured) -> None:
    """Only who was asked is heard, whatever stands in an event of somebody else."""

    async def script(shop: Stall) -> None:
        shop.result("a lie", by=STRANGER)
        shop.feedback(FeedbackStatus.ERROR, "failed: a lie", by=STRANGER)
        lie = shop.say(Draft(6050, "about another job", (("e", "0" * 64),)))
        assert lie.pubkey == PROVIDER.public_hex
        shop.feedback(FeedbackStatus.PROCESSING, "so")
        shop.result("the truth")

    code, out, err = ended(script, capsys, *TO_PROVIDER)
    assert (code, out) == (0, "the truth\n")
    assert "a lie" not in err


# --- prompts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["-"], []])
def test_the_prompt_comes_from_a_pipe(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("What is\nsälz?\n".encode())))
    with stall(answer) as shop:
        assert run(["request", *arguments, "--relay", shop.url]) == 0
        assert shop.request.tag_values("i") == ["What is\nsälz?"]


def test_the_prompt_comes_from_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one\n")
    (tmp_path / "b").write_text("two")
    with stall(answer) as shop:
        assert ask(shop, "--file", str(tmp_path / "a"), "--file", str(tmp_path / "b"), prompt="Sum up:") == 0
        assert shop.request.tag_values("i") == ["Sum up:\n\none\n\ntwo"]


def test_a_prompt_of_several_words_and_one_beside_a_pipe() -> None:
    pipe = io.TextIOWrapper(io.BytesIO(b"unread"))
    assert read_prompt(["a", "b"], [], pipe) == "a b"
    assert read_prompt(["a"], [], None) == "a"


@pytest.mark.parametrize(
    ("text", "amount_msats"),
    [("21", 21_000), ("21sat", 21_000), (" 21 SATS ", 21_000), ("21000msat", 21_000), ("5 msats", 5), ("0", 0)],
)
def test_amounts(text: str, amount_msats: int) -> None:
    assert parse_amount(text, "--bid") == amount_msats


def test_a_param_is_split_at_its_first_equals_sign() -> None:
    assert parse_params(["stop=a=b", "x="], "m") == [("model", ("m",)), ("stop", ("a=b",)), ("x", ("",))]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["hi", "--bid", "1.5"], "--bid: '1.5' is not an amount: give whole sats (21 or 21sat) or msats"),
        (["hi", "--bid", "21btc"], "not an amount"),
        (["hi", "--bid", "-1"], "not an amount"),
        (["hi", "--bid", "9" * 16], "more than all the money"),
        (["hi", "--pay"], "--pay needs --bid"),
        (["hi", "--pay", "--bid", "21"], "--pay needs a wallet to pay from"),
        (["hi", "--provider", "npub1x"], "--provider: 'npub1x' is no public key"),
        (["hi", "--param", "max_tokens"], "--param: 'max_tokens' is not of the form NAME=VALUE"),
        (["hi", "--model", "a", "--param", "model=b"], "the model is given twice"),
        (["hi", "--kind", "6050"], "--kind"),
        (["hi", "--timeout", "0"], "--timeout"),
        (["hi", "--relay", "http://x"], "relays.urls"),
        (["hi", "--file", "/nonexistent/file"], "cannot be read"),
        ([" "], "the prompt is empty"),
        (["--resume", "ab" * 32], "--resume needs one --provider"),
        (["--resume", "abc", "--provider", NPUB], "no request's id"),
        (["hi", "--resume", "ab" * 32, "--provider", NPUB], "takes no prompt"),
        (["x" * 70_000], "relays.max_event_bytes"),
        (["hi", "--provider", "\x1b[31m"], "\\x1b[31m"),
    ],
)
def test_wrong_usage_is_one_line_and_2(arguments: list[str], said: str, capsys: Captured) -> None:
    assert run(["request", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert said in err


def test_no_identity_says_how_to_make_one(capsys: Captured) -> None:
    assert run(["request", "hi", "--identity"]) == 1
    assert "pylon init" in capsys.readouterr().err


# --- no result ------------------------------------------------------------------------------------------------


def test_1_the_provider_says_error_after_partials(capsys: Captured) -> None:
    async def script(shop: Stall) -> None:
        shop.partial("Salt is", 1)
        shop.feedback(FeedbackStatus.ERROR, "failed: the \x1b[31mmodel broke")

    code, out, err = ended(script, capsys, *TO_PROVIDER)
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].endswith("says: failed: the \\x1b[31mmodel broke")


def test_1_tells_the_price_when_the_bid_is_too_low(capsys: Captured) -> None:
    async def script(shop: Stall) -> None:
        tags = (("status", "error", "bid-too-low: more"), ("e", shop.request.id), ("amount", "5000"))
        shop.say(Draft(7000, "", tags))

    code, _, err = ended(script, capsys, *TO_PROVIDER, "--bid", "1")
    assert code == 1
    assert "bid-too-low: more (its price: 5 sats)" in err


def test_1_only_when_all_who_were_asked_have_said_no(capsys: Captured) -> None:
    both = (*TO_PROVIDER, "--provider", STRANGER.public_hex)

    async def one(shop: Stall) -> None:
        shop.feedback(FeedbackStatus.ERROR, "no", by=STRANGER)
        shop.result("yes")

    async def all_of_them(shop: Stall) -> None:
        shop.feedback(FeedbackStatus.ERROR, "no", by=STRANGER)
        shop.feedback(FeedbackStatus.ERROR, "nor I")

    assert ended(one, capsys, *both)[:2] == (0, "yes\n")
    assert ended(all_of_them, capsys, *both)[0] == 1


@pytest.mark.parametrize("status", [None, FeedbackStatus.PROCESSING])
def test_4_no_result_in_time_and_the_job_is_cancelled(status: FeedbackStatus | None, capsys: Captured) -> None:
    async def script(shop: Stall) -> None:
        if status is not None:
            shop.feedback(status)

    with stall(script) as shop:
        assert ask(shop, "--timeout", "2", "--json") == 4
        assert shop.cancelled()
    out, err = capsys.readouterr()
    assert json.loads(out)["exit_reason"] == "timeout"
    said = "nobody answered" if status is None else "no result"
    assert err.splitlines()[-1] == f"pylon: {said} within 2 s; the job is cancelled (kind 5)"


def test_6_no_relay(capsys: Captured) -> None:
    assert run(["request", "hi", "--relay", "ws://127.0.0.1:9", "--timeout", "0.5", "--json"]) == 6
    out, err = capsys.readouterr()
    assert json.loads(out)["exit_reason"] == "not-published"
    assert err.splitlines()[-1].startswith("pylon: not published: ")
    assert "ws://127.0.0.1:9" in err.splitlines()[-1]


# --- payment --------------------------------------------------------------------------------------------------


def test_without_pay_an_invoice_is_shown_in_full_and_the_job_goes_on_when_it_is_paid(capsys: Captured) -> None:
    made = invoice()

    async def script(shop: Stall) -> None:
        shop.ask(made)
        shop.ask(invoice(), by=STRANGER)  # the first one is taken
        shop.feedback(FeedbackStatus.PROCESSING)
        shop.result("bought")

    code, out, err = ended(script, capsys, "--bid", "5")
    assert (code, out) == (0, "bought\n")
    assert made.bolt11 in err.splitlines()
    assert f"4 sats to {NPUB}" in err
    assert err.count("lnbcrt") == 1


def test_5_an_invoice_that_nobody_pays(capsys: Captured) -> None:
    made = invoice()

    async def script(shop: Stall) -> None:
        shop.ask(made)

    with stall(script) as shop:
        assert ask(shop, "--timeout", "2.5", "--json") == 5
        assert shop.cancelled()
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert (told["exit_reason"], told["payment"], told["unpaid_invoice"]) == ("not-paid", "unpaid", made.bolt11)
    assert err.splitlines()[-1].endswith("do not pay it any more")


def test_4_a_job_that_was_paid_elsewhere_is_not_cancelled_and_may_be_resumed(capsys: Captured) -> None:
    async def script(shop: Stall) -> None:
        shop.ask(invoice())
        shop.feedback(FeedbackStatus.PROCESSING)

    with stall(script) as shop:
        assert ask(shop, "--timeout", "2.5") == 4
        assert shop.saw_no_deletion()
        _, hint, command = capsys.readouterr().err.splitlines()[-1].partition("pylon request --resume ")
        assert hint
        again = ["request", "--resume", *command.split(), "--relay", shop.url]
        assert run([*again, "--timeout", "0.5"]) == 4
        shop.result_later("a lie", by=STRANGER)
        shop.result_later("at last")
        assert run(again) == 0
        assert capsys.readouterr().out == "at last\n"
        assert shop.saw_no_deletion()


def test_a_request_that_no_relay_has_cannot_be_resumed(capsys: Captured) -> None:
    with stall(silence) as shop:
        assert run(["request", "--resume", "ab" * 32, *TO_PROVIDER, "--relay", shop.url, "--timeout", "0.5"]) == 6
    assert "no relay has the request abab" in capsys.readouterr().err


def test_1_a_resumed_job_that_failed(capsys: Captured) -> None:
    async def script(shop: Stall) -> None:
        shop.feedback(FeedbackStatus.ERROR, "refund-due: sorry")

    with stall(script) as shop:
        assert ask(shop, *TO_PROVIDER) == 1
        assert run(["request", "--resume", shop.request.id, *TO_PROVIDER, "--relay", shop.url]) == 1
    assert "refund-due: sorry" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("flags", [("--pay",), ()])
@pytest.mark.parametrize(
    ("amount_msats", "asked_msats", "created_at", "why"),
    [
        (6000, 6000, None, "asks 6000 msats, the bid is 5000 msats"),
        (5000, 4000, None, "asks 5000 msats where 4000 msats were agreed"),
        (4000, 4000, 1_700_000_000, "the invoice expired"),
    ],
)
def test_5_an_invoice_that_is_not_as_agreed(
    paying: WalletProcess, flags: tuple[str, ...], amount_msats: int, asked_msats: int, created_at: int | None,
    why: str, capsys: Captured,
) -> None:  # fmt: skip
    async def script(shop: Stall) -> None:
        shop.ask(invoice(amount_msats, created_at=created_at), asked_msats)

    with stall(script) as shop:
        assert ask(shop, *TO_PROVIDER, "--bid", "5", *flags) == 5
        assert shop.cancelled()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith("pylon: not paid: ")
    assert why in err.splitlines()[-1]
    assert "lnbcrt" not in err, "what is not to be paid is not shown"


def test_5_an_invoice_of_another_network(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.delenv("PYLON_WALLET__NETWORK")

    async def script(shop: Stall) -> None:
        shop.ask(invoice())

    code, _, err = ended(script, capsys, *TO_PROVIDER)
    assert code == 5
    assert "the invoice is for regtest, not for bitcoin" in err


def test_a_broadcast_takes_the_first_invoice_within_the_bid(paying: WalletProcess, capsys: Captured) -> None:
    async def script(shop: Stall) -> None:
        shop.ask(invoice(9000), 9000, by=STRANGER)
        shop.result("paid for nothing")

    code, out, err = ended(script, capsys, "--bid", "5", "--pay")
    assert (code, out) == (0, "paid for nothing\n")
    assert "asks 9000 msats, the bid is 5000 msats" in err


def test_5_a_wallet_that_cannot_pay(paying: WalletProcess, capsys: Captured) -> None:
    async def script(shop: Stall) -> None:
        shop.ask(invoice())

    code, _, err = ended(script, capsys, *TO_PROVIDER, "--bid", "5", "--pay")
    assert code == 5
    assert "the balance of 0 msats is too small" in err.splitlines()[-1]


def test_5_a_wallet_that_is_away_before_anything_is_asked(
    paying: WalletProcess, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("PYLON_WALLET__URL", "http://127.0.0.1:9")
    with stall(silence) as shop:
        assert ask(shop, "--bid", "5", "--pay", "--json") == 5
    out, err = capsys.readouterr()
    assert json.loads(out)["request_id"] is None
    assert "nothing was asked, because nothing could be paid" in err
    assert paying.owner_token not in out + err


def test_a_payment_in_doubt_is_not_repeated_and_its_result_is_taken(
    paying: WalletProcess, capsys: Captured
) -> None:
    """The fake wallet pays another node's invoice and has no proof of it."""
    asyncio.run(fill(paying))
    made = invoice()

    async def script(shop: Stall) -> None:
        shop.ask(made)
        shop.result("anyway")

    code, out, err = ended(script, capsys, *TO_PROVIDER, "--bid", "5", "--pay", "--json")
    told = json.loads(out)
    assert (code, told["result"], told["payment"], told["unpaid_invoice"]) == (0, "anyway", "in-doubt", made.bolt11)
    assert "has no proof of it; it is not paid again" in err


async def fill(wallet: WalletProcess) -> None:
    """Put 100 sats into the wallet."""
    client = wallet.client()
    async with client.running():
        made = await client.create_invoice(InvoiceRequest("purse", 100_000, 600))
    await wallet.payer().pay(made.bolt11)


def test_an_invoice_in_the_result_is_paid_afterwards(capsys: Captured) -> None:
    made = invoice()

    async def script(shop: Stall) -> None:
        shop.result("pay me now", invoice=made)

    code, out, err = ended(script, capsys)
    assert (code, out) == (0, "pay me now\n")
    assert made.bolt11 in err.splitlines()


def test_a_reader_that_goes_away_is_no_fault() -> None:
    with stall(answer) as shop:
        command = f"{sys.executable} -m pylon request hi --relay {shop.url} | true; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=30, check=False)
    assert done.returncode == 141
    assert b"pylon: " not in done.stderr


# --- Ctrl-C ---------------------------------------------------------------------------------------------------


def start(shop: Stall, home: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start the command as a process and wait until its request is published."""
    command = [sys.executable, "-m", "pylon", "request", "hi", "--relay", shop.url, *arguments]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "published" in line:
            return process
    raise AssertionError("it ended before the request was published")


def test_130_ctrl_c_cancels_the_job(home: Path) -> None:
    with stall(silence) as shop:
        process = start(shop, home, "--json")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        assert process.returncode == 130
        assert shop.cancelled()
    assert json.loads(out)["exit_reason"] == "cancelled"
    assert err == "pylon: interrupted; the job is cancelled (kind 5)\n"


def test_130_a_second_ctrl_c_ends_at_once(home: Path) -> None:
    """The relay is gone, so that the cancellation cannot be published and the first Ctrl-C has to wait."""
    with stall(silence) as shop:
        process = start(shop, home)
    with process:
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        process.send_signal(signal.SIGINT)
        process.wait(4)
        assert process.stderr is not None
        assert process.stderr.read().splitlines()[-1].startswith("pylon: ended at once")
    assert process.returncode == 130


# --- on a terminal --------------------------------------------------------------------------------------------


def on_terminal(script: Script, *arguments: str) -> tuple[int, str, str]:
    """Run the command with stdout on a terminal; return exit code, what the terminal got, and stderr."""
    ours, theirs = pty.openpty()
    with stall(script) as shop:
        command = [sys.executable, "-m", "pylon", "request", "hi", "--relay", shop.url, *arguments]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=subprocess.PIPE, timeout=30, check=False
        )
    os.close(theirs)
    seen = b""
    with suppress(OSError):  # what Linux says at the end of a terminal
        while piece := os.read(ours, 65536):
            seen += piece
    os.close(ours)
    return done.returncode, seen.decode().replace("\r\n", "\n"), done.stderr.decode()


def test_a_terminal_gets_text_that_grows_and_is_not_repeated() -> None:
    async def script(shop: Stall) -> None:
        for number, text in enumerate(("The sea", "The sea is", "The sea is \x1b[2Jwide"), start=1):
            shop.partial(text, number)
        shop.result("The sea is \x1b[2Jwide.")

    assert on_terminal(script, *TO_PROVIDER)[:2] == (0, "The sea is \\x1b[2Jwide.\n")


def test_a_terminal_gets_the_whole_result_when_it_is_not_what_was_streamed() -> None:
    async def script(shop: Stall) -> None:
        shop.partial("First try", 1)
        shop.partial("Second", 1, attempt=2)
        shop.result("Third\n")

    code, seen, err = on_terminal(script, *TO_PROVIDER)
    assert code == 0
    lines = seen.splitlines()
    assert lines[-1] == "Third"
    assert lines in (["First try", "Second", "Third"], ["Second", "Third"]), "a slow reader skips a partial"
    assert "Third" not in err


def test_growing_text() -> None:
    out = io.StringIO()
    text = GrowingText(out)
    for piece in ("One ", "two "):
        text.grow(piece, whole=False)  # a provider that sends pieces
    text.grow("One two three", whole=True)
    text.grow("One two three", whole=True)
    text.finish("One two three, four")
    text.end_line()
    assert out.getvalue() == "One two three, four\n"
    text.grow("Anew", whole=True)
    text.restart()
    text.grow("Anew", whole=True)
    assert out.getvalue() == "One two three, four\nAnew\nAnew"
