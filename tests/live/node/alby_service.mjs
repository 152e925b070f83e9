// A NIP-47 wallet service by @getalby/sdk, in front of any wallet that has the methods below. Notifications, for which
// the SDK has no call, are sent by its own encryption and signature.
import { NWCWalletService, NWCWalletServiceKeyPair } from "@getalby/sdk/nwc";
import { getPublicKey } from "nostr-tools/pure";
import { hexToBytes } from "nostr-tools/utils";
import { unixNow } from "./program.mjs";

const METHODS = ["get_info", "get_balance", "make_invoice", "lookup_invoice", "pay_invoice", "list_transactions"];
const NOTIFICATIONS = ["payment_received", "payment_sent"];

// `wallet` has info(), balance(), makeInvoice(q), lookUp(q), pay(q), list(q), which throw Refusal or Error, and
// onChange(callback), which hears transactions that were settled. Returns the connection's URI once it is served.
export async function serve({ relay, wallet_secret, client_secret }, wallet) {
  const clientPubkey = getPublicKey(hexToBytes(client_secret));
  const keys = new NWCWalletServiceKeyPair(wallet_secret, clientPubkey);
  const service = new NWCWalletService({ relayUrl: relay });
  await service.publishWalletServiceInfoEvent(wallet_secret, METHODS, NOTIFICATIONS);
  const answer = (method) => async (params) => {
    try {
      return { result: await method(params ?? {}), error: undefined };
    } catch (error) {
      console.error(keys.walletPubkey.slice(0, 8), "refuses:", error.code, error.message);
      return { result: undefined, error: { code: error.code ?? "INTERNAL", message: error.message } };
    }
  };
  await service.subscribe(keys, {
    getInfo: answer(async () => ({
      ...(await wallet.info()),
      pubkey: keys.walletPubkey,
      methods: METHODS,
      notifications: NOTIFICATIONS,
    })),
    getBalance: answer(async () => ({ balance: await wallet.balance() })),
    makeInvoice: answer((q) => wallet.makeInvoice(q)),
    lookupInvoice: answer((q) => wallet.lookUp(q)),
    payInvoice: answer((q) => wallet.pay(q)),
    listTransactions: answer((q) => wallet.list(q)),
  });
  await wallet.onChange((transaction) => notify(service, keys, transaction));
  const relays = `relay=${encodeURIComponent(relay)}`;
  return `nostr+walletconnect://${keys.walletPubkey}?${relays}&secret=${client_secret}`;
}

async function notify(service, keys, transaction) {
  const type = transaction.type === "incoming" ? "payment_received" : "payment_sent";
  const body = JSON.stringify({ notification_type: type, notification: transaction });
  for (const [kind, encryption] of [[23197, "nip44_v2"], [23196, "nip04"]]) {
    const content = await service.encrypt(keys, body, encryption);
    const draft = { kind, created_at: unixNow(), tags: [["p", keys.clientPubkey]], content };
    try {
      await service.relay.publish(await service.signEvent(draft, keys.walletSecret));
    } catch (error) {
      console.error("notification lost:", error?.message ?? error); // as a wallet whose relay is away loses it
    }
  }
}
