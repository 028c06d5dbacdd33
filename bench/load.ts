// npm run bench:load: how many calls a server answers and how soon, and what many streams cost it. The server is a process
// of its own with everything but a GPU: steps compute nothing and take a set time, so that what is measured is the service
// and not the training. Unary calls are made by h2load (Debian: nghttp2-client); without it that part is left out.
//
// Client and server share the machine, so the figures are a lower bound of what the server alone could do. Everything is on
// 127.0.0.1, and bounded in time.

import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { cpus, loadavg, totalmem } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { type Prepared, prepare } from "../test/faults/support/served.ts";
import { streamRows } from "./load/streams.ts";
import { h2loadVersion, unaryRows } from "./load/unary.ts";
import { type Row, rowsTable } from "./rows.ts";

const ROOT = join(import.meta.dirname, "..");
const HELP = `options:
  --seconds N   of each measurement, 5
  --out FILE    results as JSON; bench/results/DATE-load.json`;

export interface LoadOptions {
  readonly prepared: Prepared;
  readonly seconds: number;
}

interface LoadPart {
  readonly name: string;
  readonly title: string;
  measure(options: LoadOptions): Promise<Row[]>;
}

const PARTS: readonly LoadPart[] = [
  { name: "unary", title: "calls with one answer, by h2load", measure: unaryRows },
  {
    name: "streams",
    title: "streams, with a health check every 10 ms by another process meanwhile",
    measure: streamRows,
  },
];

function readOptions(): { seconds: number; out: string } {
  const out = join(ROOT, "bench/results", `${new Date().toISOString().slice(0, 10)}-load.json`);
  const options = { seconds: { type: "string", default: "5" }, out: { type: "string", default: out } } as const;
  try {
    const { values } = parseArgs({ options: { ...options, help: { type: "boolean", default: false } } });
    if (values.help) {
      console.log(HELP);
      process.exit(0);
    }
    const seconds = Number(values.seconds);
    if (!/^[1-9]\d*$/.test(values.seconds)) throw new Error(`--seconds: ${values.seconds} is no whole number from 1`);
    return { seconds, out: values.out };
  } catch (error) {
    console.error(`${(error as Error).message}\n${HELP}`);
    return process.exit(2);
  }
}

const { seconds, out } = readOptions();
const load = (): number[] => loadavg().map((value) => Number(value.toFixed(2)));
const before = load();
const prepared = await prepare();
const parts: (Pick<LoadPart, "name" | "title"> & { rows: readonly Row[] })[] = [];
try {
  for (const { name, title, measure } of PARTS) {
    const rows = await measure({ prepared, seconds });
    parts.push({ name, title, rows });
    console.log(`\n${name}: ${title}\n${rowsTable(rows)}`);
  }
} finally {
  await prepared.clean();
}
const { dependencies } = JSON.parse(readFileSync(join(ROOT, "package.json"), "utf8"));
const commit = execFileSync("git", ["describe", "--always", "--dirty", "--abbrev=12"], { cwd: ROOT, encoding: "utf8" });
const result = {
  date: new Date().toISOString(),
  commit: commit.trim(),
  command: `bench/load.ts ${process.argv.slice(2).join(" ")}`.trim(),
  machine: { cpus: cpus().length, processor: cpus()[0]?.model, memoryBytes: totalmem() },
  loadAverages: { before, after: load() },
  versions: { node: process.versions.node, "grpc-js": dependencies["@grpc/grpc-js"], h2load: h2loadVersion() },
  parts,
};
writeFileSync(out, `${JSON.stringify(result, undefined, 1)}\n`);
console.log(`\n${out}`);
