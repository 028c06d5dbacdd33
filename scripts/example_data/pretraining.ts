// Plain text for span-corruption pre-training: short documents about the same world, one per line. It shows what the
// tasks rest on (agreement, what is what, who has what and where) without any example of validation or test: sentences,
// questions and inferences are drawn from the combinations that belong to training.

import { rightSentence } from "./acceptability.ts";
import { type Draw, splitOf } from "./draw.ts";
import { INFERENCES } from "./entailment.ts";
import { ask, state, trainingPassage } from "./reading.ts";
import * as world from "./world.ts";

/** Two to four sentences that have nothing to do with each other. */
const sentences = (draw: Draw): string =>
  Array.from({ length: 2 + draw.below(3) }, () => rightSentence(draw)).join(" ");

/** A passage, and one of its facts told again. */
function retelling(draw: Draw): string {
  const { facts } = trainingPassage(draw, true);
  return [...facts, draw.pick(facts)].map(state).join(" ");
}

/** A passage, a question and its answer, as in a reader for schools. */
function exercise(draw: Draw): string {
  const answer = draw.chance(0.5);
  const { facts, question } = trainingPassage(draw, answer);
  return `${facts.map(state).join(" ")} question: ${ask(question)} answer: ${answer ? "yes" : "no"}.`;
}

/** A premise and what follows from it. */
function inference(draw: Draw): string {
  while (true) {
    const { key, follows, hypothesis } = draw.pick(INFERENCES)(draw);
    if (splitOf(key) === "train") return `${world.sentence(`${follows}, so ${hypothesis}`)} ${rightSentence(draw)}`;
  }
}

/** What things are. */
function kinds(draw: Draw): string {
  return Array.from({ length: 3 }, () => {
    const [kind, members] = draw.pick(world.KINDS);
    const member = draw.pick(members);
    const one = `${world.indefinite(member.one)} ${member.one} is ${world.indefinite(kind.one)} ${kind.one}`;
    return world.sentence(draw.chance(0.5) ? one : `all ${member.many} are ${kind.many}`);
  }).join(" ");
}

/** Tom is in the garden. He is tired, so he sleeps near the river. */
function story(draw: Draw): string {
  const { name, pronoun } = draw.pick(world.PERSONS);
  const action = draw.pick(world.ACTIONS);
  const thing = draw.pick(world.TOOLS).one;
  const colour = draw.pick(world.COLOURS);
  return [
    `${name} is in the ${draw.pick(world.PLACES)}.`,
    world.sentence(`${pronoun} is ${draw.pick(world.MOODS)}, so ${pronoun} ${action.third} ${world.somewhere(draw)}`),
    world.sentence(`${pronoun} has ${world.indefinite(colour)} ${colour} ${thing}`),
    draw.chance(0.5) ? `The ${thing} of ${name} is ${colour}.` : `${name} does not ${draw.pick(world.ACTIONS).base}.`,
  ].join(" ");
}

const DOCUMENTS = [sentences, sentences, sentences, retelling, exercise, exercise, exercise, inference, kinds, story];

/** One document, without a newline. */
export const pretrainingDocument = (draw: Draw): string => draw.pick(DOCUMENTS)(draw);
