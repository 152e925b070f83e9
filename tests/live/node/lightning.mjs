// Two real LDK nodes, one channel between them, real HTLCs; the chain is regtest's and made up here: LDK trusts its
// source of blocks, so that headers need no proof of work and no bitcoind runs.
import crypto from "node:crypto";
import fs from "node:fs";
import { createRequire } from "node:module";
import net from "node:net";
import path from "node:path";
import * as ldk from "lightningdevkit";
import { Refusal, sleep, unixNow } from "./program.mjs";

const NETWORK = ldk.Network.LDKNetwork_Regtest;
const ERROR_LEVEL = 5;
const POLL_MS = 10;
const OPEN_LIMIT_MS = 20_000;
const PAY_LIMIT_MS = 20_000;
const CONFIRMATIONS = 8;

const hex = (bytes) => Buffer.from(bytes).toString("hex");
const sha256 = (bytes) => crypto.createHash("sha256").update(bytes).digest();
const blockHash = (bytes) => sha256(sha256(bytes));
const none64 = () => ldk.Option_u64Z.constructor_none();

function ok(result, what) {
  if (!result.is_ok()) throw new Error(`${what}: ${result.err?.constructor.name ?? ""} ${result.err}`);
  return result.res;
}

export async function startLdk() {
  const folder = path.dirname(createRequire(import.meta.url).resolve("lightningdevkit"));
  await ldk.initializeWasmFromBinary(fs.readFileSync(path.join(folder, "liblightningjs.wasm")));
}

class Chain {
  height = 0;
  tip = Buffer.from(ldk.BestBlock.constructor_from_network(NETWORK).get_block_hash());

  mine(nodes, transaction, txid) {
    const header = Buffer.alloc(80);
    header.writeInt32LE(4, 0);
    this.tip.copy(header, 4);
    (txid ?? crypto.randomBytes(32)).copy(header, 36);
    header.writeUInt32LE(unixNow(), 68);
    header.writeUInt32LE(0x207fffff, 72);
    this.height += 1;
    for (const node of nodes) {
      for (const listener of [node.manager.as_Confirm(), node.monitor.as_Confirm()]) {
        if (transaction) {
          const at = ldk.TwoTuple_usizeTransactionZ.constructor_new(1, transaction);
          listener.transactions_confirmed(header, [at], this.height);
        }
        listener.best_block_updated(header, this.height);
      }
    }
    this.tip = blockHash(header);
  }
}

// One node: it makes invoices, takes what is paid to them, and pays. Amounts are BigInts of msats.
class Node {
  broadcast = [];
  funding = null; // the channel that waits for its funding transaction
  paying = new Map(); // payment hash -> what hears how it ended
  onReceived = () => {}; // (payment hash, amount)

  constructor(name, chain) {
    const fees = ldk.FeeEstimator.new_impl({ get_est_sat_per_1000_weight: () => 253 });
    const broadcaster = ldk.BroadcasterInterface.new_impl({
      broadcast_transactions: (transactions) => this.broadcast.push(...transactions),
    });
    const log = ldk.Logger.new_impl({
      log: (line) => line.get_level() >= ERROR_LEVEL && console.error(name, line.get_module_path(), line.get_args()),
    });
    const kept = () => ldk.ChannelMonitorUpdateStatus.LDKChannelMonitorUpdateStatus_Completed;
    const persister = ldk.Persist.new_impl({
      persist_new_channel: kept,
      update_persisted_channel: kept,
      archive_persisted_channel() {},
    });
    const filter = ldk.Option_FilterZ.constructor_none();
    this.monitor = ldk.ChainMonitor.constructor_new(filter, broadcaster, log, fees, persister);
    this.keys = ldk.KeysManager.constructor_new(crypto.randomBytes(32), BigInt(unixNow()), 1);
    const entropy = this.keys.as_EntropySource();
    const graph = ldk.NetworkGraph.constructor_new(NETWORK, log);
    const decay = ldk.ProbabilisticScoringDecayParameters.constructor_default();
    const scorer = ldk.ProbabilisticScorer.constructor_new(decay, graph, log);
    const score = ldk.MultiThreadedLockableScore.constructor_new(scorer.as_Score()).as_LockableScore();
    const scoring = ldk.ProbabilisticScoringFeeParameters.constructor_default();
    const router = ldk.DefaultRouter.constructor_new(graph, log, entropy, score, scoring);
    const messages = ldk.DefaultMessageRouter.constructor_new(graph, entropy);
    const best = ldk.BestBlock.constructor_new(chain.tip, chain.height);
    this.manager = ldk.ChannelManager.constructor_new(
      fees, this.monitor.as_Watch(), broadcaster, router.as_Router(), messages.as_MessageRouter(), log, entropy,
      this.keys.as_NodeSigner(), this.keys.as_SignerProvider(), ldk.UserConfig.constructor_default(),
      ldk.ChainParameters.constructor_new(NETWORK, best), unixNow(),
    );
    const ignore = ldk.IgnoringMessageHandler.constructor_new();
    this.peers = ldk.PeerManager.constructor_new(
      this.manager.as_ChannelMessageHandler(), ignore.as_RoutingMessageHandler(), ignore.as_OnionMessageHandler(),
      ignore.as_CustomMessageHandler(), unixNow(), entropy.get_secure_random_bytes(), log, this.keys.as_NodeSigner(),
    );
    this.id = this.manager.get_our_node_id();
    this.handler = ldk.EventHandler.new_impl({
      handle_event: (event) => {
        this.hear(event);
        return ldk.Result_NoneReplayEventZ.constructor_ok();
      },
    });
  }

  poll() {
    this.peers.process_events();
    this.manager.process_pending_htlc_forwards();
    this.manager.as_EventsProvider().process_pending_events(this.handler);
    this.monitor.as_EventsProvider().process_pending_events(this.handler);
    this.peers.process_events();
  }

  hear(event) {
    if (event instanceof ldk.Event_FundingGenerationReady) this.funding = event;
    else if (event instanceof ldk.Event_PaymentClaimable) {
      // LDK has compared the amount and the payment secret with the invoice's.
      const preimage = event.purpose.preimage();
      if (preimage instanceof ldk.Option_ThirtyTwoBytesZ_Some) this.manager.claim_funds(preimage.some);
    } else if (event instanceof ldk.Event_PaymentClaimed) {
      this.onReceived(hex(event.payment_hash), event.amount_msat);
    } else if (event instanceof ldk.Event_PaymentSent) {
      const fee = event.fee_paid_msat instanceof ldk.Option_u64Z_Some ? event.fee_paid_msat.some : 0n;
      this.paying.get(hex(event.payment_hash))?.sent(hex(event.payment_preimage), fee);
    } else if (event instanceof ldk.Event_PaymentFailed) {
      this.paying.get(hex(event.payment_id))?.failed();
    }
  }

  // What it can spend: its side of the channel but for the reserve, to the msat.
  balance() {
    return this.manager.list_usable_channels().reduce((sum, channel) => sum + channel.get_outbound_capacity_msat(), 0n);
  }

  makeInvoice(amount, description, descriptionHash, expiryS) {
    const text = () => ldk.Bolt11InvoiceDescription.constructor_direct(
      ok(ldk.Description.constructor_new(description), "description"),
    );
    const digest = () => ldk.Bolt11InvoiceDescription.constructor_hash(
      ldk.Sha256.constructor_from_bytes(Buffer.from(descriptionHash, "hex")),
    );
    const made = ok(this.manager.create_bolt11_invoice(
      ldk.Option_u64Z.constructor_some(amount), descriptionHash ? digest() : text(),
      ldk.Option_u32Z.constructor_some(expiryS), ldk.Option_u16Z.constructor_none(),
      ldk.Option_ThirtyTwoBytesZ.constructor_none(),
    ), "invoice");
    return readInvoice(made);
  }

  // Returns {preimage, fee} when it is paid. Throws Refusal when it certainly is not.
  pay(bolt11) {
    const parsed = ldk.Bolt11Invoice.constructor_from_str(bolt11);
    if (!parsed.is_ok()) throw new Refusal("OTHER", "not an invoice");
    const invoice = parsed.res;
    const { payment_hash: hash, amount } = readInvoice(invoice);
    if (invoice.would_expire(BigInt(unixNow()))) throw new Refusal("PAYMENT_FAILED", "the invoice has expired");
    if (amount > this.balance()) throw new Refusal("INSUFFICIENT_BALANCE", "the channel has less than that");
    const parameters = ok(ldk.UtilMethods.constructor_payment_parameters_from_invoice(invoice), "an amount");
    const [id, onion, route] = [parameters.get_a(), parameters.get_b(), parameters.get_c()];
    return new Promise((resolve, reject) => {
      const late = setTimeout(() => this.manager.abandon_payment(id), PAY_LIMIT_MS);
      const end = (how) => {
        clearTimeout(late);
        this.paying.delete(hash);
        how();
      };
      this.paying.set(hash, {
        sent: (preimage, fee) => end(() => resolve({ preimage, fee })),
        failed: () => end(() => reject(new Refusal("PAYMENT_FAILED", "no route, or the payee refused"))),
      });
      const sent = this.manager.send_payment(id, onion, id, route, ldk.Retry.constructor_attempts(3));
      if (!sent.is_ok()) end(() => reject(new Refusal("PAYMENT_FAILED", "no route")));
    });
  }
}

export function readInvoice(invoice) {
  return {
    bolt11: invoice.to_str(),
    payment_hash: hex(invoice.payment_hash()),
    amount: invoice.amount_milli_satoshis().some ?? 0n,
    created_at: Number(invoice.duration_since_epoch()),
    expires_at: Number(invoice.duration_since_epoch() + invoice.expiry_time()),
  };
}

function socketOf(node, socket, number) {
  const descriptor = ldk.SocketDescriptor.new_impl({
    send_data: (data) => (socket.write(Buffer.from(data)), data.length),
    disconnect_socket: () => socket.destroy(),
    eq: (other) => other.hash() === number,
    hash: () => number,
  });
  socket.setNoDelay(true);
  socket.on("error", (error) => console.error("peers:", error.message));
  socket.on("data", (bytes) => {
    if (!node.peers.read_event(descriptor, bytes).is_ok()) socket.destroy();
    node.peers.process_events();
  });
  return descriptor;
}

async function connect(from, to) {
  const noAddress = () => ldk.Option_SocketAddressZ.constructor_none();
  const server = net.createServer((socket) => to.peers.new_inbound_connection(socketOf(to, socket, 1n), noAddress()));
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const socket = net.connect(server.address().port, "127.0.0.1");
  await new Promise((resolve, reject) => socket.once("connect", resolve).once("error", reject));
  const descriptor = socketOf(from, socket, 2n);
  const hello = ok(from.peers.new_outbound_connection(to.id, descriptor, noAddress()), "connection");
  socket.write(Buffer.from(hello));
}

// A transaction that pays the channel: its one input spends what does not exist.
function fundingTransaction(script, sats) {
  const value = Buffer.alloc(8);
  value.writeBigUInt64LE(sats);
  const input = Buffer.concat([Buffer.alloc(32, 7), Buffer.alloc(4), Buffer.from([0]), Buffer.alloc(4, 0xff)]);
  const output = Buffer.concat([value, Buffer.from([script.length]), script]);
  const build = (witness) => Buffer.concat([
    Buffer.from([2, 0, 0, 0]), Buffer.from(witness ? [0, 1] : []), Buffer.from([1]), input, Buffer.from([1]), output,
    Buffer.from(witness ? [1, 1, 0xff] : []), Buffer.alloc(4),
  ]);
  return { bytes: build(true), txid: blockHash(build(false)) };
}

// Both sides have money in it: below its reserve a node would have no balance to speak of.
export async function openChannel(customerSats, providerSats) {
  const chain = new Chain();
  const [customer, provider] = ["customer", "provider"].map((name) => new Node(name, chain));
  const nodes = [customer, provider];
  const until = async (what, condition) => {
    for (const limit = Date.now() + OPEN_LIMIT_MS; !condition(); await sleep(POLL_MS)) {
      if (Date.now() > limit) throw new Error(`no ${what} within ${OPEN_LIMIT_MS} ms`);
    }
  };
  setInterval(() => nodes.forEach((node) => node.poll()), POLL_MS);
  setInterval(() => nodes.forEach((node) => (node.manager.timer_tick_occurred(), node.peers.timer_tick_occurred())), 10_000);
  chain.mine(nodes);
  await connect(customer, provider);
  await until("connection", () => nodes.every((node) => node.peers.list_peers().length));
  const [sats, pushed] = [BigInt(customerSats + providerSats), BigInt(providerSats) * 1000n];
  ok(customer.manager.create_channel(provider.id, sats, pushed, 7n, null, null), "channel");
  await until("request for funding", () => customer.funding);
  const { temporary_channel_id: id, counterparty_node_id: peer, output_script: script } = customer.funding;
  const { bytes, txid } = fundingTransaction(Buffer.from(script), sats);
  ok(customer.manager.funding_transaction_generated(id, peer, bytes), "funding");
  await until("funding", () => customer.broadcast.length);
  chain.mine(nodes, bytes, txid);
  for (let count = 0; count < CONFIRMATIONS; count++) chain.mine(nodes);
  await until("channel", () => nodes.every((node) => node.manager.list_usable_channels().length));
  return { customer, provider };
}
