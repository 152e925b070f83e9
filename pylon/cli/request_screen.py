"""What `pylon request` shows: the result on stdout, all else on stderr, and for `--json` what it remembers of it.

Everything that a provider wrote goes through `printable`; the JSON object escapes it instead, to ASCII.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final, TextIO

from pylon.cli.layout import moment, sats
from pylon.cli.output import say_json
from pylon.customer.client import Order
from pylon.customer.payment import Receipt
from pylon.customer.purse import WalletPayer
from pylon.customer.updates import Failed, Partial, PaymentRequired, Processing, Remark, Result, Success
from pylon.demo.story import Paint, Story
from pylon.nostr.bolt11 import InvoiceFacts
from pylon.nostr.event import Event
from pylon.nostr.keys import encode_npub
from pylon.nostr.nip90 import ErrorPrefix
from pylon.text import printable

_INFO_LIMIT: Final = 500
_SHORT_NPUB: Final = 20
_WORDS: Final = {Processing: "processing", Success: "success"}


class RequestScreen:
    """A `Watcher` of one purchase."""

    def __init__(
        self, out: TextIO, err: TextIO, *, json: bool = False, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._out = out
        self._json = json
        self._monotonic = monotonic
        self._began = monotonic()
        self._story = Story(err)
        # On a terminal the output grows where the result will stand; otherwise stdout is for the result alone.
        self._streams_result = not json and out.isatty()
        self._text = GrowingText(out if self._streams_result else err)
        self._streamer: str | None = None  # whose partials are shown
        self._last_line = ("", "")
        self._order: Order | None = None
        self._request: Event | None = None
        self._relays: tuple[str, ...] = ()
        self._receipt: Receipt | None = None
        self._result: Result | None = None
        self._provider: str | None = None
        self._status = "not-published"
        self._unpaid: PaymentRequired | None = None
        self._in_doubt = False
        self._timings: dict[str, float] = {}
        self.payer: WalletPayer | None = None
        self.last_fault = ""
        self.invoice_shown = False

    @property
    def asked(self) -> bool:
        """Whether the request may have reached a relay."""
        return self._request is not None

    @property
    def provider(self) -> str:
        """The npub of the provider heard last; after a payment that is who was paid."""
        return "" if self._provider is None else encode_npub(self._provider)

    def resumes(self, order: Order, relays: tuple[str, ...]) -> None:
        """Tell that a request was found."""
        self._order, self._request, self._relays = order, order.request, relays
        self._status = "published"
        self._tell("request", f"kind {order.request.kind}, job {order.id}, of {moment(order.request.created_at)}")
        self._tell("", f"found on {', '.join(relays)}; waiting for its result")

    def asks(self, request: Event, relays: tuple[str, ...]) -> None:
        """Tell that the request goes out."""
        self._request, self._relays = request, relays
        bid = request.tag("bid")
        limit = f"bid {sats(int(bid[1]))}" if bid is not None else "no bid"
        self._tell("request", f"kind {request.kind}, job {request.id}, {limit}")
        self._tell("", f"to {', '.join(map(encode_npub, request.tag_values('p'))) or 'anybody who answers'}")
        self._tell("", f"over {', '.join(relays)}")

    def published(self, order: Order) -> None:
        """Tell that a relay has it."""
        self._order = order
        self._status = "published"
        self._tell("published", f"in {self._mark('published_s'):.1f} s; waiting for answers, Ctrl-C cancels")

    # --- Watcher ----------------------------------------------------------------------------------------------

    def heard(self, update: Processing | Success | Remark) -> None:
        """Show what a provider says of its work."""
        status = update.status if isinstance(update, Remark) else _WORDS[type(update)]
        self._note(update.provider, status)
        if isinstance(update, Remark):
            status = f"'{printable(status)}', a status that NIP-90 does not know"
        self._tell("feedback", _joined(f"{_short(update.provider)}: {status}", update.info))

    def partial(self, update: Partial) -> None:
        """Show the output so far, of the provider that began first."""
        self._note(update.provider, "partial")
        self._mark("first_partial_s")
        if self._streamer is None:
            self._stream_of(update.provider)
            self._tell("answer", f"{_short(update.provider)} streams:")
        if update.provider == self._streamer:
            self._text.grow(update.content, whole=update.number is not None)

    def result(self, update: Result) -> None:
        """Print the result."""
        self._note(update.provider, "result")
        self._result = update
        took_s = self._mark("result_s")
        if self._streams_result and update.provider == self._streamer:
            self._text.finish(update.content)
        elif not self._json:
            self._text.end_line()
            text = shown(update.content)
            self._out.write(text if text.endswith("\n") else text + "\n")
            self._out.flush()
        self._tell(
            "result", f"{encode_npub(update.provider)}: kind {update.event.kind}, event {update.event.id[:16]}…,"
        )
        self._tell("", f"signature checked, {took_s:.1f} s after the start")

    def failed(self, update: Failed) -> None:
        """Show an error."""
        self._note(update.provider, "error")
        said = _joined(printable(update.prefix), update.sentence) or "no reason given"
        what = "due to you" if update.prefix == ErrorPrefix.REFUND_DUE else "its price"
        price = f" ({what}: {sats(update.amount_msats)})" if update.amount_msats is not None else ""
        if update.provider == self._streamer:
            self._stream_of(None)
        self.last_fault = f"{_short(update.provider)} says: {said}{price}"
        self._tell("error", self.last_fault, paint=Paint.BAD)

    def invoice(self, asked: PaymentRequired, facts: InvoiceFacts) -> None:
        """Show an invoice in full."""
        self._asked(asked)
        self.invoice_shown = True
        self._tell("invoice", f"{sats(asked.amount_msats or 0)} to {encode_npub(asked.provider)}")
        if asked.info:
            self._tell("", printable(asked.info, limit=_INFO_LIMIT))
        self._tell("", f"checked: for this amount, on {facts.network}, open until {moment(facts.expires_at)}")
        self._tell("", "pay it with any wallet, and the job goes on by itself:")
        self._story.say(printable(asked.bolt11, limit=len(asked.bolt11 or "")), Paint.BOLD)

    def paying(self, asked: PaymentRequired) -> None:
        """Tell that an invoice is taken."""
        self._asked(asked)
        amount = "an amount not told" if asked.amount_msats is None else sats(asked.amount_msats)
        self._tell("invoice", f"{amount} asked by {encode_npub(asked.provider)}; checking and paying")

    def paid(self, receipt: Receipt) -> None:
        """Tell that it is paid."""
        self._receipt = receipt
        self._unpaid = None
        self._mark("paid_s")
        fee = f", fee {sats(self.payer.fee_msats)}" if self.payer is not None and self.payer.fee_msats else ""
        self._tell("paid", f"{sats(receipt.amount_msats)}{fee}; the preimage {receipt.preimage[:16]}… proves it")

    def not_paid(self, asked: PaymentRequired, why: str) -> None:
        """Tell why an invoice was not paid."""
        self._asked(asked)
        self.last_fault = f"{_short(asked.provider)}: {printable(why, limit=_INFO_LIMIT)}"
        self._tell("not paid", self.last_fault, paint=Paint.BAD)

    def in_doubt(self, asked: PaymentRequired, why: str) -> None:
        """Tell that it may have been paid."""
        self._in_doubt = True
        self.last_fault = f"{_short(asked.provider)}: {printable(why, limit=_INFO_LIMIT)}"
        self._tell(
            "in doubt", f"{self.last_fault}; it is not paid again, and the result is awaited", paint=Paint.BAD
        )

    # --- the end ----------------------------------------------------------------------------------------------

    def close(self, reason: str, exit_code: int, sentence: str) -> None:
        """End what is being shown, and print the JSON object if that was asked for."""
        self._text.end_line()
        self._mark("total_s")
        if self._json:
            say_json(self._summary(reason, exit_code, sentence))

    def _summary(self, reason: str, exit_code: int, sentence: str) -> dict[str, Any]:
        request, receipt, result = self._request, self._receipt, self._result
        return {
            "request_id": None if request is None else request.id,
            "kind": None if request is None else request.kind,
            "customer": None if request is None else encode_npub(request.pubkey),
            "relays": list(self._relays),
            "provider": None if self._provider is None else encode_npub(self._provider),
            "status": self._status,
            "result": None if result is None else result.content,
            "result_id": None if result is None else result.event.id,
            "payment": self._payment(),
            "amount_msats": 0 if receipt is None else receipt.amount_msats,
            "fee_msats": 0 if receipt is None or self.payer is None else self.payer.fee_msats,
            "payment_hash": None if receipt is None else receipt.payment_hash,
            "preimage": None if receipt is None else receipt.preimage,
            "unpaid_invoice": None if self._unpaid is None else self._unpaid.bolt11,
            "unpaid_msats": None if self._unpaid is None else self._unpaid.amount_msats,
            "timings": {name: round(value, 3) for name, value in self._timings.items()},
            "dropped": {} if self._order is None else self._order.dropped,
            "exit_reason": reason,
            "exit_code": exit_code,
            "explanation": sentence,
        }

    def _payment(self) -> str:
        if self._receipt is not None:
            return "paid"
        if self._in_doubt:
            return "in-doubt"
        return "none" if self._unpaid is None else "unpaid"

    # --- inside -----------------------------------------------------------------------------------------------

    def _asked(self, asked: PaymentRequired) -> None:
        if self._result is None:
            self._note(asked.provider, "payment-required")
        self._mark("invoice_s")
        if self._receipt is None:
            self._unpaid = asked
        if asked.provider != self._streamer:
            self._stream_of(None)  # what others wrote is not what is bought

    def _stream_of(self, provider: str | None) -> None:
        self._text.restart()
        self._streamer = provider

    def _note(self, provider: str, status: str) -> None:
        self._provider, self._status = provider, status
        self._mark("first_reply_s")

    def _mark(self, name: str) -> float:
        """Return the seconds since the start at which something happened first."""
        return self._timings.setdefault(name, self._monotonic() - self._began)

    def _tell(self, label: str, line: str, *, paint: Paint | None = None) -> None:
        # A provider that says the same again and again is shown once.
        if (label, line) != self._last_line:
            self._last_line = (label, line)
            self._text.end_line()
            self._story.tell(label, line, paint=paint)


class GrowingText:
    """Text that comes in pieces: what was written once stays and is not written again."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown = ""
        self._in_line = False

    def grow(self, text: str, *, whole: bool) -> None:
        """Show output so far. When it need not be the whole, and does not go on from before, it is the next piece.

        A whole text that does not go on from before starts anew, on its own line.
        """
        if not text.startswith(self._shown):
            if not whole:
                text = self._shown + text
            else:
                self.restart()
        piece, self._shown = text[len(self._shown) :], text
        self._write(shown(piece))

    def restart(self) -> None:
        """Let what comes start on its own line, whatever was shown."""
        self.end_line()
        self._shown = ""

    def finish(self, text: str) -> None:
        """Show the whole text at last, and end its line."""
        self.grow(text, whole=True)
        self.end_line()

    def end_line(self) -> None:
        """Start a new line unless one was just started."""
        if self._in_line:
            self._write("\n")

    def _write(self, text: str) -> None:
        if text:
            self._stream.write(text)
            self._stream.flush()
            self._in_line = not text.endswith("\n")


def shown(text: str) -> str:
    """Return a provider's text, whole, so that it cannot steer a terminal."""
    return printable(text, limit=len(text), keep_newlines=True)


def _short(provider: str) -> str:
    return f"{encode_npub(provider)[:_SHORT_NPUB]}…"


def _joined(head: str, text: str) -> str:
    rest = printable(text, limit=_INFO_LIMIT)
    return ": ".join(part for part in (head, rest) if part)
