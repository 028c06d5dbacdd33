// A run's specification with the fields of a mask replaced.

import { clone } from "@bufbuild/protobuf";
import { type ReflectMessage, reflect } from "@bufbuild/protobuf/reflect";
import { type RunSpec, RunSpecSchema } from "../../../proto/gen/thaw/v1/run_pb.ts";
import type { Problems } from "./problems.ts";

const FIXED: readonly string[] = ["model", "initial_checkpoint"];
/** Fields whose own fields can be named. */
const NESTED: readonly string[] = ["optimizer", "routing", "losses", "evaluation", "checkpoints"];
const MAX_SHOWN = 64;

/**
 * A copy of `base` with the fields that `paths` name as they are in `changed`; a field that is unset there becomes unset.
 * Paths that name no such field are problems of `update_mask`.
 */
export function mergeSpec(problems: Problems, base: RunSpec, changed: RunSpec, paths: readonly string[]): RunSpec {
  const merged = clone(RunSpecSchema, base);
  const [to, from] = [reflect(RunSpecSchema, merged), reflect(RunSpecSchema, changed)];
  for (const path of paths) {
    const [outer, inner, ...more] = path.split(".");
    const done =
      more.length === 0 &&
      (inner === undefined
        ? !FIXED.includes(outer) && replaceField(to, from, outer)
        : NESTED.includes(outer) && replaceNested(to, from, outer, inner));
    const message = `${JSON.stringify(path.slice(0, MAX_SHOWN))} is no field of a spec that a fork can change`;
    problems.require(done, "update_mask", message);
  }
  return merged;
}

/** Whether there is such a field. */
function replaceField(to: ReflectMessage, from: ReflectMessage, name: string): boolean {
  const field = to.fields.find((one) => one.name === name);
  if (!field) return false;
  if (from.isSet(field)) to.set(field, from.get(field));
  else to.clear(field);
  return true;
}

function replaceNested(to: ReflectMessage, from: ReflectMessage, outer: string, inner: string): boolean {
  const field = to.fields.find((one) => one.name === outer);
  if (field?.fieldKind !== "message") return false;
  // `get` makes an empty message where there is none, which only `set` puts into place.
  const target = to.get(field);
  const found = replaceField(target, from.get(field), inner);
  if (found) to.set(field, target);
  return found;
}
