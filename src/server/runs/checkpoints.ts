// Checkpoints of the run on the GPU: written under a temporary name, made durable, renamed, and indexed in the same
// transaction as their event, last. The run's policy keeps the newest few of those nobody asked for.

import { basename, dirname, join } from "node:path";
import { create } from "@bufbuild/protobuf";
import { timestampNow } from "@bufbuild/protobuf/wkt";
import { type Checkpoint, CheckpointReason, CheckpointSchema } from "../../../proto/gen/thaw/v1/checkpoint_pb.ts";
import { failpoint } from "../../failpoints.ts";
import type { Gpu } from "../gpu/supervisor.ts";
import type { Log } from "../log.ts";
import type { Registry } from "../registry/registry.ts";
import { discard, type Layout, publish, temporaryDirectory } from "../storage/layout.ts";
import type { LiveRun, RunLog } from "./log.ts";

/** Deleted when newer ones exceed `keep_last`; the others stay until somebody deletes them. */
const BY_POLICY: readonly CheckpointReason[] = [CheckpointReason.POLICY, CheckpointReason.INTERRUPTED];
/** More than anybody keeps of one run. */
const ALL = 1_000_000;

export interface Checkpoints {
  /** Has the worker write one, and indexes it. */
  save(live: LiveRun, reason: CheckpointReason): Promise<Checkpoint>;
  /** Indexes one that the worker wrote by itself into a folder of ours. */
  adopt(live: LiveRun, directory: string, sizeBytes: bigint, reason: CheckpointReason): Promise<Checkpoint>;
  /** Leaves a damaged one out of what a run can go on from, as long as the server lives. It stays until it is deleted. */
  setAside(name: string): void;
  /** Where a run goes on from: the newest that is not damaged. */
  newest(id: string): Promise<{ readonly checkpoint: Checkpoint; readonly directory: string } | undefined>;
  directoryOf(run: string, folder: string): string;
}

export function runCheckpoints(registry: Registry, layout: Layout, gpu: Gpu, runLog: RunLog, log: Log): Checkpoints {
  const directoryOf = (run: string, folder: string): string => join(layout.checkpoints, run, folder);
  const damaged = new Set<string>();
  /** By run, one whose event waits for a disk that refused it. It is there, and in the log before the run goes on. */
  const unwritten = new Map<string, { readonly checkpoint: Checkpoint; readonly directory: string }>();
  const idOf = (live: LiveRun): string => live.run.name.replace(/^runs\//, "");

  async function freeName(run: string, step: bigint): Promise<string> {
    const base = `step-${step}`;
    for (let n = 1; ; n++) {
      const id = n === 1 ? base : `${base}-${n}`;
      if (!(await registry.checkpoint(run, id))) return id;
    }
  }

  async function index(live: LiveRun, written: string, step: bigint, sizeBytes: bigint, reason: CheckpointReason) {
    const run = idOf(live);
    const id = await freeName(run, step);
    failpoint("checkpoint.before_publish");
    publish(written, directoryOf(run, id));
    failpoint("checkpoint.published");
    const checkpoint = create(CheckpointSchema, {
      name: `runs/${run}/checkpoints/${id}`,
      step,
      sizeBytes,
      reason,
      createTime: timestampNow(),
    });
    damaged.delete(checkpoint.name); // A name may be free again.
    unwritten.set(run, { checkpoint, directory: directoryOf(run, id) });
    runLog.append(live, { case: "checkpoint", value: checkpoint }, id);
    await runLog.flush();
    unwritten.delete(run);
    failpoint("checkpoint.indexed");
    await retain(run, Number(live.run.spec?.checkpoints?.keepLast ?? 1n));
    return checkpoint;
  }

  async function retain(run: string, keep: number): Promise<void> {
    const indexed = await registry.checkpoints(run, { before: undefined, limit: ALL });
    // A damaged one is no reason to delete a good one.
    const kept = indexed.filter(({ item }) => !damaged.has(item.checkpoint.name));
    const byPolicy = kept.filter(({ item }) => BY_POLICY.includes(item.checkpoint.reason));
    const best = kept.filter(({ item }) => item.checkpoint.reason === CheckpointReason.BEST);
    for (const { item } of [...byPolicy.slice(Math.max(keep, 1)), ...best.slice(1)]) {
      await registry.deleteCheckpoint(run, basename(item.checkpoint.name));
      failpoint("checkpoint.before_discard");
      await discard(directoryOf(run, item.directory));
    }
  }

  // One at a time: names are chosen by what is there.
  let last: Promise<unknown> = Promise.resolve();
  const inOrder = <T>(work: () => Promise<T>): Promise<T> => {
    const result = last.then(work);
    last = result.catch((error) => log("error", `checkpoint: ${error}`));
    return result;
  };

  return {
    async save(live, reason) {
      const directory = temporaryDirectory(layout);
      try {
        const reply = await gpu.request({ case: "saveCheckpoint", value: { run: live.run.name, directory } });
        if (reply.result.case !== "written") throw new Error(`SaveCheckpoint answered with ${reply.result.case}`);
        const { step, sizeBytes } = reply.result.value;
        return await inOrder(() => index(live, directory, step, sizeBytes, reason));
      } catch (error) {
        await discard(directory);
        throw error;
      }
    },
    adopt(live, directory, sizeBytes, reason) {
      const step = live.run.step;
      if (dirname(dirname(directory)) !== layout.tmp) {
        return Promise.reject(new Error("a checkpoint outside its folder"));
      }
      return inOrder(() => index(live, directory, step, sizeBytes, reason));
    },
    setAside: (name) => void damaged.add(name),
    async newest(id) {
      const waiting = unwritten.get(id);
      if (waiting && !(await registry.checkpoint(id, basename(waiting.checkpoint.name)))) return waiting;
      unwritten.delete(id);
      const indexed = await registry.checkpoints(id, { before: undefined, limit: damaged.size + 1 });
      const found = indexed.find(({ item }) => !damaged.has(item.checkpoint.name));
      return found && { checkpoint: found.item.checkpoint, directory: directoryOf(id, found.item.directory) };
    },
    directoryOf,
  };
}
