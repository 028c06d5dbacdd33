// A study carried out over gRPC: each cell is a run on the server. Nothing is remembered here that the server or the output
// folder does not know, so a client that was killed starts again and goes on: finished cells are in results.jsonl, and the
// run of a cell in progress has the cell's name and is watched from its first event again.

import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { status } from "@grpc/grpc-js";
import type { CreateRunRequestSchema } from "../../proto/gen/thaw/v1/run_service_pb.ts";
import { RunState, RunStateSchema } from "../../proto/gen/thaw/v1/run_state_pb.ts";
import {
  problemsOf,
  RpcError,
  splitOfFile,
  type Thaw,
  uploadDataset,
  uploadModel,
  watchRun,
} from "../typescript/index.ts";
import { type Collected, cellResult, collect, nothing } from "./collect.ts";
import type { LocalDataset, LocalFolder, Study } from "./file.ts";
import { type Lines, openLines } from "./lines.ts";
import { type Cell, planCells, type Resources, runSpec } from "./plan.ts";
import type { CellFailure, CellResult } from "./results.ts";

export interface StudyOutcome {
  /** Of all cells of this study that have one, in the order of the plan. */
  readonly results: readonly CellResult[];
  /** Of this call: the next one tries them again. */
  readonly failures: readonly CellFailure[];
}

export interface StudyProgress {
  /** Said once, for a person. */
  say(text: string): void;
  /** How a cell stands, on every event. */
  show(cell: Cell, collected: Collected): void;
  /** A cell has ended. */
  done(cell: Cell, outcome: CellResult | CellFailure, position: { readonly ended: number; readonly of: number }): void;
}

/** One trains, the next waits for the GPU. */
const IN_FLIGHT = 2;
/** How long an absent server is waited for, as long as a watch does. */
const PATIENCE_MS = 300_000;
const LONGEST_WAIT_MS = 10_000;

/**
 * Trains every cell that has no result yet and appends results.jsonl and failures.jsonl in `out`.
 * @param signal leaves; the runs on the server go on
 * @throws RpcError when a model or a dataset is refused, or the server stays away; cells that fail are in the outcome.
 */
export async function runStudy(
  thaw: Thaw,
  study: Study,
  out: string,
  progress: StudyProgress,
  signal: AbortSignal,
): Promise<StudyOutcome> {
  await mkdir(out, { recursive: true });
  const results = await openLines<CellResult>(join(out, "results.jsonl"));
  const failed = await openLines<CellFailure>(join(out, "failures.jsonl"));
  try {
    const cells = planCells(study);
    const found = new Map(results.read.map((result) => [result.cell, result]));
    const open = cells.filter(({ id }) => !found.has(id));
    progress.say(`${cells.length} cells, ${cells.length - open.length} of them finished before`);
    const failures: CellFailure[] = [];
    if (open.length > 0) {
      const resources = await prepare(thaw, study, progress);
      let ended = cells.length - open.length;
      await eachOf(open, IN_FLIGHT, signal, async (cell, signal) => {
        const outcome = await runCell(thaw, study, cell, resources(cell), progress, signal);
        if ("error" in outcome) {
          failures.push(outcome);
          await failed.append(outcome);
        } else {
          found.set(cell.id, outcome);
          await results.append(outcome);
        }
        progress.done(cell, outcome, { ended: ++ended, of: cells.length });
      });
    }
    return { results: cells.flatMap(({ id }) => found.get(id) ?? []), failures };
  } finally {
    await closeAll(results, failed);
  }
}

/** What the folder `out` holds of this study's cells: results, and the newest failure of each cell without one. */
export async function readOutcome(study: Study, out: string): Promise<StudyOutcome> {
  const results = await openLines<CellResult>(join(out, "results.jsonl"));
  const failed = await openLines<CellFailure>(join(out, "failures.jsonl"));
  await closeAll(results, failed);
  const found = new Map(results.read.map((result) => [result.cell, result]));
  const failures = new Map(failed.read.map((failure) => [failure.cell, failure]));
  const cells = planCells(study);
  return {
    results: cells.flatMap(({ id }) => found.get(id) ?? []),
    failures: cells.flatMap(({ id }) => (found.has(id) ? [] : (failures.get(id) ?? []))),
  };
}

const closeAll = (...files: readonly Pick<Lines<unknown>, "close">[]) => Promise.all(files.map((file) => file.close()));

/** Works on the items in order, so many at a time. The first error aborts the others and is thrown when all have ended. */
async function eachOf<T>(
  items: readonly T[],
  atOnce: number,
  signal: AbortSignal,
  work: (item: T, signal: AbortSignal) => Promise<void>,
): Promise<void> {
  const rest = items.values();
  const cut = new AbortController();
  const errors: unknown[] = [];
  const worker = async () => {
    for (const item of rest) {
      if (errors.length > 0) return;
      await work(item, AbortSignal.any([signal, cut.signal])).catch((error: unknown) => {
        errors.push(error);
        cut.abort();
      });
    }
  };
  await Promise.all(Array.from({ length: atOnce }, worker));
  if (errors.length > 0) throw errors[0];
}

/** Brings models and data to the server, where they are not there yet. */
async function prepare(thaw: Thaw, study: Study, progress: StudyProgress): Promise<(cell: Cell) => Resources> {
  const datasets = new Map<string, string>();
  for (const { name, dataset } of study.tasks) {
    const folder = study.datasets[name];
    const id = folder ? serverId(name, folder.digest) : "";
    const upload = ({ directory, files, task }: LocalDataset) =>
      uploadDataset(
        thaw,
        { datasetId: id, displayName: `${study.name}: ${name}`, task },
        Object.fromEntries(files.map((file) => [splitOfFile(file), join(directory, file)])),
      );
    datasets.set(name, folder ? await onceThere(() => upload(folder), `datasets/${id}`) : dataset);
    progress.say(`task ${name}: ${datasets.get(name)}`);
  }
  const models = new Map<string, Pick<Resources, "model" | "initialCheckpoint">>();
  for (const { name, source } of study.models) {
    models.set(name, await prepareModel(thaw, name, source, study.folders[name]));
    progress.say(`model ${name}: ${models.get(name)?.initialCheckpoint || models.get(name)?.model}`);
  }
  return ({ task, model }) => ({ dataset: datasets.get(task.name)!, ...models.get(model.name)! });
}

async function prepareModel(thaw: Thaw, name: string, source: string, folder: LocalFolder | undefined) {
  if (source.startsWith("models/")) return { model: source, initialCheckpoint: "" };
  const [run] = /^runs\/[^/]+(?=\/checkpoints\/)/.exec(source) ?? [];
  if (run) {
    const { run: found } = await thaw.runs.getRun({ name: run });
    return { model: found?.spec?.model ?? "", initialCheckpoint: source };
  }
  const id = folder ? serverId(name, folder.digest) : serverId(name, "");
  const bring = () =>
    folder
      ? uploadModel(thaw, folder.directory, { modelId: id, displayName: name })
      : thaw.models.loadModel({ directory: source, modelId: id, displayName: name });
  return { model: await onceThere(bring, `models/${id}`), initialCheckpoint: "" };
}

const serverId = (name: string, digest: string): string => `${name.replaceAll("_", "-")}${digest && `-${digest}`}`;

/** Creates a resource unless it exists. @returns its name */
async function onceThere(create: () => Promise<unknown>, name: string): Promise<string> {
  try {
    await create();
  } catch (error) {
    if (problemsOf(error).code !== "ALREADY_EXISTS") throw error;
  }
  return name;
}

/** Creates a cell's run, or finds it, and watches it to its end. */
async function runCell(
  thaw: Thaw,
  study: Study,
  cell: Cell,
  resources: Resources,
  progress: StudyProgress,
  signal: AbortSignal,
): Promise<CellResult | CellFailure> {
  const name = `runs/${cell.run}`;
  const failure = (error: string) => ({ cell: cell.id, run: name, error, failedAt: new Date().toISOString() });
  const labels = { study: study.name, cell: cell.id };
  try {
    const request = { runId: cell.run, displayName: cell.id, labels, spec: runSpec(study, cell, resources) };
    await persist(() => createOrFind(thaw, request, name), signal);
    const collected = nothing();
    const onReconnect = (lost: RpcError) => progress.say(`connection lost (${lost.message}); trying again`);
    for await (const event of watchRun(thaw, name, { signal, onReconnect, patienceMs: PATIENCE_MS })) {
      collect(collected, cell, event);
      progress.show(cell, collected);
    }
    if (collected.state !== RunState.SUCCEEDED) {
      const state = RunStateSchema.value[collected.state].localName;
      return failure(collected.error ? `${state}: ${collected.error}` : state);
    }
    if (collected.curve.length === 0) return failure("its log holds no evaluation of the validation split");
    const { run } = await persist(() => thaw.runs.getRun({ name }), signal);
    return cellResult(cell, collected, run?.cost, new Date());
  } catch (error) {
    const { code, message, fields } = problemsOf(error);
    // Without the server no other cell does better; what it refuses about this one is this cell's own.
    if (signal.aborted || code === "UNAVAILABLE" || !(error instanceof RpcError)) throw error;
    const told = fields.length > 0 ? fields.map((f) => `${f.field}: ${f.message}`).join("; ") : message;
    return failure(`${code}: ${told}`);
  }
}

/** Creates a run unless it exists. One that failed before is deleted and gets another try; failures.jsonl keeps why. */
async function createOrFind(
  thaw: Thaw,
  request: MessageInitShape<typeof CreateRunRequestSchema>,
  name: string,
): Promise<void> {
  try {
    await thaw.runs.createRun(request);
    return;
  } catch (error) {
    if (problemsOf(error).code !== "ALREADY_EXISTS") throw error;
  }
  const { run } = await thaw.runs.getRun({ name });
  if (run?.state !== RunState.FAILED && run?.state !== RunState.CANCELLED) return;
  await thaw.runs.deleteRun({ name });
  await thaw.runs.createRun(request);
}

/** Calls again while the server is away, within patience, and while its queue is full, as long as it takes. */
async function persist<T>(call: () => Promise<T>, signal: AbortSignal): Promise<T> {
  const began = performance.now();
  for (let wait = 500; ; wait = Math.min(2 * wait, LONGEST_WAIT_MS)) {
    try {
      return await call();
    } catch (error) {
      const { code, retryAfterMs } = problemsOf(error);
      const away = code === "UNAVAILABLE" && performance.now() - began < PATIENCE_MS;
      if (!away && code !== "RESOURCE_EXHAUSTED") throw error;
      await new Promise((resolve) => setTimeout(resolve, retryAfterMs ?? wait));
      if (signal.aborted) throw new RpcError(status.CANCELLED, "the study was left");
    }
  }
}
