// Records the requests of the present client and what it reads in the answers. To be run when a release is made, and the two
// files committed; recorded_requests.test.ts plays them to every later server.
//
//   npx tsx test/server/recorded/record.ts        writes {version}.jsonl and {version}.binpb beside this file

import type { Buffer } from "node:buffer";
import { execFileSync } from "node:child_process";
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import type { Message } from "@bufbuild/protobuf";
import { Client, credentials } from "@grpc/grpc-js";
import { methodDefinition } from "../../../proto/rpc/definition.ts";
import { methodOf, requestsOf, type Stop, serverForTour, tour, tourRoot } from "../../support/tour.ts";
import { fileOf, play, type RecordedCall, readContract } from "./play.ts";

/** What is refused, after the tour. */
const REFUSED: readonly Stop[] = [
  { path: "RunService/GetRun", requests: [{ name: "runs/nobody" }] },
  { path: "RunService/CreateRun", requests: [{ runId: "-", spec: { model: "m", dataset: "d", steps: -1 } }] },
  { path: "RunService/PauseRun", requests: [{ name: "runs/started" }] },
  {
    path: "RunService/UpdateRun",
    requests: [{ run: { name: "runs/started", etag: "old" }, updateMask: "displayName" }],
  },
  { path: "RunService/WatchRun", requests: [{ name: "runs/nobody" }] },
  { path: "ModelService/LoadModel", requests: [{ directory: "../tiny" }] },
  { path: "ModelService/LoadModel", requests: [{ directory: "tiny", modelId: "loaded" }] },
  { path: "DatasetService/UploadDataset", requests: [{ dataset: { datasetId: "given-up" } }] },
  { path: "StepService/OptimStep", requests: [{ run: "runs/started" }] },
];

const TIMES = 10;

const { version } = JSON.parse(readFileSync(new URL("../../../package.json", import.meta.url), "utf8"));
const contract = fileURLToPath(fileOf(`${version}.binpb`));
execFileSync("npx", ["buf", "build", "--as-file-descriptor-set", "--exclude-source-info", "--output", contract]);

const root = await tourRoot();
const calls = [...(await tour(root)), ...REFUSED].map((stop) => {
  const method = methodOf(stop.path);
  const bytes = (message: Message): Buffer => methodDefinition(method).requestSerialize(message);
  const requests = requestsOf(stop).map((message) => bytes(message).toString("base64"));
  return { path: `${method.parent.typeName}/${method.name}`, requests, until: stop.until };
});
/** Of each call, the traits that it had whenever it was played: some depend on how far a run had come. */
const answers: string[][] = [];
for (let time = 0; time < TIMES; time++) {
  const server = await serverForTour(root);
  const channel = new Client(server.address, credentials.createInsecure());
  for (const [i, call] of calls.entries()) {
    const traits = await play(channel, readContract(version), call);
    answers[i] = answers[i]?.filter((trait) => traits.includes(trait)) ?? traits;
  }
  channel.close();
  await server.stop();
}
rmSync(root, { recursive: true });
const lines = calls.map((call, i): RecordedCall => ({ ...call, answer: answers[i] }));
writeFileSync(fileOf(`${version}.jsonl`), lines.map((line) => `${JSON.stringify(line)}\n`).join(""));
console.log(`wrote ${lines.length} calls of ${version}`);
