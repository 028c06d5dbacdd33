// The tasks that need no description: by the name a dataset says.

import { SUPERGLUE } from "./superglue.ts";
import type { TaskDefinition } from "./task.ts";

/** `superglue/boolq` and the other seven. */
export const READY_TASKS: ReadonlyMap<string, TaskDefinition> = new Map(
  Object.entries(SUPERGLUE).map(([name, definition]) => [`superglue/${name}`, definition]),
);
