// One wallet of an LNbits, as NIP-47 speaks of wallets. Facts of LNbits 1.6: whole sats; its owner sees the preimage of
// unpaid invoices; unpaid invoices are "failed" after its restart; some times come without their zone, which is UTC.
import WebSocket from "ws";
import { Refusal, sleep } from "./program.mjs";

const RECONNECT_MS = 200;
const REFUSALS = [
  [/insufficient balance/i, "INSUFFICIENT_BALANCE"],
  [/already paid|internal invoice|invoice|payment failed/i, "PAYMENT_FAILED"],
];

const unix = (time) => (time ? Math.floor(Date.parse(/Z$|[+]\d\d:?\d\d$/.test(time) ? time : `${time}Z`) / 1000) : undefined);

export class LnbitsWallet {
  constructor({ name, base_url, admin_key, invoice_key }) {
    Object.assign(this, { name, url: base_url, adminKey: admin_key, invoiceKey: invoice_key });
  }

  async call(key, method, path, body) {
    let response, answer;
    try {
      const headers = { "X-Api-Key": key, "Content-Type": "application/json" };
      response = await fetch(this.url + path, { method, headers, body: body && JSON.stringify(body) });
      answer = await response.json();
    } catch (error) {
      throw new Refusal("INTERNAL", `LNbits does not answer: ${error.message}`);
    }
    if (response.ok) return answer;
    const detail = typeof answer.detail === "string" ? answer.detail : `status ${response.status}`;
    const known = REFUSALS.find(([words]) => words.test(detail));
    throw new Refusal(response.status === 404 ? "NOT_FOUND" : known ? known[1] : "INTERNAL", detail);
  }

  transaction(payment) {
    const settled = payment.status === "success";
    return {
      type: payment.amount >= 0 ? "incoming" : "outgoing",
      state: settled ? "settled" : payment.status === "failed" ? "failed" : "pending",
      invoice: payment.bolt11,
      description: payment.memo ?? "",
      description_hash: "",
      payment_hash: payment.payment_hash,
      preimage: settled ? (payment.preimage ?? "") : "",
      amount: Math.abs(payment.amount),
      fees_paid: Math.abs(payment.fee),
      created_at: unix(payment.created_at ?? payment.time),
      expires_at: unix(payment.expiry),
      settled_at: settled ? unix(payment.updated_at) : undefined,
      metadata: payment.extra ?? {},
    };
  }

  async info() {
    return { alias: `LNbits ${this.name}`, color: "#3399ff", network: "mainnet", block_height: 1, block_hash: "00".repeat(32) };
  }

  async balance() {
    return (await this.call(this.invoiceKey, "GET", "/api/v1/wallet")).balance;
  }

  async makeInvoice({ amount, description = "", description_hash, expiry = 3600, metadata = {} }) {
    if (amount < 1000 || amount % 1000) throw new Refusal("OTHER", "the amount is not in whole sats");
    const asked = { out: false, unit: "sat", amount: amount / 1000, memo: description, description_hash, expiry, extra: metadata };
    return this.transaction(await this.call(this.invoiceKey, "POST", "/api/v1/payments", asked));
  }

  async lookUp({ payment_hash, invoice }) {
    const hash = payment_hash ??
      (await this.call(this.invoiceKey, "POST", "/api/v1/payments/decode", { data: invoice })).payment_hash;
    const found = await this.call(this.invoiceKey, "GET", `/api/v1/payments/${hash}`);
    // Who is not its owner is told no more than whether it is paid.
    if (!found.details) throw new Refusal("NOT_FOUND", "not a payment of this wallet");
    return this.transaction(found.details);
  }

  async pay({ invoice }) {
    const paid = await this.call(this.adminKey, "POST", "/api/v1/payments", { out: true, bolt11: invoice });
    if (paid.status !== "success") throw new Refusal("PAYMENT_FAILED", `the payment is ${paid.status}`);
    return { preimage: paid.preimage, fees_paid: Math.abs(paid.fee) };
  }

  async list({ from = 0, until = Infinity, limit = 50, offset = 0, unpaid = false, type }) {
    const wanted = [];
    for (let skip = 0, page = []; skip === 0 || page.length === 1000; skip += 1000) {
      const where = `limit=1000&offset=${skip}&sortby=time&direction=desc`;
      page = (await this.call(this.invoiceKey, "GET", `/api/v1/payments?${where}`)).map((each) => this.transaction(each));
      wanted.push(...page.filter((each) => (unpaid || each.state === "settled") && (!type || each.type === type) &&
        each.created_at >= from && each.created_at <= until));
    }
    return { transactions: wanted.slice(offset, offset + limit), total_count: wanted.length };
  }

  // Hears settled transactions from now on; resolves once it is connected.
  onChange(callback) {
    return new Promise((connected) => {
      const connect = () => {
        const socket = new WebSocket(`${this.url.replace("http", "ws")}/api/v1/ws/${this.invoiceKey}`);
        socket.on("open", connected);
        socket.on("error", (error) => console.error(this.name, "pushes:", error.message));
        socket.on("close", () => sleep(RECONNECT_MS).then(connect));
        socket.on("message", (message) => {
          const { payment } = JSON.parse(message);
          if (payment?.status === "success") callback(this.transaction(payment));
        });
      };
      connect();
    });
  }
}
