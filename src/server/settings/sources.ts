// Where settings come from: flags, then environment variables, then the configuration file. Whatever is wrong in any of
// them is noted with its place, so that one start tells everything.

import { readFileSync } from "node:fs";
import { basename, dirname, resolve } from "node:path";
import { parseArgs } from "node:util";
import { isMap, isScalar, isSeq, LineCounter, parseDocument } from "yaml";
import type { Given, Setting } from "./kinds.ts";

export type Table = Readonly<Record<string, Setting<unknown>>>;
export type Environment = Readonly<Record<string, string | undefined>>;

/** What was given for a setting, by the setting's name. */
type Source = ReadonlyMap<string, Given>;

/** `max-queued-runs` in the environment. */
export const variableOf = (name: string): string => `THAW_${name.replaceAll("-", "_").toUpperCase()}`;
/** `max-queued-runs` in a configuration file. */
export const keyOf = (name: string): string => name.replaceAll("-", "_");

/**
 * What was given, the strongest source of each setting.
 * @param problems gets every mistake, in words for who made it
 */
export function givenSettings(table: Table, args: readonly string[], env: Environment, problems: string[]): Source {
  const { given: flags, config } = fromFlags(table, args, problems);
  const file = config ?? env[variableOf("config")];
  return new Map([...(file ? fromFile(table, file, problems) : []), ...fromEnvironment(table, env), ...flags]);
}

function fromFlags(table: Table, args: readonly string[], problems: string[]) {
  const isSwitch = (name: string): boolean =>
    name === "print-config" || (name in table && table[name].value === undefined);
  const names = [...Object.keys(table), "config", "print-config"];
  const options = Object.fromEntries(
    names.map((name) => [name, { type: isSwitch(name) ? ("boolean" as const) : ("string" as const) }]),
  );
  // Not strict: that would throw at the first mistake.
  const { tokens } = parseArgs({ args: [...args], options, strict: false, tokens: true });
  const given = new Map<string, Given>();
  let config: string | undefined;
  for (const token of tokens) {
    if (token.kind === "positional") problems.push(`"${token.value}" is no option`);
    if (token.kind !== "option") continue;
    const { name, rawName, value, inlineValue } = token;
    if (!names.includes(name) || !rawName.startsWith("--")) {
      problems.push(`${rawName} is no option`);
    } else if (isSwitch(name)) {
      if (value !== undefined) problems.push(`--${name} takes no value`);
      else if (name in table) given.set(name, { place: `--${name}`, texts: ["true"], folder: "." });
    } else if (value === undefined || value === "" || (!inlineValue && value.startsWith("-"))) {
      problems.push(`--${name} needs a value`);
    } else if (name === "config") {
      config = value;
    } else {
      const before = table[name].list ? (given.get(name)?.texts ?? []) : [];
      given.set(name, { place: `--${name}`, texts: [...before, value], folder: "." });
    }
  }
  return { given, config };
}

/** An empty variable counts as none; a list's items are separated by `:`. */
function fromEnvironment(table: Table, env: Environment): Source {
  const given = new Map<string, Given>();
  for (const [name, { list }] of Object.entries(table)) {
    const place = variableOf(name);
    const variable = env[place];
    const texts = list ? (variable ?? "").split(":").filter(Boolean) : variable ? [variable] : [];
    if (texts.length > 0) given.set(name, { place, texts, folder: "." });
  }
  return given;
}

/** YAML, and so JSON: one key per setting. Relative paths start at the file's folder. */
function fromFile(table: Table, file: string, problems: string[]): Source {
  const given = new Map<string, Given>();
  let content: string;
  try {
    content = readFileSync(file, "utf8");
  } catch (error) {
    problems.push(`${file} cannot be read (${(error as NodeJS.ErrnoException).code})`);
    return given;
  }
  const lineCounter = new LineCounter();
  const document = parseDocument(content, { lineCounter, prettyErrors: false });
  const at = (offset: number | undefined): string => {
    const { line, col } = lineCounter.linePos(offset ?? 0);
    return `${basename(file)}:${Math.max(1, line)}:${Math.max(1, col)}`;
  };
  for (const { pos, message } of document.errors) problems.push(`${at(pos[0])}: ${message}`);
  if (document.errors.length > 0 || document.contents === null) return given;
  if (!isMap(document.contents)) {
    problems.push(`${at(0)}: must be settings, \`key: value\` each`);
    return given;
  }
  const names = new Map(Object.keys(table).map((name) => [keyOf(name), name]));
  for (const { key, value } of document.contents.items) {
    const word = isScalar(key) ? String(key.value) : "";
    const place = `${at(isScalar(key) ? key.range?.[0] : 0)}: ${word}`;
    const name = names.get(word);
    if (name === undefined) {
      problems.push(`${place} is no setting`);
      continue;
    }
    const items = isSeq(value) && table[name].list ? value.items : [value];
    const plain = items.map((item) => (isScalar(item) && item.value !== null ? String(item.value) : undefined));
    const texts = plain.filter((item) => item !== undefined);
    if (texts.length < plain.length) problems.push(`${place} must be ${table[name].list ? "values" : "one value"}`);
    else if (texts.length > 0) given.set(name, { place, texts, folder: dirname(resolve(file)) });
  }
  return given;
}
