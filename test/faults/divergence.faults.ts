// Losses that are no number, under each policy, while the server or its GPU process is killed in the moment in which one
// shows: the run does what its policy says, and what it learns is what it learns without the kill.

import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { RunEvent } from "../../proto/gen/thaw/v1/event_pb.ts";
import { NonFinitePolicy } from "../../proto/gen/thaw/v1/run_pb.ts";
import { RunState } from "../../proto/gen/thaw/v1/run_state_pb.ts";
import { eventsUntil } from "../support/thaw_server.ts";
import { checkLog, story } from "./support/promises.ts";
import { random, SEEDS } from "./support/random.ts";
import { type Prepared, prepare } from "./support/served.ts";

const { STOP, SKIP, ROLLBACK } = NonFinitePolicy;
const { FAILED, SUCCEEDED } = RunState;
const POLICIES = [
  [STOP, "stop"],
  [SKIP, "skip"],
  [ROLLBACK, "rollback"],
] as const;
const KILLED = ["nothing", "server", "GPU process"] as const;
/** Each policy with each kill, then again with other batches. */
const CASES = SEEDS.slice(0, 18);
const STEPS = 12;
const EVERY = 3;
/** Never four in a row, so that a run that goes back always gets on. */
const POISONED = 3;

const test = suite("divergence");
let prepared: Prepared;
test.before(async () => {
  prepared = await prepare();
});
test.after(() => prepared.clean());

/** Losses by step that a run must come to: the fake trainer and the policy, in a few lines. */
function expected(policy: NonFinitePolicy, poisoned: ReadonlySet<number>): number[] {
  const losses: number[] = [];
  let saved = { step: 0, learnt: 0, passedOver: 0 };
  let { learnt, passedOver } = saved;
  for (let step = 1; step <= STEPS; step++) {
    learnt = (Math.imul(learnt, 0x01000193) + step + passedOver) >>> 0;
    const bad = poisoned.has(step + passedOver);
    losses[step - 1] = bad ? Number.NaN : learnt / 2 ** 32;
    if (bad && policy === STOP) return losses;
    if (bad && policy === ROLLBACK) {
      passedOver += step - saved.step;
      saved = { ...saved, passedOver };
      ({ step, learnt } = saved);
      losses.length = step;
    } else if (step % EVERY === 0) saved = { step, learnt, passedOver };
  }
  return losses;
}

/** Losses by step as the log has them in the end. */
function finalLosses(log: readonly RunEvent[]): number[] {
  const losses: number[] = [];
  for (const { step, event } of log) {
    if (event.case === "warning") losses.length = Math.min(losses.length, Number(step));
    if (event.case === "metrics") losses[Number(event.value.step) - 1] = event.value.loss;
  }
  return losses;
}

for (const seed of CASES) {
  const [policy, name] = POLICIES[seed % 3];
  const killed = KILLED[Math.floor(seed / 3) % 3];
  const chance = random(seed);
  const poisoned = new Set(Array.from({ length: POISONED }, () => 2 + chance.below(STEPS - 1)));
  const what = `batches ${[...poisoned].join(", ")}, policy ${name}, ${killed} killed`;
  test(`seed ${seed}: ${what}`, async () => {
    const data = await prepared.copy();
    const env = { FAKE_POISONED: [...poisoned].join(",") };
    let served = await prepared.start(data, env);
    const checkpoints = { everySteps: BigInt(EVERY), keepLast: 2n };
    const spec = { model: "models/m", dataset: "datasets/d", steps: BigInt(STEPS), nonFinite: policy, checkpoints };
    await served.thaw.runs.createRun({ runId: "r", spec });
    const ends = ({ event }: RunEvent): boolean =>
      event.case === "state" && (event.value.to === SUCCEEDED || event.value.to === FAILED);
    const diverges = ({ event }: RunEvent): boolean => event.case === "metrics" && Number.isNaN(event.value.loss);
    const seen = await eventsUntil(served.thaw, "runs/r", (event) => diverges(event) || ends(event));
    if (killed === "server") {
      await served.end("SIGKILL");
      served = await prepared.start(data, env);
    } else if (killed === "GPU process") served.killGpuProcess();
    const log = await eventsUntil(served.thaw, "runs/r", ends);
    checkLog(log, seen);
    assert.equal(finalLosses(log).map(String), expected(policy, poisoned).map(String), story(log));
    const { run } = await served.thaw.runs.getRun({ name: "runs/r" });
    assert.is(run?.state, policy === STOP ? FAILED : SUCCEEDED, story(log));
    if (policy === STOP) assert.match(run?.error?.message ?? "", /training diverged at step \d+: the loss is NaN/);
    await served.end("SIGKILL");
  });
}

test.run();
