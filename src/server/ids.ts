// Resource names. Every name that comes over the wire is parsed here, against one strict grammar, before any part of it
// comes near a path or a query.

import { randomBytes } from "node:crypto";

const ID = "[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?";
const WHOLE_ID = new RegExp(`^${ID}$`);

export const ID_RULE = "must be [a-z][a-z0-9-]{0,62} and not end in `-`";

export const isId = (text: string): boolean => WHOLE_ID.test(text);

export type Collection = "runs" | "models" | "datasets";

const NAMES: Readonly<Record<Collection, RegExp>> = {
  runs: new RegExp(`^runs/(${ID})$`),
  models: new RegExp(`^models/(${ID})$`),
  datasets: new RegExp(`^datasets/(${ID})$`),
};
const CHECKPOINT = new RegExp(`^runs/(${ID})/checkpoints/(${ID})$`);

/** The id in `{collection}/{id}`; undefined when `name` is anything else. */
export const idIn = (collection: Collection, name: string): string | undefined => NAMES[collection].exec(name)?.[1];

const IN_RUN = new RegExp(`^(runs/${ID})(?:/.*)?$`);
/** The run that a name is of or in, `runs/{run}`; undefined for any other name. */
export const runIn = (name: string): string | undefined => IN_RUN.exec(name)?.[1];

/** The ids in `runs/{run}/checkpoints/{checkpoint}`; undefined when `name` is anything else. */
export function checkpointIn(name: string): { readonly run: string; readonly checkpoint: string } | undefined {
  const match = CHECKPOINT.exec(name);
  return match ? { run: match[1], checkpoint: match[2] } : undefined;
}

/** An id nobody has: `prefix` and 50 random bits in lower-case base 32. */
export function newId(prefix: string): string {
  const alphabet = "abcdefghijkmnpqrstuvwxyz23456789";
  return `${prefix}-${Array.from(randomBytes(10), (byte) => alphabet[byte % 32]).join("")}`;
}
