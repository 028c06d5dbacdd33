// What a start of the server does with runs that its last life left unfinished. Nothing is on the GPU yet: what trained
// goes back into the queue, at its old place, and will go on from its newest checkpoint; what was paused stays paused.

import { RunState } from "../../../proto/gen/thaw/v1/run_state_pb.ts";
import { idIn } from "../ids.ts";
import type { Registry } from "../registry/registry.ts";
import type { Checkpoints } from "./checkpoints.ts";
import { changeState } from "./live.ts";
import type { RunLog } from "./log.ts";
import { ON_GPU } from "./states.ts";

const { STARTING, RUNNING, PAUSING, PAUSED, CANCELLING, CANCELLED, QUEUED } = RunState;

const AFTERWARDS: ReadonlyMap<RunState, RunState> = new Map([
  [STARTING, QUEUED],
  [RUNNING, QUEUED],
  [PAUSING, PAUSED],
  [CANCELLING, CANCELLED],
]);

export async function recoverRuns(registry: Registry, runLog: RunLog, checkpoints: Checkpoints): Promise<void> {
  for (const live of await registry.runsInStates([...ON_GPU, PAUSED])) {
    const to = AFTERWARDS.get(live.run.state);
    const newest = await checkpoints.newest(idIn("runs", live.run.name)!);
    const step = newest?.checkpoint.step ?? live.run.startStep;
    if (to === CANCELLED || (to === undefined && live.run.step === step)) {
      if (to !== undefined) changeState(runLog, live, to);
      continue;
    }
    live.run.step = step;
    const message = `the server was interrupted; the run goes on from step ${step}, and later steps are repeated`;
    runLog.append(live, { case: "warning", value: { reason: "SERVER_RESTARTED", message } });
    if (to !== undefined) changeState(runLog, live, to);
  }
  await runLog.flush();
}
