// Twenty kills at random times, of the server or of its GPU process, while four runs share the GPU: afterwards all four end,
// their logs have no gap and keep what anybody saw, and their losses are those of runs that nothing happened to.

import { setTimeout as delay } from "node:timers/promises";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { RpcError } from "../../clients/typescript/index.ts";
import { RunState } from "../../proto/gen/thaw/v1/run_state_pb.ts";
import { eventsUntil, reaches } from "../support/thaw_server.ts";
import { checkCheckpoints, checkLog, lossesOf, reader, story, unbrokenLosses } from "./support/promises.ts";
import { random, SEEDS } from "./support/random.ts";
import { type Prepared, prepare, type Served } from "./support/served.ts";
import { within } from "./support/within.ts";

const KILLS = 20;
/** Longest time between two kills: a process is up and steps well before. */
const MOST_MS = 1500;
/**
 * Runs fail, rightly, when their process ends four times without a new checkpoint; so often in a row is never killed here.
 */
const MOST_WITHOUT_CHECKPOINT = 3;
/** One server's life, or all four to their end, on a busy machine. */
const PATIENCE_MS = 90_000;
/** The better part of a minute each. */
const CASES = SEEDS.slice(0, Math.ceil(SEEDS.length / 25));

const RUNS = [1, 2, 3, 4].map((seed) => ({
  name: `runs/r${seed}`,
  spec: {
    model: "models/m",
    dataset: "datasets/d",
    steps: 600n,
    seed: BigInt(seed),
    checkpoints: { everySteps: 5n, keepLast: 2n },
  },
}));
const FLAGS = ["--max-runs-on-gpu", String(RUNS.length)];
const ENV = { FAKE_STEP_MS: "8" };
const { SUCCEEDED } = RunState;

const test = suite("random kills");
let prepared: Prepared;
let unbroken: number[][] = [];

test.before(async () => {
  prepared = await prepare();
  unbroken = await Promise.all(RUNS.map(({ spec }) => unbrokenLosses(prepared, spec)));
  assert.is(new Set(unbroken.map((losses) => losses.at(-1))).size, RUNS.length, "each run has losses of its own");
});
test.after(() => prepared.clean());

for (const seed of CASES) {
  test(`seed ${seed}: ${KILLS} kills during ${RUNS.length} runs`, async () => {
    const chance = random(seed);
    const data = await prepared.copy();
    const told = RUNS.map(() => reader());
    const checkpoints = RUNS.map(() => 0);
    const killed: string[] = [];
    let served = await prepared.start(data, ENV, FLAGS);

    /** Reads on, in all logs, until this server is gone. */
    async function follow({ thaw }: Served): Promise<void> {
      const watches = RUNS.map(async ({ name }, i) => {
        try {
          for await (const { reply } of thaw.runs.watchRun({ name, afterRevision: told[i].revision })) {
            if (reply.case !== "events") continue;
            told[i].take(reply.value.events);
            checkpoints[i] += reply.value.events.filter(({ event }) => event.case === "checkpoint").length;
          }
        } catch (error) {
          if (!(error instanceof RpcError)) throw error;
        }
      });
      await Promise.all(watches);
    }
    const how = (): string =>
      [
        `killed: ${killed.join(", ")}`,
        ...told.map(({ seen }, i) => `${RUNS[i].name}: ${story(seen.slice(-12))}`),
        served.said(),
      ].join("\n");
    const bounded = <T>(what: string, work: Promise<T>): Promise<T> => within(PATIENCE_MS, what, work, how);

    for (const { name, spec } of RUNS) {
      await bounded("creating", served.thaw.runs.createRun({ runId: name.replace("runs/", ""), spec }));
    }
    let following = follow(served);
    let inARow = 0;
    let since = [...checkpoints];
    for (let kill = 0; kill < KILLS; kill++) {
      await delay(chance.below(MOST_MS));
      const everyRun = () => checkpoints.every((count, i) => count > since[i] || ended(told[i]));
      if (inARow === MOST_WITHOUT_CHECKPOINT) {
        await bounded("a checkpoint of every run", until(everyRun));
      }
      if (everyRun()) {
        inARow = 0;
        since = [...checkpoints];
      }
      assert.not.ok(told.every(ended), `the runs have ended before kill ${kill + 1}`);
      if (chance.below(3) === 0) {
        killed.push("server");
        await served.end("SIGKILL");
        await bounded("the end of the watches", following);
        served = await prepared.start(data, ENV, FLAGS);
        following = follow(served);
      } else {
        killed.push("GPU process");
        inARow++;
        served.killGpuProcess();
      }
    }
    const logs = await Promise.all(
      RUNS.map(({ name }) => bounded(`the end of ${name}`, eventsUntil(served.thaw, name, reaches(SUCCEEDED)))),
    );
    for (const [i, log] of logs.entries()) {
      checkLog(log, told[i].seen);
      assert.equal(lossesOf(log), unbroken[i], RUNS[i].name);
    }
    const runs = await Promise.all(RUNS.map(({ name }) => served.thaw.runs.getRun({ name })));
    await served.end("SIGKILL");
    for (const { run } of runs) await checkCheckpoints(data, run!);
  });
}

const ended = ({ seen }: ReturnType<typeof reader>): boolean => seen.some(reaches(SUCCEEDED));

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await delay(20);
}

test.run();
