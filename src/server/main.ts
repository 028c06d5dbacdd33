// `serve`: from flags and environment to a server that answers, and back down again when it is told to stop.
//
//   SIGINT or SIGTERM   health says NOT_SERVING, the run on the GPU is checkpointed and goes back into the queue, watches
//                       end with UNAVAILABLE, the GPU process ends, calls end; each of it within a bounded time
//   a second one        ends everything at once; the next start goes on from the last checkpoint

import process from "node:process";
import { type Front, startFront } from "./front/front.ts";
import { startRelayedFront } from "./front/relay.ts";
import { readTls } from "./front/tls.ts";
import { createLog, type Log } from "./log.ts";
import { serveMetrics } from "./observe/endpoint.ts";
import { startServer, type ThawServer } from "./server.ts";
import { HELP, printedSettings, type Settings, settingsOfProcess, UsageError } from "./settings.ts";

/** How long calls may take to end when the server stops. */
const DRAIN_MS = 5000;
/** How long the first line waits for the adapter. */
const ADAPTER_MS = 20_000;

/** Serves until the process is told to stop. */
export async function serve(settings: Settings): Promise<void> {
  const models = settings.modelRoots.map((root) => [root, "<models>"] as const);
  const log = createLog({ ...settings.log, hidden: [[settings.dataDirectory, "<data>"], ...models] });
  const { host, tls, tokens } = settings;
  if (tls) readTls(tls); // What is wrong with it is said before anything starts.
  if (settings.insecure) {
    const who = tokens ? "whoever has a token" : tls?.clientAuthority ? "whoever has a certificate" : "everyone";
    log("warning", `--insecure: ${host} is open to ${who}, ${tls ? "with" : "without"} encryption`);
  }
  const server = await startServer(settings, { log });
  const { contentType, refused, scrape } = server.metrics;
  const endpoint =
    settings.metricsPort === undefined ? undefined : await serveMetrics(settings.metricsPort, contentType, scrape);
  if (endpoint) log("info", `metrics on http://127.0.0.1:${endpoint.port}/metrics`);
  // See relay.ts: under Deno a client may abort the process it is connected to.
  const start = "Deno" in globalThis ? startRelayedFront : startFront;
  const front = await start(settings, server.handlersFor, log, refused);

  let signals = 0;
  const stopped = new Promise<void>((resolve) => {
    const stop = (): void => {
      if (++signals > 1) process.exit(130);
      void shutDown(front, server, log)
        .then(() => endpoint?.stop())
        .then(resolve);
    };
    process.on("SIGINT", stop);
    process.on("SIGTERM", stop);
    // `thaw serve` holds the other end of stdin: when it is gone, however it ended, so is who would stop this process.
    if (process.env.THAW_LAUNCHER_PIPE) process.stdin.once("end", () => signals === 0 && stop()).resume();
  });

  const deadline = Date.now() + ADAPTER_MS;
  while (!server.adapterLine && Date.now() < deadline && signals === 0) {
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  const shown = host.includes(":") ? `[${host}]` : host;
  process.stdout.write(`thaw serves on ${shown}:${front.port}, ${server.adapterLine ?? "no GPU process yet"}\n`);
  await stopped;
}

async function shutDown(front: Front, server: ThawServer, log: Log): Promise<void> {
  log("info", "stopping; once more to end at once");
  front.draining();
  try {
    await server.stop();
  } catch (error) {
    log("error", `stopping: ${error}`);
  }
  await front.stop(DRAIN_MS);
  await server.close();
}

if (import.meta.main ?? process.argv[1]?.endsWith("src/server/main.ts")) {
  const args = process.argv.slice(2);
  if (args.includes("--help")) {
    process.stdout.write(`${HELP}\n`);
    process.exit(0);
  }
  try {
    if (args.includes("--print-config")) process.stdout.write(printedSettings(args, process.env));
    else await serve(settingsOfProcess(args));
    process.exit(0);
  } catch (error) {
    process.stderr.write(`${(error as Error).message}\n`);
    process.exit(error instanceof UsageError ? 2 : 1);
  }
}
