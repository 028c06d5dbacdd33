// Uploads arrive as they were, in pieces the contract allows; downloads appear complete or not at all.

import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { status } from "@grpc/grpc-js";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { downloadFiles, RpcError, uploadDataset, uploadModel } from "../../clients/typescript/index.ts";
import { fakeServer, stopFakes } from "./support/fake_server.ts";

const MIB = 2 ** 20;

interface Received {
  header: unknown;
  /** Name and bytes, in the order they came. */
  readonly parts: [string, number[]][];
  readonly sizes: number[];
  /** Whether the last message said that the upload is whole. */
  whole: boolean;
}

const test = suite<{ folder: string }>("transfer");
test.before.each(async (context) => {
  context.folder = await mkdtemp(join(tmpdir(), "thaw-transfer-"));
});
test.after.each(async ({ folder }) => {
  stopFakes();
  await rm(folder, { recursive: true });
});

/** Bytes that differ from place to place, with a period that is no divisor of a chunk. */
const pattern = (length: number): Uint8Array => Uint8Array.from({ length }, (_, i) => i % 251);

async function receiver() {
  const received: Received = { header: undefined, parts: [], sizes: [], whole: false };
  const take = (data: Uint8Array) => {
    received.sizes.push(data.length);
    for (const byte of data) received.parts.at(-1)![1].push(byte);
  };
  const server = await fakeServer({
    datasets: {
      async uploadDataset(requests) {
        for await (const { part } of requests) {
          received.whole = part.case === "end";
          if (part.case === "dataset") received.header = { id: part.value.datasetId, name: part.value.displayName };
          else if (part.case === "split") received.parts.push([part.value.name, []]);
          else if (part.case === "data") take(part.value);
        }
        return { dataset: { name: "datasets/d" } };
      },
    },
    models: {
      async uploadModel(requests) {
        for await (const { part } of requests) {
          received.whole = part.case === "end";
          if (part.case === "model") received.header = { id: part.value.modelId };
          else if (part.case === "file") received.parts.push([`${part.value.path} ${part.value.sizeBytes}`, []]);
          else if (part.case === "data") take(part.value);
        }
        return { model: { name: "models/m" } };
      },
    },
  });
  return { server, received };
}

test("a dataset arrives split by split from files, iterables and text, in messages of at most 1 MiB", async ({
  folder,
}) => {
  const { server, received } = await receiver();
  const large = pattern(2 * MIB + 5);
  const path = join(folder, "train.jsonl");
  await writeFile(path, large);
  async function* pieces() {
    yield "žluť";
    yield pattern(MIB + 1);
  }
  const dataset = await uploadDataset(
    server.thaw,
    { datasetId: "d", displayName: "D" },
    { train: path, validation: pieces(), test: [] },
  );
  assert.is(dataset.name, "datasets/d");
  assert.equal(received.header, { id: "d", name: "D" });
  assert.ok(received.whole);
  assert.equal(
    received.parts.map(([name]) => name),
    ["train", "validation", "test"],
  );
  const utf8 = new TextEncoder().encode("žluť");
  const expected = [large, Uint8Array.from([...utf8, ...pattern(MIB + 1)]), new Uint8Array(0)];
  received.parts.forEach(([name, bytes], i) => {
    assert.ok(Buffer.from(bytes).equals(Buffer.from(expected[i])), name);
  });
  assert.ok(Math.max(...received.sizes) <= MIB);
});

test("a file that cannot be read cancels the upload and says so", async ({ folder }) => {
  const { server } = await receiver();
  try {
    await uploadDataset(server.thaw, {}, { train: join(folder, "missing.jsonl") });
    assert.unreachable();
  } catch (error) {
    assert.match((error as Error).message, /ENOENT.*missing\.jsonl/);
  }
});

test("a model directory sends its model files with their sizes and nothing else", async ({ folder }) => {
  const { server, received } = await receiver();
  const files = { "config.json": "{}", "model.safetensors": pattern(MIB + 3), "spiece.model": "s", "vocab.txt": "" };
  for (const [name, data] of Object.entries(files)) await writeFile(join(folder, name), data);
  for (const other of ["README.md", "pytorch_model.bin"]) await writeFile(join(folder, other), "other");
  await mkdir(join(folder, "onnx.json"));
  const model = await uploadModel(server.thaw, folder, { modelId: "m" });
  assert.is(model.name, "models/m");
  assert.ok(received.whole);
  assert.equal(
    received.parts.map(([name, bytes]) => [name, bytes.length]),
    [
      ["config.json 2", 2],
      [`model.safetensors ${MIB + 3}`, MIB + 3],
      ["spiece.model 1", 1],
      ["vocab.txt 0", 0],
    ],
  );
});

test("a directory without model files is refused before anything is sent", async ({ folder }) => {
  const { server, received } = await receiver();
  try {
    await uploadModel(server.thaw, folder, {});
    assert.unreachable();
  } catch (error) {
    assert.match((error as Error).message, /holds no model files/);
  }
  assert.is(received.header, undefined);
});

type Part = {
  part: { case: "file"; value: { path: string; sizeBytes: bigint } } | { case: "data"; value: Uint8Array };
};
const file = (path: string, size: number): Part => ({
  part: { case: "file", value: { path, sizeBytes: BigInt(size) } },
});
const data = (text: string): Part => ({ part: { case: "data", value: new TextEncoder().encode(text) } });

const download = async (parts: Part[], directory: string) => {
  const server = await fakeServer({
    models: {
      async *downloadModel() {
        yield* parts;
      },
    },
  });
  return await downloadFiles(server.thaw.models.downloadModel({ name: "models/m" }), directory);
};

test("a download writes every file, empty ones and subfolders included", async ({ folder }) => {
  const to = join(folder, "model");
  const parts = [file("config.json", 4), data("{\n"), data("}\n"), file("empty", 0), file("sub/a.txt", 1), data("a")];
  const files = await download(parts, to);
  assert.equal(
    files.map(({ path }) => path),
    ["config.json", "empty", "sub/a.txt"],
  );
  assert.is(await readFile(join(to, "config.json"), "utf8"), "{\n}\n");
  assert.is(await readFile(join(to, "empty"), "utf8"), "");
  assert.is(await readFile(join(to, "sub/a.txt"), "utf8"), "a");
  assert.equal(await readdir(folder), ["model"]);
});

test("a download that is wrong in any way leaves nothing behind", async ({ folder }) => {
  const wrong: Record<string, Part[]> = {
    "a short file after a good one": [file("first", 1), data("1"), file("a", 2), data("x")],
    "a long file": [file("a", 1), data("xy")],
    "a file cut short by the next": [file("a", 2), data("x"), file("b", 1), data("y")],
    "bytes before a file": [data("x")],
    "a path upwards": [file("../evil", 1), data("x")],
    "a path upwards in the middle": [file("a/../../evil", 1), data("x")],
    "an absolute path": [file("/tmp/evil", 1), data("x")],
    "a path with a backslash": [file("..\\evil", 1), data("x")],
    "an empty path": [file("", 1), data("x")],
  };
  for (const [what, parts] of Object.entries(wrong)) {
    try {
      await download(parts, join(folder, "model"));
      assert.unreachable(what);
    } catch (error) {
      assert.instance(error, RpcError, `${what}: ${error}`);
      assert.is((error as RpcError).code, status.DATA_LOSS, what);
    }
    assert.equal(await readdir(folder), [], what);
  }
});

test("a download never writes into a directory that exists", async ({ folder }) => {
  await writeFile(join(folder, "mine"), "mine");
  try {
    await download([file("mine", 1), data("x")], folder);
    assert.unreachable();
  } catch (error) {
    assert.match((error as Error).message, /already exists/);
  }
  assert.is(await readFile(join(folder, "mine"), "utf8"), "mine");
});

test.run();
