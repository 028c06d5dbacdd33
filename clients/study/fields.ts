// Reading YAML or JSON by the fields one expects, with every mistake noted at its line, column and path rather than the
// first one thrown. A reader takes a place in the file and gives its value, or notes what is wrong and gives undefined.

import { isAlias, isMap, isScalar, isSeq, LineCounter, type Node, type ParsedNode, parseDocument } from "yaml";

export interface Mistake {
  /** From 1. */
  readonly line: number;
  /** From 1. */
  readonly column: number;
  /** For instance `tasks[0].steps`; empty for the whole file. */
  readonly path: string;
  readonly message: string;
}

/** A node of the file on its way to a value. */
export interface Place {
  readonly node: Node | null;
  readonly path: string;
  /** The node that an alias (`*name`) stands for. */
  resolve(node: Node | null): Node | null;
  /** Notes a mistake here. */
  wrong(message: string): undefined;
  /** A place inside this one; where the node is missing its mistakes stand here. */
  inside(node: Node | null, path: string): Place;
}

export type Read<T> = (place: Place) => T | undefined;

/**
 * Reads a whole file.
 * @returns the value, undefined where a mistake prevented it, and all mistakes in the order of the file
 */
export function readText<T>(
  text: string,
  read: Read<T>,
): { readonly value?: T; readonly mistakes: readonly Mistake[] } {
  const lineCounter = new LineCounter();
  const document = parseDocument(text, { lineCounter, prettyErrors: false });
  const mistakes: Mistake[] = [];
  const note = (offset: number, path: string, message: string): undefined => {
    const { line, col } = lineCounter.linePos(offset);
    mistakes.push({ line: Math.max(1, line), column: Math.max(1, col), path, message });
  };
  const place = (node: Node | null, path: string, fallback: number): Place => {
    const offset = node?.range?.[0] ?? fallback;
    return {
      node,
      path,
      resolve: (other) => (isAlias(other) ? (other.resolve(document) ?? null) : other),
      wrong: (message) => note(offset, path, message),
      inside: (other, inner) => place(other, inner, offset),
    };
  };
  for (const { pos, message } of document.errors) note(pos[0], "", message);
  const value = mistakes.length > 0 ? undefined : read(place(document.contents as ParsedNode | null, "", 0));
  mistakes.sort((a, b) => a.line - b.line || a.column - b.column);
  return { value, mistakes };
}

/** `3:5 tasks[0].steps: must be a whole number of at least 1`, one a line. */
export const mistakesText = (mistakes: readonly Mistake[]): string =>
  mistakes
    .map(({ line, column, path, message }) => `${line}:${column} ${path ? `${path}: ` : ""}${message}`)
    .join("\n");

function scalar(place: Place): unknown {
  const node = place.resolve(place.node);
  return isScalar(node) ? node.value : undefined;
}

/** Text that is not empty; `what` says it for people where a pattern must hold. */
export const text =
  (pattern: RegExp = /\S/, what = "text"): Read<string> =>
  (place) => {
    const value = scalar(place);
    return typeof value === "string" && pattern.test(value) ? value : place.wrong(`must be ${what}`);
  };

export interface Bounds {
  readonly above?: number;
  readonly atLeast?: number;
  readonly below?: number;
}

const boundsText = ({ above, atLeast, below }: Bounds): string =>
  [
    above === undefined ? "" : ` above ${above}`,
    atLeast === undefined ? "" : ` of at least ${atLeast}`,
    below === undefined ? "" : `${above === undefined && atLeast === undefined ? "" : " and"} below ${below}`,
  ].join("");

const inBounds = (value: number, { above, atLeast, below }: Bounds): boolean =>
  (above === undefined || value > above) &&
  (atLeast === undefined || value >= atLeast) &&
  (below === undefined || value < below);

export const real =
  (bounds: Bounds): Read<number> =>
  (place) => {
    const value = scalar(place);
    return typeof value === "number" && Number.isFinite(value) && inBounds(value, bounds)
      ? value
      : place.wrong(`must be a number${boundsText(bounds)}`);
  };

export const whole =
  (bounds: Bounds): Read<number> =>
  (place) => {
    const value = scalar(place);
    return Number.isSafeInteger(value) && inBounds(value as number, bounds)
      ? (value as number)
      : place.wrong(`must be a whole number${boundsText(bounds)}`);
  };

export const flag: Read<boolean> = (place) => {
  const value = scalar(place);
  return typeof value === "boolean" ? value : place.wrong("must be true or false");
};

/** One of some words. */
export const word =
  <W extends string>(words: readonly W[]): Read<W> =>
  (place) =>
    words.find((known) => known === scalar(place)) ?? place.wrong(`must be one of ${words.join(", ")}`);

/** A list of at least one item; items of the same key are a mistake. */
export const listOf =
  <T>(read: Read<T>, key: (item: T) => unknown): Read<readonly T[]> =>
  (place) => {
    const node = place.resolve(place.node);
    if (!isSeq(node) || node.items.length === 0) return place.wrong("must be a list of at least one item");
    const seen = new Set<unknown>();
    const items = node.items.map((item, i) => {
      const inner = place.inside(item as Node | null, `${place.path}[${i}]`);
      const value = read(inner);
      if (value === undefined) return undefined;
      if (seen.has(key(value))) return inner.wrong(`${String(key(value))} is there twice`);
      seen.add(key(value));
      return value;
    });
    return items.some((item) => item === undefined) ? undefined : (items as T[]);
  };

/** A field of a record. Without it: `fallback`, or a mistake where it is required. */
export interface Field<T> {
  readonly read: Read<T>;
  readonly required: boolean;
  readonly fallback?: T;
}

export const required = <T>(read: Read<T>): Field<T> => ({ read, required: true });
export const optional = <T>(read: Read<T>, fallback?: NoInfer<T>): Field<T> => ({ read, required: false, fallback });

const snake = (name: string): string => name.replaceAll(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);

/**
 * A mapping with these fields and no others; `batchSize` is `batch_size` in the file.
 * @param check what must hold between the fields; it notes mistakes at the place of a field
 */
export const record =
  <T extends object>(
    fields: { readonly [K in keyof T]-?: Field<Exclude<T[K], undefined>> },
    check: (value: T, at: (field: keyof T & string) => Place) => void = () => undefined,
  ): Read<T> =>
  (place) => {
    const node = place.resolve(place.node);
    if (!isMap(node)) return place.wrong(`must be a mapping with ${Object.keys(fields).map(snake).join(", ")}`);
    const path = (name: string) => (place.path ? `${place.path}.${name}` : name);
    const found = new Map<string, Place>();
    for (const { key, value } of node.items) {
      const name = isScalar(key) ? String(key.value) : String(key);
      // A mistake in a value without a node (`steps:`) stands at its key.
      found.set(name, place.inside(key as Node, path(name)).inside(value as Node | null, path(name)));
      if (!Object.keys(fields).some((field) => snake(field) === name)) {
        place.inside(key as Node, path(name)).wrong("is not known here");
      }
    }
    let complete = true;
    const value: Record<string, unknown> = {};
    for (const [name, field] of Object.entries(fields) as [string, Field<unknown>][]) {
      const at = found.get(snake(name));
      if (!at && field.required) place.inside(node, path(snake(name))).wrong("is missing");
      const read = at ? field.read(at) : field.fallback;
      if (read === undefined && (at || field.required)) complete = false;
      if (read !== undefined) value[name] = read;
    }
    if (!complete) return undefined;
    check(value as T, (field) => found.get(snake(field)) ?? place);
    return value as T;
  };
