// What a setting can be: how its value is read from the text it was given as, and how `--print-config` writes it. A setting
// is declared once, in ../settings.ts; flag, environment variable, key of the configuration file and help follow.

import { resolve } from "node:path";

/** What a setting was given as, and where. */
export interface Given {
  /** For people: `--port`, `THAW_PORT`, or `thaw.yaml:3:7: port`. */
  readonly place: string;
  /** At least one; more only of a list. */
  readonly texts: readonly string[];
  /** The folder that relative paths start from. */
  readonly folder: string;
}

export interface Setting<T> {
  /** What stands for the value in help; undefined for a switch, which is a flag without one. */
  readonly value: string | undefined;
  /** May be given more than once. */
  readonly list: boolean;
  readonly fallback: T;
  readonly help: string;
  /** The value, or what it must be, for people. */
  read(given: Given): { readonly value: T } | { readonly must: string };
}

/** Values by name of the setting. */
export type Values<S> = { readonly [K in keyof S]: S[K] extends Setting<infer T> ? T : never };

const last = ({ texts }: Given): string => texts.at(-1)!;

/** A setting that is given once; of several times the last counts. */
const single = <T>(
  { fallback, value, help }: Pick<Setting<T>, "fallback" | "value" | "help">,
  read: (text: string, given: Given) => ReturnType<Setting<T>["read"]>,
): Setting<T> => ({ value, list: false, fallback, help, read: (given) => read(last(given), given) });

export function text<T extends string | undefined>(fallback: T, value: string, help: string): Setting<T | string> {
  return single<T | string>({ fallback, value, help }, (given) => ({ value: given }));
}

/** A whole number from `least` to `most`, both included. */
export function whole<T extends number | undefined>(
  fallback: T,
  [least, most]: readonly [least: number, most: number],
  value: string,
  help: string,
): Setting<T | number> {
  return single<T | number>({ fallback, value, help }, (given) => {
    const number = Number(given);
    const valid = /^\d+$/.test(given) && number >= least && number <= most;
    return valid ? { value: number } : { must: `be a whole number from ${least} to ${most}` };
  });
}

export function oneOf<C extends string, T extends C | undefined>(
  fallback: T,
  choices: readonly C[],
  value: string,
  help: string,
): Setting<T | C> {
  return single<T | C>({ fallback, value, help }, (given) => {
    const choice = choices.find((one) => one === given);
    return choice === undefined ? { must: `be ${choices.join(" or ")}` } : { value: choice };
  });
}

/** A file or folder; absolute once read. */
export function path<T extends string | undefined>(fallback: T, value: string, help: string): Setting<T | string> {
  return single<T | string>({ fallback, value, help }, (given, { folder }) => ({ value: resolve(folder, given) }));
}

export function paths(value: string, help: string): Setting<readonly string[]> {
  return {
    value,
    list: true,
    fallback: [],
    help,
    read: ({ folder, texts }) => ({ value: texts.map((one) => resolve(folder, one)) }),
  };
}

/** An http or https URL; without a password, which would show in the list of processes. */
export function url<T extends string | undefined>(fallback: T, value: string, help: string): Setting<T | string> {
  return single<T | string>({ fallback, value, help }, (given) => {
    const address = URL.canParse(given) ? new URL(given) : undefined;
    const valid = address && /^https?:$/.test(address.protocol) && address.password === "";
    return valid ? { value: given } : { must: "be an http or https URL without a password" };
  });
}

/** Off unless given. */
export function onOff(help: string): Setting<boolean> {
  return single<boolean>({ fallback: false, value: undefined, help }, (given) => {
    if (/^(1|true)$/.test(given)) return { value: true };
    return /^(0|false)$/.test(given) ? { value: false } : { must: "be true or false" };
  });
}
