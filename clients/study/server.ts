// A thaw server of a client's own, the one `thaw serve` starts, on a free port of loopback. It ends when told, or with
// this process, however that ends.

import type { ChildProcess } from "node:child_process";
import process from "node:process";
import { spawnServer } from "../cli/commands/serve.ts";

const START_SECONDS = 60;
/** The server drains for a few seconds; then it is ended. */
const STOP_SECONDS = 20;

export interface OwnServer {
  /** `host:port` */
  readonly address: string;
  /** What the server said about its adapter. */
  readonly adapter: string;
  /** Ends the server gracefully; a second call waits for the first. */
  stop(): Promise<void>;
}

/**
 * @param data folder that keeps what the server knows: one started there again goes on with its runs
 * @param models folder that LoadModel may read, or undefined for none
 * @param signal gives up while the server is still coming up
 * @throws Error with the server's own words when it does not come up
 */
export async function startServer(data: string, models: string | undefined, signal: AbortSignal): Promise<OwnServer> {
  const options = ["--port", "0", "--data-dir", data, ...(models === undefined ? [] : ["--models", models])];
  const child = spawnServer(options, "pipe");
  let stopped: Promise<void> | undefined;
  const stop = (): Promise<void> => {
    stopped ??= endProcess(child);
    return stopped;
  };
  try {
    return { ...(await readyLine(child, signal)), stop };
  } catch (error) {
    await stop();
    throw error;
  }
}

/** Waits for `thaw serves on HOST:PORT, ADAPTER`. */
function readyLine(child: ChildProcess, signal: AbortSignal): Promise<{ address: string; adapter: string }> {
  let output = "";
  return new Promise((resolve, reject) => {
    const fail = (why: string) => reject(new Error(`the server ${why}${output ? `:\n${output.trimEnd()}` : ""}`));
    const timer = setTimeout(() => fail(`did not come up within ${START_SECONDS} s`), START_SECONDS * 1000);
    const read = (text: string) => {
      output = `${output}${text}`.slice(-10_000);
      const ready = /^thaw serves on (\S+), (.+)$/m.exec(output);
      if (!ready) return;
      clearTimeout(timer);
      resolve({ address: ready[1], adapter: ready[2] });
    };
    child.stdout?.setEncoding("utf8").on("data", read);
    child.stderr?.setEncoding("utf8").on("data", read);
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
    child.on("error", (error) => fail(`did not start (${error.message})`));
    child.on("exit", (code, signal) => fail(`ended with ${signal ?? `exit code ${code}`}`));
  });
}

async function endProcess(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = new Promise((resolve) => child.once("exit", resolve));
  child.kill("SIGTERM");
  const timer = setTimeout(() => child.pid && process.kill(-child.pid, "SIGKILL"), STOP_SECONDS * 1000);
  await ended;
  clearTimeout(timer);
}
