// Calls with one answer: one at a time, and a hundred at a time over ten connections, for methods that differ in what they
// touch. h2load counts HTTP statuses alone, so each request is made once by a gRPC client first.

import { execFile, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { fromJson, type JsonObject, toBinary } from "@bufbuild/protobuf";
import { Client, credentials, Metadata } from "@grpc/grpc-js";
import { createToken } from "../../src/server/access/tokens.ts";
import { openTokens } from "../../src/server/registry/tokens.ts";
import { registryFile } from "../../src/server/storage/layout.ts";
import { authority } from "../../test/support/certificates.ts";
import { callMethod, methodOf } from "../../test/support/tour.ts";
import type { LoadOptions } from "../load.ts";
import type { Row } from "../rows.ts";
import { quantiles } from "./quantiles.ts";

const RUNS = 100;
const CONCURRENCY = [
  { connections: 1, streams: 1 },
  { connections: 10, streams: 10 },
] as const;

interface Unary {
  readonly path: string;
  readonly request: JsonObject;
  /** What the server has to do for it. */
  readonly touches: string;
}

const METHODS: readonly Unary[] = [
  { path: "Health/Check", request: {}, touches: "nothing" },
  { path: "SystemService/GetSystem", request: {}, touches: "the state of the server" },
  { path: "RunService/GetRun", request: { name: "runs/r1" }, touches: "a row of the registry" },
  { path: "RunService/ListRuns", request: {}, touches: "50 rows" },
  { path: "RunService/CreateRun", request: { spec: { model: "m" } }, touches: "nothing: refused, with details" },
  {
    path: "RunService/UpdateRun",
    request: { run: { name: "runs/r1", displayName: "again" }, updateMask: "displayName" },
    touches: "the disk: answered when it is there",
  },
];

export function h2loadVersion(): string {
  const { status, stdout } = spawnSync("h2load", ["--version"], { encoding: "utf8" });
  return status === 0 ? stdout.trim().replace("h2load ", "") : "not installed";
}

export async function unaryRows({ prepared, seconds }: LoadOptions): Promise<Row[]> {
  if (h2loadVersion() === "not installed") {
    console.log("unary: left out, there is no h2load (Debian: apt-get install nghttp2-client)");
    return [];
  }
  const folder = mkdtempSync(join(tmpdir(), "thaw-load-"));
  try {
    const rows: Row[] = [];
    const data = await prepared.copy();
    const plain = await prepared.start(data, {}, ["--max-queued-runs", String(RUNS)]);
    const spec = { model: "models/m", dataset: "datasets/d", steps: 1n };
    for (let i = 0; i < RUNS; i++) await plain.thaw.runs.createRun({ runId: `r${i}`, spec });
    while ((await plain.thaw.system.getSystem({})).queuedRuns > 0n) await new Promise((done) => setTimeout(done, 100));
    for (const method of METHODS) {
      for (const at of CONCURRENCY) rows.push(await measure(folder, plain.address, method, at, seconds));
    }
    await plain.end("SIGTERM");

    const { certificate, key } = authority("load").issue("load");
    for (const [name, text] of [
      ["cert", certificate],
      ["key", key],
    ])
      writeFileSync(join(folder, name), text);
    const tls = ["--tls-cert", join(folder, "cert"), "--tls-key", join(folder, "key"), "--tokens", "on"];
    const guarded = await prepared.start(data, {}, tls);
    const store = openTokens(registryFile(data));
    const { token } = createToken(store, { role: "viewer", label: "load", expireTime: undefined });
    store.close();
    for (const at of CONCURRENCY) rows.push(await measure(folder, guarded.address, METHODS[2], at, seconds, token));
    await guarded.end("SIGTERM");
    return rows;
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** @param token given: over TLS, which h2load does not verify, and with this token */
async function measure(
  folder: string,
  address: string,
  { path, request, touches }: Unary,
  { connections, streams }: (typeof CONCURRENCY)[number],
  seconds: number,
  token?: string,
): Promise<Row> {
  const method = methodOf(path);
  const message = fromJson(method.input, request);
  const bytes = toBinary(method.input, message);
  const header = Buffer.alloc(5);
  header.writeUInt32BE(bytes.length, 1);
  writeFileSync(join(folder, "body"), Buffer.concat([header, bytes]));
  if (!token) await tryOnce(address, path, message);
  const args = [
    ...["--duration", String(seconds), "--warm-up-time", "1", "--data", join(folder, "body")],
    ...["--clients", String(connections), "--max-concurrent-streams", String(streams), "--threads", "1"],
    ...["--log-file", join(folder, "log"), "-H", "content-type: application/grpc", "-H", "te: trailers"],
    ...(token ? ["-H", `authorization: Bearer ${token}`] : []),
    `${token ? "https" : "http"}://${address}/${method.parent.typeName}/${method.name}`,
  ];
  rmSync(join(folder, "log"), { force: true });
  const { stdout } = await promisify(execFile)("h2load", args, { maxBuffer: 2 ** 26 });
  const rate = /finished in .*, ([\d.]+) req\/s/.exec(stdout);
  const failed = /(\d+) failed, (\d+) errored, (\d+) timeout/.exec(stdout);
  if (!rate || !failed) throw new Error(`h2load ${args.join(" ")}: ${stdout}`);
  const lines = readFileSync(join(folder, "log"), "utf8").trim().split("\n");
  const times = lines.map((line) => Number(line.split("\t")[2]) / 1000);
  const at = connections * streams === 1 ? "1 at a time" : `${connections * streams} at a time`;
  return {
    name: `${path}${token ? ", TLS and token" : ""}, ${at}`,
    figures: {
      "calls/s": Number(rate[1]),
      ...quantiles(times),
      failed: failed.slice(1).reduce((sum, count) => sum + Number(count), 0),
      touches,
    },
    rate: "calls/s",
  };
}

async function tryOnce(address: string, path: string, message: ReturnType<typeof fromJson>): Promise<void> {
  const channel = new Client(address, credentials.createInsecure());
  const refused = path.endsWith("CreateRun");
  try {
    const code = await callMethod(channel, methodOf(path), [message], { metadata: new Metadata() }).then(
      () => 0,
      (error) => error.code,
    );
    if ((code !== 0) !== refused) throw new Error(`${path} is answered with ${code}`);
  } finally {
    channel.close();
  }
}
