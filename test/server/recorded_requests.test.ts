// What clients of earlier releases sent is answered as it was: the recorded bytes, played to this server; and everything
// that the client of the release read in an answer is still in it.

import { readdirSync, readFileSync, rmSync } from "node:fs";
import { Client, credentials } from "@grpc/grpc-js";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { SERVICES } from "../../src/server/front/front.ts";
import { serverForTour, tourRoot } from "../support/tour.ts";
import { fileOf, play, type RecordedCall, readContract } from "./recorded/play.ts";

const VERSIONS = readdirSync(fileOf("."))
  .filter((name) => name.endsWith(".jsonl"))
  .map((name) => name.slice(0, -".jsonl".length));

const test = suite("recorded requests");

test("there are some", () => {
  assert.ok(VERSIONS.includes("0.1.0"));
});

for (const version of VERSIONS) {
  const contract = readContract(version);
  const calls = readFileSync(fileOf(`${version}.jsonl`), "utf8")
    .trim()
    .split("\n")
    .map((line): RecordedCall => JSON.parse(line));

  test(`the requests of ${version} are of every method that it had`, () => {
    const recorded = new Set(calls.map(({ path }) => path));
    for (const { typeName } of SERVICES) {
      for (const { name } of contract.getService(typeName)?.methods ?? []) {
        assert.ok(recorded.has(`${typeName}/${name}`), `${typeName}/${name}`);
      }
    }
  });

  test(`the requests of ${version} are answered as they were`, async () => {
    const root = await tourRoot();
    const server = await serverForTour(root);
    const channel = new Client(server.address, credentials.createInsecure());
    try {
      for (const { answer, ...call } of calls) {
        const now = new Set(await play(channel, contract, call));
        const missing = answer.filter((trait) => !now.has(trait));
        assert.equal(missing, [], `${call.path}: now it is ${[...now].join(", ")}`);
      }
    } finally {
      channel.close();
      await server.stop();
      rmSync(root, { recursive: true });
    }
  });
}

test.run();
