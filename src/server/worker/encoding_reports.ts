// How far the data of a run that opens has been tokenised, for its watch log: a report a second of each split, and one
// when the split is complete.

import type { MessageInitShape } from "@bufbuild/protobuf";
import type { DataPreparationSchema } from "../../../proto/gen/thaw/v1/event_pb.ts";
import type { RunDataset } from "../../../proto/gen/thaw/worker/v1/worker_pb.ts";
import type { OnEncoding } from "../../trainer/run/encoded_files.ts";
import { count } from "./convert/scalars.ts";

const INTERVAL_MS = 1000;

export function reportEncoding(
  datasets: readonly Pick<RunDataset, "name" | "splitFiles">[],
  send: (report: MessageInitShape<typeof DataPreparationSchema>) => void,
  now: () => number = () => performance.now(),
): OnEncoding {
  const places = new Map(
    datasets.flatMap(({ name, splitFiles }) =>
      Object.entries(splitFiles).map(([split, file]) => [file, { dataset: name, split }]),
    ),
  );
  const due = new Map<string, number>();
  return (file, { encoded, total, truncatedInputs, truncatedTargets }) => {
    const place = places.get(file);
    // What is read later, for an evaluation that somebody asked for, is no file of the run.
    if (!place) return;
    const time = now();
    if (encoded < total && time < (due.get(file) ?? Number.NEGATIVE_INFINITY)) return;
    due.set(file, time + INTERVAL_MS);
    send({
      ...place,
      done: count(encoded),
      total: count(total),
      truncatedInputs: count(truncatedInputs),
      truncatedTargets: count(truncatedTargets),
    });
  };
}
