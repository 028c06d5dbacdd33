// The launcher's choice of adapter, and a device's buffers and errors.

import { execFile } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { promisify } from "node:util";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { DeviceLostError, KernelError, OutOfMemoryError } from "../../src/kernels/device/errors.ts";
import { gpuEnvironment } from "../../src/kernels/device/launch.ts";
import { adapterLine, openDevice } from "../../src/kernels/device/open.ts";
import { swiftShaderRuns } from "../../src/kernels/device/swiftshader.ts";
import { testDevice } from "../support/gpu.ts";

const launch = suite("launch");

launch("refuses an adapter that is neither hardware nor software", () => {
  assert.throws(() => gpuEnvironment({ THAW_ADAPTER: "gpu" }), /"gpu".*"hardware" or "software"/);
});

if (swiftShaderRuns()) {
  launch("gives the software adapter to who asks for it, and the same answer to the process started with it", () => {
    const first = gpuEnvironment({ THAW_ADAPTER: "software", LD_LIBRARY_PATH: "/opt/lib" });
    assert.is(first.adapter, "software");
    assert.match(first.env.LD_LIBRARY_PATH, /swiftshader-[\d.]+:\/opt\/lib$/);
    assert.ok(existsSync(first.env.VK_DRIVER_FILES));
    assert.equal(gpuEnvironment({ THAW_ADAPTER: "software", ...first.env }), first);
  });

  launch("leaves a driver that the user names alone", () => {
    const { adapter, env } = gpuEnvironment({ VK_DRIVER_FILES: "/opt/driver.json" });
    assert.is(adapter, "hardware");
    assert.is(env.VK_DRIVER_FILES, undefined);
  });

  launch("unpacks SwiftShader whole when processes do it at once", async () => {
    const cache = mkdtempSync(join(tmpdir(), "thaw-cache-"));
    const module = new URL("../../src/kernels/device/launch.ts", import.meta.url).href;
    const script = `import(${JSON.stringify(module)}).then((m) => console.log(m.gpuEnvironment().env.VK_DRIVER_FILES))`;
    const run = promisify(execFile);
    const flags = "Deno" in globalThis ? ["eval", script] : [...process.execArgv, "--input-type=module", "-e", script];
    const env = { ...process.env, XDG_CACHE_HOME: cache, THAW_ADAPTER: "software" };
    const outputs = await Promise.all([0, 1].map(() => run(process.execPath, flags, { env })));
    const [first, second] = outputs.map(({ stdout }) => stdout.trim());
    assert.is(first, second);
    const [folder, ...others] = readdirSync(join(cache, "thaw"));
    assert.equal(others, []);
    assert.equal(readdirSync(join(cache, "thaw", folder)).sort(), [
      "libvk_swiftshader.so",
      "libvulkan.so.1",
      "vk_swiftshader_icd.json",
    ]);
    rmSync(cache, { recursive: true });
  });
}
launch.run();

const device = suite("device");

device("says in one line which adapter runs", async () => {
  const gpu = await testDevice();
  const { adapter, reason } = gpuEnvironment();
  assert.is(gpu.capabilities.software, adapter === "software");
  const line = adapterLine(gpu.capabilities, reason);
  assert.match(line, new RegExp(`^${adapter} adapter .* through ${gpu.capabilities.implementation}: .*; `));
  assert.not.match(line, /\n/);
});

device("counts live buffers, and an empty one can still be bound", async () => {
  const gpu = await testDevice();
  const before = gpu.allocatedBytes;
  const [empty, odd] = await Promise.all([
    gpu.createBuffer({ label: "empty", bytes: 0 }),
    gpu.createBuffer({ label: "odd", bytes: 1001 }),
  ]);
  assert.is(gpu.allocatedBytes - before, 16 + 1004);
  assert.is((await gpu.read(empty, 0)).byteLength, 0);
  gpu.destroyBuffer(empty);
  gpu.destroyBuffer(odd);
  gpu.destroyBuffer(odd);
  assert.is(gpu.allocatedBytes, before);
});

device("uploads any length at an offset from any view, and reads parts back", async () => {
  const gpu = await testDevice();
  const buffer = await gpu.createBuffer({ label: "bytes", bytes: 16 });
  const source = new Uint8Array([9, 9, 9, 1, 2, 3, 4, 5, 6, 7, 9]);
  gpu.upload(buffer, source.subarray(3, 10), 4);
  assert.equal([...new Uint8Array(await gpu.read(buffer))], [0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 0, 0, 0, 0, 0]);
  assert.equal([...new Uint8Array(await gpu.read(buffer, 4, 8))], [5, 6, 7, 0]);
  gpu.destroyBuffer(buffer);
});

device("reports a buffer that does not fit with the bytes it wanted", async () => {
  const gpu = await testDevice();
  const before = gpu.allocatedBytes;
  const bytes = gpu.capabilities.limits.maxBufferSize + 4;
  await rejects(gpu.createBuffer({ label: "huge", bytes }), OutOfMemoryError, /huge/, (e) => assert.is(e.bytes, bytes));
  assert.is(gpu.allocatedBytes, before);
});

device("throws a fault of submitted commands at the next read, once", async () => {
  const gpu = await testDevice();
  const small = await gpu.createBuffer({ label: "small", bytes: 16 });
  const encoder = gpu.gpu.createCommandEncoder({ label: "overrun" });
  encoder.copyBufferToBuffer(small, 0, small, 0, 64);
  gpu.submit(encoder.finish());
  await rejects(gpu.read(small), KernelError, /buffer/i);
  assert.is((await gpu.read(small)).byteLength, 16);
  gpu.destroyBuffer(small);
});

device("a destroyed device rejects work as lost", async () => {
  const { implementation } = (await testDevice()).capabilities;
  const gpu = await openDevice({ implementation });
  const buffer = await gpu.createBuffer({ label: "doomed", bytes: 16 });
  gpu.destroy();
  await rejects(gpu.read(buffer), DeviceLostError, /lost/);
  await rejects(gpu.createBuffer({ label: "late", bytes: 16 }), DeviceLostError, /lost/);
});
device.run();

async function rejects<E extends Error>(
  work: Promise<unknown>,
  type: abstract new (...args: never[]) => E,
  pattern: RegExp,
  check?: (error: E) => void,
): Promise<void> {
  const error = await work.then(
    () => undefined,
    (e: unknown) => e,
  );
  assert.instance(error, type);
  assert.match((error as E).message, pattern);
  check?.(error as E);
}
