// Hostile names in requests that are right but for them: at every stop of the tour, each text of the request in turn is put
// in place of a name, so that only that one check stands between it and a path or a key. What is free to say (display names,
// labels, request ids) comes back to the letter, also from the next server. (Texts in requests that hold nothing else, and
// what errors tell: test/server/hostile.test.ts.)

import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { clone, ScalarType } from "@bufbuild/protobuf";
import { type ReflectMessage, reflect } from "@bufbuild/protobuf/reflect";
import { Client, credentials, status } from "@grpc/grpc-js";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { problemsOf, uploadDataset, uploadModel } from "../../clients/typescript/index.ts";
import { RunState } from "../../proto/gen/thaw/v1/run_state_pb.ts";
import { eventsUntil, reaches, refused, type TestServer, withInputs } from "../support/thaw_server.ts";
import { callMethod, methodOf, requestsOf, serverForTour, tour, tourRoot } from "../support/tour.ts";

const HOSTILE: readonly string[] = [
  ".",
  "..",
  "../../../../etc/passwd",
  "/etc/passwd",
  "models/../../x",
  "runs/r/checkpoints/../../../x",
  "..\\..\\x",
  "C:\\x",
  "%2e%2e%2f",
  "file:///etc/passwd",
  "tiny/",
  "tiny\0",
  "a\0b",
  "a\nb",
  // Look alike, join with the letter before, turn the direction, or become dots and slashes when they are normalised.
  "\u0430dmin",
  "e\u0301",
  "\u202egnp.exe",
  "\u2025/\u2025/x",
  "\uff0e\uff0e\uff0fx",
  "a\u200bb",
  "\ufeffa",
  "\ud83d\ude00",
  // Reserved somewhere.
  "nul.txt",
  "aux:",
  "server.lock",
  "thaw.sqlite",
  "toString",
  "-rf",
  "~",
  "$HOME",
  "`id`",
  "'; DROP TABLE runs; --",
  "{{x}}%s%n",
  "a".repeat(64),
  "x".repeat(10_000),
];

/** Reserved by file systems, by languages, and by the layout of the data directory. */
const WORDS = ["con", "nul", "aux", "constructor", "prototype", "tmp", "models", "null", "true", "hasOwnProperty"];

/** What no text may hold. */
const CONTROL = /\p{Cc}/u;

/** What a display name, a label and a request_id may all be as long as. */
const MOST_CHARACTERS = 59;

const { INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS, FAILED_PRECONDITION, ABORTED } = status;
const REFUSALS: readonly status[] = [INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS, FAILED_PRECONDITION, ABORTED];

/** Fields whose text is anybody's business; all others are names, or parts of paths or keys. */
const FREE = /(^|\.)(display_name|request_id|labels|host|inputs)$|^input$|task_definition/;

const test = suite("names");
let root = "";
/** Holds a data directory two folders down, so that what would be written outside it shows. */
let around = "";
const logged: string[] = [];
const started: TestServer[] = [];
test.before(async () => {
  root = await tourRoot();
  around = await mkdtemp(join(tmpdir(), "thaw-names-"));
});
test.after(async () => {
  for (const folder of [root, around]) await rm(folder, { recursive: true });
});
test.after.each(async () => {
  for (const server of started.splice(0)) await server.stop();
  assert.equal(logged.splice(0), [], "no fault");
});

async function start(dataDirectory?: string): Promise<TestServer> {
  const log = (level: string, message: string) => void (level === "error" && logged.push(message));
  const server = await serverForTour(root, { log, dataDirectory });
  started.push(server);
  return server;
}

/** Every place in a message with a text that is set, with the message in which it is another. */
function* replaced(
  message: ReflectMessage,
  text: string,
  at = "",
): Generator<readonly [place: string, undo: () => void]> {
  for (const field of message.fields) {
    const place = at ? `${at}.${field.name}` : field.name;
    if (!message.isSet(field)) continue;
    if (field.fieldKind === "scalar" && field.scalar === ScalarType.STRING) {
      const before = message.get(field);
      message.set(field, text);
      yield [place, () => message.set(field, before)];
    } else if (field.fieldKind === "list" && field.listKind === "scalar" && field.scalar === ScalarType.STRING) {
      const list = message.get(field);
      const before = list.get(0);
      list.set(0, text);
      yield [place, () => void list.set(0, before)];
    } else if (field.fieldKind === "message") {
      yield* replaced(message.get(field), text, place);
    } else if (field.fieldKind === "list" && field.listKind === "message") {
      for (const item of message.get(field)) yield* replaced(item as ReflectMessage, text, place);
    } else if (field.fieldKind === "map" && field.mapKey === ScalarType.STRING && field.mapKind === "scalar") {
      const map = message.get(field);
      map.set(text, "value");
      yield [place, () => void map.delete(text)];
    }
  }
}

/** What is kept in the data directory. At which steps runs have saved themselves depends on their pace. */
async function keptIn({ dataDirectory }: TestServer): Promise<string[]> {
  const paths = await readdir(dataDirectory, { recursive: true });
  const kept = paths.filter((path) => !/^(thaw\.sqlite|tmp\/)/.test(path)).map((path) => path.replace(/step-\d.*/, ""));
  return [...new Set(kept)].sort();
}

test("in every request of the tour, in place of every name, they are refused, and leave nothing", async () => {
  const [plain, server] = [await start(), await start(join(around, "a", "b"))];
  const [plainly, channel] = [plain, server].map(({ address }) => new Client(address, credentials.createInsecure()));
  const tried = new Set<string>();
  for (const stop of await tour(root)) {
    const method = methodOf(stop.path);
    const good = requestsOf(stop);
    await callMethod(plainly, method, good, { until: stop.until });
    await callMethod(channel, method, good, { until: stop.until });
    if (!method.parent.typeName.startsWith("thaw.")) continue;
    for (const text of HOSTILE) {
      for (const [index, request] of good.entries()) {
        const bad = clone(method.input, request);
        const requests = good.with(index, bad);
        for (const [place, undo] of replaced(reflect(method.input, bad), text)) {
          const where = `${stop.path} ${place} ${JSON.stringify(text.slice(0, 40))}`;
          if (!FREE.test(place)) {
            const error = await refused(callMethod(channel, method, requests, { until: "{" }));
            assert.ok(REFUSALS.includes(error.code), `${where}: ${status[error.code]}: ${error.message}`);
            tried.add(`${method.name} ${place}`);
          }
          undo();
        }
      }
    }
  }
  assert.ok(tried.size > 50, `${tried.size}: ${[...tried].join(", ")}`);
  assert.equal(await keptIn(server), await keptIn(plain));
  assert.equal([await readdir(around), await readdir(join(around, "a"))], [["a"], ["b"]]);
  for (const one of [plainly, channel]) one.close();
});

test("what is free to say comes back to the letter, from this server and the next", async () => {
  let server = await start();
  await withInputs(server.thaw);
  const short = [...HOSTILE, ...WORDS].filter(({ length }) => length <= MOST_CHARACTERS);
  const texts = short.filter((text) => !CONTROL.test(text));
  const spec = { model: "models/m", dataset: "datasets/d", steps: 1n };
  const requests = texts.map((text, i) => ({
    runId: `r${i}`,
    spec,
    displayName: text,
    labels: { [text]: text, [`${text} too`]: "" },
    requestId: text,
  }));
  for (const text of short.filter((one) => CONTROL.test(one))) {
    const wrong = { runId: "wrong", spec, displayName: text, labels: { [text]: text }, requestId: text };
    const { fields } = problemsOf(await refused(server.thaw.runs.createRun(wrong)));
    const found = fields.map(({ field }) => field);
    assert.equal(found, ["request_id", "display_name", "labels", `labels[${JSON.stringify(text)}]`]);
  }
  for (let twice = 0; twice < 2; twice++) {
    for (const request of requests) {
      const { run } = await server.thaw.runs.createRun(request);
      assert.is(run?.name, `runs/${request.runId}`, "the second time it is the first answer");
    }
    const { runs } = await server.thaw.runs.listRuns({ pageSize: 1000 });
    assert.is(runs.length, texts.length);
    for (const [i, text] of texts.entries()) {
      const run = runs.find(({ name }) => name === `runs/r${i}`)!;
      assert.equal(
        [run.displayName, Object.entries(run.labels).sort()],
        [text, Object.entries(requests[i].labels).sort()],
      );
      const found = await server.thaw.runs.listRuns({ labels: { [text]: text } });
      assert.equal(
        found.runs.map(({ name }) => name),
        [`runs/r${i}`],
      );
    }
    started.splice(started.indexOf(server), 1);
    server = await server.restart();
    started.push(server);
  }
});

test("words that are reserved elsewhere are ids like any other", async () => {
  const server = await start();
  const { thaw } = server;
  await withInputs(thaw);
  for (const word of WORDS.filter((text) => /^[a-z]+$/.test(text))) {
    await uploadModel(thaw, join(root, "tiny"), { modelId: word });
    await uploadDataset(thaw, { datasetId: word }, { train: ['{"input_ids": [5], "target_ids": [3]}\n'] });
    const spec = { model: `models/${word}`, dataset: `datasets/${word}`, steps: 1n };
    await thaw.runs.createRun({ runId: word, spec });
    await eventsUntil(thaw, `runs/${word}`, reaches(RunState.SUCCEEDED));
    await thaw.runs.deleteRun({ name: `runs/${word}` });
    await thaw.datasets.deleteDataset({ name: `datasets/${word}` });
    await thaw.models.deleteModel({ name: `models/${word}` });
  }
  const left = (await keptIn(server)).filter((path) => path.split("/").length === 2);
  assert.equal(left, ["datasets/d", "models/m"]);
});

test.run();
