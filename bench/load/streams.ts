// Many streams: watches and subscriptions of one run that steps, and watches that have nothing to tell. How far behind the
// run its readers are, whether they got everything, what the run loses by them, what they hold of memory, and how soon
// others are answered meanwhile.

import { spawn } from "node:child_process";
import { setMaxListeners } from "node:events";
import { createInterface } from "node:readline";
import { setTimeout as delay } from "node:timers/promises";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import { connectThaw, type Thaw } from "../../clients/typescript/index.ts";
import { RunState } from "../../proto/gen/thaw/v1/run_state_pb.ts";
import { runtimeCommand } from "../../src/server/gpu/connection.ts";
import type { Served } from "../../test/faults/support/served.ts";
import { eventsUntil, reaches } from "../../test/support/thaw_server.ts";
import type { LoadOptions } from "../load.ts";
import type { Row } from "../rows.ts";
import { quantiles } from "./quantiles.ts";

const WATCHERS = 200;
const SUBSCRIBERS = 200;
const IDLE = 1000;
/** A server takes 256 streams of a connection at a time. */
const STREAMS_OF_A_CONNECTION = 100;
/** Milliseconds of a step of the run that is watched. Two are under way at a time, so there are 50 a second. */
const STEP_MS = 40;
const SPEC = { model: "models/m", dataset: "datasets/d", steps: 1_000_000n };

/** What a load found, but for health and memory. */
type Measured = Readonly<Record<string, number>>;
/** Lets a time pass in which health is asked for, with everything in place. Steps a second of the run meanwhile. */
type During = () => Promise<number>;

export async function streamRows(options: LoadOptions): Promise<Row[]> {
  return [
    await scenario("no stream", options, async (_, during) => ({ "steps/s": await during() })),
    await scenario(`${WATCHERS} watches of one run`, options, watches),
    await scenario(`${SUBSCRIBERS} assignment streams of one run`, options, subscriptions),
    await scenario(`${IDLE} watches of a paused run`, options, idle),
  ];
}

/** A fresh server with `runs/r` stepping. */
async function scenario(
  name: string,
  { prepared, seconds }: LoadOptions,
  load: (served: Served, during: During, seconds: number) => Promise<Measured>,
): Promise<Row> {
  const served = await prepared.start(await prepared.copy(), { FAKE_STEP_MS: String(STEP_MS) });
  const { thaw } = served;
  await thaw.runs.createRun({ runId: "r", spec: SPEC });
  await eventsUntil(thaw, "runs/r", reaches(RunState.RUNNING));
  const probe = await startProbe(served.address);
  const memory = async (): Promise<number> => Number((await thaw.system.getSystem({})).residentBytes) / 2 ** 20;
  const step = async (): Promise<number> => Number((await thaw.runs.getRun({ name: "runs/r" })).run!.step);
  const before = await memory();
  let [most, health]: [number, readonly number[]] = [before, []];
  const measured = await load(
    served,
    async () => {
      await probe.times();
      const [from, started] = [await step(), performance.now()];
      for (let second = 0; second < seconds; second++) {
        await delay(1000);
        most = Math.max(most, await memory());
      }
      const steps = ((await step()) - from) / ((performance.now() - started) / 1000);
      health = await probe.times();
      return steps;
    },
    seconds,
  );
  const after = await memory();
  probe.end();
  await served.end("SIGKILL");
  const mib = { "MiB before": before, "MiB with them": most, "MiB after": after };
  const asked = Object.fromEntries(Object.entries(quantiles(health)).map(([column, ms]) => [`health ${column}`, ms]));
  const rounded = Object.entries({ ...measured, ...mib }).map(([column, value]) => [column, Number(value.toFixed(2))]);
  return { name, figures: { ...Object.fromEntries(rounded), ...asked } };
}

async function startProbe(address: string): Promise<{ times(): Promise<readonly number[]>; end(): void }> {
  const [command, ...args] = runtimeCommand(new URL("./probe.ts", import.meta.url));
  const child = spawn(command, [...args, address], { stdio: ["pipe", "pipe", "inherit"] });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  await lines.next();
  return {
    async times() {
      child.stdin.write("\n");
      return JSON.parse((await lines.next()).value);
    },
    end: () => void child.stdin.end(),
  };
}

/** Connections for so many streams. */
function connections(address: string, streams: number): { at(stream: number): Thaw; close(): void } {
  const all = Array.from({ length: Math.ceil(streams / STREAMS_OF_A_CONNECTION) }, () => connectThaw(address));
  return {
    at: (stream) => all[stream % all.length],
    close: () => {
      for (const thaw of all) thaw.close();
    },
  };
}

/** One signal for as many streams as there are. */
function abortable(): AbortController {
  const over = new AbortController();
  setMaxListeners(0, over.signal);
  return over;
}

async function watches(served: Served, during: During, seconds: number): Promise<Measured> {
  const over = abortable();
  const { at, close } = connections(served.address, WATCHERS);
  const { run } = await served.thaw.runs.getRun({ name: "runs/r" });
  const afterRevision = run!.revision;
  const delays: number[] = [];
  const last = Array.from({ length: WATCHERS }, () => afterRevision);
  let gaps = 0;
  let events = 0;
  let messages = 0;
  let measuring = false;
  const reading = last.map(async (_, i) => {
    for await (const { reply } of at(i).runs.watchRun({ name: "runs/r", afterRevision }, { signal: over.signal })) {
      if (reply.case !== "events") continue;
      const now = Date.now();
      messages += Number(measuring);
      for (const { revision, time } of reply.value.events) {
        if (revision !== last[i] + 1n) gaps++;
        last[i] = revision;
        if (!measuring) continue;
        events++;
        delays.push(now - timestampMs(time!));
      }
    }
  });
  await delay(2000); // All are open and have caught up.
  measuring = true;
  const steps = await during();
  measuring = false;
  over.abort();
  await Promise.allSettled(reading);
  close();
  const { "p50, ms": p50, "p99, ms": p99, "max, ms": max } = quantiles(delays);
  const behind = { "behind p50, ms": p50, "behind p99, ms": p99, "behind max, ms": max };
  return { "steps/s": steps, "messages/s": messages / seconds, "events/s": events / seconds, gaps, ...behind };
}

async function subscriptions(served: Served, during: During, seconds: number): Promise<Measured> {
  const over = abortable();
  const { at, close } = connections(served.address, SUBSCRIBERS);
  let messages = 0;
  const dropped = Array.from({ length: SUBSCRIBERS }, () => 0);
  const reading = dropped.map(async (_, i) => {
    for await (const slice of at(i).routing.streamAssignments({ run: "runs/r" }, { signal: over.signal })) {
      messages++;
      dropped[i] = Number(slice.dropped);
    }
  });
  await delay(2000);
  const before = messages;
  const steps = await during();
  const received = messages - before;
  over.abort();
  await Promise.allSettled(reading);
  close();
  return { "steps/s": steps, "messages/s": received / seconds, dropped: dropped.reduce((sum, one) => sum + one, 0) };
}

async function idle(served: Served, during: During): Promise<Measured> {
  await served.thaw.runs.pauseRun({ name: "runs/r" });
  await eventsUntil(served.thaw, "runs/r", reaches(RunState.PAUSED));
  const { run } = await served.thaw.runs.getRun({ name: "runs/r" });
  const over = abortable();
  const { at, close } = connections(served.address, IDLE);
  const request = { name: "runs/r", afterRevision: run!.revision, progressInterval: { seconds: 1n } };
  let open = 0;
  const reading = Array.from({ length: IDLE }, async (_, i) => {
    let first = true;
    for await (const _ of at(i).runs.watchRun(request, { signal: over.signal })) {
      if (first) open++;
      first = false;
    }
  });
  while (open < IDLE) await delay(50);
  await during();
  over.abort();
  await Promise.allSettled(reading);
  close();
  return { open };
}
