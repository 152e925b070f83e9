// A customer of kind 5050 made of nostr-tools alone: it asks one provider, pays the invoice through LNbits, waits for
// the result and checks it. Orders: relay, provider, prompt, secret, bid_msats, purse (an LNbits wallet). Answer: what
// buy_ndk.mjs tells, too.
import { orders, ready, unixNow } from "./program.mjs"; // first: it brings the WebSocket
import { SimplePool } from "nostr-tools/pool";
import { finalizeEvent, getPublicKey, verifyEvent } from "nostr-tools/pure";
import { hexToBytes } from "nostr-tools/utils";
import { LnbitsWallet } from "./lnbits.mjs";

const { relay, provider, prompt, secret, bid_msats, purse } = await orders();
const key = hexToBytes(secret);
const tag = (event, name) => event.tags.find((each) => each[0] === name) ?? [];

const pool = new SimplePool({ automaticallyAuth: () => async (event) => finalizeEvent(event, key) });
const request = finalizeEvent({
  kind: 5050,
  created_at: unixNow(),
  tags: [["i", prompt, "text"], ["p", provider], ["bid", `${bid_msats}`], ["relays", relay], ["output", "text/plain"]],
  content: "",
}, key);

const told = { customer: getPublicKey(key), request_id: request.id, statuses: [] };
const wallet = new LnbitsWallet(purse);

async function hear(event) {
  if (event.kind === 6050) {
    const names = tag(event, "e")[1] === request.id && tag(event, "p")[1] === told.customer;
    const copy = JSON.parse(tag(event, "request")[1]);
    ready({ ...told, result: event, valid: verifyEvent(event), names, copied: verifyEvent(copy) && copy.id === request.id });
    return;
  }
  const [, status, info] = tag(event, "status");
  told.statuses.push(status);
  if (status === "error") ready({ ...told, error: info });
  if (status !== "payment-required" || told.bolt11) return;
  [, told.amount, told.bolt11] = tag(event, "amount");
  told.preimage = (await wallet.pay({ invoice: told.bolt11 })).preimage;
}

pool.subscribe([relay], { kinds: [6050, 7000], authors: [provider], "#e": [request.id] }, { onevent: hear });
await Promise.all(pool.publish([relay], request));
