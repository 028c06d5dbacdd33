// The server's own log: one entry per happening on standard error, as a line for people or as a JSON object for machines.
// Names of runs, request ids and reasons; never secrets, and no paths of this machine.

import { homedir } from "node:os";
import process from "node:process";
import { fileURLToPath } from "node:url";

export const LEVELS = ["debug", "info", "warning", "error"] as const;
export const FORMATS = ["text", "json"] as const;

export type Level = (typeof LEVELS)[number];
/** What an entry is about: `run`, `request_id`, …; undefined ones are left out. */
export type Fields = Readonly<Record<string, string | number | undefined>>;
export type Log = (level: Level, message: string, fields?: Fields) => void;

export interface LogOptions {
  /** Entries below it are left out. */
  readonly level: Level;
  readonly format: (typeof FORMATS)[number];
  /** Folders, and what stands in their place. */
  readonly hidden?: readonly (readonly [folder: string, shown: string])[];
}

const PACKAGE = fileURLToPath(new URL("../../", import.meta.url)).replace(/[\\/]$/, "");

/**
 * Text is `2026-01-31T12:00:00.000Z warning message run=runs/first`, line breaks kept inside one entry by indenting them.
 * JSON is `{"time", "level", "message", …fields}` on one line.
 */
export function createLog(options: LogOptions, write = (line: string) => void process.stderr.write(line)): Log {
  const least = LEVELS.indexOf(options.level);
  // The longest first: a folder may lie in another.
  const hidden = [...(options.hidden ?? []), [PACKAGE, "<thaw>"] as const, [homedir(), "~"] as const]
    .filter(([folder]) => folder.length > 1)
    .sort(([a], [b]) => b.length - a.length);
  const shown = (text: string): string => hidden.reduce((now, [folder, name]) => now.replaceAll(folder, name), text);
  return (level, message, fields = {}) => {
    if (LEVELS.indexOf(level) < least) return;
    const time = new Date().toISOString();
    const given = Object.entries(fields).filter(([, value]) => value !== undefined);
    if (options.format === "json") {
      write(`${shown(JSON.stringify({ time, level, message: message.trimEnd(), ...Object.fromEntries(given) }))}\n`);
      return;
    }
    const about = given.map(([name, value]) => ` ${name}=${value}`).join("");
    write(`${time} ${level} ${shown(message.trimEnd().replaceAll("\n", "\n  ") + about)}\n`);
  };
}
