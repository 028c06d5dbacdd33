// How every cell of a study routes, besides the capacity factors, which may be an axis: the fields of `routing` in a study
// file, and the parts of a run they become.

import { RoutingChoice, RoutingPriority, SecondExpertPolicy } from "../../proto/gen/thaw/v1/routing_pb.ts";
import { parseGroup } from "../cli/routing_flags.ts";
import { optional, type Read, real, record, text, word } from "./fields.ts";

/** What is left out is the server's default. */
export interface StudyRouting {
  /** Tokens that compete for slots: `batch`, `sequence`, or so many, `tokens:64`. */
  readonly group?: string;
  readonly priority?: "position" | "batch_prioritized";
  readonly secondExpertPolicy?: "always" | "random";
  /** Who chooses in the encoder; `experts` needs capacity factors in training and in evaluation. */
  readonly encoderChoice?: "tokens" | "experts";
  /** Balances loads by biases that move by so much a step; `balance_coefficient: 0` leaves it to them alone. */
  readonly selectionBias?: number;
  /** Of the load-balancing loss. */
  readonly balanceCoefficient?: number;
}

const group: Read<string> = (place) => {
  const value = text()(place);
  if (value === undefined) return undefined;
  try {
    parseGroup(value);
    return value;
  } catch {
    return place.wrong("must be batch, sequence, or tokens:N");
  }
};

export const studyRouting = record<StudyRouting>({
  group: optional(group),
  priority: optional(word(["position", "batch_prioritized"])),
  secondExpertPolicy: optional(word(["always", "random"])),
  encoderChoice: optional(word(["tokens", "experts"])),
  selectionBias: optional(real({ above: 0 })),
  balanceCoefficient: optional(real({ atLeast: 0 })),
});

const PRIORITIES = { position: RoutingPriority.POSITION, batch_prioritized: RoutingPriority.BATCH_PRIORITIZED };
const POLICIES = { always: SecondExpertPolicy.ALWAYS, random: SecondExpertPolicy.RANDOM };
const CHOICES = { tokens: RoutingChoice.TOKENS, experts: RoutingChoice.EXPERTS };

/** The rules as parts of a run's specification. */
export function routingParts(routing: StudyRouting = {}) {
  const { group, priority, secondExpertPolicy, encoderChoice, selectionBias, balanceCoefficient } = routing;
  return {
    routing: {
      ...(group && parseGroup(group)),
      priority: priority && PRIORITIES[priority],
      secondExpertPolicy: secondExpertPolicy && POLICIES[secondExpertPolicy],
      encoderChoice: encoderChoice && CHOICES[encoderChoice],
      ...(selectionBias !== undefined && { selectionBias: { updateRate: selectionBias } }),
    },
    losses: { balanceCoefficient },
  };
}
