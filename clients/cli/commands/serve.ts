// `thaw serve`: starts the server as a child process of the same runtime and passes options and signals on. The client
// knows nothing of the server but its file.

import { type ChildProcess, spawn } from "node:child_process";
import { constants } from "node:os";
import process from "node:process";
import { fileURLToPath } from "node:url";
import type { Command } from "commander";

const SERVER = fileURLToPath(new URL("../../../src/server/main.ts", import.meta.url));

export function addServe(program: Command): void {
  program
    .command("serve")
    .description("start a server; its own options follow, thaw serve --help lists them")
    .argument("[options...]")
    .helpOption(false)
    .allowUnknownOption()
    .action(async () => {
      process.exitCode = await runProgram(SERVER, argumentsAfter("serve"));
    });
}

/** What was typed after a command, as it was typed: some of a server's options are also options of the client. */
export const argumentsAfter = (command: string): string[] => process.argv.slice(process.argv.indexOf(command) + 1);

/**
 * Starts the server in a process group of its own: a terminal's Ctrl-C reaches only this process. The server stops when its
 * standard input ends, which it does however this process ends.
 */
export const spawnServer = (options: readonly string[], output: "inherit" | "pipe"): ChildProcess =>
  spawnProgram(SERVER, options, output);

function spawnProgram(file: string, options: readonly string[], output: "inherit" | "pipe"): ChildProcess {
  const runtime = "Deno" in globalThis ? ["run", "-A"] : ["--import", import.meta.resolve("tsx")];
  return spawn(process.execPath, [...runtime, file, ...options], {
    detached: true,
    stdio: ["pipe", output, output],
    env: { ...process.env, THAW_LAUNCHER_PIPE: "1" },
  });
}

/**
 * Runs a file of the server's to its end.
 * @returns its exit code, by the shell's convention where a signal ended it
 */
export function runProgram(file: string, options: readonly string[]): Promise<number> {
  const child = spawnProgram(file, options, "inherit");
  // Each signal is passed on once.
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, () => child.kill(signal));
  return new Promise((resolve, reject) => {
    child.on("error", reject);
    child.on("exit", (code, signal) => resolve(code ?? 128 + (signal ? constants.signals[signal] : 0)));
  });
}
