// Clients that repeat themselves and clients that race: every request with a request_id a hundred times at once, in every
// method that takes one; changes of one run under one etag; the same new name for several things.

import { rm } from "node:fs/promises";
import { join } from "node:path";
import { type DescMessage, equals, type Message } from "@bufbuild/protobuf";
import { type ReflectMessage, reflect } from "@bufbuild/protobuf/reflect";
import { Client, credentials } from "@grpc/grpc-js";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { problemsOf, RpcError, uploadDataset, uploadModel } from "../../clients/typescript/index.ts";
import { RunState } from "../../proto/gen/thaw/v1/run_state_pb.ts";
import { SERVICES } from "../../src/server/front/front.ts";
import { describeEvent, eventsUntil, reaches, type TestServer, withInputs } from "../support/thaw_server.ts";
import { callMethod, jsonOf, methodOf, requestsOf, type Stop, serverForTour, tour, tourRoot } from "../support/tour.ts";

const TIMES = 100;
const RACERS = 50;

const test = suite("repeats");
let root = "";
test.before(async () => {
  root = await tourRoot();
});
test.after(() => rm(root, { recursive: true }));

const started: TestServer[] = [];
test.after.each(async () => {
  for (const server of started.splice(0)) await server.stop();
});

async function start(): Promise<TestServer> {
  const server = await serverForTour(root, { flags: ["--max-uploads", String(TIMES)] });
  started.push(server);
  return server;
}

/** Whether a request can hold a request_id, itself or in a message that it carries. */
const takesRequestId = (schema: DescMessage): boolean =>
  schema.fields.some(
    (field) => field.name === "request_id" || (field.fieldKind === "message" && takesRequestId(field.message)),
  );

/** Gives every message of a request that can have one a request_id. @returns how many have */
function identify(message: ReflectMessage, next: () => string): number {
  let count = 0;
  for (const field of message.fields) {
    if (field.name === "request_id") {
      message.set(field, next());
      count++;
    } else if (field.fieldKind === "message" && message.isSet(field)) {
      count += identify(message.get(field), next);
    }
  }
  return count;
}

/** The requests of a stop, identified. */
function identified(stop: Stop, next: () => string): { requests: readonly Message[]; ids: number } {
  const { input } = methodOf(stop.path);
  const requests = requestsOf(stop);
  return { requests, ids: requests.reduce((sum, request) => sum + identify(reflect(input, request), next), 0) };
}

/** What of the replies answers the requests: the rest of a stream is the run's log. */
const answersOf = (stop: Stop, replies: readonly Message[]): readonly Message[] =>
  replies.filter((reply) => {
    const { events, progress } = jsonOf(methodOf(stop.path), reply);
    return !events && !progress;
  });

/** What the tour has left, and what every run has been through, as far as it does not depend on the pace of its steps. */
async function effects({ thaw }: TestServer) {
  const { runs } = await thaw.runs.listRuns({});
  const logs: Record<string, string[]> = {};
  for (const { name, state } of runs) {
    const events = await eventsUntil(thaw, name, reaches(state));
    logs[name] = events
      .filter(({ event }) => event.case === "state" || event.case === "trainable" || event.case === "checkpoint")
      .map((event) => describeEvent(event).replace(/ \d+$/, ""))
      .filter((event) => event !== "PAUSING" && event !== "CANCELLING");
  }
  const models = (await thaw.models.listModels({})).models.map(({ name }) => name);
  const datasets = (await thaw.datasets.listDatasets({})).datasets.map(({ name }) => name);
  return { logs, models, datasets };
}

test(`every request with a request_id, ${TIMES} times at once, has one effect and one answer`, async () => {
  const once = await start();
  const often = await start();
  const repeated = new Set<string>();
  for (const [server, times] of [
    [once, 1],
    [often, TIMES],
  ] as const) {
    const channel = new Client(server.address, credentials.createInsecure());
    for (const [index, stop] of (await tour(root)).entries()) {
      const method = methodOf(stop.path);
      let given = 0;
      const { requests, ids } = identified(stop, () => `stop-${index}-${given++}`);
      const calls = Array.from({ length: ids > 0 ? times : 1 }, () =>
        callMethod(channel, method, requests, { until: stop.until }),
      );
      const answers = (await Promise.all(calls)).map((replies) => answersOf(stop, replies));
      assert.ok(ids === 0 || answers[0].length > 0, `${stop.path} answers`);
      for (const [call, other] of answers.entries()) {
        const same =
          other.length === answers[0].length && other.every((one, i) => equals(method.output, one, answers[0][i]));
        assert.ok(
          same,
          `call ${call} of ${stop.path} is answered ${JSON.stringify(other.map((one) => jsonOf(method, one)))}`,
        );
      }
      if (ids > 0) repeated.add(stop.path);
    }
    channel.close();
  }
  const all = SERVICES.flatMap(({ methods }) => methods)
    .filter((method) => takesRequestId(method.input))
    .map((method) => `${method.parent.name}/${method.name}`);
  assert.ok(all.length > 15);
  assert.equal([...repeated].sort(), all.sort(), "the tour repeats every method that takes a request_id");
  assert.equal(await effects(often), await effects(once));
});

test("a request_id that another request has used is refused, whatever it comes with", async () => {
  const server = await start();
  const channel = new Client(server.address, credentials.createInsecure());
  const stops = (await tour(root)).filter(({ path }) => methodOf(path).methodKind !== "bidi_streaming");
  let used = "";
  for (const stop of stops) {
    const method = methodOf(stop.path);
    const { requests, ids } = identified(stop, () => "once");
    if (ids === 0) continue;
    const answer = await callMethod(channel, method, requests).catch((error: RpcError) => problemsOf(error));
    if (used === "") used = stop.path;
    else assert.equal(answer, { ...answer, code: "ALREADY_EXISTS", reason: "REQUEST_ID_REUSED" }, stop.path);
  }
  assert.is(used, "ModelService/UploadModel");
  channel.close();
});

/** How many of the calls succeed, and the reasons of the others with their codes. */
async function race(calls: readonly Promise<unknown>[]): Promise<{ won: number; lost: Record<string, number> }> {
  const lost: Record<string, number> = {};
  let won = 0;
  for (const outcome of await Promise.allSettled(calls)) {
    if (outcome.status === "fulfilled") won++;
    else if (outcome.reason instanceof RpcError) {
      const { code, reason } = problemsOf(outcome.reason);
      lost[`${code} ${reason}`] = (lost[`${code} ${reason}`] ?? 0) + 1;
    } else throw outcome.reason;
  }
  return { won, lost };
}

const racers = <T>(call: (racer: number) => Promise<T>): Promise<T>[] =>
  Array.from({ length: RACERS }, (_, i) => call(i));

test("of changes under one etag exactly one comes about; the others are ABORTED", async () => {
  const { thaw } = await start();
  await withInputs(thaw);
  await thaw.runs.createRun({ runId: "r", spec: { model: "models/m", dataset: "datasets/d", steps: 1n } });
  await eventsUntil(thaw, "runs/r", reaches(RunState.SUCCEEDED));
  const name = "runs/r";
  for (let round = 0; round < 10; round++) {
    const { etag } = (await thaw.runs.getRun({ name })).run!;
    const outcome = await race(
      racers((i) =>
        thaw.runs.updateRun({
          run: { name, etag, displayName: `${round} ${i}` },
          updateMask: { paths: ["display_name"] },
        }),
      ),
    );
    assert.equal(outcome, { won: 1, lost: { "ABORTED STALE_ETAG": RACERS - 1 } });
    const { run } = await thaw.runs.getRun({ name });
    assert.match(run!.displayName, new RegExp(`^${round} `));
    assert.is.not(run!.etag, etag);
  }
  // Deleting under an etag that a change may take away, and the other way about.
  const { etag } = (await thaw.runs.getRun({ name })).run!;
  const update = () =>
    thaw.runs.updateRun({ run: { name, etag, displayName: "changed" }, updateMask: { paths: ["display_name"] } });
  const outcome = await race(racers<unknown>((i) => (i % 2 ? update() : thaw.runs.deleteRun({ name, etag }))));
  assert.is(outcome.won, 1, JSON.stringify(outcome.lost));
  for (const why of Object.keys(outcome.lost))
    assert.ok(["ABORTED STALE_ETAG", "NOT_FOUND NOT_FOUND"].includes(why), why);
});

test("a new name goes to exactly one of those who want it", async () => {
  const { thaw } = await start();
  await withInputs(thaw);
  const spec = { model: "models/m", dataset: "datasets/d", steps: 1n };
  const taken = { won: 1, lost: { "ALREADY_EXISTS NAME_TAKEN": RACERS - 1 } };
  const line = '{"input_ids": [5], "target_ids": [3]}\n';
  assert.equal(await race(racers(() => thaw.runs.createRun({ runId: "x", spec }))), taken);
  assert.equal(await race(racers(() => uploadDataset(thaw, { datasetId: "x" }, { train: [line] }))), taken);
  assert.equal(await race(racers(() => uploadModel(thaw, join(root, "tiny"), { modelId: "x" }))), taken);
  assert.equal(await race(racers(() => thaw.models.loadModel({ directory: "tiny", modelId: "y" }))), taken);
  const either = (i: number) =>
    i % 2
      ? thaw.models.loadModel({ directory: "tiny", modelId: "z" })
      : uploadModel(thaw, join(root, "tiny"), { modelId: "z" });
  assert.equal(await race(racers<unknown>(either)), taken);
});

test.run();
