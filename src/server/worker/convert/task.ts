// What a dataset is scored by, between the contract and the trainer.

import { create } from "@bufbuild/protobuf";
import { type DatasetTask, DatasetTaskSchema } from "../../../../proto/gen/thaw/v1/dataset_pb.ts";
import { METRICS, type Scoring } from "../../../trainer/tasks/task.ts";
import { InputError } from "../../../trainer/types.ts";

export const taskToProto = (name: string, { metrics, labels, positive }: Scoring): DatasetTask =>
  create(DatasetTaskSchema, { name, metrics: [...metrics], labels: { ...labels }, positive });

/** @throws InputError for a metric of a newer server */
export function scoringFromProto(task: DatasetTask | undefined): Scoring | undefined {
  if (!task) return undefined;
  const metrics = task.metrics.map((name) => {
    const metric = METRICS.find((known) => known === name);
    if (metric) return metric;
    throw new InputError([{ field: "dataset.task", message: `has the unknown metric ${name}` }]);
  });
  return { metrics, labels: task.labels, ...(task.positive !== "" && { positive: task.positive }) };
}
