// The optimizer of a run, from flags: `--optimizer` chooses the rule, the others set what that rule has. A flag that the
// chosen rule does not have is a mistake in the command line, not something to send or to drop.

import { create } from "@bufbuild/protobuf";
import { type Command, InvalidArgumentError } from "commander";
import {
  AdafactorSchema,
  AdamWSchema,
  type OptimizerOptions,
  OptimizerOptionsSchema,
  type RunSpec,
  type ScheduleKind,
  ScheduleKindSchema,
  ScheduleSchema,
  SgdSchema,
} from "../../proto/gen/thaw/v1/run_pb.ts";
import { assign, enumValue, integer, real } from "./parse.ts";
import { UsageError } from "./session.ts";

type Algorithm = OptimizerOptions["algorithm"];
type Rule = NonNullable<Algorithm["case"]>;
export type RuleFlag = keyof typeof RULE_FLAGS;

/** The flags of single rules, and the rules that have them. */
const RULE_FLAGS = {
  weightDecay: ["adamw", "adafactor", "sgd"],
  beta1: ["adamw"],
  beta2: ["adamw"],
  epsilon: ["adamw", "adafactor"],
  decayRate: ["adafactor"],
  clipThreshold: ["adafactor"],
  minParameterScale: ["adafactor"],
  minDimensionToFactor: ["adafactor"],
  momentum: ["sgd"],
} as const satisfies Record<string, readonly Rule[]>;

export interface OptimizerFlags extends Partial<Record<Exclude<RuleFlag, "minDimensionToFactor">, number>> {
  readonly optimizer?: Rule;
  readonly learningRate?: number;
  readonly schedule?: ScheduleKind;
  readonly warmupSteps?: bigint;
  readonly maxGradientNorm?: number;
  readonly minDimensionToFactor?: bigint;
}

function rule(text: string): Rule {
  if (text === "adamw" || text === "adafactor" || text === "sgd") return text;
  throw new InvalidArgumentError("It can be adamw, adafactor, sgd.");
}

export function optimizerFlags(command: Command): Command {
  return command
    .option("--optimizer <rule>", "adamw, adafactor, sgd", rule)
    .option("--learning-rate <x>", "peak learning rate", real)
    .option("--schedule <kind>", "constant, linear, inverse_sqrt, cosine", enumValue(ScheduleKindSchema))
    .option("--warmup-steps <n>", "steps of linear warm-up", integer)
    .option("--max-gradient-norm <x>", "clips by global norm; 0 turns it off", real)
    .option("--weight-decay <x>", "decoupled weight decay", real)
    .option("--beta1 <x>", "adamw: decay of the first moment", real)
    .option("--beta2 <x>", "adamw: decay of the second moment", real)
    .option("--epsilon <x>", "adamw, adafactor: keeps steps finite", real)
    .option("--decay-rate <x>", "adafactor: exponent of the second moment's decay", real)
    .option("--clip-threshold <x>", "adafactor: largest root mean square of an update", real)
    .option("--min-parameter-scale <x>", "adafactor: least scale of a step", real)
    .option("--min-dimension-to-factor <n>", "adafactor: least dimensions that are factored", integer)
    .option("--momentum <x>", "sgd: decay of the velocity", real);
}

/** Puts into the spec what the flags say. @throws UsageError for a flag that the rule does not have. */
export function assignOptimizer(spec: RunSpec, flags: OptimizerFlags): void {
  const optimizer = spec.optimizer ?? create(OptimizerOptionsSchema);
  const { learningRate, maxGradientNorm } = flags;
  let said = assign(optimizer, { learningRate, maxGradientNorm });
  const schedule = optimizer.schedule ?? create(ScheduleSchema);
  if (assign(schedule, { kind: flags.schedule, warmupSteps: flags.warmupSteps })) {
    optimizer.schedule = schedule;
    said = true;
  }
  const wanted = flags.optimizer ?? optimizer.algorithm.case ?? "adamw";
  const algorithm = optimizer.algorithm.case === wanted ? optimizer.algorithm : emptyAlgorithm(wanted);
  if (assignRule(algorithm, flags) || flags.optimizer) {
    optimizer.algorithm = algorithm;
    said = true;
  }
  if (said) spec.optimizer = optimizer;
}

function emptyAlgorithm(wanted: Rule): Algorithm & { case: Rule } {
  switch (wanted) {
    case "adamw":
      return { case: "adamw", value: create(AdamWSchema) };
    case "adafactor":
      return { case: "adafactor", value: create(AdafactorSchema) };
    case "sgd":
      return { case: "sgd", value: create(SgdSchema) };
  }
}

/** The flags of single rules that were given. */
export const givenRuleFlags = (flags: OptimizerFlags): RuleFlag[] =>
  (Object.keys(RULE_FLAGS) as RuleFlag[]).filter((name) => flags[name] !== undefined);

function assignRule(algorithm: Algorithm & { case: Rule }, flags: OptimizerFlags): boolean {
  const given = givenRuleFlags(flags);
  for (const name of given) {
    const rules: readonly Rule[] = RULE_FLAGS[name];
    if (rules.includes(algorithm.case)) continue;
    const flag = `--${name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;
    throw new UsageError(`${flag} is not of ${algorithm.case}; --optimizer ${rules.join(" or ")} has it`);
  }
  return assign<object>(algorithm.value, Object.fromEntries(given.map((name) => [name, flags[name]])));
}
