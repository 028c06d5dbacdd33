// Hostile names and texts: in every string field of every request, taken from the descriptors, one at a time; in uploads;
// in files that a model is loaded from. Whatever the answer, nothing of it may tell where the server keeps things, nothing
// is a fault, and nothing is written outside the data directory or left half-made inside it.

import { cp, mkdir, mkdtemp, readdir, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { homedir, tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import {
  create,
  type DescMessage,
  type DescMethod,
  type DescService,
  type Message,
  ScalarType,
} from "@bufbuild/protobuf";
import { reflect } from "@bufbuild/protobuf/reflect";
import { Client, credentials, status } from "@grpc/grpc-js";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { RpcError, uploadDataset, uploadModel } from "../../clients/typescript/index.ts";
import { type CallOptions, connect } from "../../clients/typescript/rpc/connect.ts";
import { RunState } from "../../proto/gen/thaw/v1/run_state_pb.ts";
import { SERVICES } from "../../src/server/front/front.ts";
import { eventsUntil, reaches, refused, type TestServer, testServer, withInputs } from "../support/thaw_server.ts";
import { tinyModel } from "../support/tiny_model.ts";

const test = suite("hostile");
const REPOSITORY = fileURLToPath(new URL("../../", import.meta.url));
const logged: string[] = [];
let server: TestServer;
let root: string;
let channel: Client;
/** Whether the next step fails for want of a file. */
let broken = false;
test.before(async () => {
  root = await mkdtemp(join(tmpdir(), "thaw-hostile-"));
  const log = (level: string, message: string) => void (/error|warning/.test(level) && logged.push(message));
  const engine = () => ({ beforeStep: async () => void (broken && (await readFile(join(root, "no-such-file")))) });
  server = await testServer({ flags: ["--models", root, "--max-queued-runs", "4"], log, engine });
  channel = new Client(server.address, credentials.createInsecure());
  await withInputs(server.thaw);
});
test.after(async () => {
  channel.close();
  await server.stop();
  await rm(root, { recursive: true });
});

/** Nothing that an error says is of this machine or of the code. */
function checkTells(error: unknown, where: string): void {
  assert.instance(error, RpcError, where);
  const { code, message, statusDetails } = error as RpcError;
  const told = `${message} ${statusDetails.map(({ value }) => Buffer.from(value).toString("latin1")).join(" ")}`;
  assert.ok(code !== status.INTERNAL && code !== status.UNKNOWN, `${where}: ${status[code]}: ${message}`);
  for (const secret of [server.dataDirectory, root, REPOSITORY, homedir(), "node_modules"]) {
    assert.not(told.includes(secret), `${where} tells ${secret}: ${message}`);
  }
  assert.not.match(told, /\n\s+at |\.ts:\d|\.js:\d/, where);
  assert.ok(told.length < 20_000, `${where}: an answer of ${told.length} characters`);
}

/** Oneofs and messages, as deep as a request can be told apart. */
const MAX_DEPTH = 5;

/** Every way to put `text` into one string field of a message, with the path of the field. */
function* withText(schema: DescMessage, text: string, depth = 0): Generator<readonly [string, Message]> {
  if (depth > MAX_DEPTH) return;
  const fresh = () => reflect(schema, create(schema));
  for (const field of schema.fields) {
    const message = fresh();
    if (field.fieldKind === "scalar" && field.scalar === ScalarType.STRING) {
      message.set(field, text);
      yield [field.name, message.message];
    } else if (field.fieldKind === "list" && field.listKind === "scalar" && field.scalar === ScalarType.STRING) {
      message.get(field).add(text);
      yield [`${field.name}[0]`, message.message];
    } else if (field.fieldKind === "list" && field.listKind === "message") {
      for (const [path, inner] of withText(field.message, text, depth + 1)) {
        const outer = fresh();
        outer.get(field).add(reflect(field.message, inner));
        yield [`${field.name}[0].${path}`, outer.message];
      }
    } else if (
      field.fieldKind === "map" &&
      field.mapKind === "scalar" &&
      field.mapKey === ScalarType.STRING &&
      field.scalar === ScalarType.STRING
    ) {
      message.get(field).set(text, text);
      yield [`${field.name}{}`, message.message];
    } else if (field.fieldKind === "message") {
      for (const [path, inner] of withText(field.message, text, depth + 1)) {
        const outer = fresh();
        outer.set(field, reflect(field.message, inner));
        yield [`${field.name}.${path}`, outer.message];
      }
    }
  }
}

const hostile: readonly string[] = [
  "../../../../etc/passwd",
  "runs/../../x",
  "models/m/../../../x",
  "/etc/passwd",
  "..\\..\\x",
  "%2e%2e%2f",
  "a\0b",
  "'; DROP TABLE runs; --",
  "__proto__",
  "{{x}}%s%n",
  "\u202egnp.exe",
  "\ud83d\ude00".repeat(50),
  "runs/R",
  "-",
  "x".repeat(100_000),
];

async function answer(service: DescService, method: DescMethod, request: Message): Promise<unknown> {
  type Any = (input: unknown, options: CallOptions) => Promise<unknown> & AsyncIterable<unknown>;
  const call = (connect(service, channel) as unknown as Record<string, Any>)[method.localName];
  async function* one() {
    yield request;
  }
  const streams = method.methodKind === "client_streaming" || method.methodKind === "bidi_streaming";
  const reply = call(streams ? one() : request, { deadline: Date.now() + 30_000 });
  try {
    if (method.methodKind === "unary" || method.methodKind === "client_streaming") await reply;
    else for await (const _ of reply) break;
    return undefined;
  } catch (error) {
    return error;
  }
}

for (const service of SERVICES) {
  test(`every string field of ${service.name}'s requests takes hostile texts and tells nothing`, async () => {
    let calls = 0;
    for (const method of service.methods as readonly DescMethod[]) {
      for (const text of hostile) {
        const all = [...withText(method.input, text)];
        await Promise.all(
          all.map(async ([path, request]) => {
            const error = await answer(service, method, request);
            if (error) checkTells(error, `${method.name} ${path} ${JSON.stringify(text.slice(0, 30))}`);
          }),
        );
        calls += all.length;
      }
    }
    if (service.name !== "SystemService") assert.ok(calls >= 2 * hostile.length, `${calls} calls`);
    assert.equal(logged.splice(0), [], "no fault");
  });
}

test("an upload's paths stay in its folder", async () => {
  const before = await readdir(server.dataDirectory);
  const paths = ["../x", "/x", "a/../../x", ".hidden", "a//b", "a\0b", "C:\\x", "a/.ssh/x", "", "x".repeat(600)];
  for (const path of paths) {
    async function* parts() {
      yield { part: { case: "model" as const, value: { modelId: "h" } } };
      yield { part: { case: "file" as const, value: { path, sizeBytes: 1n } } };
      yield { part: { case: "data" as const, value: Uint8Array.of(1) } };
    }
    const error = await refused(server.thaw.models.uploadModel(parts()));
    assert.is(error.code, status.INVALID_ARGUMENT, path);
    checkTells(error, path);
  }
  for (const name of ["../x", "a/b", "A", "", "a\0"]) {
    const error = await refused(uploadDataset(server.thaw, { datasetId: "h" }, { [name]: ["{}\n"] }));
    checkTells(error, name);
  }
  assert.equal(await readdir(server.dataDirectory), before);
  assert.equal(await readdir(join(server.dataDirectory, "tmp")), []);
});

test("broken models and data are refused without a word about where they are", async () => {
  const good = await tinyModel();
  const spoilt: readonly (readonly [name: string, spoil: (folder: string) => Promise<unknown>])[] = [
    ["no-config", (folder) => rm(join(folder, "config.json"))],
    ["no-json", (folder) => writeFile(join(folder, "config.json"), "{")],
    ["config-null", (folder) => writeFile(join(folder, "config.json"), "null")],
    [
      "config-huge",
      (folder) => writeFile(join(folder, "config.json"), '{"model_type":"switch_transformers","d_model":1e99}'),
    ],
    ["config-folder", (folder) => rm(join(folder, "config.json")).then(() => mkdir(join(folder, "config.json")))],
    ["no-weights", (folder) => rm(join(folder, "model.safetensors"))],
    ["short-weights", (folder) => truncate(join(folder, "model.safetensors"), 1000)],
    ["empty-weights", (folder) => truncate(join(folder, "model.safetensors"), 0)],
    ["weights-text", (folder) => writeFile(join(folder, "model.safetensors"), "x".repeat(64))],
    [
      "weights-folder",
      (folder) => rm(join(folder, "model.safetensors")).then(() => mkdir(join(folder, "model.safetensors"))),
    ],
  ];
  for (const [name, spoil] of spoilt) {
    const folder = join(root, name);
    await cp(good, folder, { recursive: true });
    await spoil(folder);
    checkTells(await refused(server.thaw.models.loadModel({ directory: name })), `load ${name}`);
    checkTells(await refused(uploadModel(server.thaw, folder, { modelId: name })), `upload ${name}`);
  }
  const lines = [
    "",
    "null\n",
    "[]\n",
    '{"input": 1, "target": 2}\n',
    `{"input_ids": [1e99], "target_ids": [-1]}\n`,
    "\ufeff{}\n",
  ];
  for (const line of lines) {
    checkTells(await refused(uploadDataset(server.thaw, { datasetId: "h" }, { train: [line] })), JSON.stringify(line));
  }
  assert.equal(await readdir(join(server.dataDirectory, "tmp")), []);
  assert.equal((await server.thaw.models.listModels({})).models.length, 1);
  assert.equal(logged.splice(0), [], "no fault");
  await rm(good, { recursive: true });
});

test("a run that fails by a fault of ours says so without a word of where", async () => {
  broken = true;
  await server.thaw.runs.createRun({ runId: "lost", spec: { model: "models/m", dataset: "datasets/d", steps: 5n } });
  const events = await eventsUntil(server.thaw, "runs/lost", reaches(RunState.FAILED));
  const { run } = await server.thaw.runs.getRun({ name: "runs/lost" });
  const told = JSON.stringify([run, events], (_, value) => (typeof value === "bigint" ? String(value) : value));
  for (const secret of [server.dataDirectory, root, REPOSITORY, "ENOENT"]) assert.not(told.includes(secret), told);
  assert.ok(logged.splice(0).join().includes("ENOENT"), "the log has it");
});

test.run();
