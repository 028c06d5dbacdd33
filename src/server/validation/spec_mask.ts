// A run's specification with the fields of a mask replaced.

import { clone } from "@bufbuild/protobuf";
import { type ReflectMessage, reflect } from "@bufbuild/protobuf/reflect";
import { type RunSpec, RunSpecSchema } from "../../../proto/gen/thaw/v1/run_pb.ts";
import type { Problems } from "./problems.ts";

const FIXED: readonly string[] = ["model", "initial_checkpoint"];
const MAX_SHOWN = 64;

/**
 * A copy of `base` with the fields that `paths` name (`steps`, `optimizer.schedule.kind`) as they are in `changed`; a field
 * that is unset there becomes unset. Paths that name no field, or a fixed one, are problems of `update_mask`.
 */
export function mergeSpec(problems: Problems, base: RunSpec, changed: RunSpec, paths: readonly string[]): RunSpec {
  const merged = clone(RunSpecSchema, base);
  const [to, from] = [reflect(RunSpecSchema, merged), reflect(RunSpecSchema, changed)];
  for (const path of paths) {
    const names = path.split(".");
    const done = !FIXED.includes(names[0]) && replaceField(to, from, names);
    const message = `${JSON.stringify(path.slice(0, MAX_SHOWN))} is no field of a spec that a fork can change`;
    problems.require(done, "update_mask", message);
  }
  return merged;
}

/** Whether there is such a field. */
function replaceField(to: ReflectMessage, from: ReflectMessage, [name, ...inner]: readonly string[]): boolean {
  const field = to.fields.find((one) => one.name === name);
  if (!field) return false;
  if (inner.length > 0) {
    if (field.fieldKind !== "message") return false;
    // `get` makes an empty message where there is none, which only `set` puts into place.
    const target = to.get(field);
    const found = replaceField(target, from.get(field), inner);
    if (found) to.set(field, target);
    return found;
  }
  if (from.isSet(field)) to.set(field, from.get(field));
  else to.clear(field);
  return true;
}
