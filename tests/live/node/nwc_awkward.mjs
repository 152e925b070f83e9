// An awkward NIP-47 wallet service for each of two LNbits wallets, as early ones are: NIP-04 and nothing else, no
// notifications, no `state` but `settled_at` alone, null where there is nothing, the preimage in look-ups of unpaid
// invoices, descriptions replaced by their hash, metadata forgotten, one relay connection without a second try.
// Orders and answer are nwc_alby.mjs's.
import crypto from "node:crypto";
import * as nip04 from "nostr-tools/nip04";
import { finalizeEvent, getPublicKey } from "nostr-tools/pure";
import { Relay } from "nostr-tools/relay";
import { hexToBytes } from "nostr-tools/utils";
import { LnbitsWallet } from "./lnbits.mjs";
import { orders, ready, Refusal, unixNow } from "./program.mjs";

const METHODS = {
  get_info: async (wallet) => ({ ...(await wallet.info()), methods: Object.keys(METHODS) }),
  get_balance: async (wallet) => ({ balance: await wallet.balance() }),
  make_invoice: (wallet, q) => wallet.makeInvoice(q),
  lookup_invoice: (wallet, q) => wallet.lookUp(q),
  pay_invoice: async (wallet, q) => ({ preimage: (await wallet.pay(q)).preimage }), // the fee is not told
  list_transactions: (wallet, q) => wallet.list(q),
};

class AwkwardWallet extends LnbitsWallet {
  transaction(payment) {
    const settled = payment.status === "success";
    const { type, invoice, payment_hash, amount, fees_paid, created_at, expires_at } = super.transaction(payment);
    return {
      type, invoice, payment_hash, amount, fees_paid, created_at, expires_at,
      description: null,
      description_hash: payment.extra?.description_hash ?? null,
      preimage: payment.preimage ?? null,
      settled_at: settled ? super.transaction(payment).settled_at : null,
      metadata: null,
    };
  }

  makeInvoice({ amount, description = "", description_hash, expiry }) {
    const hash = description_hash ?? crypto.createHash("sha256").update(description).digest("hex");
    return super.makeInvoice({ amount, description_hash: hash, expiry, metadata: { description_hash: hash } });
  }

  async list(q) {
    const listed = await super.list({ ...q, unpaid: true, limit: Infinity, offset: 0 });
    const wanted = listed.transactions.filter((each) => q.unpaid || each.settled_at !== null);
    return { transactions: wanted.slice(q.offset ?? 0, (q.offset ?? 0) + (q.limit ?? 20)) };
  }
}

async function serve(relayUrl, { wallet_secret, client_secret }, wallet) {
  const [secret, client] = [hexToBytes(wallet_secret), getPublicKey(hexToBytes(client_secret))];
  const pubkey = getPublicKey(secret);
  const relay = await Relay.connect(relayUrl);
  const send = (kind, tags, content) => relay.publish(finalizeEvent({ kind, created_at: unixNow(), tags, content }, secret));
  await send(13194, [], Object.keys(METHODS).join(" "));
  const answer = async (event) => {
    const { method, params } = JSON.parse(await nip04.decrypt(secret, client, event.content));
    let body = { result_type: method, error: null, result: null };
    try {
      if (!METHODS[method]) throw new Refusal("NOT_IMPLEMENTED", `no ${method} here`);
      body.result = await METHODS[method](wallet, params ?? {});
    } catch (error) {
      body.error = { code: error.code ?? "INTERNAL", message: error.message };
    }
    await send(23195, [["p", client], ["e", event.id]], await nip04.encrypt(secret, client, JSON.stringify(body)));
  };
  const filter = { kinds: [23194], authors: [client], "#p": [pubkey], since: unixNow() };
  await new Promise((subscribed) => {
    relay.subscribe([filter], {
      onevent: (event) => answer(event).catch((error) => console.error("not answered:", error.message)),
      oneose: subscribed,
    });
  });
  return `nostr+walletconnect://${pubkey}?relay=${encodeURIComponent(relayUrl)}&secret=${client_secret}`;
}

const { relay, base_url, ...wallets } = await orders();
const uris = {};
for (const [name, keys] of Object.entries(wallets)) {
  uris[name] = await serve(relay, keys, new AwkwardWallet({ name, base_url, ...keys }));
}
ready(uris);
