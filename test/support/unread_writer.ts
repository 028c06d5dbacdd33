// A child for worker_process.test.ts: queues more than a pipe holds, says on stderr how much still waits, and ends what it
// sends when told to on stdin.

import process from "node:process";
import { LogLevel } from "../../proto/gen/thaw/worker/v1/worker_pb.ts";
import { openOutbox, standardOutput } from "../../src/server/worker/outbox.ts";

const outbox = openOutbox(standardOutput());
for (let i = 0; i < 8; i++) outbox.log(LogLevel.INFO, "x".repeat(1 << 20));
setTimeout(() => console.error("backlog", outbox.backlogBytes), 50);
process.stdin.once("data", async () => {
  await outbox.end();
  process.exit(0);
});
