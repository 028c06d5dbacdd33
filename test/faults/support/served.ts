// Servers in processes of their own over copies of one prepared data directory, and what a client does with them: start,
// kill, read a log to its end across deaths.

import { type ChildProcess, spawn } from "node:child_process";
import { cp, mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { setTimeout as delay } from "node:timers/promises";
import { connectThaw, RpcError, type Thaw } from "../../../clients/typescript/index.ts";
import { RunState } from "../../../proto/gen/thaw/v1/run_state_pb.ts";
import { runtimeCommand } from "../../../src/server/gpu/connection.ts";
import { hasEnded } from "../../../src/server/runs/states.ts";
import { testServer, withInputs } from "../../support/thaw_server.ts";
import { type SmallDisk, smallDisk } from "./small_disk.ts";

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
  /** A copy on a disk of its own, in its folder `data`. */
  onSmallDisk(megabytes: number): Promise<{ readonly data: string; readonly disk: SmallDisk }>;
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
  const disks = new Set<SmallDisk>();
  return {
    async copy() {
      const data = join(folder, `data-${++copies}`);
      await cp(template, data, { recursive: true });
      return data;
    },
    async onSmallDisk(megabytes) {
      const place = join(folder, `disk-${++copies}`);
      await mkdir(place);
      const disk = await smallDisk(place, megabytes);
      disks.add(disk);
      await cp(template, join(disk.seen, "data"), { recursive: true });
      return { data: join(place, "data"), disk };
    },
    async start(data, env = {}, flags = [], within = (command) => command) {
      const served = await start(env, within([...runtimeCommand(SERVER), "--port", "0", "--data-dir", data, ...flags]));
      running.add(served);
      void served.ended.then(() => running.delete(served));
      return served;
    },
    async clean() {
      await Promise.all([...running].map((served) => served.end("SIGKILL")));
      for (const disk of disks) disk.end();
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

/** Resumes a run as somebody would who has made room on the disk, until it has ended. */
export async function goOn(thaw: Thaw, name: string): Promise<void> {
  for (;;) {
    const { run } = await thaw.runs.getRun({ name });
    if (run && hasEnded(run.state)) return;
    if (run?.state === RunState.PAUSED) {
      await thaw.runs.resumeRun({ name }).catch((error) => {
        // The log may have something to write yet, and the run may be on its way.
        if (!(error instanceof RpcError)) throw error;
      });
    }
    await delay(50);
  }
}
