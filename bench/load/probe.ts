// A process that asks a server for its health every 10 ms, with nothing else to do, so that the times it measures are the
// server's. For every line that it is told it prints, as JSON, what the calls begun since the line before took, in
// milliseconds.

import process from "node:process";
import { createInterface } from "node:readline";
import { setTimeout as delay } from "node:timers/promises";
import { connectThaw } from "../../clients/typescript/index.ts";

const INTERVAL_MS = 10;

const thaw = connectThaw(process.argv[2]);
for (let i = 0; i < 50; i++) await thaw.health.check({}); // Compiled and connected.

let times: number[] = [];
let over = false;
const lines = createInterface({ input: process.stdin });
lines.on("line", () => {
  process.stdout.write(`${JSON.stringify(times)}\n`);
  times = [];
});
lines.on("close", () => {
  over = true;
});
process.stdout.write("ready\n");
while (!over) {
  const [begun, started] = [times, performance.now()];
  await thaw.health.check({});
  const took = performance.now() - started;
  if (begun === times) times.push(took);
  await delay(Math.max(0, INTERVAL_MS - took));
}
thaw.close();
