// Opens the machine's GPU, whichever WebGPU implementation reaches it, and says in one line what it is.

import type { Capabilities, MatrixShape } from "../capabilities.ts";
import { dawnGpu } from "./dawn.ts";
import { denoGpu } from "./deno.ts";
import { type Device, wrapDevice } from "./device.ts";
import { NoAdapterError } from "./errors.ts";

/** Features that kernels or profiles use where the adapter has them. */
const WANTED_FEATURES = ["shader-f16", "subgroups", "chromium-experimental-subgroup-matrix", "timestamp-query"];

/** Limits raised to what the adapter offers. */
const LIMITS = [
  "maxBufferSize",
  "maxStorageBufferBindingSize",
  "maxStorageBuffersPerShaderStage",
  "maxComputeWorkgroupStorageSize",
  "maxComputeInvocationsPerWorkgroup",
  "maxComputeWorkgroupsPerDimension",
  "minUniformBufferOffsetAlignment",
] as const;

/** Workgroups along x may be as large as the adapter lets them; reported limits stay those above. */
const SILENT_LIMITS = ["maxComputeWorkgroupSizeX", "maxComputeWorkgroupSizeY"] as const;

/** What Dawn reports beyond the standard. */
interface AdapterInfo extends GPUAdapterInfo {
  readonly subgroupMatrixConfigs?: Iterable<{
    readonly componentType: string;
    readonly resultComponentType: string;
    readonly M: number;
    readonly N: number;
    readonly K: number;
  }>;
}

/**
 * Opens a device with every useful feature and the adapter's own limits.
 * @param options.implementation `dawn` (the default; Node and Deno) or `deno`, the one built into Deno.
 * @throws NoAdapterError when there is none. The process must have been started with the environment of `launch.ts`.
 */
export async function openDevice(options: { implementation?: "dawn" | "deno" } = {}): Promise<Device> {
  const implementation = options.implementation ?? "dawn";
  const gpu = implementation === "dawn" ? await dawnGpu() : denoGpu();
  if (!gpu) throw new NoAdapterError("this runtime has no WebGPU of its own; only Deno has");
  const adapter = await gpu.requestAdapter({ powerPreference: "high-performance" });
  if (!adapter) {
    throw new NoAdapterError(
      "no GPU adapter came up although a driver was expected; check the driver, or set THAW_ADAPTER=software",
    );
  }
  const features = WANTED_FEATURES.filter((feature) => adapter.features.has(feature)) as GPUFeatureName[];
  const requiredLimits = Object.fromEntries([...LIMITS, ...SILENT_LIMITS].map((name) => [name, adapter.limits[name]]));
  const device = await adapter.requestDevice({ label: "thaw", requiredFeatures: features, requiredLimits });
  return wrapDevice(device, capabilitiesOf(implementation, adapter, device));
}

/** Which adapter runs and what it can do, e.g. `hardware adapter nvidia hopper (NVIDIA H200) through dawn: f16, …`. */
export function adapterLine(capabilities: Capabilities, reason?: string): string {
  const c = capabilities;
  const kind = c.software ? "software" : "hardware";
  const sizes = [...new Set([c.subgroupMinSize, c.subgroupMaxSize])].join("–");
  const can = [
    ...(c.f16 ? ["f16"] : []),
    ...(c.subgroups ? [`subgroups of ${sizes}`] : []),
    ...(c.matrixShapes.length ? [`${c.matrixShapes.length} matrix shapes`] : []),
  ];
  const name = [c.vendor, c.architecture].filter(Boolean).join(" ");
  return `${kind} adapter ${name} (${c.description}) through ${c.implementation}: ${can.join(", ") || "f32 only"}${reason ? `; ${reason}` : ""}`;
}

function capabilitiesOf(implementation: "dawn" | "deno", adapter: GPUAdapter, device: GPUDevice): Capabilities {
  const info = adapter.info as AdapterInfo;
  const has = (feature: string) => device.features.has(feature);
  const configs = has("chromium-experimental-subgroup-matrix") ? [...(info.subgroupMatrixConfigs ?? [])] : [];
  const matrixShapes: MatrixShape[] = configs.map((s) => ({
    m: s.M,
    n: s.N,
    k: s.K,
    component: s.componentType,
    result: s.resultComponentType,
  }));
  return {
    implementation,
    vendor: info.vendor,
    architecture: info.architecture,
    description: info.description,
    software: info.isFallbackAdapter || /swiftshader|llvmpipe/i.test(`${info.architecture} ${info.description}`),
    f16: has("shader-f16"),
    subgroups: has("subgroups"),
    subgroupMinSize: has("subgroups") ? (info.subgroupMinSize ?? 0) : 0,
    subgroupMaxSize: has("subgroups") ? (info.subgroupMaxSize ?? 0) : 0,
    matrixShapes,
    timestampQuery: has("timestamp-query"),
    limits: Object.fromEntries(LIMITS.map((name) => [name, device.limits[name]])) as Capabilities["limits"],
  };
}
