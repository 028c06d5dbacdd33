// A GPU process whose device is lost, or has no room: it says which, in the words of the protocol, and ends when nothing
// more can be done. On a real trainer, by failpoints.

import { spawn } from "node:child_process";
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { FromWorkerSchema, ToWorkerSchema } from "../../proto/gen/thaw/worker/v1/worker_pb.ts";
import { gpuEnvironment } from "../../src/kernels/device/launch.ts";
import { runtimeCommand } from "../../src/server/gpu/connection.ts";
import { decodeFrames, encodeFrame } from "../../src/server/worker/frames.ts";
import { tinyData, tinyModel } from "../support/tiny_model.ts";
import { workerClient } from "../support/worker_client.ts";

const test = suite("device faults");
const folders: string[] = [];
test.after(async () => {
  for (const folder of folders) await rm(folder, { recursive: true });
});

/** A GPU process with a failpoint, and an open request to it. */
async function openWith(failpoints: string) {
  const [modelDirectory, train, folder] = [await tinyModel(), await tinyData(), await mkdtemp(join(tmpdir(), "thaw-"))];
  folders.push(modelDirectory, join(train, ".."), folder);
  await mkdir(join(folder, "checkpoints"));
  const [command, ...args] = runtimeCommand(new URL("../../src/server/worker/main.ts", import.meta.url));
  const env = { ...process.env, ...gpuEnvironment().env, THAW_FAILPOINTS: failpoints };
  const child = spawn(command, args, { env, stdio: ["pipe", "pipe", "inherit"] });
  const exited = new Promise<number | null>((resolve) => child.once("exit", resolve));
  const client = workerClient((message) => child.stdin.write(encodeFrame(ToWorkerSchema, message)));
  void (async () => {
    for await (const message of decodeFrames(FromWorkerSchema, child.stdout)) client.accept(message);
  })();
  const spec = {
    model: "models/m",
    dataset: "datasets/d",
    steps: 4n,
    batchSize: 4n,
    maxInputTokens: 8n,
    maxTargetTokens: 4n,
    optimizer: { learningRate: 1e-2 },
  };
  const datasets = [{ name: "datasets/d", splitFiles: { train } }];
  const checkpointsDirectory = join(folder, "checkpoints");
  const id = client.send({
    case: "openRun",
    value: { run: "runs/r", spec, modelDirectory, datasets, checkpointsDirectory },
  });
  return { client, id, exited, child };
}

test("a device that is lost fails the run as that, and ends the process", async () => {
  const { client, exited } = await openWith("device.lost:error:1");
  const failed = await client.update("failed");
  assert.is(failed.error?.error.case, "deviceLost");
  assert.is(await exited, 1);
});

test("a buffer that does not fit refuses the run, and the process lives", async () => {
  const { client, id, exited, child } = await openWith("device.out_of_memory:error:3");
  const failure = await client.failure(id);
  assert.is(failure.case, "outOfMemory");
  child.stdin.end();
  assert.is(await exited, 0);
});

test.run();
