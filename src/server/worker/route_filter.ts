// Which tokens of a layer's routing somebody wants. The server uses the same `samples` for each subscriber, so that a
// subscriber with a lower rate gets a subset of what the worker sends for a higher one.

import type { RouteFilter } from "../../../proto/gen/thaw/v1/routing_pb.ts";
import { randomU32 } from "../../trainer/data/random.ts";
import type { RouteBatch } from "../../trainer/types.ts";
import * as enums from "./convert/enums.ts";

/** Tokens of a batch to send: "all", or indices, ascending; undefined when there are none. */
export type TokenChoice = "all" | Uint32Array | undefined;

/** Compiles a filter; conditions left empty match everything. */
export function routeFilter(filter: RouteFilter | undefined): (batch: RouteBatch) => TokenChoice {
  const stacks = new Set(filter?.stacks);
  const layers = new Set(filter?.layers);
  const experts = new Set(filter?.experts);
  const examples = new Set(filter?.exampleIds.map(Number));
  const sources = new Set(filter?.sources);
  const rate = filter?.samplingRate ?? 1;

  return (batch) => {
    if (sources.size > 0 && !sources.has(enums.routeSource.toProto(batch.source))) return undefined;
    if (stacks.size > 0 && !stacks.has(enums.stack.toProto(batch.stack))) return undefined;
    if (layers.size > 0 && !layers.has(batch.layer)) return undefined;
    const tokens = batch.exampleIds.length;
    if (tokens === 0) return undefined;
    if (experts.size === 0 && examples.size === 0 && rate >= 1) return "all";
    const chosen = new Uint32Array(tokens);
    let n = 0;
    for (let token = 0; token < tokens; token++) {
      const example = batch.exampleIds[token];
      if (examples.size > 0 && !examples.has(example)) continue;
      if (!samples(batch.step, example, rate)) continue;
      if (experts.size > 0 && !choosesOne(batch, token, experts)) continue;
      chosen[n++] = token;
    }
    if (n === tokens) return "all";
    return n > 0 ? chosen.subarray(0, n) : undefined;
  };
}

function choosesOne(batch: RouteBatch, token: number, experts: ReadonlySet<number>): boolean {
  const chosen = batch.expertIds.subarray(token * batch.topK, (token + 1) * batch.topK);
  return chosen.some((expert) => expert < batch.experts && experts.has(expert));
}

/**
 * Whether a sequence is in a sample of `rate`: a hash of (step, example id), so that all layers agree and a lower rate's
 * sample lies inside a higher one's.
 */
export const samples = (step: number, exampleId: number, rate: number): boolean =>
  rate >= 1 || randomU32(0, step, exampleId) < rate * 2 ** 32;
