// Assignments per subscriber and routing summaries: which tokens pass, what is dropped and said to be, and the arithmetic.

import { create } from "@bufbuild/protobuf";
import { test } from "uvu";
import * as assert from "uvu/assert";
import { decodeAssignments } from "../../clients/typescript/index.ts";
import { Stack } from "../../proto/gen/thaw/v1/group_pb.ts";
import {
  type AssignmentSlice,
  RouteFilterSchema,
  RouterLayerMetricsSchema,
  RouteSource,
} from "../../proto/gen/thaw/v1/routing_pb.ts";
import type { Gpu, WorkerRequest } from "../../src/server/gpu/supervisor.ts";
import { createRouteHub } from "../../src/server/routing/hub.ts";
import { narrowSlice, unionOf } from "../../src/server/routing/slices.ts";
import { summarizeRouting } from "../../src/server/routing/summary.ts";
import { routesToProto } from "../../src/server/worker/convert/routes.ts";

/** Five tokens of examples 1, 1, 2, 3, 3 with two choices each. */
const slice = (experts: number): AssignmentSlice =>
  routesToProto(
    {
      source: "training",
      step: 6,
      stack: "decoder",
      layer: 3,
      experts,
      topK: 2,
      exampleIds: Uint32Array.of(1, 1, 2, 3, 3),
      positions: Uint32Array.of(0, 1, 0, 0, 1),
      tokenIds: Uint32Array.of(10, 11, 12, 13, 14),
      expertIds: Uint16Array.of(0, 1, 1, 2, 2, 3, 3, 0, 0, experts - 1),
      gates: Float32Array.of(1, 0.5, 1, 0.5, 1, 0.5, 0.25, 0.5, 1, 0.5),
      kept: Uint8Array.of(1, 0, 1, 1, 0, 0, 0, 1, 1, 1),
    },
    { tokenIds: true, gates: true },
  );

for (const experts of [4, 300]) {
  test(`a subscriber gets the tokens of its filter, with ${experts} experts`, () => {
    const cases: [object, number[]][] = [
      [{}, [10, 11, 12, 13, 14]],
      [{ exampleIds: [1n, 2n] }, [10, 11, 12]],
      [{ experts: [2] }, [11, 12]],
      [{ experts: [experts - 1] }, experts === 4 ? [12, 13, 14] : [14]],
      [{ experts: [0], exampleIds: [3n] }, [13, 14]],
      [{ layers: [2] }, []],
      [{ stacks: [Stack.ENCODER] }, []],
      [{ sources: [RouteSource.GENERATION] }, []],
    ];
    for (const [init, tokens] of cases) {
      const filter = create(RouteFilterSchema, init);
      const narrow = narrowSlice(slice(experts), { filter, includeTokenIds: true, includeGates: true });
      assert.equal(narrow ? [...decodeAssignments(narrow).tokenIds!] : [], tokens, JSON.stringify(Object.keys(init)));
    }
    const filter = create(RouteFilterSchema, { exampleIds: [2n, 3n] });
    const narrow = narrowSlice(slice(experts), { filter, includeTokenIds: false, includeGates: true })!;
    const decoded = decodeAssignments(narrow);
    assert.equal([...decoded.expertIds], [2, 3, 3, 0, 0, experts - 1]);
    assert.equal([...decoded.gates!], [1, 0.5, 0.25, 0.5, 1, 0.5]);
    assert.equal([...decoded.kept], [0, 0, 0, 1, 1, 1]);
    assert.equal([decoded.tokenIds, [...decoded.positions]], [undefined, [0, 0, 1]]);
  });
}

test("the union of what is wanted lets through everything that anybody wants", () => {
  const request = (init: object, includeGates = false) => ({
    filter: create(RouteFilterSchema, init),
    includeTokenIds: false,
    includeGates,
  });
  const union = unionOf([request({ layers: [1], experts: [1, 2], samplingRate: 0.1 }), request({ layers: [3] }, true)]);
  assert.equal([union.filter.layers, union.filter.experts, union.filter.samplingRate], [[1, 3], [], 1]);
  assert.equal([union.includeTokenIds, union.includeGates], [false, true]);
});

test("a slow subscriber's losses are counted, the worker is told to stop when nobody listens", async () => {
  const asked: string[] = [];
  const gpu = {
    request: async (request: WorkerRequest) => void asked.push(request.case!),
  } as unknown as Gpu;
  const limits = { maxAssignmentSubscribers: 2, assignmentBufferMessages: 3 };
  const hub = createRouteHub(
    gpu,
    limits,
    () => true,
    () => undefined,
  );
  const everything = { includeTokenIds: false, includeGates: false };
  const slow = await hub.subscribe("runs/r", everything);
  const other = { ...everything, filter: create(RouteFilterSchema, { layers: [9] }) };
  const picky = await hub.subscribe("runs/r", other);
  try {
    await hub.subscribe("runs/r", everything);
    assert.unreachable();
  } catch (error) {
    assert.match((error as Error).message, /has 2 subscribers/);
  }
  for (let i = 0; i < 5; i++) hub.publish("runs/r", slice(4));
  const { signal } = new AbortController();
  const first = (await slow.next(signal))!;
  hub.publish("runs/r", slice(4));
  const rest = [await slow.next(signal), await slow.next(signal), await slow.next(signal)];
  assert.equal(
    [first, ...rest].map((one) => one?.sequence),
    [1n, 2n, 3n, 6n],
  );
  assert.equal([first.dropped, rest[2]?.dropped], [2n, 2n]);
  hub.leftOut("runs/r", 3);
  hub.publish("runs/r", slice(4));
  const { sequence, dropped } = (await slow.next(signal))!;
  assert.equal([sequence, dropped], [10n, 5n], "what never came is counted too");
  hub.leftOut("runs/r", 2);
  hub.end("runs/r");
  assert.equal(await slow.next(signal), { sequence: 12n, dropped: 7n }, "dropped after the last slice");
  assert.is(await slow.next(signal), undefined);
  assert.equal(await picky.next(signal), { sequence: 5n, dropped: 5n });
  assert.is(await picky.next(signal), undefined);
  assert.equal(asked, ["subscribeRoutes", "subscribeRoutes"]);
  slow.close();
  picky.close();
  const last = await hub.subscribe("runs/q", everything);
  last.close();
  assert.equal(asked.slice(2), ["subscribeRoutes", "unsubscribeRoutes"]);
});

test("a summary weighs loads by the assignments behind them", () => {
  const record = (step: bigint, load: number[], assignments: bigint, dropped = 0n) => ({
    step,
    layers: [create(RouterLayerMetricsSchema, { stack: Stack.ENCODER, layer: 1, load, assignments, dropped })],
  });
  const first = record(1n, [1, 0], 30n);
  const [layer] = summarizeRouting([first, record(2n, [0, 1], 10n, 4n)], first);
  assert.equal([layer.assignments, layer.dropped, layer.load], [40n, 4n, [0.75, 0.25]]);
  // Three roundings of order-one values: a few units in the last place of a double.
  const close = (a: number, b: number): boolean => Math.abs(a - b) < 8 * 2 ** -53;
  assert.ok(close(layer.loadEntropyNats, -0.75 * Math.log(0.75) - 0.25 * Math.log(0.25)));
  assert.ok(close(layer.loadImbalance, 1.5) && close(layer.drift, 0.25));
});

test("a summary adds up which experts were chosen together", () => {
  const record = (step: bigint, coActivation: number[]) => ({
    step,
    layers: [
      create(RouterLayerMetricsSchema, { stack: Stack.ENCODER, layer: 1, load: [0.5, 0.25, 0.25], coActivation }),
    ],
  });
  const pairs = [record(1n, [4, 3, 1, 3, 0, 1]), record(2n, [2, 0, 2, 0, 0, 2])];
  const [layer] = summarizeRouting(pairs, pairs[0]);
  assert.equal(layer.coActivation, [6, 3, 3, 3, 3, 0, 3, 0, 3]);
  const [single] = summarizeRouting([record(1n, [])], pairs[0]);
  assert.equal(single.coActivation, [], "one expert a token: no pairs");
});

test.run();
