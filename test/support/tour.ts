// A tour of the whole contract: every method of every service, in an order in which each call means something to the server,
// as plain JSON. What has to hold for every method is tested by walking it: repeated requests, hostile texts, the requests
// of an older client.
//
// It is for a `serverForTour`. Stops of the tour that wait for something are streams: they are read until a reply holds a
// text, or to their end.

import { mkdtemp, readFile, rename } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { create, type DescMethod, fromJson, type JsonObject, type Message, toJson } from "@bufbuild/protobuf";
import type { Client } from "@grpc/grpc-js";
import { type CallOptions, connect } from "../../clients/typescript/rpc/connect.ts";
import { ALL_SERVICES } from "../../src/server/front/front.ts";
import { type TestServer, type TestServerOptions, testServer } from "./thaw_server.ts";
import { tinyModel } from "./tiny_model.ts";

/** The model of the tour: small, since it is kept in files of recorded requests. */
const MODEL = {
  vocab_size: 37,
  d_model: 4,
  d_kv: 2,
  num_heads: 2,
  d_ff: 4,
  num_layers: 2,
  num_decoder_layers: 2,
  num_sparse_encoder_layers: 1,
  num_sparse_decoder_layers: 1,
  num_experts: 2,
};
const DEADLINE_MS = 60_000;

export interface Stop {
  /** `RunService/CreateRun`. */
  readonly path: string;
  /** JSON of the requests; one, but for streams of the client's. */
  readonly requests: readonly JsonObject[];
  /** A stream is read until the JSON of a reply holds this; else to its end. */
  readonly until?: string;
}

/** A models folder with `tiny` in it. */
export async function tourRoot(): Promise<string> {
  const root = await mkdtemp(join(tmpdir(), "thaw-tour-"));
  await rename(await tinyModel(MODEL), join(root, "tiny"));
  return root;
}

/** A server with that folder, whose steps take some milliseconds. */
export const serverForTour = (root: string, options: TestServerOptions = {}): Promise<TestServer> =>
  testServer({
    ...options,
    flags: ["--models", root, ...(options.flags ?? [])],
    engine: () => ({ beforeStep: () => delay(2), exported: join(root, "tiny") }),
  });

/** Every method at least once. @param root what `tourRoot` gave */
export async function tour(root: string): Promise<readonly Stop[]> {
  const file = async (path: string): Promise<JsonObject[]> => {
    const bytes = await readFile(join(root, "tiny", path));
    return [{ file: { path, sizeBytes: bytes.length } }, { data: bytes.toString("base64") }];
  };
  const lines = (count: number): string =>
    Buffer.from(
      Array.from({ length: count }, (_, i) => `{"input_ids":[${5 + i},9],"target_ids":[${3 + i}]}\n`).join(""),
    ).toString("base64");
  const model = [...(await file("config.json")), ...(await file("model.safetensors")), { end: {} }];
  const split = (name: string, count: number): JsonObject[] => [{ split: { name } }, { data: lines(count) }];
  const splits: JsonObject[] = [...split("train", 8), ...split("validation", 2), { end: {} }];
  const reflection: JsonObject[] = [{ listServices: "" }, { fileContainingSymbol: "thaw.v1.RunService" }];
  const spec = (steps: number, more: JsonObject = {}): JsonObject => ({
    model: "models/m",
    dataset: "datasets/d",
    steps,
    ...more,
  });
  const labels = { team: "tour" };
  const plan = { selection: { preset: "PRESET_FFN" } };
  const batch = [{ inputIds: [5, 9], targetIds: [3] }];
  const checkpoint = "runs/driven/checkpoints/step-1";
  const watched = (name: string, until?: string): Stop => ({
    path: "RunService/WatchRun",
    requests: [{ name }],
    until,
  });
  const one = (path: string, request: JsonObject = {}, until?: string): Stop => ({ path, requests: [request], until });
  return [
    one("SystemService/GetSystem"),
    one("Health/Check"),
    one("Health/List"),
    one("Health/Watch", {}, "SERVING"),
    ...["v1", "v1alpha"].map((version) => ({
      path: `grpc.reflection.${version}.ServerReflection/ServerReflectionInfo`,
      requests: reflection,
    })),
    // Models and data.
    { path: "ModelService/UploadModel", requests: [{ model: { modelId: "m", displayName: "uploaded" } }, ...model] },
    one("ModelService/LoadModel", { directory: "tiny", modelId: "loaded", displayName: "loaded" }),
    one("ModelService/ListModels", { pageSize: 1 }),
    one("ModelService/ListModels", { pageSize: 1, pageToken: "2" }),
    one("ModelService/DescribeModel", { name: "models/m" }),
    one("ModelService/DownloadModel", { name: "models/m" }),
    {
      path: "DatasetService/UploadDataset",
      requests: [{ dataset: { datasetId: "d", displayName: "uploaded" } }, ...splits],
    },
    one("DatasetService/ListDatasets", { pageSize: 10 }),
    one("DatasetService/DescribeDataset", { name: "datasets/d" }),
    one("DatasetService/PreviewBatches", { dataset: "datasets/d", model: "models/m", split: "train", batchSize: 2 }),
    one("GroupService/ListGroups", { parent: "models/m" }),
    one("GroupService/PlanTrainable", { parent: "models/m", plan }),
    // A run by itself.
    one("RunService/StartRun", { create: { runId: "started", spec: spec(3), displayName: "started", labels } }),
    one("RunService/GetRun", { name: "runs/started" }),
    one("RunService/ListRuns", { labels, states: ["RUN_STATE_SUCCEEDED"] }),
    one("RunService/UpdateRun", {
      run: { name: "runs/started", displayName: "ended", labels: { team: "tour", kept: "yes" } },
      updateMask: "displayName,labels",
    }),
    watched("runs/started"),
    one("RoutingService/SummarizeRouting", { run: "runs/started" }),
    // A run that its caller drives.
    one("RunService/CreateRun", { runId: "driven", spec: spec(2), displayName: "driven", labels, startPaused: true }),
    watched("runs/driven", '"to":"RUN_STATE_PAUSED"'),
    one("GroupService/GetTrainable", { name: "runs/driven" }),
    one("GroupService/SetTrainable", { name: "runs/driven", plan }),
    one("StepService/ForwardBackward", { run: "runs/driven", examples: batch, step: 0, recordRoutes: true }),
    one("StepService/OptimStep", { run: "runs/driven", step: 0, batches: 1 }),
    one("CheckpointService/SaveCheckpoint", { run: "runs/driven" }),
    one("CheckpointService/ListCheckpoints", { parent: "runs/driven" }),
    one("CheckpointService/DownloadCheckpoint", { name: checkpoint }),
    one("RoutingService/StreamAssignments", { run: "runs/driven", filter: { layers: [1] } }, "{"),
    one("ModelService/Generate", { name: "runs/driven", inputs: ["one", "two"], greedy: {} }),
    one("ModelService/Evaluate", { name: "runs/driven", split: "validation" }),
    one("CheckpointService/ExportModel", { source: checkpoint, modelId: "exported", displayName: "exported" }),
    one("RunService/ResumeRun", { name: "runs/driven" }),
    watched("runs/driven"),
    // A run that is steered.
    one("RunService/CreateRun", {
      runId: "steered",
      spec: spec(100_000, { initialCheckpoint: checkpoint, evaluation: { everySteps: 1000, splits: ["validation"] } }),
      priority: "PRIORITY_HIGH",
    }),
    watched("runs/steered", '"to":"RUN_STATE_RUNNING"'),
    one("RunService/PauseRun", { name: "runs/steered" }),
    {
      path: "RunService/SteerRun",
      requests: [
        { watch: { name: "runs/steered" } },
        { resume: {} },
        { setTrainable: { plan } },
        { saveCheckpoint: {} },
        { pause: {} },
        { cancel: {} },
      ],
    },
    // A run that goes on from another.
    one("RunService/ForkRun", {
      sourceCheckpoint: checkpoint,
      runId: "forked",
      spec: { steps: 100_000 },
      updateMask: "steps",
      displayName: "forked",
      labels,
    }),
    one("RunService/CancelRun", { name: "runs/forked" }),
    watched("runs/forked"),
    // Away with it.
    one("CheckpointService/DeleteCheckpoint", { name: checkpoint }),
    one("RunService/DeleteRun", { name: "runs/driven" }),
    one("ModelService/DeleteModel", { name: "models/exported" }),
    one("DatasetService/DeleteDataset", { name: "datasets/d" }),
  ];
}

/** The method of a path, with or without the package of its service. */
export function methodOf(path: string): DescMethod {
  const [service, name] = path.split("/");
  const found = ALL_SERVICES.find(({ typeName }) => typeName === service || typeName.endsWith(`.${service}`));
  const method = found?.methods.find((one) => one.name === name);
  if (!method) throw new Error(`the contract has no ${path}`);
  return method;
}

export const requestsOf = ({ path, requests }: Stop): Message[] =>
  requests.map((json) => fromJson(methodOf(path).input, json));

export const jsonOf = (method: DescMethod, reply: Message): JsonObject => toJson(method.output, reply) as JsonObject;

/** All replies of one call, up to the one that holds `until`. @throws RpcError what the call fails with */
export async function callMethod(
  channel: Client,
  method: DescMethod,
  requests: readonly Message[],
  options: CallOptions & { readonly until?: string } = {},
): Promise<Message[]> {
  type Any = (input: unknown, options: CallOptions) => Promise<Message> & AsyncIterable<Message>;
  const call = (connect(method.parent, channel) as unknown as Record<string, Any>)[method.localName];
  async function* all() {
    yield* requests;
  }
  const { methodKind: kind } = method;
  const streams = kind === "client_streaming" || kind === "bidi_streaming";
  const { until, ...rest } = options;
  const reply = call(streams ? all() : (requests[0] ?? create(method.input)), {
    deadline: Date.now() + DEADLINE_MS,
    ...rest,
  });
  if (kind === "unary" || kind === "client_streaming") return [await reply];
  const replies: Message[] = [];
  for await (const message of reply) {
    replies.push(message);
    if (until !== undefined && JSON.stringify(jsonOf(method, message)).includes(until)) break;
  }
  return replies;
}
