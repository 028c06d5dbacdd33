// `thaw runs replay`: trains a run once more, from the start its log has and with what its log says, as a new run, and
// compares. Everything that decides a loss is in the spec, the starting checkpoint and the freeze plans with their steps, so
// on the adapter the run had every loss is the same number.

import process from "node:process";
import type { RunEvent } from "../../../proto/gen/thaw/v1/event_pb.ts";
import { type Run, RunSpecSchema } from "../../../proto/gen/thaw/v1/run_pb.ts";
import { RunState, RunStateSchema } from "../../../proto/gen/thaw/v1/run_state_pb.ts";
import { watchRun } from "../../typescript/index.ts";
import { ended } from "../events.ts";
import { EXIT } from "../exit_codes.ts";
import { count, enumName, resource } from "../format.ts";
import { firstDifference, historyOf } from "../replay.ts";
import { note, print, type Session } from "../session.ts";

/** What a fork has from its checkpoint's run. */
const FROM_SOURCE = ["model", "initial_checkpoint"];

/** @returns 0 when every loss came out the same, 1 when one did not */
export async function replay(session: Session, typed: string, { id }: { readonly id?: string }): Promise<number> {
  const { runs } = session.thaw;
  const run = (await runs.getRun({ name: resource("runs", typed) })).run!;
  const original = historyOf(run, await logOf(session, run.name, run.revision));
  const last = run.startStep + BigInt(original.losses.length);
  if (last === run.startStep) throw new Error(`${run.name} has taken no step yet: there is nothing to compare`);

  const { name } = await begin(session, run, id ?? "");
  note(`${name} replays ${run.name}`);
  const over = new AbortController();
  const interrupt = () => over.abort();
  process.once("SIGINT", interrupt);
  try {
    let goesOn = true;
    for (const { step, plan } of original.changes) {
      goesOn &&= await advanceTo(session, name, step, over.signal);
      if (goesOn) await session.thaw.groups.setTrainable({ name, plan });
    }
    if (goesOn) await advanceTo(session, name, last, over.signal);
  } catch (error) {
    if (!over.signal.aborted) throw error;
    return EXIT.DETACHED;
  } finally {
    process.off("SIGINT", interrupt);
    const now = (await runs.getRun({ name })).run!;
    if (!ended(now.state)) await runs.cancelRun({ name });
  }

  const replayed = (await runs.getRun({ name })).run!;
  const repeated = historyOf(replayed, await logOf(session, name, replayed.revision));
  const difference = firstDifference(run.startStep, original, repeated);
  const result = {
    run: run.name,
    replay: name,
    steps: original.losses.length,
    planChanges: original.changes.length,
    firstDifference: difference && { step: difference.step, losses: difference.losses.map((loss) => loss ?? null) },
  };
  if (session.json) print(JSON.stringify(result, undefined, 2));
  else if (!difference)
    print(`${count(result.steps)} steps of ${run.name} and ${name}: every loss is the same to the bit`);
  else {
    const [before, after] = difference.losses.map((loss) => loss ?? "no such step");
    print(`step ${difference.step} is the first that differs: loss ${before} in ${run.name}, ${after} in ${name}`);
  }
  return difference ? EXIT.FAILED : EXIT.OK;
}

/** The new run, where the other began, not stepping yet. */
async function begin(session: Session, run: Run, runId: string): Promise<Run> {
  const { runs } = session.thaw;
  const common = { runId, spec: run.spec, displayName: `replay of ${run.name}`, startPaused: true };
  if (run.sourceCheckpoint === "") return (await runs.createRun(common)).run!;
  const paths = RunSpecSchema.fields.map(({ name }) => name).filter((name) => !FROM_SOURCE.includes(name));
  return (await runs.forkRun({ ...common, sourceCheckpoint: run.sourceCheckpoint, updateMask: { paths } })).run!;
}

/** Steps the run until it has completed so many steps and is paused there. @returns false when it has ended */
async function advanceTo(session: Session, name: string, step: bigint, signal: AbortSignal): Promise<boolean> {
  let run = await standing(session, name, signal);
  if (!ended(run.state) && run.step < step) {
    // The last step of all ends the run by itself.
    const pauseAtStep = step < run.spec!.steps ? step : 0n;
    await session.thaw.runs.resumeRun({ name, pauseAtStep });
    run = await standing(session, name, signal);
  }
  if (ended(run.state)) return false;
  if (run.step !== step) throw new Error(`${name} was to pause at step ${step} and is paused at step ${run.step}`);
  return true;
}

/** The run once it is paused or has ended. */
async function standing(session: Session, name: string, signal: AbortSignal): Promise<Run> {
  const now = async (): Promise<Run> => (await session.thaw.runs.getRun({ name })).run!;
  const run = await now();
  if (run.state === RunState.PAUSED || ended(run.state)) return run;
  for await (const { event } of watchRun(session.thaw, name, { afterRevision: run.revision, signal })) {
    if (event.case === "warning") note(`${name}: ${event.value.message}`);
    if (event.case !== "state" || (event.value.to !== RunState.PAUSED && !ended(event.value.to))) continue;
    if (event.value.to !== RunState.PAUSED) note(`${name} is ${enumName(RunStateSchema, event.value.to)}`);
    break;
  }
  return now();
}

/** Everything in a log up to a revision. */
async function logOf(session: Session, name: string, revision: bigint): Promise<RunEvent[]> {
  const events: RunEvent[] = [];
  for await (const event of watchRun(session.thaw, name)) {
    events.push(event);
    if (event.revision >= revision) break;
  }
  return events;
}
