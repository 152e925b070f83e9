// A NIP-47 wallet service by @getalby/sdk for each of two LNbits wallets. Told {relay, base_url, provider: {admin_key,
// invoice_key, wallet_secret, client_secret}, customer: {…}}, it answers {provider: URI, customer: URI}.
import { serve } from "./alby_service.mjs";
import { LnbitsWallet } from "./lnbits.mjs";
import { orders, ready } from "./program.mjs";

const { relay, base_url, ...wallets } = await orders();
const uris = {};
for (const [name, keys] of Object.entries(wallets)) {
  uris[name] = await serve({ relay, ...keys }, new LnbitsWallet({ name, base_url, ...keys }));
}
ready(uris);
