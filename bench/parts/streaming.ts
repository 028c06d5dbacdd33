// What it costs to watch: steps of a run on a real server, in turns without and with one subscriber that takes the expert of
// every token. A step's time is the server's own figure.

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { startServer } from "../../clients/study/server.ts";
import { connectThaw, type Thaw, uploadDataset, watchRun } from "../../clients/typescript/index.ts";
import { Precision } from "../../proto/gen/thaw/v1/run_pb.ts";
import type { Bench, Part } from "../part.ts";
import { randomExamples, randomModel, tokensOf, writeModel } from "../random_model.ts";
import { median } from "../timing.ts";
import { MODELS } from "./model.ts";

/** Turns of each kind, and steps in one; the first steps of a turn belong to the change. */
const TURNS = 3;
const STEPS = { small: 5, gpu: 12 } as const;
const SETTLING = 3;

/** One who takes every assignment until told to go. */
function subscriber(thaw: Thaw, run: string): { readonly received: () => number; end(): Promise<void> } {
  const over = new AbortController();
  let assignments = 0;
  const taking = (async () => {
    for await (const { assignments: slice } of thaw.routing.streamAssignments({ run }, { signal: over.signal }))
      assignments += Number(slice?.tokenCount ?? 0);
  })().catch((error: unknown) => {
    if (!over.signal.aborted) throw error;
  });
  return {
    received: () => assignments,
    end() {
      over.abort();
      return taking;
    },
  };
}

async function measure({ scale, report }: Bench): Promise<void> {
  const { config, shape } = MODELS[scale];
  const folder = await mkdtemp(join(tmpdir(), "thaw-bench-"));
  const source = randomModel(config);
  await writeModel(join(folder, "model"), source);
  const server = await startServer(join(folder, "data"), folder, new AbortController().signal);
  const thaw = connectThaw(server.address);
  try {
    await thaw.models.loadModel({ directory: "model", modelId: "m" });
    const lines = randomExamples(shape, source.model.vocabularySize).map(
      ({ inputIds, labels }) => `${JSON.stringify({ input_ids: [...inputIds], target_ids: [...labels] })}\n`,
    );
    await uploadDataset(thaw, { datasetId: "d" }, { train: lines });
    const { run } = await thaw.runs.createRun({
      spec: {
        model: "models/m",
        dataset: "datasets/d",
        steps: 1_000_000n,
        batchSize: BigInt(shape.batch),
        maxInputTokens: BigInt(shape.input),
        maxTargetTokens: BigInt(shape.target),
        dropout: 0,
        optimizer: { learningRate: 1e-4 },
        precision: Precision.MIXED,
        checkpoints: { everySteps: 0n },
      },
    });
    const { alone, watched, received } = await turns(thaw, run!.name, STEPS[scale]);
    const seconds = { alone: median(alone), watched: median(watched) };
    report({
      name: "one subscriber",
      figures: {
        "step alone, ms": 1e3 * seconds.alone,
        "step watched, ms": 1e3 * seconds.watched,
        "cost, %": 100 * (seconds.watched / seconds.alone - 1),
        "tokens/s": tokensOf(shape) / seconds.watched,
        "tokens received": received,
        steps: alone.length + watched.length,
      },
      rate: "tokens/s",
    });
    await thaw.runs.cancelRun({ name: run!.name });
  } finally {
    thaw.close();
    await server.stop();
    await rm(folder, { recursive: true });
  }
}

/** Seconds of the steps of each kind of turn, those that settle left out, and the tokens whose experts were received. */
async function turns(thaw: Thaw, run: string, steps: number) {
  const seconds: [alone: number[], watched: number[]] = [[], []];
  let received = 0;
  let current: ReturnType<typeof subscriber> | undefined;
  let [turn, inTurn] = [0, -SETTLING];
  const change = async () => {
    received += current?.received() ?? 0;
    await current?.end();
    current = turn % 2 === 1 ? subscriber(thaw, run) : undefined;
  };
  for await (const { event } of watchRun(thaw, run)) {
    if (event.case === "state" && event.value.error) throw new Error(event.value.error.message);
    if (event.case !== "metrics") continue;
    const { stepDuration } = event.value;
    if (++inTurn > 0) seconds[turn % 2].push(Number(stepDuration!.seconds) + stepDuration!.nanos / 1e9);
    if (inTurn < steps) continue;
    [turn, inTurn] = [turn + 1, -SETTLING];
    await change();
    if (turn === 2 * TURNS) break;
  }
  return { alone: seconds[0], watched: seconds[1], received };
}

export const streaming: Part = {
  name: "streaming",
  title: "steps of a run on a server, in turns without and with one subscriber to every token's expert; medians",
  seconds: { small: 60, gpu: 110 },
  measure,
};
