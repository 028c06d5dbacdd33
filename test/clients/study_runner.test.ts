// A study's runs against a server made of handlers: what is created, watched, skipped, recorded.

import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { create } from "@bufbuild/protobuf";
import { status } from "@grpc/grpc-js";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { openLines } from "../../clients/study/lines.ts";
import { planCells } from "../../clients/study/plan.ts";
import { runStudy, type StudyProgress } from "../../clients/study/runner.ts";
import { RpcError } from "../../clients/typescript/index.ts";
import { PlanCostSchema, Stack } from "../../proto/gen/thaw/v1/group_pb.ts";
import { RunState } from "../../proto/gen/thaw/v1/run_state_pb.ts";
import { fakeServer, stopFakes } from "./support/fake_server.ts";
import { smallStudy } from "./support/study_file.ts";

const test = suite<{ folder: string }>("study runner");

test.before.each(async (context) => {
  context.folder = await mkdtemp(join(tmpdir(), "thaw-study-"));
});
test.after.each(async ({ folder }) => {
  stopFakes();
  await rm(folder, { recursive: true });
});

const QUIET: StudyProgress = { say: () => undefined, show: () => undefined, done: () => undefined };
const never = new AbortController().signal;

const layer = (load: number[], dropped = 0n) => ({ stack: Stack.DECODER, layer: 3, load, dropped, assignments: 8n });
const evaluation = (step: bigint, split: string, accuracy: number, load: number[], dropped = 0n) => ({
  case: "evaluation" as const,
  value: { step, split, accuracy, loss: 1 - accuracy, layers: [layer(load, dropped)] },
});
const metrics = (step: bigint, nanos: number) => ({
  case: "metrics" as const,
  value: { step, loss: 2, stepDuration: { seconds: 0n, nanos } },
});
const overfitting = (step: bigint, trainLoss?: number) => ({
  case: "overfitting" as const,
  value: { step, split: "validation", trainLoss },
});
const ends = (to: RunState) => ({ case: "state" as const, value: { to } });

/** A run that is best after its first step. */
const LOG = [
  { case: "data" as const, value: { examples: 40n } },
  evaluation(0n, "validation", 0.1, [0.5, 0.5]),
  overfitting(0n),
  metrics(1n, 1e6),
  evaluation(1n, "validation", 0.8, [0.75, 0.25]),
  overfitting(1n, 0.5),
  metrics(2n, 3e6),
  evaluation(2n, "validation", 0.6, [1, 0], 2n),
  overfitting(2n, 0.25),
  evaluation(2n, "test", 0.7, [0, 1]),
];

/** A server whose runs do what `end` says. It keeps what it was asked. */
async function server(
  end: (run: string) => RunState,
  existing: readonly string[] = [],
  state: RunState = RunState.RUNNING,
) {
  const created: string[] = [];
  const watched: string[] = [];
  const deleted: string[] = [];
  const { thaw } = await fakeServer({
    runs: {
      createRun: ({ runId }) => {
        if (existing.includes(runId) && deleted.length === 0) throw new RpcError(status.ALREADY_EXISTS, "it exists");
        created.push(runId);
        return { run: { name: `runs/${runId}` } };
      },
      async *watchRun({ name, afterRevision }) {
        assert.is(afterRevision, 0n);
        watched.push(name.slice("runs/".length));
        const events = [...LOG, ends(end(name))].map((event, i) => ({ revision: BigInt(i + 1), event }));
        yield { reply: { case: "events" as const, value: { events } } };
      },
      getRun: ({ name }) => {
        const old = existing.includes(name.slice("runs/".length)) && deleted.length === 0;
        const cost = create(PlanCostSchema, { trainableParameters: 5n });
        return { run: { name, cost, state: old ? state : RunState.QUEUED } };
      },
      deleteRun: ({ name }) => {
        deleted.push(name);
        return {};
      },
    },
  });
  return { thaw, created, watched, deleted };
}

test("a cell's result is read from its run's log", async ({ folder }) => {
  const { thaw } = await server(() => RunState.SUCCEEDED);
  const { results, failures } = await runStudy(thaw, await smallStudy(folder), folder, QUIET, never);
  assert.equal(failures, []);
  assert.equal(
    results.map(({ settings }) => `${settings.seed} ${settings.strategy}`),
    ["1 all", "1 ffn", "2 all", "2 ffn"],
  );
  const [first] = results;
  assert.is(first.score, 0.8);
  assert.is(first.bestStep, 1);
  assert.is(first.finalScore, 0.6);
  assert.is(first.testScore, 0.7);
  assert.is(first.stepSeconds, 0.002);
  assert.is(first.trainableParameters, 5);
  assert.is(first.trainExamples, 40);
  assert.equal(
    first.curve.map(({ step, trainLoss }) => [step, trainLoss]),
    [
      [1, 0.5],
      [2, 0.25],
    ],
  );
  assert.equal(first.routing, [{ stack: "decoder", layer: 3, drift: 0.5, loadImbalance: 2, droppedShare: 0.25 }]);
});

test("finished cells are skipped, and the run of an interrupted one is watched again", async ({ folder }) => {
  const small = await smallStudy(folder);
  const cells = planCells(small);
  const before = await server(() => RunState.SUCCEEDED);
  await runStudy(before.thaw, { ...small, seeds: [1] }, folder, QUIET, never);
  const { thaw, created, watched } = await server(() => RunState.SUCCEEDED, [cells[2].run]);
  const { results } = await runStudy(thaw, small, folder, QUIET, never);
  assert.is(results.length, 4);
  assert.equal(created, [cells[3].run]);
  assert.equal(watched.sort(), [cells[2].run, cells[3].run].sort());
  const lines = (await readFile(join(folder, "results.jsonl"), "utf8")).trimEnd().split("\n");
  assert.is(new Set(lines.map((line) => JSON.parse(line).cell)).size, 4);
});

test("a cell that fails is recorded and the study goes on", async ({ folder }) => {
  const small = await smallStudy(folder);
  const [bad] = planCells(small);
  const { thaw } = await server((run) => (run === `runs/${bad.run}` ? RunState.FAILED : RunState.SUCCEEDED));
  const { results, failures } = await runStudy(thaw, small, folder, QUIET, never);
  assert.is(results.length, 3);
  assert.equal(
    failures.map(({ cell, error }) => [cell, error]),
    [[bad.id, "FAILED"]],
  );
  const recorded = JSON.parse(await readFile(join(folder, "failures.jsonl"), "utf8"));
  assert.is(recorded.cell, bad.id);
});

test("a run that failed before is replaced by a new try", async ({ folder }) => {
  const small = await smallStudy(folder);
  const cells = planCells(small);
  const { thaw, created, deleted } = await server(() => RunState.SUCCEEDED, [cells[0].run], RunState.FAILED);
  const { results } = await runStudy(thaw, small, folder, QUIET, never);
  assert.is(results.length, 4);
  assert.equal(deleted, [`runs/${cells[0].run}`]);
  assert.ok(created.includes(cells[0].run));
});

test("a line torn by a crash is cut off before the next is written", async ({ folder }) => {
  const path = join(folder, "lines.jsonl");
  await writeFile(path, '{"a":"é"}\n{"a":');
  const lines = await openLines<{ a: string }>(path);
  assert.equal(lines.read, [{ a: "é" }]);
  await lines.append({ a: "b" });
  await lines.close();
  assert.is(await readFile(path, "utf8"), '{"a":"é"}\n{"a":"b"}\n');
});

test.run();
