// What the log promises, as checks on what readers saw: revisions without a gap, nothing seen lost or changed, losses those
// of a run that nothing happened to, and checkpoints that are there and whole.

import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import * as assert from "uvu/assert";
import { type RunEvent, RunEventSchema } from "../../../proto/gen/thaw/v1/event_pb.ts";
import type { Run, RunSpecSchema } from "../../../proto/gen/thaw/v1/run_pb.ts";
import { RunState } from "../../../proto/gen/thaw/v1/run_state_pb.ts";
import { openRegistry } from "../../../src/server/registry/sqlite.ts";
import { describeEvent, eventsUntil, reaches } from "../../support/thaw_server.ts";
import type { Prepared } from "./served.ts";

export const story = (events: readonly RunEvent[]): string => events.map(describeEvent).join(", ");

/** Everything a reader has got of a run, across however many watches. */
export function reader() {
  const seen: RunEvent[] = [];
  return {
    seen,
    get revision(): bigint {
      return seen.at(-1)?.revision ?? 0n;
    },
    take(events: readonly RunEvent[]): void {
      seen.push(...events);
    },
  };
}

/** @param log all of it, read at the end; `seen` what readers had got before and between deaths */
export function checkLog(log: readonly RunEvent[], seen: readonly RunEvent[]): void {
  assert.equal(
    log.map((event) => event.revision),
    log.map((_, i) => BigInt(i + 1)),
    `revisions have no gap: ${story(log)}`,
  );
  for (const event of seen) {
    const kept = log[Number(event.revision) - 1];
    assert.ok(kept, `revision ${event.revision}, ${describeEvent(event)}, was seen and is lost: ${story(log)}`);
    assert.equal(toBinary(RunEventSchema, kept), toBinary(RunEventSchema, event), `revision ${event.revision} changed`);
  }
}

/** Losses by step; every time a step was taken it must have come out the same. */
export function lossesOf(log: readonly RunEvent[]): number[] {
  const losses: number[] = [];
  let last = 0;
  for (const { step, event } of log) {
    if (event.case === "warning") last = Number(step);
    if (event.case !== "metrics") continue;
    const { loss } = event.value;
    const at = Number(event.value.step);
    assert.is(at, last + 1, `a step follows the one before it, or the checkpoint gone back to: ${story(log)}`);
    last = at;
    if (losses[at - 1] !== undefined) assert.is(loss, losses[at - 1], `step ${at} came out differently: ${story(log)}`);
    losses[at - 1] = loss;
  }
  return losses;
}

/** Every checkpoint of the index is there; nothing else is left beside it. The server must have ended. */
export async function checkCheckpoints(data: string, run: Run): Promise<void> {
  const registry = openRegistry(join(data, "thaw.sqlite"));
  try {
    const id = run.name.replace(/^runs\//, "");
    const kept = await registry.checkpoints(id, { before: undefined, limit: 1000 });
    assert.ok(kept.length > 0, "the only checkpoint is kept");
    const folder = join(data, "checkpoints", id);
    assert.equal(
      readdirSync(folder).sort(),
      kept.map(({ item }) => item.directory).sort(),
      "folders are those indexed",
    );
    for (const { item } of kept) {
      for (const file of ["training.json", "optimizer.safetensors"]) {
        assert.ok(existsSync(join(folder, item.directory, file)), `${item.directory} has its ${file}`);
      }
    }
  } finally {
    registry.close();
  }
}

/** The losses of a run that nothing happens to, on a server of its own. */
export async function unbrokenLosses(
  prepared: Prepared,
  spec: MessageInitShape<typeof RunSpecSchema>,
): Promise<number[]> {
  const served = await prepared.start(await prepared.copy());
  await served.thaw.runs.createRun({ runId: "r", spec });
  const losses = lossesOf(await eventsUntil(served.thaw, "runs/r", reaches(RunState.SUCCEEDED)));
  await served.end("SIGKILL");
  return losses;
}
