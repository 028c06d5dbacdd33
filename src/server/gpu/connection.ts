// The GPU process as a child of this one: frames on its stdin and stdout, its stderr in the server's log. The supervisor
// knows only `WorkerConnection`, so that a test, or later a socket, can stand in for the child.

import { type ChildProcess, spawn } from "node:child_process";
import process from "node:process";
import { fileURLToPath } from "node:url";
import type { FromWorker, ToWorker } from "../../../proto/gen/thaw/worker/v1/worker_pb.ts";
import { FromWorkerSchema, ToWorkerSchema } from "../../../proto/gen/thaw/worker/v1/worker_pb.ts";
import { gpuEnvironment } from "../../kernels/device/launch.ts";
import type { Log } from "../log.ts";
import type { Settings } from "../settings.ts";
import { decodeFrames, encodeFrame } from "../worker/frames.ts";

export interface WorkerConnection {
  send(message: ToWorker): void;
  /** Everything the worker says; ends, or throws, when it is gone. */
  readonly messages: AsyncIterable<FromWorker>;
  /** How it ended, in words: "signal SIGKILL". */
  readonly ended: Promise<string>;
  /** Ends it at once. */
  kill(): void;
}

export type StartWorker = () => WorkerConnection;

type GpuSettings = Pick<Settings, "adapter" | "gpuMemoryBytes">;

const ROOT = new URL("../../../", import.meta.url);

/** What runs a TypeScript file of ours under the runtime this process runs under. */
export function runtimeCommand(file: URL): [string, ...string[]] {
  const path = fileURLToPath(file);
  if ("Deno" in globalThis) {
    return [process.execPath, "run", "-A", "--config", fileURLToPath(new URL("deno.json", ROOT)), path];
  }
  return [process.execPath, "--import", import.meta.resolve("tsx"), path];
}

/** Sends every line of the child's stderr to the log. */
export function logStderr(child: ChildProcess, name: string, log: Log): void {
  let rest = "";
  child.stderr?.setEncoding("utf8").on("data", (text: string) => {
    const lines = (rest + text).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) if (line.trim() !== "") log("info", `${name}: ${line}`);
  });
}

/** How a child ended, in words. */
export function ending(child: ChildProcess): Promise<string> {
  return new Promise((resolve) => {
    child.on("error", (error) => resolve(error.message));
    child.on("close", (code, signal) => resolve(signal ? `signal ${signal}` : `exit code ${code}`));
  });
}

/** Starts GPU processes with the settings that are theirs: their environment says the same. */
export function childWorker({ adapter, gpuMemoryBytes }: GpuSettings, log: Log): StartWorker {
  return () => {
    const variables = {
      ...process.env,
      ...(adapter && { THAW_ADAPTER: adapter }),
      ...(gpuMemoryBytes && { THAW_GPU_MEMORY_BYTES: String(gpuMemoryBytes) }),
    };
    const gpu = gpuEnvironment(variables);
    const file = new URL("src/server/worker/main.ts", ROOT);
    return workerProcess(file, { ...variables, ...gpu.env }, `${gpu.adapter} adapter: ${gpu.reason}`, log);
  };
}

/** Starts a file of ours that speaks the worker protocol on its pipes. @param about for the log */
export function workerProcess(file: URL, env: NodeJS.ProcessEnv, about: string, log: Log): WorkerConnection {
  const [command, ...args] = runtimeCommand(file);
  const child = spawn(command, args, { cwd: fileURLToPath(ROOT), env, stdio: ["pipe", "pipe", "pipe"] });
  log("info", `GPU process ${child.pid} started, ${about}`);
  logStderr(child, "gpu", log);
  child.stdin.on("error", () => {}); // It is gone; `ended` says how.
  return {
    send: (message) => void child.stdin.write(encodeFrame(ToWorkerSchema, message)),
    messages: decodeFrames(FromWorkerSchema, child.stdout),
    ended: ending(child),
    kill: () => void child.kill("SIGKILL"),
  };
}
