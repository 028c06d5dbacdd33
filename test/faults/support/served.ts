// Servers in processes of their own over copies of one prepared data directory, and what a client does with them: start,
// kill, read a log to its end across deaths.

import { type ChildProcess, spawn } from "node:child_process";
import { cp, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { connectThaw, type Thaw } from "../../../clients/typescript/index.ts";
import { runtimeCommand } from "../../../src/server/gpu/connection.ts";
import { testServer, withInputs } from "../../support/thaw_server.ts";

const SERVER = new URL("fault_server.ts", import.meta.url);
const START_MS = 60_000;

export interface Served {
  readonly thaw: Thaw;
  /** `host:port`. */
  readonly address: string;
  readonly processId: number;
  /** Memory that it holds, without garbage, in bytes. */
  heldBytes(): Promise<number>;
  /** Process ids of its GPU processes so far. */
  readonly gpuProcesses: readonly number[];
  /** kill -9 of its newest GPU process, which may have ended or not begun yet. */
  killGpuProcess(): void;
  /** Everything it has said. */
  readonly said: () => string;
  /** How it ended: "SIGKILL", "0". */
  readonly ended: Promise<string>;
  /** Ends it with a signal, if it has not ended yet. */
  end(signal: NodeJS.Signals): Promise<string>;
}

export interface Prepared {
  /** A copy of the prepared data directory. */
  copy(): Promise<string>;
  /**
   * @param env failpoints: THAW_FAILPOINTS of the server, FAKE_GPU_FAILPOINTS of its first GPU process
   * @param within what the server's command line is made into
   */
  start(
    data: string,
    env?: Readonly<Record<string, string>>,
    flags?: readonly string[],
    within?: (command: readonly string[]) => readonly string[],
  ): Promise<Served>;
  /** Ends what is left, and removes every copy. */
  clean(): Promise<void>;
}

/** Prepares a data directory with `models/m` and `datasets/d`. */
export async function prepare(): Promise<Prepared> {
  const folder = await mkdtemp(join(tmpdir(), "thaw-faults-"));
  const template = join(folder, "template");
  const server = await testServer();
  await withInputs(server.thaw);
  await cp(server.dataDirectory, template, { recursive: true });
  await server.stop();

  let copies = 0;
  const running = new Set<Served>();
  return {
    async copy() {
      const data = join(folder, `data-${++copies}`);
      await cp(template, data, { recursive: true });
      return data;
    },
    async start(data, env = {}, flags = [], within = (command) => command) {
      const served = await start(env, within([...runtimeCommand(SERVER), "--port", "0", "--data-dir", data, ...flags]));
      running.add(served);
      void served.ended.then(() => running.delete(served));
      return served;
    },
    async clean() {
      await Promise.all([...running].map((served) => served.end("SIGKILL")));
      await rm(folder, { recursive: true });
    },
  };
}

async function start(env: Readonly<Record<string, string>>, [command, ...args]: readonly string[]): Promise<Served> {
  const child: ChildProcess = spawn(command, args, {
    env: { ...process.env, ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let said = "";
  const gpuProcesses: number[] = [];
  child.stderr!.setEncoding("utf8").on("data", (text: string) => {
    said += text;
    for (const [, pid] of text.matchAll(/GPU process (\d+) started/g)) gpuProcesses.push(Number(pid));
  });
  const ended = new Promise<string>((resolve) => child.once("exit", (code, signal) => resolve(signal ?? String(code))));
  const port = await new Promise<string>((resolve, reject) => {
    const timer = setTimeout(() => {
      child.kill("SIGKILL");
      reject(new Error(`no server after ${START_MS} ms:\n${said}`));
    }, START_MS);
    child.stdout!.setEncoding("utf8").once("data", (text: string) => {
      clearTimeout(timer);
      resolve(/serves on (\d+)/.exec(text)![1]);
    });
    void ended.then((how) => {
      clearTimeout(timer);
      reject(new Error(`the server ended with ${how}:\n${said}`));
    });
  });
  const address = `127.0.0.1:${port}`;
  const thaw = connectThaw(address);
  void ended.then(() => thaw.close());
  return {
    thaw,
    address,
    processId: child.pid!,
    heldBytes: () =>
      new Promise((resolve) => {
        const listen = (text: string): void => {
          const [, bytes] = /^holds (\d+)$/m.exec(text) ?? [];
          if (bytes === undefined) return;
          child.stderr!.off("data", listen);
          resolve(Number(bytes));
        };
        child.stderr!.on("data", listen);
        child.kill("SIGUSR2");
      }),
    gpuProcesses,
    killGpuProcess() {
      const pid = gpuProcesses.at(-1);
      try {
        if (pid !== undefined) process.kill(pid, "SIGKILL");
      } catch {
        // It has ended already.
      }
    },
    said: () => said,
    ended,
    async end(signal) {
      child.kill(signal);
      return ended;
    },
  };
}
