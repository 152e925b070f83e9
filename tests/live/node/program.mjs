// What the programs here have in common: one line of JSON on stdin says what to do, one on stdout says that it is
// done, and the end of stdin is the end of the program: it dies with whoever started it.
import { createInterface } from "node:readline";
import WebSocket from "ws";

globalThis.WebSocket ??= WebSocket; // Node 20 has none
console.log = console.info = console.warn = (...words) => console.error(...words); // stdout is for that line alone

export const unixNow = () => Math.floor(Date.now() / 1000);

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

export function orders() {
  return new Promise((resolve) => {
    const lines = createInterface({ input: process.stdin });
    lines.once("line", (line) => resolve(JSON.parse(line)));
    lines.once("close", () => process.exit(0));
  });
}

export function ready(answer) {
  process.stdout.write(JSON.stringify(answer) + "\n");
}

// What a wallet refuses, by one of NIP-47's error codes.
export class Refusal extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}
