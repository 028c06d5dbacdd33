// Clients that stop reading: one on every stream there is, and a whole client that is stopped. The server holds a bounded
// part of what they do not take, the run goes on at its pace, others are served, and who reads again gets what the stream
// promises.

import { spawn } from "node:child_process";
import { rm } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import { Client, credentials } from "@grpc/grpc-js";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { connectThaw, type Thaw, uploadModel } from "../../clients/typescript/index.ts";
import { connect } from "../../clients/typescript/rpc/connect.ts";
import { ServerReflection } from "../../proto/gen/grpc/reflection/v1/reflection_pb.ts";
import { ServerReflection as ServerReflectionAlpha } from "../../proto/gen/grpc/reflection/v1alpha/reflection_pb.ts";
import type { RunEvent } from "../../proto/gen/thaw/v1/event_pb.ts";
import { RunState } from "../../proto/gen/thaw/v1/run_state_pb.ts";
import { ALL_SERVICES } from "../../src/server/front/front.ts";
import { runtimeCommand } from "../../src/server/gpu/connection.ts";
import { eventsUntil, reaches } from "../support/thaw_server.ts";
import { tinyModel } from "../support/tiny_model.ts";
import { checkLog, lossesOf, unbrokenLosses } from "./support/promises.ts";
import { type Prepared, prepare, type Served } from "./support/served.ts";
import { within } from "./support/within.ts";

const { PAUSED, SUCCEEDED } = RunState;
const STEPS = 300;
/** An event of a step has 80 kB, so a log about 25 MB, and 256 events more than a client takes in a message. */
const ENV = { FAKE_EXPERTS: "400", FAKE_EXAMPLES: "2048", FAKE_STEP_MS: "25" };
const BUFFER = 16;
const FLAGS = ["--max-runs-on-gpu", "2", "--assignment-buffer-messages", String(BUFFER)];
const SPEC = {
  model: "models/m",
  dataset: "datasets/d",
  steps: BigInt(STEPS),
  checkpoints: { everySteps: 0n },
};
/**
 * What the server may hold for readers that take nothing: a message or two of each, and the answers to a few generations.
 */
const MOST_MEGABYTES = 64;
/** Readers of each stream, on connections of their own; each of the client's lets 8 MiB come by themselves. */
const COPIES = 2;
/** Watches of the client that is stopped: all that they do not take would be several times MOST_MEGABYTES. */
const WATCHES = 5;
/** An answer of the server beside them, on a busy machine. */
const MOST_ANSWER_MS = 10_000;
const PATIENCE_MS = 90_000;

type Messages = AsyncIterator<{ readonly [field: string]: unknown }>;

/** How each stream is opened, and read to its end. */
interface Reader {
  open(thaw: Thaw, address: string): AsyncIterable<unknown>;
  /** @param messages all of them */
  check(messages: readonly never[]): void;
}

type LogMessage = { readonly reply: { readonly case?: string; readonly value?: { readonly events?: RunEvent[] } } };
const wholeLog = (messages: readonly LogMessage[]): void => {
  const events = messages.flatMap(({ reply }) => (reply.case === "events" ? reply.value!.events! : []));
  checkLog(events, []);
  assert.is(lossesOf(events).length, STEPS);
  assert.ok(reaches(SUCCEEDED)(events.at(-1)!), "the log is read to its end");
};

type FilePart = { readonly part: { readonly case?: string; readonly value?: { sizeBytes?: bigint; length?: number } } };
const wholeFiles = (messages: readonly FilePart[]): void => {
  const told = messages.reduce((sum, { part }) => sum + Number(part.value?.sizeBytes ?? 0n), 0);
  const sent = messages.reduce((sum, { part }) => sum + (part.case === "data" ? part.value!.length! : 0), 0);
  assert.ok(sent > 0);
  assert.is(sent, told);
};

async function* onceAndOpen<T>(message: T): AsyncGenerator<T> {
  yield message;
  await new Promise(() => {});
}

const REFLECTED = 200;
async function* reflections() {
  const messageRequest = { case: "fileContainingSymbol" as const, value: "thaw.v1.RunService" };
  for (let i = 0; i < REFLECTED; i++) yield { messageRequest };
}
const reflected = (messages: readonly unknown[]): void => assert.is(messages.length, REFLECTED);
const channelTo = (address: string) => new Client(address, credentials.createInsecure());

const GENERATED = 256;

const READERS: Readonly<Record<string, Reader>> = {
  "thaw.v1.RunService/StartRun": {
    open: (thaw) => thaw.runs.startRun({ create: { runId: "started", spec: SPEC } }),
    check: wholeLog,
  },
  "thaw.v1.RunService/SteerRun": {
    open: (thaw) => thaw.runs.steerRun(onceAndOpen({ command: { case: "watch", value: { name: "runs/r" } } })),
    check: wholeLog,
  },
  "thaw.v1.RunService/WatchRun": { open: (thaw) => thaw.runs.watchRun({ name: "runs/r" }), check: wholeLog },
  "thaw.v1.RoutingService/StreamAssignments": {
    open: (thaw) => thaw.routing.streamAssignments({ run: "runs/r" }),
    check(messages: readonly { sequence: bigint; dropped: bigint; assignments?: unknown }[]) {
      const slices = messages.filter(({ assignments }) => assignments);
      for (const [i, { sequence }] of slices.entries()) assert.ok(i === 0 || sequence > slices[i - 1].sequence);
      const dropped = Number(messages.at(-1)!.dropped);
      assert.ok(dropped > 0, "they are more than there is room for");
      assert.is(slices.length + dropped, STEPS, "what was dropped is counted");
    },
  },
  "thaw.v1.ModelService/DownloadModel": {
    open: (thaw) => thaw.models.downloadModel({ name: "models/large" }),
    check: wholeFiles,
  },
  "thaw.v1.ModelService/Generate": {
    open: (thaw) =>
      thaw.models.generate({ name: "models/m", inputs: Array<string>(GENERATED).fill("x".repeat(10_000)) }),
    check: (messages) => assert.is(messages.length, GENERATED),
  },
  "thaw.v1.CheckpointService/DownloadCheckpoint": {
    open: (thaw) => thaw.checkpoints.downloadCheckpoint({ name: "runs/r/checkpoints/step-0" }),
    check: wholeFiles,
  },
  "grpc.health.v1.Health/Watch": {
    open: (thaw) => thaw.health.watch({ service: "" }),
    check: (messages) => assert.is(messages.length, 1),
  },
  "grpc.reflection.v1.ServerReflection/ServerReflectionInfo": {
    open: (_, address) => connect(ServerReflection, channelTo(address)).serverReflectionInfo(reflections()),
    check: reflected,
  },
  "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": {
    open: (_, address) => connect(ServerReflectionAlpha, channelTo(address)).serverReflectionInfo(reflections()),
    check: reflected,
  },
};

/** The server holds little more than it did `before` any of its clients stopped. */
async function holdsLittle(served: Served, before: number): Promise<void> {
  const megabytes = ((await served.heldBytes()) - before) / 2 ** 20;
  assert.ok(megabytes < MOST_MEGABYTES, `the server holds ${megabytes.toFixed(0)} MiB for clients that take nothing`);
}

const test = suite("readers");
let prepared: Prepared;
let unbroken: number[] = [];

test.before(async () => {
  prepared = await prepare();
  unbroken = await unbrokenLosses(prepared, SPEC);
});
test.after(() => prepared.clean());

test("a reader that stops, on every stream there is", async () => {
  const methods = ALL_SERVICES.flatMap((service) => service.methods)
    .filter(({ methodKind }) => methodKind === "server_streaming" || methodKind === "bidi_streaming")
    .map((method) => `${method.parent.typeName}/${method.name}`);
  assert.equal(Object.keys(READERS).sort(), methods.sort(), "each stream has its reader here");

  const served = await prepared.start(await prepared.copy(), ENV, FLAGS);
  const { thaw, address } = served;
  const large = await tinyModel({ vocab_size: 300_000 });
  await uploadModel(thaw, large, { modelId: "large" });
  await rm(large, { recursive: true });
  await thaw.runs.createRun({ runId: "r", spec: SPEC, startPaused: true });
  await eventsUntil(thaw, "runs/r", reaches(PAUSED));
  await thaw.checkpoints.saveCheckpoint({ run: "runs/r" });

  const before = await served.heldBytes();
  const slow: Thaw[] = [];
  const streams = Object.entries(READERS).flatMap(([method, { open }]) =>
    Array.from({ length: method.endsWith("/StartRun") ? 1 : COPIES }, () => {
      slow.push(connectThaw(address));
      return { method, messages: open(slow.at(-1)!, address)[Symbol.asyncIterator]() as Messages };
    }),
  );
  const waiting = new Set(streams);
  const first = async (stream: (typeof streams)[number]) => {
    const { value } = await stream.messages.next();
    waiting.delete(stream);
    return value;
  };
  const firsts = await within(
    PATIENCE_MS,
    "a first message on every stream",
    Promise.all(streams.map(first)),
    () => `none on ${[...waiting].map(({ method }) => method).join(", ")}\n${served.said()}`,
  );

  await thaw.runs.resumeRun({ name: "runs/r" });
  const live = eventsUntil(thaw, "runs/r", reaches(SUCCEEDED));
  const started = Date.now();
  for (let going = true; going; await delay(50)) {
    const asked = performance.now();
    const states = await Promise.all(["runs/r", "runs/started"].map((name) => thaw.runs.getRun({ name })));
    assert.ok(performance.now() - asked < MOST_ANSWER_MS, "others are answered meanwhile");
    going = states.some(({ run }) => run?.state !== SUCCEEDED);
    assert.ok(Date.now() - started < PATIENCE_MS, `the runs go on: ${served.said()}`);
  }
  assert.equal(lossesOf(await live), unbroken, "a reader beside them gets everything");
  await holdsLittle(served, before);

  for (const [i, { method, messages }] of streams.entries()) {
    const all: unknown[] = [firsts[i]];
    const rest = async (): Promise<void> => {
      // A health watch ends with its server, not by itself.
      if (method.startsWith("grpc.health")) return;
      for (let next = await messages.next(); !next.done; next = await messages.next()) all.push(next.value);
    };
    await within(PATIENCE_MS, `the rest of ${method}`, rest(), () => `${all.length} messages\n${served.said()}`);
    READERS[method].check(all as never[]);
  }
  for (const client of slow) client.close();
  await served.end("SIGKILL");
});

test("a client that is stopped costs the run and other streams nothing, and catches up when it goes on", async () => {
  const served = await prepared.start(await prepared.copy(), ENV, FLAGS);
  const { thaw, address } = served;
  const before = await served.heldBytes();
  await thaw.runs.createRun({ runId: "r", spec: SPEC });
  const [command, ...args] = runtimeCommand(new URL("support/watcher.ts", import.meta.url));
  const watcher = spawn(command, [...args, address, "runs/r", String(WATCHES)], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const ended = new Promise<number | null>((resolve) => watcher.once("exit", resolve));
  let said = "";
  watcher.stdout.setEncoding("utf8").on("data", (text: string) => (said += text));
  try {
    const lines = async (): Promise<void> => {
      while (said.split("\n").length < 20) await delay(20);
    };
    await within(PATIENCE_MS, "its first lines", lines(), () => said);
    watcher.kill("SIGSTOP");
    const log = await eventsUntil(thaw, "runs/r", reaches(SUCCEEDED));
    assert.equal(lossesOf(log), unbroken);
    await holdsLittle(served, before);
    watcher.kill("SIGCONT");
    assert.is(await within(PATIENCE_MS, "its end", ended, () => said.slice(-200)), 0);
    for (let watch = 0; watch < WATCHES; watch++) {
      const lines = said.split("\n").filter((line) => line.startsWith(`${watch}:`));
      const revisions = lines.map((line) => BigInt(line.slice(line.indexOf(":") + 1)));
      assert.equal(
        revisions,
        log.map(({ revision }) => revision),
      );
    }
  } finally {
    watcher.kill("SIGKILL");
  }
  await served.end("SIGKILL");
});

test.run();
