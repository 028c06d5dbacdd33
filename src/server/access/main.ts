// `thaw tokens`: makes, lists and revokes tokens in a server's data directory, beside the server or without one.
//
// It is no RPC: who can write the data directory owns everything in it anyway, the first token needs no other one, and no
// token, however it was stolen, makes another.

import { mkdirSync } from "node:fs";
import process from "node:process";
import { parseArgs } from "node:util";
import { openTokens, type TokenStore } from "../registry/tokens.ts";
import { settingsOfProcess, UsageError } from "../settings.ts";
import { registryFile } from "../storage/layout.ts";
import { unusable } from "../storage/unusable.ts";
import { ROLES, type Role } from "./roles.ts";
import { createToken, endOf } from "./tokens.ts";

const HELP = `usage: tokens COMMAND [--data-dir DIR | --config FILE]

  create --role viewer|operator|admin [--label TEXT] [--expires 30d|12h|45m]
                 prints a new token, which is shown this once
  list           every token, never its secret
  revoke ID...   takes effect at once, open streams included

viewer    watches and asks: runs, metrics, routes, groups, descriptions
operator  also starts and steers runs, uploads, downloads, exports, generates, deletes runs and checkpoints
admin     also deletes models and datasets`;

const MAX_LABEL = 100;
const UNITS_MS: Readonly<Record<string, number>> = { d: 86_400_000, h: 3_600_000, m: 60_000 };

/** @returns the exit code. @throws UsageError naming everything that is wrong with the arguments */
function tokens(args: readonly string[]): number {
  const { values, positionals } = parse(args);
  const [command = "", ...ids] = positionals;
  const problems: string[] = [];
  const { role, label = "", expires } = values;
  if (!["create", "list", "revoke"].includes(command)) problems.push(`"${command}" is not create, list or revoke`);
  if (command === "create" && !ROLES.some((one) => one === role)) {
    problems.push(`--role ${role === undefined ? "is missing" : `is "${role}"`}; it must be ${ROLES.join(", ")}`);
  }
  if (command !== "create" && (role ?? values.label ?? expires) !== undefined) {
    problems.push("--role, --label and --expires are of create");
  }
  if (label.length > MAX_LABEL || /\p{Cc}/u.test(label)) {
    problems.push(`--label must be at most ${MAX_LABEL} characters on one line`);
  }
  const [, count, unit] = /^([1-9]\d{0,4})([dhm])$/.exec(expires ?? "") ?? [];
  if (expires !== undefined && !unit) problems.push(`--expires is "${expires}"; it must be like 30d, 12h or 45m`);
  if (command === "revoke" && ids.length === 0) problems.push("which one? `tokens list` shows the ids");
  if (command !== "revoke" && ids.length > 0) problems.push(`${ids.join(" ")}: only revoke takes ids`);
  if (problems.length > 0) throw new UsageError(problems.join("\n"));

  const place = (["data-dir", "config"] as const).flatMap((flag) => (values[flag] ? [`--${flag}`, values[flag]] : []));
  const { dataDirectory } = settingsOfProcess(place);
  mkdirSync(dataDirectory, { recursive: true, mode: 0o700 });
  const store = openTokens(registryFile(dataDirectory));
  try {
    if (command === "list") return list(store);
    if (command === "revoke") return revoke(store, ids);
    const expireTime = unit ? new Date(Date.now() + Number(count) * UNITS_MS[unit]) : undefined;
    const { record, token } = createToken(store, { role: role as Role, label, expireTime });
    process.stderr.write(`${record.id}, ${role}; it is not shown again\n`);
    process.stdout.write(`${token}\n`);
    return 0;
  } finally {
    store.close();
  }
}

function parse(args: readonly string[]) {
  const option = { type: "string" } as const;
  const options = { "data-dir": option, config: option, role: option, label: option, expires: option };
  try {
    return parseArgs({ args: [...args], options, allowPositionals: true });
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
}

function list(store: TokenStore): number {
  const rows = store.tokens().map((record) => {
    const { id, role, createTime, expireTime, label } = record;
    return [id, role, endOf(record) ?? "good", day(createTime), expireTime ? day(expireTime) : "never", label];
  });
  const table = [["ID", "ROLE", "STATE", "CREATED", "EXPIRES", "LABEL"], ...rows];
  const widths = table[0].map((_, i) => Math.max(...table.map((row) => row[i].length)));
  for (const row of table) {
    process.stdout.write(
      `${row
        .map((cell, i) => cell.padEnd(widths[i]))
        .join("  ")
        .trimEnd()}\n`,
    );
  }
  return 0;
}

const day = (time: Date): string => `${time.toISOString().slice(0, 16).replace("T", " ")}Z`;

function revoke(store: TokenStore, ids: readonly string[]): number {
  const unknown = ids.filter((id) => !store.revoke(id));
  if (unknown.length > 0) process.stderr.write(`no such token: ${unknown.join(", ")}\n`);
  return unknown.length > 0 ? 4 : 0;
}

const args = process.argv.slice(2);
if (args.includes("--help")) {
  process.stdout.write(`${HELP}\n`);
} else {
  try {
    process.exitCode = tokens(args);
  } catch (error) {
    process.stderr.write(`${unusable(error) ?? (error as Error).message}\n`);
    process.exitCode = error instanceof UsageError ? 2 : 1;
  }
}
