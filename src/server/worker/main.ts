// The GPU process: opens the device, says hello, and speaks thaw.worker.v1 on its standard input and output. Drivers and
// shader compilers abort processes; this one may die, and the server goes on from the run's last checkpoint.
//
//   tsx src/server/worker/main.ts        with the environment of `gpuEnvironment()`; stderr is its log
//
// Exit status: 0 after Shutdown or when the input has ended, 1 without an adapter, after the device was lost, or when the
// input is not frames.

import { readFile } from "node:fs/promises";
import process from "node:process";
import { LogLevel, ToWorkerSchema } from "../../../proto/gen/thaw/worker/v1/worker_pb.ts";
import type { Capabilities } from "../../kernels/capabilities.ts";
import type { Device } from "../../kernels/device/device.ts";
import { DeviceLostError, NoAdapterError } from "../../kernels/device/errors.ts";
import { gpuEnvironment } from "../../kernels/device/launch.ts";
import { adapterLine, openDevice } from "../../kernels/device/open.ts";
import { createEngine } from "../../trainer/engine.ts";
import { describeModel } from "../../trainer/model/open.ts";
import { defaultMemoryLimit } from "../../trainer/run/plan.ts";
import { collect } from "./collect.ts";
import { adapterToProto } from "./convert/adapter.ts";
import { decodeFrames, FrameError } from "./frames.ts";
import { openOutbox, standardOutput } from "./outbox.ts";
import { planModel } from "./plan_model.ts";
import type { HostModels } from "./requests.ts";
import { createWorker } from "./worker.ts";

const PROTOCOL_VERSION = 1;

/** Milliseconds that what is under way may take after the server has gone. */
const ORPHAN_TIMEOUT = 5000;

// Standard output carries frames and nothing else.
for (const method of ["log", "info", "debug"] as const) console[method] = console.error;

// The server decides when to stop; signals reach the whole process group. Without a server the input ends.
for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => undefined);

const outbox = openOutbox(standardOutput());

async function exit(status: number): Promise<never> {
  const timer = setTimeout(() => process.exit(status), ORPHAN_TIMEOUT);
  await outbox.end();
  clearTimeout(timer);
  process.exit(status);
}

async function failed(error: unknown): Promise<never> {
  const message = error instanceof Error ? error.message : String(error);
  outbox.log(LogLevel.ERROR, message);
  const foreseen = error instanceof FrameError || error instanceof NoAdapterError || error instanceof DeviceLostError;
  if (!foreseen) console.error(error);
  return exit(1);
}

async function open(): Promise<Device> {
  try {
    return await openDevice();
  } catch (error) {
    return failed(error);
  }
}

async function versions(capabilities: Capabilities): Promise<Record<string, string>> {
  const url = new URL("../../../package.json", import.meta.url);
  const { version, dependencies } = JSON.parse(await readFile(url, "utf8"));
  const { deno, node } = process.versions as { deno?: string; node: string };
  return {
    thaw: version,
    ...(deno ? { deno } : { node }),
    ...(capabilities.implementation === "dawn" && { webgpu: dependencies.webgpu }),
  };
}

const device = await open();
const line = adapterLine(device.capabilities, gpuEnvironment().reason);
const host: HostModels = {
  describe: describeModel,
  plan: (target, plan, spec) => planModel(device.capabilities, target, plan, spec),
};
const memoryLimitBytes = Number(process.env.THAW_GPU_MEMORY_BYTES) || defaultMemoryLimit(device.capabilities);
const worker = createWorker(createEngine(device, { memoryLimitBytes }), host, outbox, () => device.activity, collect);
outbox.send({
  case: "hello",
  value: {
    protocolVersion: PROTOCOL_VERSION,
    adapter: adapterToProto(device.capabilities, line),
    versions: await versions(device.capabilities),
    processId: BigInt(process.pid),
    memoryBytes: Number.isFinite(memoryLimitBytes) ? BigInt(memoryLimitBytes) : 0n,
  },
});

device.lost.then((error) => {
  worker.fail(error);
  return failed(error);
});

async function read(): Promise<void> {
  try {
    for await (const message of decodeFrames(ToWorkerSchema, process.stdin)) worker.receive(message);
  } catch (error) {
    // A server that dies may leave half a frame; a garbled stream looks different.
    if (error instanceof FrameError) return failed(error);
  }
  worker.stop();
  setTimeout(() => process.exit(0), ORPHAN_TIMEOUT).unref();
}

void read();
try {
  await worker.run();
} catch (error) {
  await failed(error);
}
device.destroy();
await exit(0);
