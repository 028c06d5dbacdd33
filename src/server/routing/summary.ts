// Routing over a window of steps, from what the log has per step: loads weighted by the assignments behind them, entropy,
// imbalance, drops, pairs of experts chosen together, and drift as total variation distance against the run's earliest
// record.

import { create } from "@bufbuild/protobuf";
import type { RunEvent } from "../../../proto/gen/thaw/v1/event_pb.ts";
import {
  type RouterLayerMetrics,
  type RoutingLayerSummary,
  RoutingLayerSummarySchema,
} from "../../../proto/gen/thaw/v1/routing_pb.ts";
import { coActivationMatrix } from "../../kernels/co_activation.ts";

/** The busiest expert's share over an even one: 1 when all are equally busy, the number of experts when one has it all. */
export const loadImbalance = (load: readonly number[]): number => Math.max(0, ...load) * load.length;

export interface RoutingRecord {
  readonly step: bigint;
  readonly layers: readonly RouterLayerMetrics[];
}

/** Records of the log, by ascending step. Of a training step that was repeated after a resume, the later event counts. */
export function routingRecords(events: readonly RunEvent[]): RoutingRecord[] {
  const records = new Map<string, RoutingRecord>();
  for (const { event } of events) {
    if (event.case === "metrics") records.set(String(event.value.step), event.value);
    if (event.case === "evaluation") records.set(`${event.value.step} ${event.value.split}`, event.value);
  }
  return [...records.values()].sort((a, b) => Number(a.step - b.step));
}

const keyOf = (layer: Pick<RouterLayerMetrics, "stack" | "layer">): string => `${layer.stack} ${layer.layer}`;

/** Half the sum of absolute differences: the largest difference in probability of any set of experts, in [0, 1]. */
const totalVariation = (a: readonly number[], b: readonly number[]): number =>
  a.reduce((sum, share, expert) => sum + Math.abs(share - (b[expert] ?? 0)), 0) / 2;

/** Shannon entropy in nats. */
const entropy = (load: readonly number[]): number =>
  load.reduce((sum, share) => (share > 0 ? sum - share * Math.log(share) : sum), 0);

/** Counts of pairs, added up over records: [experts, experts]; empty where there are none. */
function coActivation(records: readonly RouterLayerMetrics[], experts: number): number[] {
  const counted = records.filter((record) => record.coActivation.length > 0);
  if (counted.length === 0) return [];
  const sums = counted[0].coActivation.map((_, pair) => counted.reduce((n, { coActivation: c }) => n + c[pair], 0));
  return coActivationMatrix(sums, experts);
}

/** @param records at least one; @param reference the run's earliest record of the source */
export function summarizeRouting(records: readonly RoutingRecord[], reference: RoutingRecord): RoutingLayerSummary[] {
  const before = new Map(reference.layers.map((layer) => [keyOf(layer), layer.load]));
  return records[0].layers.map(({ stack, layer }) => {
    const own = records.flatMap((record) => record.layers.filter((other) => keyOf(other) === keyOf({ stack, layer })));
    const assignments = own.reduce((sum, one) => sum + one.assignments, 0n);
    const experts = Math.max(...own.map((one) => one.load.length));
    const chosen = Array.from({ length: experts }, (_, expert) =>
      own.reduce((sum, one) => sum + (one.load[expert] ?? 0) * Number(one.assignments), 0),
    );
    const load = chosen.map((count) => (assignments > 0n ? count / Number(assignments) : 0));
    return create(RoutingLayerSummarySchema, {
      stack,
      layer,
      assignments,
      dropped: own.reduce((sum, one) => sum + one.dropped, 0n),
      load,
      loadEntropyNats: entropy(load),
      loadImbalance: loadImbalance(load),
      coActivation: coActivation(own, experts),
      drift: totalVariation(load, before.get(keyOf({ stack, layer })) ?? []),
    });
  });
}
