// What nostr-tools makes of events: signs each of `drafts` with `key`, and looks at each of `events`. Drafts and
// events come and go as JSON texts of their own, so that nothing between the two programs spells them anew.
import { finalizeEvent, getEventHash, serializeEvent, verifyEvent } from "nostr-tools/pure";
import { hexToBytes } from "nostr-tools/utils";
import { orders, ready } from "./program.mjs";

const { key, drafts, events } = await orders();

const seen = (event) => ({ serialized: serializeEvent(event), id: getEventHash(event), valid: verifyEvent(event) });

ready({
  made: drafts.map((text) => {
    const event = finalizeEvent(JSON.parse(text), hexToBytes(key));
    return { json: JSON.stringify(event), serialized: serializeEvent(event) };
  }),
  seen: events.map((text) => seen(JSON.parse(text))),
});
