// Reading: a short passage of facts and a yes/no question about one of them. After BoolQ (Clark et al. 2019), from a
// grammar. Wrong questions name something the passage says of somebody else (so that finding the words is not enough)
// or something it does not say at all, equally often.

import { type Draw, type Generated, splitOf } from "./draw.ts";
import * as world from "./world.ts";

/** A fact is a subject and a value; `kind` says how both are spoken of. */
export interface Fact {
  readonly kind: keyof typeof KINDS_OF_FACT;
  readonly subject: string;
  readonly value: string;
}

const KINDS_OF_FACT = {
  /** Anna has a red hat. */
  possession: {
    subjects: world.PERSONS.map((person) => person.name),
    values: world.COLOURS.flatMap((colour) =>
      [...world.CLOTHES, ...world.TOYS].map((thing) => `${colour} ${thing.one}`),
    ),
    statement: (subject: string, value: string) => `${subject} has ${world.indefinite(value)} ${value}`,
    question: (subject: string, value: string) => `does ${subject} have ${world.indefinite(value)} ${value}`,
  },
  /** The key is in the kitchen. */
  location: {
    subjects: world.THINGS.map((thing) => `the ${thing.one}`),
    values: world.PLACES,
    statement: (subject: string, value: string) => `${subject} is in the ${value}`,
    question: (subject: string, value: string) => `is ${subject} in the ${value}`,
  },
  /** Tom is tired. */
  mood: {
    subjects: [
      ...world.PERSONS.map((person) => person.name),
      ...[...world.ANIMALS, ...world.PROFESSIONS].map((noun) => `the ${noun.one}`),
    ],
    values: world.MOODS,
    statement: (subject: string, value: string) => `${subject} is ${value}`,
    question: (subject: string, value: string) => `is ${subject} ${value}`,
  },
  /** The baker paints the bell. */
  handling: {
    subjects: [...world.PERSONS.map((person) => person.name), ...world.PROFESSIONS.map((noun) => `the ${noun.one}`)],
    values: world.HANDLINGS.flatMap((verb) => world.THINGS.map((thing) => `${verb.base} the ${thing.one}`)),
    statement: (subject: string, value: string) => {
      const [base, ...rest] = value.split(" ");
      return `${subject} ${world.HANDLINGS.find((verb) => verb.base === base)!.third} ${rest.join(" ")}`;
    },
    question: (subject: string, value: string) => `does ${subject} ${value}`,
  },
} as const;

const FACT_KINDS = Object.keys(KINDS_OF_FACT) as Fact["kind"][];

export const state = ({ kind, subject, value }: Fact): string =>
  world.sentence(KINDS_OF_FACT[kind].statement(subject, value));
export const ask = ({ kind, subject, value }: Fact): string =>
  world.sentence(KINDS_OF_FACT[kind].question(subject, value), "?");
export const keyOf = ({ kind, subject, value }: Fact): string => `${kind} ${subject} ${value}`;

export interface Passage {
  readonly facts: readonly Fact[];
  /** Asked about, with the answers yes and no. */
  readonly right: Fact;
  readonly wrong: Fact;
}

/**
 * Two or three facts: two of one kind about different subjects with different values, and one time in two another. Right
 * and wrong question are about one subject, so that neither the subject nor its place in the passage tells the answer.
 */
export function passage(draw: Draw): Passage {
  const kind = draw.pick(FACT_KINDS);
  const { subjects, values } = KINDS_OF_FACT[kind];
  const [asked, other] = draw.some<string>(subjects, 2);
  const [value, otherValue, absent] = draw.some<string>(values, 3);
  const right: Fact = { kind, subject: asked, value };
  const facts: Fact[] = [right, { kind, subject: other, value: otherValue }];
  if (draw.chance(0.5)) {
    const extra = draw.pick(FACT_KINDS.filter((another) => another !== kind));
    facts.push({
      kind: extra,
      subject: draw.pick<string>(KINDS_OF_FACT[extra].subjects),
      value: draw.pick<string>(KINDS_OF_FACT[extra].values),
    });
  }
  return {
    facts: draw.some(facts, facts.length),
    right,
    wrong: { kind, subject: asked, value: draw.chance(0.5) ? otherValue : absent },
  };
}

/** One passage with its right question, another with its wrong one. */
export function reading(draw: Draw): Generated[] {
  return (["yes", "no"] as const).map((target) => {
    const { facts, right, wrong } = passage(draw);
    const question = target === "yes" ? right : wrong;
    return {
      key: keyOf(question),
      input: `reading passage: ${facts.map(state).join(" ")} question: ${ask(question)}`,
      target,
    };
  });
}

/** A passage none of whose questions belongs to validation or test. */
export function trainingPassage(draw: Draw): Passage {
  while (true) {
    const result = passage(draw);
    if ([...result.facts, result.wrong].every((fact) => splitOf(keyOf(fact)) === "train")) return result;
  }
}
