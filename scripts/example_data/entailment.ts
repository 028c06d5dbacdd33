// Entailment: does the hypothesis follow from the premise? After RTE and FraCaS, from a grammar. Each hypothesis comes
// with two premises, one that implies it and one that does not, so that the hypothesis alone tells nothing.

import type { Draw, Generated } from "./draw.ts";
import * as world from "./world.ts";

export interface Inference {
  /** What it is about: decides the split. */
  readonly key: string;
  readonly hypothesis: string;
  readonly follows: string;
  readonly doesNot: string;
}

export const INFERENCES: readonly ((draw: Draw) => Inference)[] = [
  // A dog sleeps in the barn. → An animal sleeps in the barn.
  (draw) => {
    const [[kind, members], [, others]] = draw.some(world.KINDS.slice(0, 2), 2);
    const [member, other] = [draw.pick(members), draw.pick(others)];
    const rest = `${draw.pick(world.ACTIONS).third} ${world.somewhere(draw)}`;
    const about = (noun: world.Noun) => `${world.indefinite(noun.one)} ${noun.one} ${rest}`;
    return {
      key: `kind ${member.one} ${rest}`,
      hypothesis: about(kind),
      follows: about(member),
      doesNot: about(other),
    };
  },
  // Tom buys a pear. → Tom buys a fruit.
  (draw) => {
    const [[kind, members], [, others]] = draw.some(world.KINDS.slice(2), 2);
    const [member, other] = [draw.pick(members), draw.pick(others)];
    const start = `${draw.pick(world.PERSONS).name} ${draw.pick(world.HANDLINGS).third}`;
    const about = (noun: world.Noun) => `${start} ${world.indefinite(noun.one)} ${noun.one}`;
    return {
      key: `kind ${start} ${member.one}`,
      hypothesis: about(kind),
      follows: about(member),
      doesNot: about(other),
    };
  },
  // Anna and Ben dance. → Ben dances.
  (draw) => {
    const [who, a, b] = draw.some(world.PERSONS, 3).map((person) => person.name);
    const verb = draw.pick(world.ACTIONS);
    const pair = (x: string, y: string) => `${draw.chance(0.5) ? `${x} and ${y}` : `${y} and ${x}`} ${verb.base}`;
    return {
      key: `and ${who} ${verb.base}`,
      hypothesis: `${who} ${verb.third}`,
      follows: pair(who, a),
      doesNot: pair(a, b),
    };
  },
  // The full box is in the kitchen. → The box is not empty.
  (draw) => {
    const pair = draw.pick(world.OPPOSITES);
    const [state, opposite] = draw.some(pair, 2);
    const what = draw.pick(world.THINGS).one;
    const where = world.somewhere(draw);
    const about = (adjective: string) => `the ${adjective} ${what} is ${where}`;
    return {
      key: `opposite ${what} ${[...pair].sort().join(" ")}`,
      hypothesis: `the ${what} is ${draw.chance(0.5) ? `not ${opposite}` : state}`,
      follows: about(state),
      doesNot: about(opposite),
    };
  },
  // All the dogs are tired. → Some dogs are tired.
  (draw) => {
    const noun = draw.pick([...world.ANIMALS, ...world.PROFESSIONS]);
    const mood = draw.pick(world.MOODS);
    const about = (quantifier: string) => `${quantifier} ${noun.many} are ${mood}`;
    const positive = about(draw.pick(["all the", "many", "two"]));
    const negative = about("none of the");
    const some = draw.chance(0.5);
    return {
      key: `quantifier ${noun.one} ${mood}`,
      hypothesis: about(some ? "some" : "no"),
      follows: some ? positive : negative,
      doesNot: some ? negative : positive,
    };
  },
  // Tom gives Anna a book. → Anna has a book.
  (draw) => {
    const [receiver, giver] = draw.some(world.PERSONS, 2).map((person) => person.name);
    const thing = draw.pick(world.THINGS).one;
    const object = `${world.indefinite(thing)} ${thing}`;
    const verb = draw.pick(["gives", "sells", "brings"]);
    return {
      key: `give ${receiver} ${thing}`,
      hypothesis: `${receiver} has ${object}`,
      follows: `${giver} ${verb} ${receiver} ${object}`,
      doesNot: `${receiver} ${verb} ${giver} ${object}`,
    };
  },
  // The cup is on the box. → The box is under the cup.
  (draw) => {
    const [a, b] = draw.some(world.THINGS, 2).map((thing) => thing.one);
    const [one, inverse] = draw.some(["on", "under"], 2);
    return {
      key: `place ${[a, b].sort().join(" ")}`,
      hypothesis: `the ${b} is ${inverse} the ${a}`,
      follows: `the ${a} is ${one} the ${b}`,
      doesNot: `the ${a} is ${inverse} the ${b}`,
    };
  },
];

/** One hypothesis with a premise it follows from and one it does not follow from. */
export function entailment(draw: Draw): Generated[] {
  const { key, hypothesis, follows, doesNot } = draw.pick(INFERENCES)(draw);
  return (
    [
      [follows, "yes"],
      [doesNot, "no"],
    ] as const
  ).map(([premise, target]) => ({
    key,
    input: `entailment premise: ${world.sentence(premise)} hypothesis: ${world.sentence(hypothesis)}`,
    target,
  }));
}
