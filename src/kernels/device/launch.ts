// What a process must have in its environment before it can open a GPU.
//
// The Vulkan loader and the dynamic linker read their variables when a process starts, so a process cannot choose its
// own adapter: whoever starts the GPU process asks here and passes `env` on. Nothing in this file touches a GPU.
//
// A real GPU always wins over the software adapter, unless the user asks for software with THAW_ADAPTER.

import { existsSync, readdirSync } from "node:fs";
import { homedir, platform } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { LOADER, swiftShaderRuns, unpackSwiftShader } from "./swiftshader.ts";

export interface GpuEnvironment {
  /** Variables to add to the environment of the GPU process; empty when it has all it needs. */
  readonly env: Readonly<Record<string, string>>;
  readonly adapter: "hardware" | "software";
  /** Why, in words that complete "using the hardware adapter: …". */
  readonly reason: string;
}

type Variables = Readonly<Record<string, string | undefined>>;

/**
 * Decides between a real GPU and SwiftShader and says what to set. Idempotent: a process started with the returned
 * variables gets the same answer, so `Object.entries(env).every(([k, v]) => variables[k] === v)` means "already set".
 * @param variables the environment to extend, by default this process's. `THAW_ADAPTER` (`hardware` or `software`)
 * forces the choice; `VK_DRIVER_FILES` names the driver and is left alone.
 * @throws Error when THAW_ADAPTER is neither, or software is needed where it cannot run.
 */
export function gpuEnvironment(variables: Variables = process.env): GpuEnvironment {
  const forced = variables.THAW_ADAPTER;
  if (forced && forced !== "hardware" && forced !== "software") {
    throw new Error(`THAW_ADAPTER is "${forced}"; it can be "hardware" or "software"`);
  }
  if (forced === "software") return software(variables, "THAW_ADAPTER=software");
  if (platform() !== "linux") return { env: {}, adapter: "hardware", reason: `the system driver of ${platform()}` };

  const node = gpuNode();
  const manifest = driverManifest(variables);
  const named = variables.VK_DRIVER_FILES || variables.VK_ICD_FILENAMES;
  const namesSwiftShader = named?.includes("swiftshader");
  if (named && !namesSwiftShader) return hardware(variables, undefined, `driver ${named}`);
  if (node && manifest && namesSwiftShader) return software(variables, "VK_DRIVER_FILES names SwiftShader");
  if (node && manifest) return hardware(variables, manifest, `${node} and driver ${manifest.path}`);
  const reason = node
    ? `${node} exists but no Vulkan driver manifest was found`
    : "no GPU device in /dev (nvidia*, dri/render*, dxg)";
  if (forced === "hardware" || !swiftShaderRuns())
    return hardware(variables, undefined, `hardware was asked for, but ${reason}`);
  return software(variables, reason);
}

function software(variables: Variables, reason: string): GpuEnvironment {
  const { folder, manifest } = unpackSwiftShader();
  return { env: { ...withLoader(variables, folder), VK_DRIVER_FILES: manifest }, adapter: "software", reason };
}

function hardware(variables: Variables, manifest: Manifest | undefined, reason: string): GpuEnvironment {
  const env = {
    ...(hasSystemLoader() || !swiftShaderRuns() ? {} : withLoader(variables, unpackSwiftShader().folder)),
    ...(manifest && !manifest.searched ? { VK_DRIVER_FILES: manifest.path } : {}),
  };
  return { env, adapter: "hardware", reason };
}

/** Puts the folder with our Vulkan loader on the linker's path, once. */
function withLoader(variables: Variables, folder: string): Record<string, string> {
  const path = (variables.LD_LIBRARY_PATH ?? "").split(":").filter((entry) => entry !== "" && entry !== folder);
  return { LD_LIBRARY_PATH: [folder, ...path].join(":") };
}

const LIBRARY_FOLDERS = [
  "/usr/lib",
  "/usr/lib64",
  "/lib",
  "/usr/local/lib",
  "/usr/lib/x86_64-linux-gnu",
  "/usr/lib/aarch64-linux-gnu",
];

const hasSystemLoader = (): boolean => LIBRARY_FOLDERS.some((folder) => existsSync(join(folder, LOADER)));

/** A device node of a GPU. A driver package alone proves nothing: Mesa installs all its drivers on any machine. */
function gpuNode(): string | undefined {
  const nodes = (folder: string, pattern: RegExp) =>
    list(folder)
      .filter((name) => pattern.test(name))
      .map((name) => join(folder, name));
  return [...nodes("/dev", /^(nvidia\d+|dxg)$/), ...nodes("/dev/dri", /^renderD\d+$/)][0];
}

interface Manifest {
  readonly path: string;
  /** Whether the Vulkan loader looks in that folder by itself. */
  readonly searched: boolean;
}

/** A manifest of a driver that is not a CPU rasterizer, in the loader's folders and in those of GPU containers. */
function driverManifest(variables: Variables): Manifest | undefined {
  const home = homedir();
  const searched = [
    variables.XDG_CONFIG_HOME || join(home, ".config"),
    ...(variables.XDG_CONFIG_DIRS || "/etc/xdg").split(":"),
    "/etc",
    variables.XDG_DATA_HOME || join(home, ".local/share"),
    ...(variables.XDG_DATA_DIRS || "/usr/local/share:/usr/share").split(":"),
  ];
  const containers = ["/usr/local/nvidia", "/usr/local/nvidia/share"];
  for (const root of [...searched, ...containers]) {
    const folder = join(root, "vulkan", "icd.d");
    const name = list(folder).find((file) => file.endsWith(".json") && !/^(lvp|vk_swiftshader)_/.test(file));
    if (name) return { path: join(folder, name), searched: searched.includes(root) };
  }
  return undefined;
}

/** File names in a folder, sorted; none when it is missing or unreadable. */
function list(folder: string): string[] {
  try {
    return readdirSync(folder).sort();
  } catch {
    return [];
  }
}
