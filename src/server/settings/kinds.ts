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

export function text<T extends string | undefined>(fallback: T, value: string, help: string): Setting<T | string> {
  return { value, list: false, fallback, help, read: (given) => ({ value: last(given) }) };
}

/** A whole number from `least` to `most`, both included. */
export function whole<T extends number | undefined>(
  fallback: T,
  [least, most]: readonly [least: number, most: number],
  value: string,
  help: string,
): Setting<T | number> {
  return {
    value,
    list: false,
    fallback,
    help,
    read(given) {
      const number = Number(last(given));
      const valid = /^\d+$/.test(last(given)) && number >= least && number <= most;
      return valid ? { value: number } : { must: `be a whole number from ${least} to ${most}` };
    },
  };
}

export function oneOf<C extends string, T extends C | undefined>(
  fallback: T,
  choices: readonly C[],
  value: string,
  help: string,
): Setting<T | C> {
  return {
    value,
    list: false,
    fallback,
    help,
    read(given) {
      const choice = choices.find((one) => one === last(given));
      return choice === undefined ? { must: `be ${choices.join(" or ")}` } : { value: choice };
    },
  };
}

/** A file or folder; absolute once read. */
export function path<T extends string | undefined>(fallback: T, value: string, help: string): Setting<T | string> {
  return {
    value,
    list: false,
    fallback,
    help,
    read: (given) => ({ value: resolve(given.folder, last(given)) }),
  };
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
  return {
    value,
    list: false,
    fallback,
    help,
    read(given) {
      const address = URL.canParse(last(given)) ? new URL(last(given)) : undefined;
      const valid = address && /^https?:$/.test(address.protocol) && address.password === "";
      return valid ? { value: last(given) } : { must: "be an http or https URL without a password" };
    },
  };
}

/** Off unless given. */
export function onOff(help: string): Setting<boolean> {
  return {
    value: undefined,
    list: false,
    fallback: false,
    help,
    read(given) {
      if (/^(1|true)$/.test(last(given))) return { value: true };
      return /^(0|false)$/.test(last(given)) ? { value: false } : { must: "be true or false" };
    },
  };
}
