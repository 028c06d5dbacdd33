// The server in a process of its own, to be killed: real registry, log, gRPC and supervision, and GPU processes without a
// GPU. Settings are arguments, as of `serve`. THAW_FAILPOINTS arms the server, FAKE_GPU_FAILPOINTS its
// first GPU process only: the next one is to go on where that one died. SIGUSR2 has it say what memory it holds.

import process from "node:process";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { startFront } from "../../../src/server/front/front.ts";
import { workerProcess } from "../../../src/server/gpu/connection.ts";
import type { Log } from "../../../src/server/log.ts";
import { startServer } from "../../../src/server/server.ts";
import { readSettings } from "../../../src/server/settings.ts";

const settings = readSettings(process.argv.slice(2), {});
const log: Log = (level, message) => process.stderr.write(`${level} ${message}\n`);
const FILE = new URL("fake_gpu.ts", import.meta.url);

let first = true;
const startWorker = () => {
  const THAW_FAILPOINTS = first ? process.env.FAKE_GPU_FAILPOINTS : "";
  first = false;
  return workerProcess(FILE, { ...process.env, THAW_FAILPOINTS }, "computes nothing", log);
};

const server = await startServer(settings, { log, retryMs: 5, startWorker });
const front = await startFront(settings, server.handlersFor, log, server.metrics.refused);
setFlagsFromString("--expose-gc");
const collectGarbage: () => void = runInNewContext("gc");
process.on("SIGUSR2", () => {
  collectGarbage();
  const { heapUsed, external } = process.memoryUsage();
  process.stderr.write(`holds ${heapUsed + external}\n`);
});
process.on("SIGTERM", async () => {
  front.draining();
  await server.stop().catch((error) => log("error", `stopping: ${error}`));
  await front.stop(500);
  await server.close();
  process.exit(0);
});
process.stdout.write(`serves on ${front.port}\n`);
