// Acceptability: is this sentence grammatical? After CoLA (Warstadt et al. 2019), from a grammar instead of textbooks.
// Every sentence comes twice, right and with one mistake, and a mistake never changes the number of words: neither
// length nor the words alone tell the label.

import { type Draw, type Generated, splitOf } from "./draw.ts";
import * as world from "./world.ts";

/** One word as the grammar sets it; `wrong` is a form that cannot stand there. */
interface Word {
  readonly text: string;
  readonly wrong?: string;
  /** This word and the next may be swapped to make a mistake. */
  readonly bound?: boolean;
}

const plain = (text: string): Word[] => text.split(" ").map((word) => ({ text: word }));

interface NounPhrase {
  readonly words: Word[];
  readonly plural: boolean;
  readonly head: string;
}

/** the dog, these old dogs, two cups: determiner and noun agree, and the determiner shows it unless it is "the". */
function nounPhrase(draw: Draw, nouns: readonly world.Noun[], plural: boolean): NounPhrase {
  const noun = draw.pick(nouns);
  const adjective = draw.chance(0.4) ? draw.pick([...world.COLOURS, ...draw.pick(world.OPPOSITES)]) : undefined;
  const [text, flipped] = plural ? [noun.many, noun.one] : [noun.one, noun.many];
  const determiner = draw.pick(plural ? ["the", "the", "these", "two", "many"] : ["the", "the", "this", "a", "every"]);
  const after = adjective ?? text;
  const spoken = determiner === "a" ? world.indefinite(after) : determiner;
  const article = spoken === "a" ? "an" : spoken === "an" ? "a" : undefined;
  const opposite = { this: "these", these: "this", two: "every", every: "two", many: "this" }[determiner];
  return {
    words: [
      { text: spoken, wrong: article ?? opposite, bound: true },
      ...(adjective ? [{ text: adjective }] : []),
      // After "the" the other number would be just as right.
      { text, wrong: determiner === "the" ? undefined : flipped },
    ],
    plural,
    head: noun.one,
  };
}

function person(draw: Draw): NounPhrase {
  const { name } = draw.pick(world.PERSONS);
  return { words: [{ text: name }], plural: false, head: name };
}

function couple(draw: Draw): NounPhrase {
  const [a, b] = draw.some(world.PERSONS, 2);
  return { words: plain(`${a.name} and ${b.name}`), plural: true, head: `${a.name} ${b.name}` };
}

const PRONOUNS = [
  ["he", "him"],
  ["she", "her"],
  ["they", "them"],
  ["we", "us"],
] as const;

const BEINGS = [...world.ANIMALS, ...world.PROFESSIONS];

/** Somebody who acts. Singular and plural are equally frequent. */
function subject(draw: Draw): NounPhrase {
  const plural = draw.chance(0.5);
  if (draw.chance(0.25)) return plural ? couple(draw) : person(draw);
  return nounPhrase(draw, BEINGS, plural);
}

const agreeing = (verb: world.Verb, plural: boolean): Word =>
  plural ? { text: verb.base, wrong: verb.third } : { text: verb.third, wrong: verb.base };
const be = (plural: boolean): Word => (plural ? { text: "are", wrong: "is" } : { text: "is", wrong: "are" });
const place = (draw: Draw): Word[] => {
  const [preposition, ...rest] = plain(world.somewhere(draw));
  return [{ ...preposition, bound: true }, ...rest];
};

interface Draft {
  /** Who does what: decides the split. */
  readonly key: string;
  readonly words: Word[];
}

const TEMPLATES: readonly ((draw: Draw) => Draft)[] = [
  // The old dog sleeps in the barn.
  (draw) => {
    const [who, verb] = [subject(draw), draw.pick(world.ACTIONS)];
    return { key: `${who.head} ${verb.base}`, words: [...who.words, agreeing(verb, who.plural), ...place(draw)] };
  },
  // These boys carry a red box.
  (draw) => {
    const [who, verb] = [subject(draw), draw.pick(world.HANDLINGS)];
    const what = nounPhrase(draw, world.THINGS, draw.chance(0.5));
    return {
      key: `${who.head} ${verb.base} ${what.head}`,
      words: [...who.words, agreeing(verb, who.plural), ...what.words],
    };
  },
  // Two cups are empty.
  (draw) => {
    const what = nounPhrase(draw, world.THINGS, draw.chance(0.5));
    const state = draw.pick(draw.pick(world.OPPOSITES));
    return {
      key: `${what.head} ${state}`,
      words: [...what.words, { ...be(what.plural), bound: true }, ...plain(state)],
    };
  },
  // Anna is singing near the tower.
  (draw) => {
    const [who, verb] = [subject(draw), draw.pick(world.ACTIONS)];
    return {
      key: `${who.head} ${verb.base}`,
      words: [
        ...who.words,
        be(who.plural),
        { text: verb.ing, wrong: draw.pick([verb.base, verb.third]) },
        ...place(draw),
      ],
    };
  },
  // She likes them.
  (draw) => {
    const [who, whom] = draw.some([0, 1, 2, 3], 2).map((i) => PRONOUNS[i]);
    const [verb, where] = [draw.pick(world.DEALINGS), place(draw)];
    return {
      key: `${who[0]} ${verb.base} ${whom[0]} ${where.at(-1)?.text}`,
      words: [
        { text: who[0], wrong: who[1] },
        agreeing(verb, who[0] === "they" || who[0] === "we"),
        { text: whom[1], wrong: whom[0] },
        ...where,
      ],
    };
  },
  // There is a cup under the table.
  (draw) => {
    const what = nounPhrase(draw, world.THINGS, draw.chance(0.5));
    const support = draw.pick(world.SUPPORTS);
    return {
      key: `${what.head} ${support}`,
      words: [
        ...plain("there"),
        be(what.plural),
        ...what.words,
        { text: draw.pick(["on", "under", "near"]), bound: true },
        ...plain(`the ${support}`),
      ],
    };
  },
  // The girl does not sing. / Tom can swim.
  (draw) => {
    const [who, verb] = [subject(draw), draw.pick(world.ACTIONS)];
    const auxiliary: Word[] = draw.chance(0.5)
      ? [who.plural ? { text: "do", wrong: "does" } : { text: "does", wrong: "do" }, ...plain("not")]
      : plain(draw.pick(["can", "will", "must"]));
    return {
      key: `${who.head} ${verb.base}`,
      words: [
        ...who.words,
        ...auxiliary,
        { text: verb.base, wrong: draw.pick([verb.third, verb.ing]) },
        ...place(draw),
      ],
    };
  },
];

const spell = (words: readonly Word[]): string => world.sentence(words.map((word) => word.text).join(" "));

/** The sentence with one mistake: a wrong form, or (two in five) two words that belong in order swapped. */
function corrupt(draw: Draw, words: readonly Word[]): string {
  const forms = words.flatMap((word, i) => (word.wrong === undefined ? [] : [i]));
  // Not the first word: a noun with a capital would tell the label.
  const swaps = words.flatMap((word, i) => (word.bound && i > 0 ? [i] : []));
  const result = [...words];
  if (swaps.length > 0 && (forms.length === 0 || draw.chance(0.4))) {
    const i = draw.pick(swaps);
    [result[i], result[i + 1]] = [words[i + 1], words[i]];
  } else {
    const i = draw.pick(forms);
    result[i] = { text: words[i].wrong! };
  }
  return spell(result);
}

/** One sentence, right and wrong. */
export function acceptability(draw: Draw): Generated[] {
  const { key, words } = draw.pick(TEMPLATES)(draw);
  return [
    { key, input: `acceptability sentence: ${spell(words)}`, target: "acceptable" },
    { key, input: `acceptability sentence: ${corrupt(draw, words)}`, target: "unacceptable" },
  ];
}

/** A right sentence of a combination that training may see: the pre-training text is made of these. */
export function rightSentence(draw: Draw): string {
  while (true) {
    const { key, words } = draw.pick(TEMPLATES)(draw);
    if (splitOf(key) === "train") return spell(words);
  }
}
