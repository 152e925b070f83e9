"""Paying lightning addresses: what is refused for good, what may be asked again, which invoices are not paid."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import httpx
import pytest

from pylon.jobs.ports import PayeeRefused, PayeeUnavailable
from pylon.net.web import Web, WebPolicy
from pylon.nostr.bolt11 import read_invoice
from pylon.text import printable
from pylon.wallets.lnurl_pay import LightningAddresses
from tests.support import lnbits as lnbits_support
from tests.support.lnbits import Lnbits
from tests.support.lnurl_host import METADATA, LnurlHost, lnurl_host
from tests.support.lnurl_node import make_invoice

OFFER = "/.well-known/lnurlp/pylon"


def addresses(network: str = "regtest") -> LightningAddresses:
    return LightningAddresses(Web(WebPolicy(allow_private=True, timeout_s=5.0)), network=network, clock=time.time)


async def test_an_invoice_over_exactly_the_amount_is_fetched() -> None:
    async with lnurl_host() as host:
        bolt11 = await addresses().invoice_for(host.address, 21_500)
    assert bolt11 == host.invoices[0] and read_invoice(bolt11).amount_msats == 21_500


async def refused(host: LnurlHost, amount_msats: int = 21_000) -> str:
    with pytest.raises(PayeeRefused) as caught:
        await addresses().invoice_for(host.address, amount_msats)
    assert printable(str(caught.value), limit=1_000) == str(caught.value)
    return str(caught.value)


async def unavailable(host: LnurlHost) -> str:
    with pytest.raises(PayeeUnavailable) as caught:
        await addresses().invoice_for(host.address, 21_000)
    assert printable(str(caught.value), limit=1_000) == str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("address", ["", "nobody", "a@b@c", "lnurl1xyz", "pylon@exa mple.com"])
async def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(PayeeRefused, match="not a lightning address"):
        await addresses().invoice_for(address, 1_000)


@pytest.mark.parametrize(
    "address", ["x@127.0.0.1:5000", "x@10.1.2.3", "x@localhost", "x@router", "x@metadata.google.internal"]
)
async def test_an_address_inside_is_refused_unasked(address: str) -> None:
    async def resolver(name: str, port: int) -> Sequence[str]:
        raise AssertionError("nothing is resolved")

    payees = LightningAddresses(Web(resolver=resolver), network="bitcoin", clock=time.time)
    with pytest.raises(PayeeRefused):
        await payees.invoice_for(address, 1_000)


@pytest.mark.parametrize(
    "answer",
    [
        (404, {"detail": "none"}),
        (410, None),
        (404, {"status": "ERROR", "reason": "x"}),
        (200, {"status": "ERROR", "reason": "x"}),
    ],
)
async def test_an_address_that_does_not_exist_is_refused(answer: tuple[int, Any]) -> None:
    async with lnurl_host(answers={OFFER: answer}) as host:
        await refused(host)


async def test_an_amount_that_it_does_not_take_is_refused_unasked() -> None:
    async with lnurl_host() as host:
        assert "1000 to 10000000 msats" in await refused(host, 999)
        await refused(host, 10_000_001)
        assert host.count("/cb") == 0


@pytest.mark.parametrize("path", [OFFER, "/cb"])
@pytest.mark.parametrize(
    "answer",
    [
        (500, {"detail": "x"}),
        (502, None),
        (429, None),
        (503, {"status": "ERROR", "reason": "x"}),
        (429, {"status": "ERROR", "reason": "x"}),
        (200, []),
        (200, {}),
        (301, {}),
    ],
)
async def test_a_host_in_trouble_may_be_asked_again(path: str, answer: tuple[int, Any]) -> None:
    async with lnurl_host(answers={path: answer}) as host:
        await unavailable(host)


async def test_what_the_callback_refuses_may_be_a_matter_of_the_moment() -> None:
    async with lnurl_host(answers={"/cb": (200, {"status": "ERROR", "reason": "node is down"})}) as host:
        assert "node is down" in await unavailable(host)


@pytest.mark.parametrize("path", [OFFER, "/cb"])
async def test_a_broken_connection_may_be_tried_again(path: str) -> None:
    async with lnurl_host(breaks={path}) as host:
        await unavailable(host)


async def test_nobody_there_may_be_tried_again() -> None:
    async with lnurl_host() as host:
        pass
    await unavailable(host)


async def test_a_callback_that_leads_inside_is_not_followed() -> None:
    offer = {"tag": "payRequest", "metadata": METADATA, "minSendable": 1, "maxSendable": 10**9}
    async with lnurl_host(answers={OFFER: (200, {**offer, "callback": "http://10.0.0.1/cb"})}) as host:
        await refused(host)


def invoices() -> dict[str, str]:
    right = make_invoice(21_000)
    return {
        "another amount": make_invoice(21_001).bolt11,
        "no amount": make_invoice(0).bolt11,
        "expired": make_invoice(21_000, created_at=int(time.time()) - 700).bolt11,
        "expires at once": make_invoice(21_000, expiry_s=5).bolt11,
        "another description": make_invoice(21_000, description_hash="ab" * 32).bolt11,
        "garbage": "lnbcrt1qqqq",
        "checksum": right.bolt11[:-1] + ("q" if right.bolt11[-1] != "q" else "p"),
    }


@pytest.mark.parametrize("name", invoices())
async def test_an_invoice_that_is_not_to_be_paid_is_not_handed_on(name: str) -> None:
    async with lnurl_host(answers={"/cb": (200, {"pr": invoices()[name]})}) as host:
        await unavailable(host)


async def test_an_invoice_of_another_network_is_not_handed_on() -> None:
    async with lnurl_host() as host:
        with pytest.raises(PayeeUnavailable, match="for regtest, not for bitcoin"):
            await addresses("bitcoin").invoice_for(host.address, 21_000)


# --- a real LNbits ------------------------------------------------------------------------------------------------


async def test_a_lightning_address_of_a_real_lnbits_is_paid(lnbits: Lnbits) -> None:
    payee = lnbits.account("payee")
    payees = addresses(lnbits_support.NETWORK)
    bolt11 = await payees.invoice_for(payee.address, 21_000)
    lnbits.pay(bolt11)
    assert lnbits.balance_msats(payee) == 21_000
    with pytest.raises(httpx.HTTPStatusError):  # the same invoice is not paid twice
        lnbits.pay(bolt11)
    with pytest.raises(PayeeRefused, match="not found"):
        await payees.invoice_for(payee.address.replace("payee-", "nobody-"), 21_000)
    with pytest.raises(PayeeRefused, match="takes 1000 to"):
        await payees.invoice_for(payee.address, 500)
    with pytest.raises(PayeeUnavailable, match="1500 msats were agreed"):  # it makes a whole sat of it
        await payees.invoice_for(payee.address, 1_500)
