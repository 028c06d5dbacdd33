// The whole thing as a user has it: `serve` in a process of its own, a real model on this machine's adapter, everything
// over gRPC. Its processes are killed on the way.

import { type ChildProcess, spawn } from "node:child_process";
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import {
  connectThaw,
  decodeAssignments,
  downloadFiles,
  type Thaw,
  uploadDataset,
} from "../../clients/typescript/index.ts";
import { Preset } from "../../proto/gen/thaw/v1/group_pb.ts";
import { RouteSource } from "../../proto/gen/thaw/v1/routing_pb.ts";
import { RunState } from "../../proto/gen/thaw/v1/run_state_pb.ts";
import { runtimeCommand } from "../../src/server/gpu/connection.ts";
import { describeEvent, eventsUntil, reaches } from "../support/thaw_server.ts";
import { tinyModel } from "../support/tiny_model.ts";

const MAIN = new URL("../../src/server/main.ts", import.meta.url);
const START_MS = 60_000;

const test = suite("serve");
const folders: string[] = [];
const servers = new Set<ChildProcess>();
test.after(async () => {
  for (const server of servers) server.kill("SIGKILL");
  for (const folder of folders) await rm(folder, { recursive: true, force: true });
});

interface Serving {
  readonly child: ChildProcess;
  readonly thaw: Thaw;
  readonly line: string;
  /** Process ids of the GPU processes started so far. */
  readonly gpuProcesses: number[];
  end(signal: "SIGTERM" | "SIGKILL"): Promise<number | null>;
}

async function start(data: string, models: string): Promise<Serving> {
  const [command, ...args] = runtimeCommand(MAIN);
  const flags = ["--port", "0", "--data-dir", data, "--models", models];
  const child = spawn(command, [...args, ...flags], {
    cwd: fileURLToPath(new URL("../../", import.meta.url)),
    stdio: ["ignore", "pipe", "pipe"],
  });
  servers.add(child);
  const ended = new Promise<number | null>((resolve) => child.once("exit", resolve));
  const gpuProcesses: number[] = [];
  let errors = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    errors += text;
    for (const [, pid] of text.matchAll(/GPU process (\d+) started/g)) gpuProcesses.push(Number(pid));
  });
  const line = await new Promise<string>((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`no server after ${START_MS} ms:\n${errors}`)), START_MS);
    let output = "";
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      output += text;
      if (!output.includes("\n")) return;
      clearTimeout(timer);
      resolve(output.trimEnd());
    });
    void ended.then((code) => reject(new Error(`the server ended with ${code}:\n${errors}`)));
  });
  const thaw = connectThaw(/ on (\S+),/.exec(line)![1]);
  return {
    child,
    thaw,
    line,
    gpuProcesses,
    async end(signal) {
      // Not child.kill: Deno then reports the signal, whatever the process ended with.
      process.kill(child.pid!, signal);
      const code = await ended;
      servers.delete(child);
      thaw.close();
      return code;
    },
  };
}

test("train, steer, look, export; killed worker and killed server go on from the checkpoint", async () => {
  const models = await mkdtemp(join(tmpdir(), "thaw-models-"));
  const data = await mkdtemp(join(tmpdir(), "thaw-data-"));
  const model = await tinyModel();
  folders.push(models, data, model);
  let serving = await start(data, join(model, ".."));
  assert.match(serving.line, /^thaw serves on 127\.0\.0\.1:\d+, \w+ adapter /);
  let { thaw } = serving;

  const loaded = await thaw.models.loadModel({ directory: model.split("/").at(-1), modelId: "tiny" });
  assert.is(loaded.model?.modelType, "switch_transformers");
  const line = (i: number): string => `${JSON.stringify({ input_ids: [5 + i, 9, 20 + i], target_ids: [3 + i, 7] })}\n`;
  const lines = Array.from({ length: 8 }, (_, i) => line(i));
  await uploadDataset(thaw, { datasetId: "d" }, { train: lines, validation: lines.slice(0, 4) });

  const spec = {
    model: "models/tiny",
    dataset: "datasets/d",
    // More than any machine gets through before the test cancels it.
    steps: 1_000_000n,
    batchSize: 4n,
    maxInputTokens: 8n,
    maxTargetTokens: 4n,
    checkpoints: { everySteps: 5n },
  };
  const priced = await thaw.runs.createRun({ spec, validateOnly: true });
  assert.ok(priced.report!.after!.peakBytes > 0n);
  await thaw.runs.createRun({ runId: "r", spec });
  await eventsUntil(thaw, "runs/r", (event) => event.event.case === "metrics");

  // Live: routes, another plan, present parameters.
  const filter = { samplingRate: 1, sources: [RouteSource.TRAINING] };
  const request = { run: "runs/r", filter, includeGates: true };
  const seen = [];
  for await (const message of thaw.routing.streamAssignments(request)) {
    if (message.assignments) seen.push(decodeAssignments(message.assignments));
    if (seen.length === 3) break;
  }
  assert.ok(seen.every((slice) => slice.tokenCount > 0 && slice.gates?.length === slice.tokenCount));
  const plan = { selection: { preset: Preset.FFN } };
  const { report } = await thaw.groups.setTrainable({ name: "runs/r", plan });
  assert.ok(report!.after!.trainableParameters < report!.before!.trainableParameters);
  const scored = await thaw.models.evaluate({ name: "runs/r" });
  assert.is(scored.result?.examples, 4n);
  const saved = await thaw.checkpoints.saveCheckpoint({ run: "runs/r" });
  assert.ok(saved.checkpoint!.step >= report!.effectiveStep);
  const exported = await thaw.checkpoints.exportModel({ source: "runs/r", modelId: "out" });
  assert.is(exported.model?.parameters, loaded.model?.parameters);
  const into = join(models, "downloaded");
  await downloadFiles(thaw.models.downloadModel({ name: "models/out" }), into);
  assert.ok((await readdir(into)).includes("model.safetensors"));
  const summary = await thaw.routing.summarizeRouting({ run: "runs/r" });
  assert.is(summary.layers.length, 3);
  for (const { load } of summary.layers) {
    assert.ok(Math.abs(load.reduce((sum, share) => sum + share, 0) - 1) < 1e-6);
  }
  const systems = await thaw.system.getSystem({});
  assert.is(systems.workers[0]?.run, "runs/r");
  assert.ok(systems.workers[0]?.kernels.length > 0);

  // The GPU process dies.
  process.kill(serving.gpuProcesses[0], "SIGKILL");
  const after = await eventsUntil(thaw, "runs/r", (event) => describeEvent(event) === "GPU_PROCESS_RESTARTED");
  const warned = after.at(-1)!;
  const resumed = await eventsUntil(thaw, "runs/r", (event) => event.event.case === "metrics", warned.revision);
  assert.is(resumed.at(-1)?.step, warned.step + 1n);

  // The server dies: SIGKILL, as a power cut.
  await serving.end("SIGKILL");
  serving = await start(data, join(model, ".."));
  thaw = serving.thaw;
  const recovered = await eventsUntil(thaw, "runs/r", (event) => describeEvent(event) === "SERVER_RESTARTED");
  assert.equal(
    recovered.map((event) => event.revision),
    recovered.map((_, index) => BigInt(index + 1)),
    "the log has no gap",
  );
  const { revision } = recovered.at(-1)!;
  await eventsUntil(thaw, "runs/r", (event) => event.event.case === "metrics", revision);
  const held = await thaw.groups.getTrainable({ name: "runs/r" });
  assert.is(held.plan?.selection?.preset, Preset.FFN, "the plan in force survives both");

  // The server is told to stop: the next life repeats nothing.
  assert.is(await serving.end("SIGTERM"), 0);
  serving = await start(data, join(model, ".."));
  thaw = serving.thaw;
  const stopped = await eventsUntil(thaw, "runs/r", (event) => describeEvent(event) === "SERVER_STOPPED", revision);
  const steps = await eventsUntil(thaw, "runs/r", (event) => event.event.case === "metrics", stopped.at(-1)!.revision);
  assert.is(steps.at(-1)?.step, stopped.at(-1)!.step + 1n);
  await thaw.runs.cancelRun({ name: "runs/r" });
  await eventsUntil(thaw, "runs/r", reaches(RunState.CANCELLED));
  assert.is(await serving.end("SIGTERM"), 0);
});

test.run();
