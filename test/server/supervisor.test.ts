// A GPU process that ends in the very moment in which something is asked of it: the answer is that it is gone, or the next
// process's, and never silence.

import { create } from "@bufbuild/protobuf";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { FromWorkerSchema, type ToWorker } from "../../proto/gen/thaw/worker/v1/worker_pb.ts";
import type { StartWorker } from "../../src/server/gpu/connection.ts";
import { WorkerGone } from "../../src/server/gpu/failures.ts";
import { superviseWorker } from "../../src/server/gpu/supervisor.ts";
import { within } from "../faults/support/within.ts";

const hello = create(FromWorkerSchema, { message: { case: "hello", value: { protocolVersion: 1 } } });
const update = create(FromWorkerSchema, { message: { case: "update", value: { run: "runs/r" } } });

/** The first process says something and ends; the next one answers what it is asked. */
function twoProcesses(): StartWorker {
  let first = true;
  return () => {
    if (first) {
      first = false;
      async function* messages() {
        yield hello;
        yield update;
      }
      return { send: () => {}, messages: messages(), ended: Promise.resolve("signal SIGKILL"), kill: () => {} };
    }
    let answer: (request: ToWorker) => void = () => {};
    async function* messages() {
      yield hello;
      while (true) {
        const { id } = await new Promise<ToWorker>((resolve) => {
          answer = resolve;
        });
        yield create(FromWorkerSchema, {
          message: { case: "reply", value: { id, result: { case: "done", value: {} } } },
        });
      }
    }
    return { send: (request) => answer(request), messages: messages(), ended: new Promise(() => {}), kill: () => {} };
  };
}

const test = suite("supervisor");

for (let ticks = 0; ticks < 12; ticks++) {
  test(`a request ${ticks} microtasks after the last word of a process`, async () => {
    const gpu = superviseWorker(twoProcesses(), () => undefined, 60_000);
    const asked = new Promise<string>((resolve) => {
      gpu.onUpdate = async () => {
        for (let i = 0; i < ticks; i++) await undefined;
        const request = gpu.request({ case: "pause", value: { run: "runs/r" } });
        resolve(
          request.then(
            ({ result }) => result.case!,
            (error) => (error instanceof WorkerGone ? "gone" : String(error)),
          ),
        );
      };
    });
    assert.ok(["gone", "done"].includes(await within(5000, "an answer", asked, () => "")));
    gpu.kill();
  });
}

test.run();
