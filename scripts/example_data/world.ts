// The small world the example data speaks of: about three hundred English words with the forms a sentence needs.

import type { Draw } from "./draw.ts";

export interface Noun {
  readonly one: string;
  readonly many: string;
}
export interface Verb {
  /** walk */
  readonly base: string;
  /** walks */
  readonly third: string;
  /** walking */
  readonly ing: string;
}
export interface Person {
  readonly name: string;
  readonly pronoun: "he" | "she";
}

const words = (text: string): string[] => text.trim().split(/\s+/);

/** "fox" takes -es, "mouse/mice" its own plural, everything else -s. */
function noun(entry: string): Noun {
  const [one, irregular] = entry.split("/");
  return { one, many: irregular ?? one + (/(s|x|ch|sh)$/.test(one) ? "es" : "s") };
}

/** "stop/stopping" where the -ing form doubles or drops a letter. */
function verb(entry: string): Verb {
  const [base, irregular] = entry.split("/");
  const third = /[^aeiou]y$/.test(base) ? `${base.slice(0, -1)}ies` : base + (/(s|x|ch|sh)$/.test(base) ? "es" : "s");
  return { base, third, ing: irregular ?? `${base}ing` };
}

const people = (names: string, pronoun: Person["pronoun"]): Person[] => words(names).map((name) => ({ name, pronoun }));

export const PERSONS: readonly Person[] = [
  ...people("Anna Clara Emma Grace Iris Kate Lucy Mary Nora Rosa Vera Zoe", "she"),
  ...people("Ben David Felix Henry Jack Leo Max Oscar Paul Sam Tom Will", "he"),
];
export const PROFESSIONS = words("baker farmer teacher doctor sailor painter driver king queen nurse boy girl").map(
  noun,
);
export const ANIMALS = words(
  "dog cat horse cow goat duck pig rabbit mouse/mice goose/geese fox bear wolf/wolves bird",
).map(noun);
export const FRUITS = words("apple pear plum orange lemon").map(noun);
export const TOOLS = words("hammer knife/knives spoon broom axe/axes saw").map(noun);
export const TOYS = words("ball kite drum doll").map(noun);
export const CLOTHES = words("hat coat shoe scarf ring").map(noun);
export const THINGS = [
  ...TOYS,
  ...CLOTHES,
  ...TOOLS,
  ...words("book box cup key lamp map bag bottle bell letter stone clock").map(noun),
];
export const PLACES = words(
  "garden kitchen forest house school market barn field park shop tower village library harbour",
);
export const SUPPORTS = words("table chair bed bench shelf");

export const COLOURS = words("red blue green yellow black white brown grey");
/** Pairs of which nothing is both. */
export const OPPOSITES = [
  ["full", "empty"],
  ["clean", "dirty"],
  ["new", "old"],
  ["big", "small"],
  ["heavy", "light"],
  ["warm", "cold"],
] as const;
export const MOODS = words("happy sad tired hungry angry calm brave shy");

export const ACTIONS = words("sleep sing dance/dancing jump swim/swimming laugh cry play wait work walk rest").map(
  verb,
);
/** What is done to a thing. */
export const HANDLINGS = words("carry hold find want push paint wash draw buy sell clean need").map(verb);
/** What is done to somebody. */
export const DEALINGS = words("see like help hear follow know call meet").map(verb);

/** What a thing is, one step up. */
export const KINDS: readonly (readonly [kind: Noun, members: readonly Noun[]])[] = [
  [noun("animal"), ANIMALS],
  [noun("person/people"), PROFESSIONS],
  [noun("fruit"), FRUITS],
  [noun("tool"), TOOLS],
  [noun("toy"), TOYS],
];

export const indefinite = (word: string): string => (/^[aeiou]/.test(word) ? "an" : "a");

/** Capital at the start, full stop (or what is given) at the end. */
export const sentence = (text: string, end = "."): string => text[0].toUpperCase() + text.slice(1) + end;

/** in the garden, near the tower, … */
export const somewhere = (draw: Draw): string => `${draw.pick(["in", "near", "behind"])} the ${draw.pick(PLACES)}`;
