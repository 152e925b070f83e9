// A customer of kind 5050 made of NDK's own classes for data vending machines: as buy_nostr_tools.mjs, from the same
// orders to the same answer. With `encrypted` the request is hidden by NDK before it is signed.
import { orders, ready } from "./program.mjs"; // first: it brings the WebSocket
import NDK, {
  NDKDVMJobFeedback, NDKDVMJobResult, NDKDVMRequest, NDKPrivateKeySigner, NDKRelayAuthPolicies, NDKRelaySet,
} from "@nostr-dev-kit/ndk";
import { LnbitsWallet } from "./lnbits.mjs";

const { relay, provider, prompt, secret, bid_msats, purse, encrypted } = await orders();

const ndk = new NDK({ explicitRelayUrls: [relay], enableOutboxModel: false, signer: new NDKPrivateKeySigner(secret) });
ndk.relayAuthDefaultPolicy = NDKRelayAuthPolicies.signIn({ ndk });
await ndk.connect();

const request = new NDKDVMRequest(ndk);
request.kind = 5050;
request.addInput(prompt, "text");
request.bid = bid_msats;
request.output = "text/plain";
const dvm = ndk.getUser({ pubkey: provider });
if (encrypted) await request.encryption(dvm);
else request.dvm = dvm;
await request.sign();

const told = { customer: request.pubkey, request_id: request.id, statuses: [] };
const wallet = new LnbitsWallet(purse);

async function hear(event) {
  if (event.kind === 6050) {
    const result = NDKDVMJobResult.from(event);
    const names = result.jobRequestId === request.id && result.tagValue("p") === told.customer;
    const valid = result.verifySignature(false) && result.getEventHash() === result.id;
    const copied = result.jobRequest.verifySignature(false) && result.jobRequest.id === request.id;
    ready({ ...told, result: result.rawEvent(), valid, names, copied });
    return;
  }
  const feedback = await NDKDVMJobFeedback.from(event);
  told.statuses.push(feedback.status);
  if (feedback.status === "error") ready({ ...told, error: feedback.getMatchingTags("status")[0][2] });
  // NDKDvmJobFeedbackStatus.PayReq is "payment_required", which is not what NIP-90 says.
  if (feedback.status !== "payment-required" || told.bolt11) return;
  [, told.amount, told.bolt11] = feedback.getMatchingTags("amount")[0];
  told.preimage = (await wallet.pay({ invoice: told.bolt11 })).preimage;
}

const filter = { kinds: [6050, 7000], authors: [provider], ...request.filter() };
ndk.subscribe(filter, { closeOnEose: false, groupable: false }, { onEvent: hear });
await request.publish(NDKRelaySet.fromRelayUrls([relay], ndk));
