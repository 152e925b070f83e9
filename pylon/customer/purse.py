"""A wallet as a customer's purse: what is unclear is asked again under the same id, never paid again."""

from __future__ import annotations

import hashlib
from typing import Final

import anyio

from pylon.jobs.ports import (
    Payment,
    PaymentState,
    Wallet,
    WalletAmbiguous,
    WalletRefused,
    WalletUnavailable,
)

ASK_EVERY_S: Final = 1.0
PATIENCE_S: Final = 60.0

_FAILED: Final = frozenset({PaymentState.FAILED, PaymentState.EXPIRED})


class WalletPayer:
    """A `Payer` over a `Wallet` that is running. `max_fee_msats` is what the way to the provider may cost."""

    def __init__(
        self,
        wallet: Wallet,
        max_fee_msats: int,
        *,
        ask_every_s: float = ASK_EVERY_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._wallet = wallet
        self._max_fee_msats = max_fee_msats
        self._ask_every_s = ask_every_s
        self._patience_s = patience_s
        self.fee_msats = 0

    async def pay(self, bolt11: str) -> str:
        """Pay and return the preimage; see `Payer`. What is unclear is asked again for up to `patience_s`."""
        own_id = f"request-{hashlib.sha256(bolt11.encode()).hexdigest()}"
        doubt = ""
        with anyio.move_on_after(self._patience_s):
            while True:
                try:
                    payment = await self._wallet.pay(bolt11, own_id=own_id, max_fee_msats=self._max_fee_msats)
                except WalletAmbiguous as error:
                    doubt = str(error)
                except (WalletRefused, WalletUnavailable) as error:
                    if not doubt:
                        raise
                    # It says nothing of the call before, which may have been carried out.
                    doubt = str(error)
                else:
                    if payment.state in _FAILED:
                        raise WalletRefused(f"the wallet could not pay the invoice: {payment.state}")
                    if payment.state is PaymentState.SETTLED:
                        return self._proof(payment)
                    doubt = "the wallet has not finished the payment"
                await anyio.sleep(self._ask_every_s)
        raise WalletAmbiguous(f"whether the invoice was paid is not certain: {doubt or 'no answer in time'}")

    def _proof(self, payment: Payment) -> str:
        self.fee_msats = payment.fee_msats
        if payment.preimage is None:
            raise WalletAmbiguous("the wallet says that it paid, and has no proof of it")
        return payment.preimage


async def require_ready(wallet: Wallet) -> None:
    """Raise `WalletUnavailable` unless the wallet answers."""
    state = await wallet.check()
    if not state.ready:
        raise WalletUnavailable(f"the {state.kind} wallet is not ready: {state.detail or 'it does not say why'}")
