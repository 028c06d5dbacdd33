// Which routes leave the worker, and what happens when nobody reads them.

import { create, type MessageInitShape } from "@bufbuild/protobuf";
import * as fc from "fast-check";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { AssignmentSlice, RouteFilterSchema } from "../../proto/gen/thaw/v1/routing_pb.ts";
import { FromWorkerSchema, SubscribeRoutesSchema } from "../../proto/gen/thaw/worker/v1/worker_pb.ts";
import { samples } from "../../src/server/worker/route_filter.ts";
import { MAX_BACKLOG_BYTES, subscribeRoutes } from "../../src/server/worker/route_subscription.ts";
import { createWorker } from "../../src/server/worker/worker.ts";
import type { RouteBatch } from "../../src/trainer/types.ts";
import { fakeEngine, fakeHost, fakeRoutes } from "../support/fake_engine.ts";
import { workerClient } from "../support/worker_client.ts";

const test = suite("worker routes");

/** Tokens of examples 0, 0, 1, 2 with choices [0,1] [2,3] [1,2] [3,none]. */
const BATCH: RouteBatch = {
  ...fakeRoutes("training", 5),
  topK: 2,
  exampleIds: Uint32Array.of(0, 0, 1, 2),
  positions: Uint32Array.of(0, 1, 0, 0),
  tokenIds: Uint32Array.of(10, 11, 12, 13),
  expertIds: Uint16Array.of(0, 1, 2, 3, 1, 2, 3, 4),
  gates: new Float32Array(8),
  kept: new Uint8Array(8).fill(1),
};

function collect(filter: MessageInitShape<typeof RouteFilterSchema> | undefined, backlog = () => 0) {
  const slices: AssignmentSlice[] = [];
  const warnings: string[] = [];
  const leftOut: number[] = [];
  const subscription = subscribeRoutes(create(SubscribeRoutesSchema, { filter, includeTokenIds: true }), {
    backlogBytes: backlog,
    send: (slice) => slices.push(slice),
    leftOut: (count) => leftOut.push(count),
    warn: (message) => warnings.push(message),
  });
  return { slices, warnings, leftOut, subscription };
}

/** Token ids of BATCH that a filter lets through; they fit one byte. */
const filters: [string, MessageInitShape<typeof RouteFilterSchema> | undefined, number[]][] = [
  ["no filter", undefined, [10, 11, 12, 13]],
  ["an empty filter", {}, [10, 11, 12, 13]],
  ["its stack", { stacks: [1] }, [10, 11, 12, 13]],
  ["another stack", { stacks: [2] }, []],
  ["its layer", { layers: [0, 1] }, [10, 11, 12, 13]],
  ["another layer", { layers: [0] }, []],
  ["its source", { sources: [1] }, [10, 11, 12, 13]],
  ["another source", { sources: [2, 3] }, []],
  ["an expert, whichever choice", { experts: [3] }, [11, 13]],
  ["two experts", { experts: [0, 2] }, [10, 11, 12]],
  ["an expert nobody chose", { experts: [9] }, []],
  ["the number that stands for none", { experts: [4] }, []],
  ["examples", { exampleIds: [0n, 2n] }, [10, 11, 13]],
  ["expert and example", { experts: [3], exampleIds: [2n] }, [13]],
];
for (const [what, filter, tokens] of filters) {
  test(`${what} lets ${tokens.length} of 4 tokens through`, () => {
    const { slices, subscription } = collect(filter);
    subscription.offer(BATCH);
    assert.equal(slices.length, tokens.length > 0 ? 1 : 0);
    const sent = [...(slices[0]?.tokenIds ?? [])].filter((_, i) => i % 4 === 0);
    assert.equal(sent, tokens);
  });
}

test("sampling takes whole sequences, nested, in about the share asked for", () => {
  const rate = fc.double({ min: 0, max: 1, noNaN: true });
  fc.assert(
    fc.property(fc.nat(), fc.nat(), rate, rate, (step, example, a, b) => {
      assert.ok(!samples(step, example, Math.min(a, b)) || samples(step, example, Math.max(a, b)));
    }),
  );
  const n = 20_000;
  const taken = Array.from({ length: n }, (_, i) => samples(i % 100, Math.floor(i / 100), 0.25)).filter(Boolean);
  // Binomial: five standard deviations are 5·√(n·p·(1−p)) ≈ 306.
  assert.ok(Math.abs(taken.length - n / 4) < 5 * Math.sqrt(n * 0.25 * 0.75), `${taken.length} of ${n}`);
  const { slices, subscription } = collect({ samplingRate: 0.5 });
  for (let step = 0; step < 50; step++) subscription.offer({ ...BATCH, step });
  for (const slice of slices) {
    const ids = [...slice.exampleIds].filter((_, i) => i % 4 === 0);
    assert.is(ids.filter((id) => id === 0).length % 2, 0, "both tokens of example 0 or neither");
  }
});

test("slices beyond the backlog are dropped, counted, and the count is said when the pipe flows again", () => {
  let backlog = 0;
  const { slices, warnings, leftOut, subscription } = collect(undefined, () => backlog);
  subscription.offer(BATCH);
  backlog = MAX_BACKLOG_BYTES + 1;
  for (let i = 0; i < 3; i++) subscription.offer(BATCH);
  assert.equal([slices.length, warnings.length], [1, 0]);
  backlog = MAX_BACKLOG_BYTES;
  subscription.offer(BATCH);
  assert.is(slices.length, 2);
  assert.equal(warnings.length, 1);
  assert.match(warnings[0], /^3 route slices/);
  backlog = MAX_BACKLOG_BYTES + 1;
  subscription.offer(BATCH);
  backlog = 0;
  subscription.offer(BATCH);
  assert.is(warnings.length, 1, "not again so soon");
  subscription.end();
  assert.match(warnings[1], /^1 route slices/);
  assert.equal(leftOut, [3, 1], "subscribers are told each time, with the slice that follows");
});

test("a run's routes flow while somebody subscribes, and training goes on when nobody reads", async () => {
  const engine = fakeEngine();
  let backlogBytes = 0;
  const client = workerClient((message) => worker.receive(message));
  const worker = createWorker(engine, fakeHost, {
    send: (message) => client.accept(create(FromWorkerSchema, { message })),
    log: () => undefined,
    get backlogBytes() {
      return backlogBytes;
    },
    end: () => Promise.resolve(),
  });
  const ended = worker.run();
  const run = "runs/r";
  const spec = { model: "models/m", dataset: "datasets/d", steps: 1_000_000n, checkpoints: { everySteps: 0n } };
  const datasets = [{ name: "datasets/d", splitFiles: { train: "/d/train.jsonl" } }];
  const folder = new URL(".", import.meta.url).pathname; // never written to: the run does not reach its end
  await client.reply(client.send({ case: "openRun", value: { run, spec, datasets, checkpointsDirectory: folder } }));
  const count = (kind: string) => client.updates().filter(({ update }) => update.case === kind).length;

  await client.update("metrics");
  assert.is(count("routes"), 0, "nothing is sent unasked");
  await client.reply(client.send({ case: "subscribeRoutes", value: { run, filter: { layers: [1] } } }));
  const slice = await client.update("routes");
  assert.equal([...slice.expertIds], [3, 0]);

  backlogBytes = MAX_BACKLOG_BYTES + 1;
  const steps = count("metrics");
  const routes = count("routes");
  await client.until(() => count("metrics") >= steps + 10 || undefined);
  assert.is(count("routes"), routes);

  await client.reply(client.send({ case: "unsubscribeRoutes", value: { run } }));
  const warning = await client.update("warning");
  assert.is(warning.reason, "ROUTES_DROPPED");
  backlogBytes = 0;
  const before = count("metrics");
  await client.until(() => count("metrics") >= before + 5 || undefined);
  assert.is(count("routes"), routes, "nothing after the subscription has ended");
  client.send({ case: "shutdown", value: {} });
  await ended;
});

test.run();
