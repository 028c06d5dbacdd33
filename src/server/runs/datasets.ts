// What a run trains on, by name.

import type { RunSpec } from "../../../proto/gen/thaw/v1/run_pb.ts";

/** `datasets/{dataset}` of each dataset, the run's own first. */
export const datasetsOf = ({ dataset, mixture }: Pick<RunSpec, "dataset" | "mixture">): string[] => [
  dataset,
  ...(mixture?.datasets ?? []),
];
