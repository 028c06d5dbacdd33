// Reading: a short passage of facts and a yes/no question about one of them. After BoolQ (Clark et al. 2019), from a
// grammar. Half of the facts say whether something holds (Tom can swim, Anna cannot swim) and ask whether it does; the
// other half say which of many things holds (the key is in the kitchen) and ask for this one or another. Mostly the
// passage says the opposite, or the other thing, of somebody else, so that finding the words is not enough.

import { type Draw, type Generated, splitOf } from "./draw.ts";
import * as world from "./world.ts";

interface FactKind {
  readonly subjects: readonly string[];
  readonly objects: readonly string[];
  readonly statement: (subject: string, object: string) => string;
  /** The statement's opposite, in as many words; absent where the passage names one object of many. */
  readonly denial?: (subject: string, object: string) => string;
  readonly question: (subject: string, object: string) => string;
}

const NAMES = world.PERSONS.map(({ name }) => name);
const BEINGS = [...world.ANIMALS, ...world.PROFESSIONS].map((noun) => `the ${noun.one}`);
const OBJECTS = world.THINGS.map((thing) => thing.one);
const verbs = world.ACTIONS.map((verb) => verb.base);
const third = (base: string): string => world.ACTIONS.find((verb) => verb.base === base)!.third;

const KINDS_OF_FACT = {
  /** Tom can swim. */
  ability: {
    subjects: [...NAMES, ...BEINGS],
    objects: verbs,
    statement: (subject, verb) => `${subject} can ${verb}`,
    denial: (subject, verb) => `${subject} cannot ${verb}`,
    question: (subject, verb) => `can ${subject} ${verb}`,
  },
  /** The fox always sleeps. */
  habit: {
    subjects: [...NAMES, ...BEINGS],
    objects: verbs,
    statement: (subject, verb) => `${subject} always ${third(verb)}`,
    denial: (subject, verb) => `${subject} never ${third(verb)}`,
    question: (subject, verb) => `does ${subject} ${verb}`,
  },
  /** Anna has a drum. */
  possession: {
    subjects: NAMES,
    objects: OBJECTS,
    statement: (subject, thing) => `${subject} has ${world.indefinite(thing)} ${thing}`,
    denial: (subject, thing) => `${subject} lacks ${world.indefinite(thing)} ${thing}`,
    question: (subject, thing) => `does ${subject} have ${world.indefinite(thing)} ${thing}`,
  },
  /** The hat of Anna is red. */
  colour: {
    subjects: NAMES.flatMap((name) => world.CLOTHES.map((thing) => `the ${thing.one} of ${name}`)),
    objects: world.COLOURS,
    statement: (subject, colour) => `${subject} is ${colour}`,
    question: (subject, colour) => `is ${subject} ${colour}`,
  },
  /** The key is in the kitchen. */
  location: {
    subjects: OBJECTS.map((thing) => `the ${thing}`),
    objects: world.PLACES,
    statement: (subject, place) => `${subject} is in the ${place}`,
    question: (subject, place) => `is ${subject} in the ${place}`,
  },
  /** The baker is tired. */
  mood: {
    subjects: [...NAMES, ...BEINGS],
    objects: world.MOODS,
    statement: (subject, mood) => `${subject} is ${mood}`,
    question: (subject, mood) => `is ${subject} ${mood}`,
  },
} satisfies Record<string, FactKind>;

type KindName = keyof typeof KINDS_OF_FACT;
const KIND_NAMES = Object.keys(KINDS_OF_FACT) as KindName[];
const kindOf = (name: KindName): FactKind => KINDS_OF_FACT[name];

export interface Fact {
  readonly kind: KindName;
  readonly subject: string;
  readonly object: string;
  readonly holds: boolean;
}

export function state({ kind, subject, object, holds }: Fact): string {
  const { statement, denial } = kindOf(kind);
  return world.sentence(holds ? statement(subject, object) : denial!(subject, object));
}
/** Asks whether the fact holds, as if it did not say so. */
export const ask = ({ kind, subject, object }: Fact): string =>
  world.sentence(kindOf(kind).question(subject, object), "?");
const keyOf = ({ kind, subject, object }: Fact): string => `${kind} ${subject} ${object}`;

export interface Passage {
  readonly facts: readonly Fact[];
  readonly question: Fact;
}

/** One to three facts: the one asked about, the same sort of thing said of another, and something else. */
export function passage(draw: Draw, answer: boolean): Passage {
  const kind = draw.pick(KIND_NAMES);
  const { subjects, objects, denial } = kindOf(kind);
  const [subject, other] = draw.some(subjects, 2);
  const [object, otherObject, absent] = draw.some(objects, 3);
  const count = 1 + draw.below(3);
  const facts: Fact[] = [];
  let question: Fact = { kind, subject, object, holds: true };
  if (denial) {
    facts.push({ ...question, holds: answer });
    facts.push({ kind, subject: other, object, holds: draw.chance(0.7) ? !answer : answer });
  } else {
    facts.push(question);
    facts.push({ kind, subject: other, object: otherObject, holds: true });
    if (!answer) question = { ...question, object: count > 1 && draw.chance(0.5) ? otherObject : absent };
  }
  const another = draw.pick(KIND_NAMES.filter((name) => name !== kind));
  facts.push({
    kind: another,
    subject: draw.pick(kindOf(another).subjects),
    object: draw.pick(kindOf(another).objects),
    holds: true,
  });
  return { facts: draw.some(facts.slice(0, count), count), question };
}

/** Two passages, one with the answer yes and one with the answer no. */
export function reading(draw: Draw): Generated[] {
  return [true, false].map((answer) => {
    const { facts, question } = passage(draw, answer);
    return {
      key: keyOf(question),
      input: `reading passage: ${facts.map(state).join(" ")} question: ${ask(question)}`,
      target: answer ? "yes" : "no",
    };
  });
}

/** A passage that says and asks nothing that belongs to validation or test. */
export function trainingPassage(draw: Draw, answer: boolean): Passage {
  while (true) {
    const result = passage(draw, answer);
    if ([...result.facts, result.question].every((fact) => splitOf(keyOf(fact)) === "train")) return result;
  }
}
