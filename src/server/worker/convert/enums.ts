// The trainer's words and the contract's numbers for them, one table each. `Record` over the trainer's union makes a
// missing word a type error; numbers that no table knows come from a newer server and are refused.

import * as group from "../../../../proto/gen/thaw/v1/group_pb.ts";
import * as routing from "../../../../proto/gen/thaw/v1/routing_pb.ts";
import * as run from "../../../../proto/gen/thaw/v1/run_pb.ts";
import {
  type Batching,
  InputError,
  type LossOptions,
  type OptimizerOptions,
  type OptimizerStatePolicy,
  type ParameterKind,
  type Preset,
  type RouterLossPolicy,
  type RouteSource,
  type RoutingOptions,
  type RunConfig,
  type Stack,
} from "../../../trainer/types.ts";

/** Both directions of one table. */
export interface EnumCodec<Word extends string, Code extends number> {
  toProto(word: Word): Code;
  /** @throws InputError naming `field` for a number without a word, UNSPECIFIED included. */
  fromProto(code: number, field: string): Word;
}

function codec<Word extends string, Code extends number>(table: Readonly<Record<Word, Code>>): EnumCodec<Word, Code> {
  const words = new Map<number, Word>(Object.entries(table).map(([word, code]) => [code as number, word as Word]));
  return {
    toProto: (word) => table[word],
    fromProto(code, field) {
      const word = words.get(code);
      if (word === undefined) throw new InputError([{ field, message: `has the unknown value ${code}` }]);
      return word;
    },
  };
}

export const parameterKind: EnumCodec<ParameterKind, group.ParameterKind> = codec({
  embedding: group.ParameterKind.EMBEDDING,
  "attention.self": group.ParameterKind.ATTENTION_SELF,
  "attention.cross": group.ParameterKind.ATTENTION_CROSS,
  ffn: group.ParameterKind.FFN,
  expert: group.ParameterKind.EXPERT,
  router: group.ParameterKind.ROUTER,
  norm: group.ParameterKind.NORM,
  head: group.ParameterKind.HEAD,
});

export const stack: EnumCodec<Stack, group.Stack> = codec({
  encoder: group.Stack.ENCODER,
  decoder: group.Stack.DECODER,
});

export const preset: EnumCodec<Preset, group.Preset> = codec({
  all: group.Preset.ALL,
  non_moe: group.Preset.NON_MOE,
  moe: group.Preset.MOE,
  attention: group.Preset.ATTENTION,
  ffn: group.Preset.FFN,
});

export const optimizerStatePolicy: EnumCodec<OptimizerStatePolicy, group.OptimizerStatePolicy> = codec({
  keep: group.OptimizerStatePolicy.KEEP,
  drop: group.OptimizerStatePolicy.DROP,
});

export const routerLossPolicy: EnumCodec<RouterLossPolicy, group.RouterLossPolicy> = codec({
  keep: group.RouterLossPolicy.KEEP,
  off: group.RouterLossPolicy.OFF,
});

export const schedule: EnumCodec<OptimizerOptions["schedule"], run.ScheduleKind> = codec({
  constant: run.ScheduleKind.CONSTANT,
  linear: run.ScheduleKind.LINEAR,
  inverse_sqrt: run.ScheduleKind.INVERSE_SQRT,
  cosine: run.ScheduleKind.COSINE,
});

export const gateNormalization: EnumCodec<
  NonNullable<RoutingOptions["gateNormalization"]>,
  routing.GateNormalization
> = codec({
  none: routing.GateNormalization.NONE,
  top_k: routing.GateNormalization.TOP_K,
});

export const secondExpertPolicy: EnumCodec<
  NonNullable<RoutingOptions["secondExpertPolicy"]>,
  routing.SecondExpertPolicy
> = codec({
  always: routing.SecondExpertPolicy.ALWAYS,
  random: routing.SecondExpertPolicy.RANDOM,
});

export const routingPriority: EnumCodec<NonNullable<RoutingOptions["priority"]>, routing.RoutingPriority> = codec({
  position: routing.RoutingPriority.POSITION,
  batch_prioritized: routing.RoutingPriority.BATCH_PRIORITIZED,
});

export const routingChoice: EnumCodec<NonNullable<RoutingOptions["encoderChoice"]>, routing.RoutingChoice> = codec({
  tokens: routing.RoutingChoice.TOKENS,
  experts: routing.RoutingChoice.EXPERTS,
});

export const batching: EnumCodec<Batching, run.Batching> = codec({
  padded: run.Batching.PADDED,
  packed: run.Batching.PACKED,
  bucketed: run.Batching.BUCKETED,
});

export const precision: EnumCodec<NonNullable<RunConfig["precision"]>, run.Precision> = codec({
  f32: run.Precision.F32,
  mixed: run.Precision.MIXED,
});

export const fCounts: EnumCodec<NonNullable<LossOptions["fCounts"]>, run.FCounts> = codec({
  top1: run.FCounts.TOP1,
  all_k: run.FCounts.ALL_K,
});

export const layerReduction: EnumCodec<NonNullable<LossOptions["layerReduction"]>, run.LayerReduction> = codec({
  sum: run.LayerReduction.SUM,
  mean: run.LayerReduction.MEAN,
  pooled: run.LayerReduction.POOLED,
});

/** Whether the run fails, goes on, or goes back. */
export type NonFinitePolicy = "stop" | "skip" | "rollback";

export const nonFinitePolicy: EnumCodec<NonFinitePolicy, run.NonFinitePolicy> = codec({
  stop: run.NonFinitePolicy.STOP,
  skip: run.NonFinitePolicy.SKIP,
  rollback: run.NonFinitePolicy.ROLLBACK,
});

export const routeSource: EnumCodec<RouteSource, routing.RouteSource> = codec({
  training: routing.RouteSource.TRAINING,
  evaluation: routing.RouteSource.EVALUATION,
  generation: routing.RouteSource.GENERATION,
});
