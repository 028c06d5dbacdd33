// For programs that open the GPU in their own process (tests, tools, benchmarks): start over with the right environment.
// The server needs none of this; it starts its GPU processes with `gpuEnvironment` from the outset.

import { spawnSync } from "node:child_process";
import process from "node:process";
import { type GpuEnvironment, gpuEnvironment } from "./launch.ts";

/**
 * Returns when this process has the GPU environment; otherwise runs the same command again with it, waits, and exits
 * with its code. Call it first, before anything is printed or opened.
 */
export function ensureGpuEnvironment(): GpuEnvironment {
  const environment = gpuEnvironment();
  const { env } = environment;
  if (Object.entries(env).every(([name, value]) => process.env[name] === value)) return environment;
  // Deno does not tell its own flags; Node's hold the TypeScript loader.
  const flags = "Deno" in globalThis ? ["run", "-A"] : process.execArgv;
  const command = [...flags, ...process.argv.slice(1)];
  const child = spawnSync(process.execPath, command, { stdio: "inherit", env: { ...process.env, ...env } });
  if (child.error) throw child.error;
  if (child.signal) console.error(`the GPU process was ended by ${child.signal}`);
  process.exit(child.status ?? 1);
}
