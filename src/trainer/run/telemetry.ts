// Results of a program turned into metrics and routes.

import type { Batch } from "../data/batches.ts";
import type { SparseLayer } from "../model/family.ts";
import type { RouteBatch, RouterLayerMetrics, RouteSource } from "../types.ts";
import type { Results } from "./readback.ts";

/** Row of an assignment that capacity dropped, or that was never routed. */
const NO_ROW = 0xffffffff;

export function layerMetrics(layer: SparseLayer, results: Results): RouterLayerMetrics {
  const { routing } = layer;
  const [balanceLoss, zLoss] = results.f32(routing.losses);
  const demand = results.u32(routing.demand);
  const assignments = demand.reduce((n, d) => n + d, 0);
  const kept = results.u32(routing.expertCount).reduce((n, c) => n + c, 0);
  return {
    stack: layer.stack,
    layer: layer.layer,
    balanceLoss,
    zLoss,
    load: Array.from(demand, (d) => (assignments > 0 ? d / assignments : 0)),
    dropped: assignments - kept,
    assignments,
  };
}

/** The metrics of several batches as one, each weighted by its assignments. */
export function mergeLayerMetrics(batches: readonly (readonly RouterLayerMetrics[])[]): RouterLayerMetrics[] {
  return (batches[0] ?? []).map((first, i) => {
    const layers = batches.map((batch) => batch[i]);
    const assignments = layers.reduce((n, l) => n + l.assignments, 0);
    const mean = (value: (l: RouterLayerMetrics) => number) =>
      assignments > 0 ? layers.reduce((sum, l) => sum + value(l) * l.assignments, 0) / assignments : 0;
    return {
      ...first,
      balanceLoss: mean((l) => l.balanceLoss),
      zLoss: mean((l) => l.zLoss),
      load: first.load.map((_, e) => mean((l) => l.load[e])),
      dropped: layers.reduce((n, l) => n + l.dropped, 0),
      assignments,
    };
  });
}

/** Where a layer's tokens come from. */
export interface RouteContext {
  readonly source: RouteSource;
  readonly step: number;
  readonly batch: Batch;
  readonly routePadding: boolean;
}

/** One layer's routing of a batch: the tokens that were routed, in batch order. */
export function routeBatch(layer: SparseLayer, results: Results, context: RouteContext): RouteBatch {
  const { batch } = context;
  const { experts, topK } = layer.routing;
  const encoder = layer.stack === "encoder";
  const length = encoder ? batch.inputLength : batch.targetLength;
  const ids = encoder ? batch.inputIds : batch.decoderInputIds;
  const mask = encoder ? batch.inputMask : batch.decoderMask;
  const tokens = [...ids.keys()].filter((t) => context.routePadding || mask[t] === 1);
  const expertIds = results.u32(layer.routing.expertIds);
  const gates = results.f32(layer.routing.gates);
  const rows = results.u32(layer.routing.rowOfAssignment);
  const choices = (t: number) => Array.from({ length: topK }, (_, j) => t * topK + j);
  const assignments = tokens.flatMap(choices);
  return {
    source: context.source,
    step: context.step,
    stack: layer.stack,
    layer: layer.layer,
    experts,
    topK,
    exampleIds: Uint32Array.from(tokens, (t) => batch.exampleIds[Math.floor(t / length)]),
    positions: Uint32Array.from(tokens, (t) => t % length),
    tokenIds: Uint32Array.from(tokens, (t) => ids[t]),
    expertIds: Uint16Array.from(assignments, (a) => expertIds[a]),
    gates: Float32Array.from(assignments, (a) => gates[a]),
    kept: Uint8Array.from(assignments, (a) => (rows[a] === NO_ROW ? 0 : 1)),
  };
}

/** The part of a route batch that belongs to one example. */
export function routesOfExample(routes: RouteBatch, exampleId: number): RouteBatch {
  const { topK } = routes;
  const tokens = [...routes.exampleIds.keys()].filter((t) => routes.exampleIds[t] === exampleId);
  const assignments = tokens.flatMap((t) => Array.from({ length: topK }, (_, j) => t * topK + j));
  return {
    ...routes,
    exampleIds: Uint32Array.from(tokens, (t) => routes.exampleIds[t]),
    positions: Uint32Array.from(tokens, (t) => routes.positions[t]),
    tokenIds: Uint32Array.from(tokens, (t) => routes.tokenIds[t]),
    expertIds: Uint16Array.from(assignments, (a) => routes.expertIds[a]),
    gates: Float32Array.from(assignments, (a) => routes.gates[a]),
    kept: Uint8Array.from(assignments, (a) => routes.kept[a]),
  };
}
