// What the GPU process needs to open a run: where its model, data and newest checkpoint are.

import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { type Run, RunSpecSchema } from "../../../proto/gen/thaw/v1/run_pb.ts";
import type { OpenRunSchema, RunDatasetSchema } from "../../../proto/gen/thaw/worker/v1/worker_pb.ts";
import { checkpointIn, idIn } from "../ids.ts";
import { modelDirectory, splitFile, temporaryDirectory } from "../storage/layout.ts";
import { datasetsOf } from "./datasets.ts";
import type { LiveParts } from "./live.ts";
import { weightOf } from "./scheduling.ts";
import { notFound } from "./states.ts";

type Parts = Pick<LiveParts, "registry" | "layout" | "checkpoints">;

/** The request that opens `run` paused. @throws RpcError when something it starts from is gone */
export async function openRequest(
  run: Run,
  parts: Parts,
): Promise<MessageInitShape<typeof OpenRunSchema> & { readonly checkpointsDirectory: string }> {
  const { registry, layout, checkpoints } = parts;
  const spec = run.spec!;
  const model = await registry.model(idIn("models", spec.model) ?? "");
  if (!model) throw notFound(spec.model);
  const splits = ["train", ...(spec.evaluation?.splits ?? [])];
  const datasets: MessageInitShape<typeof RunDatasetSchema>[] = [];
  for (const name of datasetsOf(spec)) {
    const found = await registry.dataset(idIn("datasets", name) ?? "");
    if (!found) throw notFound(name);
    const { dataset } = found;
    const present = splits.filter((split) => dataset.splits.some((one) => one.name === split));
    const splitFiles = Object.fromEntries(present.map((split) => [split, splitFile(layout, dataset, split)]));
    datasets.push({ name, splitFiles, task: dataset.task });
  }
  const newest = await checkpoints.newest(idIn("runs", run.name)!);
  const first = !newest;
  return {
    run: run.name,
    spec: create(RunSpecSchema, { ...spec, trainable: run.trainable }),
    modelDirectory: modelDirectory(layout, model.directory),
    datasets,
    resumeDirectory: first ? await directoryOf(run.sourceCheckpoint, parts) : newest.directory,
    initialDirectory: first ? await directoryOf(spec.initialCheckpoint, parts) : "",
    checkpointsDirectory: temporaryDirectory(layout),
    paused: true,
    weight: weightOf(run),
    overfitting: newest && run.overfitting,
  };
}

/** The directory of a run's checkpoint; "" for no checkpoint. */
async function directoryOf(name: string, { registry, checkpoints }: Parts): Promise<string> {
  if (name === "") return "";
  const ids = checkpointIn(name)!;
  const found = await registry.checkpoint(ids.run, ids.checkpoint);
  if (!found) throw notFound(name);
  return checkpoints.directoryOf(ids.run, found.directory);
}
