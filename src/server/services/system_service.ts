// SystemService: what the server runs on.

import { readFileSync } from "node:fs";
import process from "node:process";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { RunState } from "../../../proto/gen/thaw/v1/run_state_pb.ts";
import type { SystemService } from "../../../proto/gen/thaw/v1/system_service_pb.ts";
import type { Core } from "../core.ts";
import type { Handlers } from "../rpc/serve.ts";

export const PACKAGE = JSON.parse(readFileSync(new URL("../../../package.json", import.meta.url), "utf8"));
const RUNTIME = "Deno" in globalThis ? "deno" : "node";

export function systemService(core: Core): Handlers<typeof SystemService> {
  const { registry, runs, gpu, settings, startTime } = core;
  return {
    async getSystem() {
      const counted = await registry.countRuns();
      const { hello } = gpu;
      const { active } = runs;
      return {
        version: PACKAGE.version,
        dependencyVersions: {
          ...hello?.versions,
          [RUNTIME]: process.versions[RUNTIME] ?? "",
          "grpc-js": PACKAGE.dependencies["@grpc/grpc-js"],
          libsql: PACKAGE.dependencies.libsql,
        },
        workers: hello
          ? [
              {
                adapter: hello.adapter,
                run: active[0]?.name ?? "",
                runs: active.map(({ name }) => name),
                allocatedBytes: active.reduce((sum, { allocatedBytes }) => sum + allocatedBytes, 0n),
                memoryBytes: hello.memoryBytes,
                kernels: [...(active[0]?.kernels ?? [])],
              },
            ]
          : [],
        limits: Object.fromEntries(Object.entries(settings.limits).map(([name, limit]) => [name, BigInt(limit)])),
        queuedRuns: BigInt(counted.get(RunState.QUEUED) ?? 0),
        activeRuns: BigInt(active.length),
        uptime: durationFromMs(Date.now() - startTime),
        residentBytes: BigInt(process.memoryUsage().rss),
      };
    },
  };
}
