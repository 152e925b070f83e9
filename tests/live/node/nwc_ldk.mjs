// Two LDK nodes with a channel between them (lightning.mjs), each behind a NIP-47 service by @getalby/sdk. Told
// {relay, provider: {wallet_secret, client_secret}, customer: {…}}, it answers {provider: URI, customer: URI}.
import * as ldk from "lightningdevkit";
import { serve } from "./alby_service.mjs";
import { openChannel, readInvoice, startLdk } from "./lightning.mjs";
import { orders, ready, Refusal, unixNow } from "./program.mjs";

const SATS = 1_000_000; // of each in the channel

// The books of one node, which LDK leaves to whoever runs it.
class LdkWallet {
  transactions = new Map(); // payment hash and direction -> transaction
  hears = () => {};

  constructor(name, node) {
    this.name = name;
    this.node = node;
    node.onReceived = (hash, amount) => {
      const invoice = this.transactions.get(`incoming ${hash}`);
      this.settle(invoice, { amount: Number(amount) });
    };
  }

  settle(transaction, known) {
    Object.assign(transaction, known, { state: "settled", settled_at: unixNow() });
    this.hears(transaction);
  }

  info() {
    return { alias: `LDK ${this.name}`, color: "#ff9900", network: "regtest", block_height: 10, block_hash: "00".repeat(32) };
  }

  balance() {
    return Number(this.node.balance());
  }

  makeInvoice({ amount, description = "", description_hash = "", expiry = 3600, metadata = {} }) {
    const made = this.node.makeInvoice(BigInt(amount), description, description_hash, expiry);
    const transaction = {
      type: "incoming", state: "pending", invoice: made.bolt11, description, description_hash, preimage: "",
      payment_hash: made.payment_hash, amount, fees_paid: 0, created_at: made.created_at,
      expires_at: made.expires_at, metadata,
    };
    this.transactions.set(`incoming ${made.payment_hash}`, transaction);
    return transaction;
  }

  lookUp({ payment_hash, invoice }) {
    const hash = payment_hash ?? readInvoice(ldk.Bolt11Invoice.constructor_from_str(invoice).res).payment_hash;
    const found = ["incoming", "outgoing"].map((type) => this.transactions.get(`${type} ${hash}`)).find(Boolean);
    if (!found) throw new Refusal("NOT_FOUND", "no such payment");
    return this.shown(found);
  }

  async pay({ invoice: bolt11 }) {
    const parsed = ldk.Bolt11Invoice.constructor_from_str(bolt11);
    if (!parsed.is_ok()) throw new Refusal("OTHER", "not an invoice");
    const invoice = readInvoice(parsed.res);
    const key = `outgoing ${invoice.payment_hash}`;
    if (["pending", "settled"].includes(this.transactions.get(key)?.state)) {
      throw new Refusal("PAYMENT_FAILED", "this invoice is paid already, or being paid");
    }
    const transaction = {
      type: "outgoing", state: "pending", invoice: bolt11, description: "", description_hash: "", preimage: "",
      payment_hash: invoice.payment_hash, amount: Number(invoice.amount), fees_paid: 0, created_at: unixNow(),
      expires_at: invoice.expires_at, metadata: {},
    };
    this.transactions.set(key, transaction);
    try {
      const { preimage, fee } = await this.node.pay(bolt11);
      this.settle(transaction, { preimage, fees_paid: Number(fee) });
      return { preimage, fees_paid: Number(fee) };
    } catch (error) {
      transaction.state = "failed";
      throw error;
    }
  }

  list({ from = 0, until = Infinity, limit = 50, offset = 0, unpaid = false, type }) {
    const wanted = [...this.transactions.values()].map((each) => this.shown(each)).reverse().filter(
      (each) => each.created_at >= from && each.created_at <= until && (!type || each.type === type) &&
        (unpaid || each.state === "settled"),
    );
    return { transactions: wanted.slice(offset, offset + limit), total_count: wanted.length };
  }

  shown(transaction) {
    const dead = transaction.state === "pending" && transaction.type === "incoming" && transaction.expires_at < unixNow();
    return dead ? { ...transaction, state: "expired" } : transaction;
  }

  onChange(callback) {
    this.hears = callback;
  }
}

const { relay, ...connections } = await orders();
await startLdk();
const nodes = await openChannel(SATS, SATS);
const uris = {};
for (const [name, keys] of Object.entries(connections)) {
  uris[name] = await serve({ relay, ...keys }, new LdkWallet(name, nodes[name]));
}
ready(uris);
