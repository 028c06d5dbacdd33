// Traces as a collector gets them: a call's span below its caller's, the GPU requests it waits for below it.

import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { Metadata } from "@grpc/grpc-js";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import type { Thaw } from "../../clients/typescript/index.ts";
import { Preset } from "../../proto/gen/thaw/v1/group_pb.ts";
import { RunState } from "../../proto/gen/thaw/v1/run_state_pb.ts";
import { eventsUntil, reaches, testServer, withInputs } from "../support/thaw_server.ts";

const test = suite("tracing");

interface Span {
  readonly traceId: string;
  readonly spanId: string;
  readonly parentSpanId?: string;
  readonly name: string;
  readonly attributes: readonly { readonly key: string; readonly value: Readonly<Record<string, unknown>> }[];
}

/** An OTLP/HTTP collector that keeps what it gets. */
async function collector() {
  const spans: Span[] = [];
  const server = createServer((request, response) => {
    let body = "";
    request.setEncoding("utf8").on("data", (text) => {
      body += text;
    });
    request.on("end", () => {
      assert.is(request.url, "/v1/traces");
      for (const { scopeSpans } of JSON.parse(body).resourceSpans) {
        for (const scope of scopeSpans) spans.push(...scope.spans);
      }
      response.writeHead(200, { "content-type": "application/json" }).end("{}");
    });
  });
  await once(server.listen(0, "127.0.0.1"), "listening");
  const { port } = server.address() as AddressInfo;
  return { spans, url: `http://127.0.0.1:${port}`, close: () => server.close() };
}

const attribute = (span: Span, key: string): unknown =>
  Object.values(span.attributes.find((one) => one.key === key)?.value ?? {})[0];

const TRACE = "0af7651916cd43dd8448eb211c80319c";
const CALLER = "b7ad6b7169203331";

/** A run from creation to end, and a call that a caller traces. */
async function trace(thaw: Thaw): Promise<void> {
  await withInputs(thaw);
  const spec = { model: "models/m", dataset: "datasets/d", steps: 2n };
  await thaw.runs.createRun({ runId: "r", spec });
  await eventsUntil(thaw, "runs/r", reaches(RunState.SUCCEEDED));
  const metadata = new Metadata();
  metadata.set("traceparent", `00-${TRACE}-${CALLER}-01`);
  metadata.set("x-request-id", "q1");
  const plan = { selection: { preset: Preset.FFN } };
  await thaw.groups.planTrainable({ parent: "runs/r", plan }, { metadata });
}

test("a call's span is below its caller's, and what it asks of the GPU process below it", async () => {
  const sink = await collector();
  const server = await testServer({ flags: ["--otlp-endpoint", `${sink.url}/`] });
  try {
    await trace(server.thaw);
  } finally {
    await server.stop();
    sink.close();
  }

  const named = (name: string) => sink.spans.filter((span) => span.name === name);
  const [planned] = named("thaw.v1.GroupService/PlanTrainable");
  assert.equal([planned.traceId, planned.parentSpanId], [TRACE, CALLER]);
  assert.is(attribute(planned, "thaw.request_id"), "q1");
  assert.is(attribute(planned, "thaw.run"), "runs/r");
  assert.is(attribute(planned, "rpc.system"), "grpc");
  const [created] = named("thaw.v1.RunService/CreateRun");
  assert.equal(
    named("gpu planTrainable").map((asked) => [asked.traceId, asked.parentSpanId]),
    [
      [created.traceId, created.spanId], // what a run would take is known before it is made
      [TRACE, planned.spanId],
    ],
  );
  assert.is.not(created.traceId, TRACE);
  assert.equal([created.parentSpanId ?? "", Number(attribute(created, "rpc.grpc.status_code"))], ["", 0]);
  assert.is(named("thaw.v1.RunService/WatchRun").length, 1, "streams have one too");
});

test("a collector that is not there costs its spans only", async () => {
  const server = await testServer({ flags: ["--otlp-endpoint", "http://127.0.0.1:9"] });
  await server.thaw.system.getSystem({});
  const begun = Date.now();
  await server.stop();
  assert.ok(Date.now() - begun < 20_000);
});

test.run();
