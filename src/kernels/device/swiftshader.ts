// SwiftShader, a Vulkan driver that runs on the CPU, and a Vulkan loader, taken from the npm package
// `@sparticuz/chromium`, so that a machine without a GPU needs no system package. Correct and slow: for tests, demos and
// small runs.
//
// The package carries one brotli-compressed tar. What is needed of it is unpacked once per user into a cache folder; the
// folder appears by rename, so it is complete or absent, also when several processes unpack at once.

import { existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { arch, homedir, platform } from "node:os";
import { dirname, join } from "node:path";
import process from "node:process";
import { brotliDecompressSync } from "node:zlib";

const PACKAGE = "@sparticuz/chromium";
const DRIVER = "libvk_swiftshader.so";
export const LOADER = "libvulkan.so.1";
const MANIFEST = "vk_swiftshader_icd.json";

/** Where the driver and the loader lie after {@link unpackSwiftShader}. */
export interface SwiftShader {
  /** Folder that holds the driver, its manifest and the Vulkan loader. */
  readonly folder: string;
  /** The driver's manifest, for `VK_DRIVER_FILES`. */
  readonly manifest: string;
}

/** Whether the package has a driver for this machine (it holds x86-64 Linux binaries). */
export const swiftShaderRuns = (): boolean => platform() === "linux" && arch() === "x64";

/**
 * Unpacks the driver below `cache` unless it is there, and says where. `cache` defaults to `$XDG_CACHE_HOME/thaw` or
 * `~/.cache/thaw`.
 * @throws Error when this is not x86-64 Linux, the package is not installed, or the cache cannot be written.
 */
export function unpackSwiftShader(
  cache = join(process.env.XDG_CACHE_HOME || join(homedir(), ".cache"), "thaw"),
): SwiftShader {
  if (!swiftShaderRuns()) {
    throw new Error(`no software adapter for ${platform()} ${arch()}: the bundled SwiftShader is for x86-64 Linux`);
  }
  // The package exports only its entry point, build/cjs/index.cjs.
  const root = join(dirname(createRequire(import.meta.url).resolve(PACKAGE)), "..", "..");
  const { version } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as { version: string };
  const folder = join(cache, `swiftshader-${version}`);
  const found = { folder, manifest: join(folder, MANIFEST) };
  if (existsSync(found.manifest)) return found;

  mkdirSync(cache, { recursive: true });
  const unpacking = mkdtempSync(join(cache, "unpacking-"));
  try {
    const tar = brotliDecompressSync(readFileSync(join(root, "bin", "swiftshader.tar.br")));
    for (const [name, bytes] of tarFiles(tar)) {
      if ([DRIVER, LOADER, MANIFEST].includes(name)) writeFileSync(join(unpacking, name), bytes, { mode: 0o755 });
    }
    renameSync(unpacking, folder);
  } catch (error) {
    if (!existsSync(found.manifest)) throw error; // otherwise another process was first
  } finally {
    rmSync(unpacking, { recursive: true, force: true });
  }
  return found;
}

/** The files of an uncompressed ustar archive: 512-byte headers, contents padded to 512. */
function* tarFiles(tar: Uint8Array): Generator<[name: string, bytes: Uint8Array]> {
  const text = (start: number, length: number) =>
    new TextDecoder().decode(tar.subarray(start, start + length)).replace(/\0.*$/s, "");
  for (let at = 0; at + 512 <= tar.length && tar[at] !== 0; ) {
    const size = Number.parseInt(text(at + 124, 12), 8);
    yield [text(at, 100), tar.subarray(at + 512, at + 512 + size)];
    at += 512 + Math.ceil(size / 512) * 512;
  }
}
