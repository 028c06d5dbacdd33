// `thaw system`: what the server runs on.

import type { Command } from "commander";
import { type GetSystemResponse, GetSystemResponseSchema } from "../../../proto/gen/thaw/v1/system_service_pb.ts";
import { bytes, count, fields, table, wireDuration } from "../format.ts";
import { show, withSession } from "../session.ts";

export function addSystem(program: Command): void {
  program
    .command("system")
    .description("the server's adapters, memory, versions and limits")
    .action(
      withSession(async (session) => {
        show(session, GetSystemResponseSchema, await session.thaw.system.getSystem({}), systemText);
        return undefined;
      }),
    );
}

function systemText(system: GetSystemResponse): string {
  const { limits, workers } = system;
  const versions = Object.entries(system.dependencyVersions)
    .filter(([name]) => name !== "thaw")
    .map(([name, version]) => `${name} ${version}`);
  const head = fields([
    ["thaw", [system.version, ...versions].join(", ")],
    ["up", wireDuration(system.uptime)],
    ["memory", bytes(system.residentBytes)],
    ["runs", `${count(system.activeRuns)} active, ${count(system.queuedRuns)} queued`],
  ]);
  const gpus = workers.map(({ adapter, runs, allocatedBytes, memoryBytes, kernels }) =>
    fields([
      ["adapter", adapter?.line ?? ""],
      [
        "offers",
        [adapter?.f16 && "f16", adapter?.subgroups && "subgroups", adapter?.timestampQuery && "timestamps"]
          .filter(Boolean)
          .join(", "),
      ],
      ["largest buffer", bytes(adapter?.maxBufferBytes ?? 0n)],
      ["in use", bytes(allocatedBytes) + (memoryBytes > 0n ? ` of ${bytes(memoryBytes)}` : "")],
      ["trains", runs.join(", ")],
      ["dispatches per step", kernels.length > 0 ? count(kernels.reduce((sum, k) => sum + k.dispatches, 0n)) : ""],
    ]),
  );
  const bounds = limits
    ? table(
        [{ title: "LIMIT" }, { title: "VALUE", figures: true }],
        [
          ["message", bytes(limits.maxMessageBytes)],
          ["upload", bytes(limits.maxUploadBytes)],
          ["streams per connection", count(limits.maxConcurrentStreams)],
          ["queued runs", count(limits.maxQueuedRuns)],
          ["runs on a GPU", count(limits.maxRunsOnGpu)],
          ["assignment subscribers per run", count(limits.maxAssignmentSubscribers)],
          ["messages buffered per subscriber", count(limits.assignmentBufferMessages)],
        ],
        "",
      )
    : "";
  return [head, ...(gpus.length > 0 ? gpus : ["no GPU process has come up yet"]), bounds]
    .filter((part) => part !== "")
    .join("\n\n");
}
