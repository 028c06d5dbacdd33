// OpenTelemetry traces: a span for every call, child of the caller's where its metadata has a `traceparent`, and below it a
// span for every request to the GPU process that the call waits for. Loaded only where it is switched on.

import { type Metadata, status } from "@grpc/grpc-js";
import { type Context, ROOT_CONTEXT, SpanKind, SpanStatusCode, type TextMapGetter, trace } from "@opentelemetry/api";
import { AsyncLocalStorageContextManager } from "@opentelemetry/context-async-hooks";
import { W3CTraceContextPropagator } from "@opentelemetry/core";
import { OTLPTraceExporter } from "@opentelemetry/exporter-trace-otlp-http";
import { resourceFromAttributes } from "@opentelemetry/resources";
import { BasicTracerProvider, BatchSpanProcessor } from "@opentelemetry/sdk-trace-base";
import type { BeginRequest } from "../gpu/supervisor.ts";
import { type CallObserver, methodName } from "./calls.ts";

export interface Tracing {
  readonly calls: CallObserver;
  readonly gpuRequests: BeginRequest;
  /** Sends what has not been sent yet, or gives up after a while. */
  stop(): Promise<void>;
}

/** A collector that does not answer costs this at the stop, and its spans. */
const EXPORT_MS = 3000;

/** Codes that say something about the server rather than the request (OpenTelemetry's conventions for gRPC servers). */
const FAULTS = ["UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"];

const metadataGetter: TextMapGetter<Metadata> = {
  keys: (metadata) => Object.keys(metadata.getMap()),
  get: (metadata, key) => String(metadata.get(key)[0] ?? "") || undefined,
};

/** @param endpoint of an OTLP/HTTP collector, for instance `http://127.0.0.1:4318` */
export function openTracing(endpoint: string, version: string): Tracing {
  const url = `${endpoint.replace(/\/$/, "")}/v1/traces`;
  const provider = new BasicTracerProvider({
    resource: resourceFromAttributes({ "service.name": "thaw", "service.version": version }),
    spanProcessors: [new BatchSpanProcessor(new OTLPTraceExporter({ url, timeoutMillis: EXPORT_MS }))],
  });
  const tracer = provider.getTracer("thaw", version);
  const propagator = new W3CTraceContextPropagator();
  // Ours, not the process-wide one: a span follows the work of its own server.
  const contexts = new AsyncLocalStorageContextManager();

  return {
    calls({ method, metadata, requestId }) {
      const parent: Context = propagator.extract(ROOT_CONTEXT, metadata, metadataGetter);
      const attributes = {
        "rpc.system": "grpc",
        "rpc.service": method.parent.typeName,
        "rpc.method": method.name,
        "thaw.request_id": requestId,
      };
      const span = tracer.startSpan(methodName(method), { kind: SpanKind.SERVER, attributes }, parent);
      const inside = trace.setSpan(parent, span);
      return {
        within: (work) => contexts.with(inside, work),
        end(code, run) {
          span.setAttribute("rpc.grpc.status_code", status[code as keyof typeof status]);
          if (run) span.setAttribute("thaw.run", run);
          if (FAULTS.includes(code)) span.setStatus({ code: SpanStatusCode.ERROR });
          span.end();
        },
      };
    },
    gpuRequests(kind) {
      const span = tracer.startSpan(`gpu ${kind}`, { kind: SpanKind.CLIENT }, contexts.active());
      return (failure) => {
        if (failure) span.setStatus({ code: SpanStatusCode.ERROR });
        span.end();
      };
    },
    stop: () => provider.shutdown().catch(() => {}),
  };
}
