// The adapter that a server would train on. It is opened as a server opens it, in a process of its own: a driver may end
// the process that asks it.

import { setTimeout as delay } from "node:timers/promises";
import type { StartWorker } from "../gpu/connection.ts";
import { type Finding, fail, gib, ok, warn } from "./findings.ts";

/** A GPU process on a busy machine takes its time. */
const START_MS = 60_000;

const DRIVER =
  "install the driver of the GPU, and on Linux the Vulkan loader (libvulkan.so.1); in a container, pass the GPU in";

/**
 * @param forced `hardware` or `software` where the settings say
 * @param said what the GPU process has written so far
 */
export async function adapterFindings(
  start: StartWorker,
  forced: string | undefined,
  said: () => readonly string[],
): Promise<Finding[]> {
  let connection: ReturnType<StartWorker>;
  try {
    connection = start();
  } catch (error) {
    return [fail("adapter", (error as Error).message, DRIVER)];
  }
  const over = new AbortController();
  try {
    const first = (async () => {
      for await (const { message } of connection.messages) if (message.case === "hello") return message.value;
      return undefined;
    })();
    const late = delay(START_MS, "late" as const, { signal: over.signal });
    late.catch(() => {});
    const hello = await Promise.race([first, late]);
    if (hello === "late") {
      return [fail("adapter", `the GPU process has said nothing for ${START_MS / 1000} s`, DRIVER)];
    }
    const adapter = hello?.adapter;
    if (!adapter) {
      const last = said().at(-1);
      return [fail("adapter", `the GPU process ended (${await connection.ended})${last ? `: ${last}` : ""}`, DRIVER)];
    }
    const expected = !adapter.software || forced === "software";
    const offers = [adapter.f16 && "f16", adapter.subgroups && "subgroups"].filter(Boolean).join(", ");
    return [
      expected
        ? ok("adapter", adapter.line)
        : warn("adapter", adapter.line, `it computes on the CPU: right, and slow. With a GPU here, ${DRIVER}`),
      ok("driver", [adapter.description || adapter.vendor, offers].filter(Boolean).join("; ") || "says nothing"),
      ok("largest buffer", gib(Number(adapter.maxBufferBytes))),
    ];
  } finally {
    over.abort();
    connection.kill();
  }
}
