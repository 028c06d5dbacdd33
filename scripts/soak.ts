// npm run soak -- --minutes 60: a server as users have it, with its GPU process (on the CPU where there is no GPU), under
// the clients of soak/workload.ts, and what its processes hold meanwhile. Linux: memory and descriptors come from /proc.
//
// The verdict is about growth: of each process's memory and descriptors over the time measured, after a first third in which
// caches fill and code is compiled, and of what is left in the data directory when everything has been deleted.

import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { setTimeout as delay } from "node:timers/promises";
import { parseArgs } from "node:util";
import { startServer } from "../clients/study/server.ts";
import { tinyModel } from "../test/support/tiny_model.ts";
import { type Held, heldNow } from "./soak/processes.ts";
import { slope } from "./soak/trend.ts";
import { startWorkload } from "./soak/workload.ts";

const SAMPLE_MS = 5000;
const LINE_MS = 60_000;
/**
 * Memory may rise by so much over the whole time measured, however long it is. V8 lets its young generation, 16 MiB at most,
 * fill before it collects it, and returns pages of the old one late: less than twice that is no growth that can be told.
 */
const MOST_MIB = 32;
/** Readers come and go; one descriptor of each that stays is thousands in an hour. */
const MOST_DESCRIPTORS = 4;
const SETTLING_SHARE = 1 / 3;

const { values } = parseArgs({
  options: { minutes: { type: "string", default: "60" }, seed: { type: "string", default: "1" } },
});
const [minutes, seed] = [Number(values.minutes), Number(values.seed)];
if (!(minutes >= 1) || !Number.isInteger(seed)) {
  console.error("options: --minutes N, at least 1 (60); --seed N, a whole number (1)");
  process.exit(2);
}

const folder = await mkdtemp(join(tmpdir(), "thaw-soak-"));
const data = join(folder, "data");
const model = await tinyModel();
const server = await startServer(data, undefined, new AbortController().signal);
console.log(`${server.adapter}; ${minutes} minutes, seed ${seed}`);
const workload = await startWorkload(server.address, model, seed);
const samples = new Map<string, (readonly [hours: number, held: Held])[]>();
const begin = performance.now();
const hours = (): number => (performance.now() - begin) / 3_600_000;

let nextLine = 0;
while (hours() < minutes / 60) {
  const held = heldNow();
  for (const [name, one] of held) samples.set(name, [...(samples.get(name) ?? []), [hours(), one]]);
  if (performance.now() - begin >= nextLine) {
    nextLine += LINE_MS;
    const told = [...held].map(([name, { mib, descriptors }]) => `${name} ${mib.toFixed(0)} MiB, ${descriptors} files`);
    const work = [...workload.done].map(([what, times]) => `${times} × ${what}`);
    console.log(`${(hours() * 60).toFixed(0)} min: ${told.join("; ")}; ${work.join(", ")}`);
  }
  await delay(SAMPLE_MS);
}
await workload.end();
await delay(1000);
const left = (await readdir(data, { recursive: true })).filter((path) =>
  /^(models|datasets|checkpoints|tmp)\//.test(path),
);
await server.stop();
await rm(folder, { recursive: true });
await rm(model, { recursive: true });

const problems = [...workload.faults.slice(0, 10), ...left.map((path) => `left behind: ${path}`)];
for (const [name, all] of samples) {
  const settled = all.filter(([at]) => at >= (minutes / 60) * SETTLING_SHARE);
  const measured = settled[settled.length - 1][0] - settled[0][0];
  const growth = (of: (held: Held) => number): number => slope(settled.map(([at, held]) => [at, of(held)]));
  const [mib, descriptors] = [growth(({ mib }) => mib), growth((held) => held.descriptors)];
  const most = Math.max(...settled.map(([, held]) => held.mib));
  console.log(
    `${name}: memory ${mib >= 0 ? "+" : ""}${mib.toFixed(1)} MiB an hour (at most ${most.toFixed(0)} MiB), ` +
      `files ${descriptors >= 0 ? "+" : ""}${descriptors.toFixed(1)} an hour`,
  );
  if (mib * measured > MOST_MIB) problems.push(`${name}: memory rose by ${(mib * measured).toFixed(0)} MiB`);
  if (descriptors * measured > MOST_DESCRIPTORS)
    problems.push(`${name}: ${(descriptors * measured).toFixed(0)} files stay open`);
}
for (const problem of problems) console.log(problem);
console.log(problems.length > 0 ? "soak: failed" : "soak: nothing grows, nothing is left");
process.exit(problems.length > 0 ? 1 : 0);
