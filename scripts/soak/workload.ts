// What clients do to a server all day: runs are created, steered, watched and deleted, readers come and go, most of them in
// the middle, models and datasets arrive and leave, and some calls are wrong. Seeded, with pauses, and it never ends by
// itself.

import { setTimeout as delay } from "node:timers/promises";
import { status } from "@grpc/grpc-js";
import { connectThaw, RpcError, type Thaw, uploadDataset, uploadModel } from "../../clients/typescript/index.ts";
import { Preset } from "../../proto/gen/thaw/v1/group_pb.ts";
import { type Random, random } from "../../test/faults/support/random.ts";

const LINES = Array.from({ length: 16 }, (_, i) => `{"input_ids":[${5 + i},9,7],"target_ids":[${3 + i},4]}\n`);
const READERS = 4;
/** What a call may be told when another client has deleted, ended or steered the run that it is about. */
const EXPECTED: readonly status[] = [
  status.NOT_FOUND,
  status.FAILED_PRECONDITION,
  status.INVALID_ARGUMENT,
  status.ALREADY_EXISTS,
  status.OUT_OF_RANGE,
  status.CANCELLED,
];

export interface Workload {
  /** How often each thing was done. */
  readonly done: ReadonlyMap<string, number>;
  /** Errors that should not have come. */
  readonly faults: readonly string[];
  /** Lets what is going on come to its end, and deletes what it made. */
  end(): Promise<void>;
}

/** @param model a model directory to upload, small */
export async function startWorkload(address: string, model: string, seed: number): Promise<Workload> {
  const thaw = connectThaw(address);
  const done = new Map<string, number>();
  const faults: string[] = [];
  const over = new AbortController();
  await uploadModel(thaw, model, { modelId: "base" });
  await uploadDataset(thaw, { datasetId: "base" }, { train: LINES, validation: LINES.slice(0, 4) });

  async function attempt(what: string, work: () => Promise<unknown>): Promise<void> {
    try {
      await work();
    } catch (error) {
      const known = error instanceof RpcError && EXPECTED.includes(error.code);
      if (!known) faults.push(`${what}: ${(error as Error).stack ?? error}`);
    }
    done.set(what, (done.get(what) ?? 0) + 1);
  }

  async function loop(chance: Random, mostPauseMs: number, turn: () => Promise<void>): Promise<void> {
    while (!over.signal.aborted) {
      await turn();
      await delay(chance.below(mostPauseMs), undefined, { signal: over.signal }).catch(() => {});
    }
  }

  let lastRun = 0;
  const train = async (chance: Random): Promise<void> => {
    const id = `run-${++lastRun}`;
    const name = `runs/${id}`;
    const spec = {
      model: "models/base",
      dataset: "datasets/base",
      steps: BigInt(10 + chance.below(30)),
      batchSize: 2n,
    };
    await attempt("run", async () => {
      await thaw.runs.createRun({ runId: id, spec, requestId: `create ${id}` });
      const commands: readonly (() => Promise<unknown>)[] = [
        () =>
          thaw.groups.setTrainable({ name, plan: { selection: { preset: chance.pick([Preset.FFN, Preset.MOE]) } } }),
        () => thaw.checkpoints.saveCheckpoint({ run: name }),
        () => thaw.runs.pauseRun({ name }).then(() => thaw.runs.resumeRun({ name })),
        () => thaw.models.evaluate({ name }),
        () => thaw.runs.cancelRun({ name }),
      ];
      for (let i = chance.below(3); i > 0; i--) {
        await delay(chance.below(300));
        await attempt("command", chance.pick(commands));
      }
      for await (const _ of thaw.runs.watchRun({ name }));
      await thaw.checkpoints.listCheckpoints({ parent: name });
    });
    await attempt("deletion", () => thaw.runs.deleteRun({ name }));
  };

  /** Reads something of a run that is there, and mostly leaves in the middle. */
  const read = async (chance: Random): Promise<void> => {
    const own: Thaw = chance.below(2) ? connectThaw(address) : thaw;
    const leave = new AbortController();
    const { runs } = await thaw.runs.listRuns({ pageSize: 10 });
    const name = runs.length > 0 ? chance.pick(runs).name : "runs/none";
    const options = { signal: leave.signal };
    const timer = setTimeout(() => (own === thaw ? leave.abort() : own.close()), chance.below(1500));
    await attempt("reader", async () => {
      try {
        if (chance.below(3)) for await (const _ of own.runs.watchRun({ name }, options));
        else for await (const _ of own.routing.streamAssignments({ run: name }, options));
      } catch (error) {
        // One's own connection was closed.
        if (own === thaw || !(error instanceof RpcError) || error.code !== status.UNAVAILABLE) throw error;
      }
    });
    clearTimeout(timer);
    if (own !== thaw) own.close();
  };

  let lastThing = 0;
  const store = async (chance: Random): Promise<void> => {
    const id = `thing-${++lastThing}`;
    const things: readonly (() => Promise<unknown>)[] = [
      async () => {
        await uploadDataset(thaw, { datasetId: id }, { train: LINES });
        await thaw.datasets.previewBatches({ dataset: `datasets/${id}`, model: "models/base" });
        await thaw.datasets.deleteDataset({ name: `datasets/${id}` });
      },
      async () => {
        await uploadModel(thaw, model, { modelId: id });
        for await (const _ of thaw.models.downloadModel({ name: `models/${id}` }));
        await thaw.models.deleteModel({ name: `models/${id}` });
      },
      () => uploadDataset(thaw, { datasetId: id }, { train: ["no JSON\n"] }),
      () => thaw.runs.createRun({ runId: "-", spec: { steps: -1n } }),
      () => thaw.models.evaluate({ name: "models/base", dataset: "datasets/base" }),
      () => thaw.system.getSystem({}),
    ];
    await attempt("other call", chance.pick(things));
  };

  const loops = [
    loop(random(seed), 1000, () => train(random(seed + lastRun))),
    loop(random(seed + 1), 1000, () => store(random(seed + lastThing + 1_000_000))),
    ...Array.from({ length: READERS }, (_, i) => {
      const chance = random(seed + 2 + i);
      return loop(chance, 500, () => read(chance));
    }),
  ];
  return {
    done,
    faults,
    async end() {
      over.abort();
      await Promise.all(loops);
      await attempt("deletion", () => thaw.models.deleteModel({ name: "models/base" }));
      await attempt("deletion", () => thaw.datasets.deleteDataset({ name: "datasets/base" }));
      thaw.close();
    },
  };
}
