// Threads that run a TypeScript file of ours: Deno reads one as it is, Node needs tsx, which before Node 22 does not reach
// into threads by itself.

import { Worker, type WorkerOptions } from "node:worker_threads";

/** @param options not `eval` and not `execArgv`, which are spoken for */
export function startThread(file: URL, options: WorkerOptions): Worker {
  if ("Deno" in globalThis) return new Worker(file, options);
  const [tsx, entry] = [import.meta.resolve("tsx/esm/api"), file.href].map((url) => JSON.stringify(url));
  const code = `import(${tsx}).then(({ register }) => { register(); return import(${entry}); });`;
  return new Worker(code, { ...options, eval: true, execArgv: [] });
}
