// Runs the bench: part after part, each in a process of its own with a time limit; a table as each ends, JSON at the end.
// What a crash or the clock cuts off is said and leaves the other parts alone.

import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import process from "node:process";
import { createInterface } from "node:readline";
import type { Readable } from "node:stream";
import { parseArgs } from "node:util";
import { gpuEnvironment } from "../src/kernels/device/launch.ts";
import { watchClocks } from "./clocks.ts";
import type { Ceilings, Part, Scale } from "./part.ts";
import type { Message } from "./part_process.ts";
import { PARTS } from "./parts.ts";
import { REFERENCES, type Reference } from "./reference.ts";
import { type Row, rowsTable } from "./rows.ts";
import { summaryTable } from "./summary.ts";

/** What became of a part: of ours, or of the PyTorch twin. */
export interface PartResult {
  readonly name: string;
  readonly title: string;
  readonly side: "thaw" | "reference";
  /** `done`, or why it is not whole. */
  readonly outcome: string;
  readonly seconds: number;
  /** Least and most that the processors of the only GPU were seen to run at, on NVIDIA. */
  readonly clockMHz?: { readonly least: number; readonly most: number };
  readonly adapter?: string;
  readonly rows: readonly Row[];
}

/** A run of the bench, as its file holds it. */
export interface BenchResult {
  readonly date: string;
  readonly commit: string;
  readonly scale: Scale;
  readonly adapter: string;
  readonly driver: string;
  readonly versions: Readonly<Record<string, string>>;
  readonly command: string;
  readonly parts: readonly PartResult[];
}

const ROOT = join(import.meta.dirname, "..");
const DEFAULT_MINUTES = { small: 5, gpu: 9.5 } as const;
/** Less is not worth starting a part for. */
const LEAST_SECONDS = 5;

const HELP = (scale: Scale): string => `options:
  --part NAME        only this part (several times for several); ceilings always runs
                     ${PARTS.map((p) => p.name).join(", ")}
  --with-reference   the PyTorch twins too, and the ratios
  --python COMMAND   of the twins; python3
  --minutes N        for everything, ${DEFAULT_MINUTES[scale]}; what finds no time left is named
  --out FILE         results as JSON; bench/results/DATE-ADAPTER-SCALE.json`;

/** Runs what the command line asks for; the process fails where a result was wrong or a part was not whole. */
export async function bench(scale: Scale, args: readonly string[]): Promise<void> {
  const options = readOptions(scale, args);
  const end = performance.now() + 6e4 * options.minutes;
  const results: PartResult[] = [];
  const finish = (result: PartResult): void => {
    results.push(result);
    const { name, side, title, outcome, seconds, clockMHz, rows } = result;
    const of = side === "thaw" ? "" : " (PyTorch)";
    const clocks = clockMHz ? `, processors at ${clockMHz.least} to ${clockMHz.most} MHz` : "";
    console.log(`\n${name}${of}: ${title}\n${outcome}, ${seconds.toFixed(0)} s${clocks}`);
    if (rows.length > 0) console.log(rowsTable(rows));
  };
  const limit = (seconds: number): number => Math.min(seconds, (end - performance.now()) / 1e3);
  for (const part of options.parts) {
    const seconds = limit(part.seconds[scale]);
    finish(await runPart(part, scale, ceilingsOf(results), seconds));
    for (const twin of options.withReference ? REFERENCES.filter((r) => r.part === part.name) : [])
      finish(await runReference(twin, scale, options.python, limit(twin.seconds[scale])));
  }
  const result = describe(scale, results);
  const file = options.out ?? join(ROOT, "bench/results", fileName(result));
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(file, `${JSON.stringify(result, undefined, 1)}\n`);
  console.log(`\n${summaryTable(results)}\n\n${result.adapter}, driver ${result.driver}; ${file}`);
  if (results.some((r) => r.outcome !== "done" || r.rows.some((row) => row.wrong))) process.exitCode = 1;
}

function readOptions(scale: Scale, args: readonly string[]) {
  const fail = (message: string): never => {
    console.error(`${message}\n${HELP(scale)}`);
    process.exit(2);
  };
  const { values } = (() => {
    try {
      return parseArgs({
        args: [...args],
        options: {
          part: { type: "string", multiple: true },
          "with-reference": { type: "boolean", default: false },
          python: { type: "string", default: "python3" },
          minutes: { type: "string", default: String(DEFAULT_MINUTES[scale]) },
          out: { type: "string" },
          help: { type: "boolean", default: false },
        },
      });
    } catch (error) {
      return fail((error as Error).message);
    }
  })();
  if (values.help) {
    console.log(HELP(scale));
    process.exit(0);
  }
  const unknown = (values.part ?? []).filter((name) => !PARTS.some((p) => p.name === name));
  const minutes = Number(values.minutes);
  const problems = [
    ...unknown.map((name) => `--part: there is no part ${name}`),
    ...(minutes > 0 ? [] : [`--minutes: ${values.minutes} is not a number of minutes`]),
  ];
  if (problems.length > 0) fail(problems.join("\n"));
  const parts = PARTS.filter((p, i) => i === 0 || !values.part || values.part.includes(p.name));
  return { parts, minutes, withReference: values["with-reference"], python: values.python, out: values.out };
}

/** The best of each kind that the part `ceilings` has measured. */
function ceilingsOf(results: readonly PartResult[]): Ceilings {
  const best: Record<string, number> = {};
  for (const { figures, rate } of results.find((r) => r.name === PARTS[0].name)?.rows ?? []) {
    const [kind, value] = [String(figures.ceiling), Number(figures[rate ?? ""])];
    best[kind] = Math.max(best[kind] ?? 0, value);
  }
  return best;
}

async function runPart(part: Part, scale: Scale, ceilings: Ceilings, seconds: number): Promise<PartResult> {
  const base = { name: part.name, title: part.title, side: "thaw" } as const;
  if (seconds < LEAST_SECONDS) return { ...base, outcome: "not run: no time left", seconds: 0, rows: [] };
  const rows: Row[] = [];
  let adapter: string | undefined;
  const script = join(import.meta.dirname, "part_process.ts");
  const command = [...process.execArgv, script, part.name, scale, JSON.stringify(ceilings), String(seconds)];
  const env = { ...process.env, ...gpuEnvironment().env };
  const child = spawn(process.execPath, command, { env, stdio: ["ignore", "inherit", "inherit", "pipe"] });
  const ended = await whole(child, child.stdio[3] as Readable, seconds, (line) => {
    const message = JSON.parse(line) as Message;
    if ("row" in message) rows.push(message.row);
    else adapter = message.adapter;
  });
  return { ...base, ...ended, adapter, rows };
}

async function runReference(twin: Reference, scale: Scale, python: string, seconds: number): Promise<PartResult> {
  const base = { name: twin.part, title: twin.title, side: "reference" } as const;
  if (seconds < LEAST_SECONDS) return { ...base, outcome: "not run: no time left", seconds: 0, rows: [] };
  const rows: Row[] = [];
  let missing: string | undefined;
  const script = join(import.meta.dirname, "reference", twin.script);
  const command = [script, JSON.stringify(twin.input(scale))];
  // A group of its own: torch.compile starts processes that must end with it.
  const child = spawn(python, command, { stdio: ["ignore", "pipe", "inherit"], detached: true });
  const onLine = (line: string): void => {
    const said = JSON.parse(line) as Row | { readonly missing: string };
    if ("missing" in said) missing = said.missing;
    else rows.push(said);
  };
  const ended = await whole(child, child.stdout!, seconds, onLine, true);
  const outcome = missing === undefined ? ended.outcome : `not run: ${python} has no package ${missing}`;
  return { ...base, ...ended, outcome, rows };
}

/**
 * Hands on the lines of a process until it ends, or is ended, with its group where that is its own, when its time is over.
 */
async function whole(
  child: ChildProcess,
  lines: Readable,
  seconds: number,
  onLine: (line: string) => void,
  detached = false,
): Promise<Pick<PartResult, "outcome" | "seconds" | "clockMHz">> {
  const begin = performance.now();
  const clocks = watchClocks();
  let late = false;
  const timer = setTimeout(() => {
    late = true;
    if (detached) process.kill(-child.pid!, "SIGKILL");
    else child.kill("SIGKILL");
  }, 1e3 * seconds);
  createInterface({ input: lines }).on("line", (line) => line.startsWith("{") && onLine(line));
  const outcome = await new Promise<string>((resolve) => {
    child.on("error", (error) => resolve(`not run: ${error.message}`));
    child.on("close", (code, signal) => {
      if (late) resolve(`cut off after ${seconds.toFixed(0)} s`);
      else resolve(code === 0 ? "done" : `failed with ${signal ?? `exit code ${code}`}`);
    });
  });
  clearTimeout(timer);
  return { outcome, seconds: (performance.now() - begin) / 1e3, clockMHz: clocks() };
}

function describe(scale: Scale, parts: readonly PartResult[]): BenchResult {
  const { dependencies } = JSON.parse(readFileSync(join(ROOT, "package.json"), "utf8"));
  return {
    date: new Date().toISOString(),
    commit: said("git", ["describe", "--always", "--dirty", "--abbrev=12"]),
    scale,
    adapter: parts.find((p) => p.adapter)?.adapter ?? "no adapter was opened",
    driver: said("nvidia-smi", ["--query-gpu=driver_version", "--format=csv,noheader"]),
    versions: { [runtime()[0]]: runtime()[1], webgpu: dependencies.webgpu },
    command: `bench/${scale}.ts ${process.argv.slice(2).join(" ")}`.trim(),
    parts,
  };
}

const runtime = (): [string, string] =>
  process.versions.deno ? ["deno", process.versions.deno] : ["node", process.versions.node];

/** The first line that a command says, or that it is not known. */
function said(command: string, args: readonly string[]): string {
  try {
    const text = execFileSync(command, args, { cwd: ROOT, encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] });
    return text.trim().split("\n")[0] || "unknown";
  } catch {
    return "unknown";
  }
}

/** `2026-11-24-nvidia-h100-gpu.json`: date, what the adapter calls itself, scale. */
function fileName({ date, adapter, scale }: BenchResult): string {
  const name = /\((.+?)\)/.exec(adapter)?.[1] ?? "none";
  const slug = name
    .toLowerCase()
    .replaceAll(/[^a-z0-9]+/g, "-")
    .replaceAll(/^-|-$/g, "");
  return `${date.slice(0, 10)}-${slug}-${scale}.json`;
}
