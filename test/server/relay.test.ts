// The front in a process of its own, as under Deno: calls of every kind go through it, and its abort costs open streams
// and nothing else.

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { setTimeout as delay } from "node:timers/promises";
import { Metadata, status } from "@grpc/grpc-js";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { connectThaw, problemsOf, type RpcError } from "../../clients/typescript/index.ts";
import { RunState } from "../../proto/gen/thaw/v1/run_state_pb.ts";
import { decodeNotes, encodeNote, type Note } from "../../src/server/front/pipe.ts";
import { startRelayedFront } from "../../src/server/front/relay.ts";
import { startServer } from "../../src/server/server.ts";
import { readSettings } from "../../src/server/settings.ts";
import { describeEvent, eventsUntil, fakeWorkers, reaches, withInputs } from "../support/thaw_server.ts";

const test = suite("relay");

test("notes survive any cut of the stream", async () => {
  const notes: Note[] = [
    { kind: "message", call: 1 },
    { kind: "call", call: 2, path: "a/b", peer: "é", metadata: [["k", "v"]] },
    { kind: "end", call: 3 },
  ];
  const payloads = [Uint8Array.of(1, 2, 3), new Uint8Array(0), new Uint8Array(1000).fill(7)];
  const bytes = notes.flatMap((note, i) => [...encodeNote(note, payloads[i])]);
  for (const size of [1, 3, 7, 64, bytes.length]) {
    async function* cut() {
      for (let at = 0; at < bytes.length; at += size) yield Uint8Array.from(bytes.slice(at, at + size));
    }
    const frames = [];
    for await (const frame of decodeNotes(cut())) frames.push(frame);
    assert.equal(
      frames,
      notes.map((note, i) => ({ note, payload: payloads[i] })),
      `pieces of ${size}`,
    );
  }
});

test("every kind of call goes through; a killed front comes back on its port and the run has not noticed", async () => {
  const data = await mkdtemp(join(tmpdir(), "thaw-relay-"));
  const settings = readSettings(["--port", "0", "--data-dir", data], {});
  const log = () => undefined;
  const workers = fakeWorkers(() => ({ beforeStep: () => delay(10) }));
  const server = await startServer(settings, { startWorker: workers.start, log });
  const refusals: string[] = [];
  const front = await startRelayedFront(settings, server.handlersFor, log, (code) => void refusals.push(code));
  const thaw = connectThaw(`127.0.0.1:${front.port}`);
  try {
    await withInputs(thaw); // client streams
    const spec = { model: "models/m", dataset: "datasets/d", steps: 200n };
    await thaw.runs.createRun({ runId: "r", spec });
    const invalid = await thaw.runs.createRun({ runId: "-", spec }).catch((error: RpcError) => error);
    assert.is(problemsOf(invalid).fields[0]?.field, "run_id", "details come through");
    const metadata = new Metadata();
    metadata.set("x-much", "m".repeat(settings.limits.maxMetadataBytes));
    const refused = await thaw.runs.getRun({ name: "runs/r" }, { metadata }).catch((error: RpcError) => error);
    assert.is(problemsOf(refused).reason, "METADATA_TOO_LARGE");
    for (let tries = 0; refusals.length === 0 && tries < 100; tries++) await delay(20);
    assert.equal(refusals, ["RESOURCE_EXHAUSTED"], "what the gate turns away is told");
    let sent = false;
    async function* commands() {
      yield { command: { case: "watch" as const, value: { name: "runs/r" } } };
      sent = true;
      yield { command: { case: "pause" as const, value: {} } };
      yield { command: { case: "resume" as const, value: {} } };
    }
    const acknowledged: (string | undefined)[] = [];
    for await (const { reply } of thaw.runs.steerRun(commands())) {
      if (reply.case === "acknowledgement") acknowledged.push(reply.value.result.case);
      if (acknowledged.length === 2) break;
    }
    assert.equal([sent, acknowledged], [true, ["pause", "resume"]]);

    const { port, processId } = front;
    const watching = (async () => {
      for await (const _ of thaw.runs.watchRun({ name: "runs/r" }));
    })().catch((error: RpcError) => error.code);
    await delay(100);
    process.kill(processId!, "SIGKILL");
    const code = await watching;
    assert.ok(code === status.UNAVAILABLE || code === status.INTERNAL, `the watch ended with ${code}`);

    const again = connectThaw(`127.0.0.1:${port}`);
    const events = await retried(() => eventsUntil(again, "runs/r", reaches(RunState.SUCCEEDED)));
    again.close();
    assert.equal([front.port, events.at(-1)?.step], [port, 200n]);
    assert.not(events.map(describeEvent).includes("GPU_PROCESS_RESTARTED"));
    const steps = events.flatMap(({ event }) => (event.case === "metrics" ? [Number(event.value.step)] : []));
    assert.equal(
      steps,
      Array.from({ length: 200 }, (_, i) => i + 1),
      "no step is lost or repeated",
    );
  } finally {
    thaw.close();
    front.draining();
    await server.stop();
    await front.stop(500);
    await server.close();
    await rm(data, { recursive: true });
  }
});

/** The call, again while nothing listens. */
async function retried<T>(call: () => Promise<T>): Promise<T> {
  for (let tries = 0; ; tries++) {
    try {
      return await call();
    } catch (error) {
      if ((error as RpcError).code !== status.UNAVAILABLE || tries === 100) throw error;
      await delay(100);
    }
  }
}

test.run();
