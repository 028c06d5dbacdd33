// The server's own log: one line per happening on standard error. Names of runs and reasons, never secrets.

import process from "node:process";

export type Level = "debug" | "info" | "warning" | "error";
export type Log = (level: Level, message: string) => void;

/** `2026-01-31T12:00:00.000Z warning message`, line breaks kept inside one entry by indenting them. */
export const stderrLog: Log = (level, message) => {
  if (level === "debug") return;
  process.stderr.write(`${new Date().toISOString()} ${level} ${message.trimEnd().replaceAll("\n", "\n  ")}\n`);
};
