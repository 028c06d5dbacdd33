// Results of a program turned into metrics and routes.

import { NO_ROW } from "../../kernels/moe_dispatch.ts";
import type { Batch } from "../data/batches.ts";
import type { SparseLayer, TrainingGraph } from "../model/family.ts";
import type { LossOptions, RouteBatch, RouterLayerMetrics, RouteSource, StepMetrics } from "../types.ts";
import type { Results } from "./readback.ts";

/** One batch of a training step: the program that ran it, and what came back. */
export interface StepPart {
  readonly built: TrainingGraph;
  readonly batch: Batch;
  readonly results: Results;
}

/** The coefficients of what a plan minimises. */
export const minimised = (losses: LossOptions, { routerLosses }: { readonly routerLosses: boolean }): LossOptions =>
  routerLosses ? losses : { ...losses, balanceCoefficient: 0, zCoefficient: 0 };

/** Metrics of a training step over its batches; `losses` are the coefficients of what is minimised besides. */
export function stepMetrics(
  parts: readonly StepPart[],
  known: Pick<StepMetrics, "step" | "learningRate" | "stepSeconds">,
  losses: LossOptions,
): StepMetrics {
  const { balanceCoefficient, zCoefficient, layerReduction, vocabularyZCoefficient = 0, labelSmoothing = 0 } = losses;
  const total = (of: (part: StepPart) => number) => parts.reduce((n, part) => n + of(part), 0);
  const perToken =
    1 /
    Math.max(
      1,
      total(({ batch }) => batch.targetTokens),
    );
  const loss = total(({ built, results }) => sum(results.f32(built.loss.rowLoss))) * perToken;
  const layers = parts.map(({ built, results }) => built.sparse.map((layer) => layerMetrics(layer, results)));
  const routers = parts
    .flatMap(({ built: { pooledLosses }, results }, i) =>
      pooledLosses ? [[...results.f32(pooledLosses)]] : layers[i].map((l) => [l.balanceLoss, l.zLoss]),
    )
    .reduce((n, [balance, z]) => n + balanceCoefficient * balance + zCoefficient * z, 0);
  const share = 1 / (parts.length * (layerReduction === "mean" ? Math.max(1, layers[0].length) : 1));
  const terms = [0, 1].map(
    (term) =>
      perToken *
      total(({ built: { loss: rows }, results }) => (rows.rowTerms ? sum(results.f32(rows.rowTerms), term, 2) : 0)),
  );
  const last = parts[parts.length - 1];
  return {
    ...known,
    loss,
    totalLoss: loss + routers * share + terms[0] + vocabularyZCoefficient * terms[1],
    ...(labelSmoothing > 0 && { smoothedLoss: loss + terms[0] }),
    ...(vocabularyZCoefficient > 0 && { vocabularyZLoss: terms[1] }),
    ...lossScaleOf(last, loss),
    gradientNorm: last.results.f32(last.built.optimizer.norm)[0],
    tokens: total(({ batch }) => tokensIn(batch.inputSegments) + tokensIn(batch.decoderMask)),
    layers: mergeLayerMetrics(layers),
  };
}

/** An infinite gradient is an overflow as long as the scale can fall; without a finite loss it is none. */
function lossScaleOf({ built, results }: StepPart, loss: number): Pick<StepMetrics, "lossScale"> {
  if (!built.lossScale) return {};
  const [, , scale] = results.f32(built.lossScale);
  const finite = results.f32(built.optimizer.norm)[2] !== 0;
  return { lossScale: { scale, overflowed: !finite && scale > 1 && Number.isFinite(loss) } };
}

const tokensIn = (segments: Uint32Array): number => segments.reduce((n, segment) => n + Number(segment !== 0), 0);

/** The sum of every `stride`-th value from `first` on. */
function sum(values: Float32Array, first = 0, stride = 1): number {
  let total = 0;
  for (let i = first; i < values.length; i += stride) total += values[i];
  return total;
}

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
    ...(layer.coActivation && { coActivation: [...results.u32(layer.coActivation)] }),
    ...(routing.selectionBias && { selectionBias: [...results.f32(routing.selectionBias)] }),
  };
}

/** The metrics of several batches as one, each weighted by its assignments; the selection bias is the last one's. */
export function mergeLayerMetrics(batches: readonly (readonly RouterLayerMetrics[])[]): RouterLayerMetrics[] {
  if (batches.length === 1) return [...batches[0]];
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
      ...(first.coActivation && {
        coActivation: first.coActivation.map((_, pair) => layers.reduce((n, l) => n + l.coActivation![pair], 0)),
      }),
      ...(first.selectionBias && { selectionBias: layers.at(-1)!.selectionBias }),
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
  const encoder = layer.stack === "encoder";
  const ids = encoder ? batch.inputIds : batch.decoderInputIds;
  const real = encoder ? batch.inputSegments : batch.decoderMask;
  const tokens = Uint32Array.from(ids.keys()).filter((t) => context.routePadding || real[t] !== 0);
  const { experts, topK } = layer.routing;
  const rows = results.u32(layer.routing.rowOfAssignment);
  const chosen: Choices = {
    topK,
    expertIds: Uint16Array.from(results.u32(layer.routing.chosenIds)),
    gates: results.f32(layer.routing.gates),
    kept: Uint8Array.from(rows, (row) => (row === NO_ROW ? 0 : 1)),
  };
  const all: RouteBatch = {
    source: context.source,
    step: context.step,
    stack: layer.stack,
    layer: layer.layer,
    experts,
    ...(layer.routing.choose === "experts" ? takenOnly(chosen, experts) : chosen),
    ...placesOf(batch, encoder),
    tokenIds: ids,
  };
  return tokensOf(all, tokens);
}

/** The example of each token and its position there; padding goes on where the example before it in its row ends. */
function placesOf(batch: Batch, encoder: boolean): Pick<RouteBatch, "exampleIds" | "positions"> {
  const segments = encoder ? batch.inputSegments : batch.decoderSegments;
  const length = encoder ? batch.inputLength : batch.targetLength;
  const exampleIds = new Uint32Array(segments.length);
  const positions = new Uint32Array(segments.length);
  let [segment, begin] = [1, 0];
  for (let t = 0; t < segments.length; t++) {
    if (t % length === 0) [segment, begin] = [1, t];
    if (segments[t] > segment) [segment, begin] = [segments[t], t];
    exampleIds[t] = batch.exampleIds[Math.floor(t / length) * batch.examplesPerRow + segment - 1];
    positions[t] = t - begin;
  }
  return { exampleIds, positions };
}

type Choices = Pick<RouteBatch, "topK" | "expertIds" | "gates" | "kept">;

/**
 * Where experts choose, the device has a column for each of them. This has the experts that took a token, by descending
 * gate, the lower id among equals, and as many columns as the token with the most experts needs, at least 1.
 */
function takenOnly({ topK: columns, expertIds, gates }: Choices, experts: number): Choices {
  const tokens = expertIds.length / columns;
  const taken = Array.from({ length: tokens }, (_, t) => {
    const places = Array.from({ length: columns }, (_, e) => t * columns + e).filter((a) => expertIds[a] < experts);
    return places.sort((a, b) => gates[b] - gates[a] || a - b);
  });
  const topK = taken.reduce((most, places) => Math.max(most, places.length), 1);
  const all = {
    topK,
    expertIds: new Uint16Array(tokens * topK).fill(experts),
    gates: new Float32Array(tokens * topK),
    kept: new Uint8Array(tokens * topK),
  };
  taken.forEach((places, t) => {
    places.forEach((a, j) => {
      all.expertIds[t * topK + j] = expertIds[a];
      all.gates[t * topK + j] = gates[a];
      all.kept[t * topK + j] = 1;
    });
  });
  return all;
}

/** The part of a route batch that belongs to one example. */
export function routesOfExample(routes: RouteBatch, exampleId: number): RouteBatch {
  const tokens = Uint32Array.from(routes.exampleIds.keys());
  return tokensOf(
    routes,
    tokens.filter((t) => routes.exampleIds[t] === exampleId),
  );
}

/** The tokens at the given indices. */
function tokensOf(routes: RouteBatch, tokens: Uint32Array): RouteBatch {
  const { topK } = routes;
  const assignments = new Uint32Array(tokens.length * topK);
  for (let i = 0; i < assignments.length; i++) assignments[i] = tokens[Math.floor(i / topK)] * topK + (i % topK);
  return {
    ...routes,
    exampleIds: tokens.map((t) => routes.exampleIds[t]),
    positions: tokens.map((t) => routes.positions[t]),
    tokenIds: tokens.map((t) => routes.tokenIds[t]),
    expertIds: Uint16Array.from(assignments, (a) => routes.expertIds[a]),
    gates: Float32Array.from(assignments, (a) => routes.gates[a]),
    kept: Uint8Array.from(assignments, (a) => routes.kept[a]),
  };
}
