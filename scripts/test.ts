// Runs every test file in a process of its own and ends with one line: `N passed, N failed`.
//
//   npm test                             every file under test/, on Node
//   npm test -- matmul server            files whose path contains one of the words
//   npm test -- --runtime deno-dawn      kernels, trainer and clients under Deno, on Dawn
//   npm test -- --runtime deno           the same on Deno's own WebGPU; --runtime may be repeated
//   npm run test:faults                  the fault suite: test/faults/*.faults.ts, and some of test/server beside it
//   npm run test:faults -- --seeds 14    with fewer seeds than 50; --first-seed 7 begins with another
//
// A process each, because Dawn is one per process and may abort it. A file that does not load, crashes, hangs or reports
// no tests counts as one failed test, so nothing passes by not running; one that skips all it has says why.

import { type ChildProcess, spawn } from "node:child_process";
import { readdirSync } from "node:fs";
import { dirname, join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { parseArgs, stripVTControlCharacters } from "node:util";
import { gpuEnvironment } from "../src/kernels/device/launch.ts";

const ROOT = join(dirname(fileURLToPath(import.meta.url)), "..");

/** Files at a time: SwiftShader uses every core by itself, so more would only make each slower. */
const AT_ONCE = 2;
const TIMEOUT_SECONDS = 300;
/** The fault suite's files run many seeds each. */
const FAULTS_TIMEOUT_SECONDS = 900;

/**
 * Tests that the fault suite runs beside its own: tokens on every method, limits, hostile texts, foreign and old clients.
 */
const ALSO_FAULTS = ["access", "foreign_clients", "hostile", "limits", "recorded_requests", "resources", "tls"].map(
  (name) => `server/${name}.test.ts`,
);

const DENO = "Deno" in globalThis ? process.execPath : join(ROOT, "node_modules", ".bin", "deno");

interface Runtime {
  /** What runs a test file. */
  readonly command: readonly string[];
  /** Folders of test/ that this runtime must pass; "" is all of it. */
  readonly areas: readonly string[];
  readonly env: Readonly<Record<string, string>>;
}

const RUNTIMES: Readonly<Record<string, Runtime>> = {
  node: { command: [process.execPath, "--import", "tsx"], areas: [""], env: {} },
  "deno-dawn": { command: [DENO, "run", "-A"], areas: ["kernels", "trainer", "clients"], env: { THAW_WEBGPU: "dawn" } },
  deno: { command: [DENO, "run", "-A"], areas: ["kernels", "trainer"], env: { THAW_WEBGPU: "deno" } },
};

interface Result {
  readonly runtime: string;
  readonly file: string;
  readonly passed: number;
  readonly failed: number;
  /** Why the file counts as failed although no test said so. */
  readonly fault?: string;
  /** Why nothing in the file can run on this machine. */
  readonly skipped?: string;
  readonly output: string;
  readonly seconds: number;
}

const { values, positionals: filters } = parseArgs({
  options: {
    runtime: { type: "string", multiple: true, default: ["node"] },
    faults: { type: "boolean", default: false },
    seeds: { type: "string", default: "50" },
    "first-seed": { type: "string", default: "1" },
  },
  allowPositionals: true,
});
const isWanted = (path: string): boolean =>
  values.faults ? path.endsWith(".faults.ts") || ALSO_FAULTS.includes(path) : path.endsWith(".test.ts");
const SEEDS = { THAW_FAULT_SEEDS: values.seeds, THAW_FAULT_SEED: values["first-seed"] };
for (const text of Object.values(SEEDS)) {
  if (/^[1-9]\d*$/.test(text)) continue;
  console.error(`"${text}" is no number of seeds, and no seed`);
  process.exit(2);
}
for (const name of values.runtime) {
  if (RUNTIMES[name]) continue;
  console.error(`--runtime is "${name}"; it can be ${Object.keys(RUNTIMES).join(", ")}`);
  process.exit(2);
}

const gpu = gpuEnvironment();
console.log(`${gpu.adapter} adapter: ${gpu.reason}`);

const running = new Set<ChildProcess>();
for (const signal of ["SIGINT", "SIGTERM"] as const) {
  process.on(signal, () => {
    for (const child of running) killGroup(child);
    process.exit(1);
  });
}

const results: Result[] = [];
const runs = values.runtime.flatMap((name) => testFiles(RUNTIMES[name], filters).map((file) => ({ name, file })));
const waiting = [...runs];
await Promise.all(
  Array.from({ length: AT_ONCE }, async () => {
    for (let run = waiting.shift(); run !== undefined; run = waiting.shift()) {
      const result = await runFile(run.name, run.file);
      results.push(result);
      report(result);
    }
  }),
);

const passed = results.reduce((sum, r) => sum + r.passed, 0);
const failed = results.reduce((sum, r) => sum + r.failed, 0);
const bad = results.filter((r) => r.failed > 0).map((r) => `${r.file} (${r.runtime})`);
if (bad.length > 0) console.log(`\nfailed: ${bad.sort().join(", ")}`);
if (runs.length === 0) console.log(`no test file matches ${filters.join(" ")}`);
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed > 0 || runs.length === 0 ? 1 : 0);

function runFile(runtime: string, file: string): Promise<Result> {
  const started = performance.now();
  const [command, ...args] = RUNTIMES[runtime].command;
  const env = { ...process.env, ...gpu.env, ...RUNTIMES[runtime].env, ...(values.faults ? SEEDS : {}), NO_COLOR: "1" };
  const child = spawn(command, [...args, file], { cwd: ROOT, env, stdio: ["ignore", "pipe", "pipe"], detached: true });
  running.add(child);
  const timeout = values.faults ? FAULTS_TIMEOUT_SECONDS : TIMEOUT_SECONDS;
  let output = "";
  let timedOut = false;
  for (const stream of [child.stdout, child.stderr]) stream.setEncoding("utf8").on("data", (text) => (output += text));
  const timer = setTimeout(() => {
    timedOut = true;
    killGroup(child);
  }, timeout * 1000);
  return new Promise((resolve) => {
    const end = (code: number | null, signal: string | null) => {
      clearTimeout(timer);
      running.delete(child);
      const exit = timedOut
        ? `timed out after ${timeout} s`
        : (signal ?? (code === 0 ? undefined : `exit code ${code}`));
      resolve({ runtime, file, output, seconds: (performance.now() - started) / 1000, ...judge(output, exit) });
    };
    child.on("error", (error) => {
      output += String(error);
      end(1, null);
    });
    child.on("close", end);
  });
}

/** Counts from uvu's summary; `exit` is how the process ended when that was not code 0. */
function judge(output: string, exit: string | undefined): Pick<Result, "passed" | "failed" | "fault" | "skipped"> {
  const text = stripVTControlCharacters(output);
  const count = (word: string): number =>
    Number([...text.matchAll(new RegExp(`^ *${word}: +(\\d+)$`, "gm"))].at(-1)?.[1] ?? 0);
  const total = count("Total");
  const passed = count("Passed");
  if (total === 0 && count("Skipped") > 0 && exit === undefined) return { passed, failed: 0, skipped: reasons(text) };
  if (total === 0) return { passed, failed: 1, fault: `ran no tests (${exit ?? "exit code 0"})` };
  if (exit !== undefined && passed === total) return { passed, failed: 1, fault: exit };
  return { passed, failed: total - passed };
}

/** Why a file that could not run here did not, in its own words. */
function reasons(text: string): string {
  return [...text.matchAll(/^.*skipped: (.*)$/gm)].map(([, reason]) => reason).join("; ");
}

function report({ runtime, file, passed, failed, fault, skipped, output, seconds }: Result): void {
  const why = fault ? `: ${fault}` : skipped !== undefined ? `, skipped: ${skipped}` : "";
  const counts = `${passed} passed${failed ? `, ${failed} failed` : ""}${why}`;
  console.log(`${failed ? "FAIL" : "ok  "} ${file} (${runtime})  ${counts}  ${seconds.toFixed(1)} s`);
  if (failed) console.log(`${output.trimEnd()}\n`);
}

/** Paths from the root, sorted; with words, those that contain one of them. */
function testFiles({ areas }: Runtime, words: readonly string[]): string[] {
  return (readdirSync(join(ROOT, "test"), { recursive: true }) as string[])
    .filter((path) => isWanted(path) && areas.some((area) => path.startsWith(area)))
    .map((path) => join("test", path))
    .filter((path) => words.length === 0 || words.some((word) => path.includes(word)))
    .sort();
}

/** Ends a test and every process it started. */
function killGroup(child: ChildProcess): void {
  try {
    if (child.pid !== undefined) process.kill(-child.pid, "SIGKILL");
  } catch {
    // already gone
  }
}
