// The server's figures for Prometheus. What happens is counted where it happens (calls, written events); what simply is, is
// read when somebody scrapes. Nothing is kept per run but for the runs on the GPU, so the number of series has a bound.

import { statfs } from "node:fs/promises";
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry as Series } from "prom-client";
import type { RunEvent, StepMetrics } from "../../../proto/gen/thaw/v1/event_pb.ts";
import { RunState } from "../../../proto/gen/thaw/v1/run_state_pb.ts";
import type { RefusalListener } from "../access/gate.ts";
import type { Gpu } from "../gpu/supervisor.ts";
import type { Registry } from "../registry/registry.ts";
import type { RouteHub } from "../routing/hub.ts";
import { loadImbalance } from "../routing/summary.ts";
import type { RunLog } from "../runs/log.ts";
import type { Runs } from "../runs/manager.ts";
import { hasEnded, stateName } from "../runs/states.ts";
import * as enums from "../worker/convert/enums.ts";
import { type CallObserver, methodName } from "./calls.ts";

/** What is read at a scrape. */
export interface Measured {
  readonly registry: Pick<Registry, "countRuns">;
  readonly runs: Pick<Runs, "active">;
  readonly gpu: Pick<Gpu, "hello" | "starts">;
  readonly runLog: Pick<RunLog, "watchers">;
  readonly routes: Pick<RouteHub, "counts">;
  readonly dataDirectory: string;
  readonly version: string;
}

export interface Metrics {
  readonly calls: CallObserver;
  /** The gate turned a call away. */
  readonly refused: RefusalListener;
  /** An event of a run is on disk. */
  written(run: string, event: RunEvent): void;
  /** Everything, in Prometheus' text format. */
  scrape(measured: Measured): Promise<string>;
  readonly contentType: string;
}

/** 1 ms to about 17 min, each bound twice the last. */
const STEP_BUCKETS = Array.from({ length: 21 }, (_, i) => 1e-3 * 2 ** i);
const CALL_BUCKETS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300];
const STATES = Object.values(RunState).filter((state) => state !== RunState.UNSPECIFIED);

/** Shows a total that is kept elsewhere. */
function total(counter: Counter, value: number): void {
  counter.reset();
  counter.inc(value);
}

export function createMetrics(): Metrics {
  const series = new Series();
  const registers = [series];
  const gauge = <L extends string>(name: string, help: string, labelNames: readonly L[] = []) =>
    new Gauge({ name, help, labelNames, registers });
  const counter = <L extends string>(name: string, help: string, labelNames: readonly L[] = []) =>
    new Counter({ name, help, labelNames, registers });

  const calls = new Histogram({
    name: "thaw_rpc_duration_seconds",
    help: "Calls that ended, by method and gRPC code; a stream's duration is its whole life",
    labelNames: ["method", "code"],
    buckets: CALL_BUCKETS,
    registers,
  });
  const inProgress = gauge("thaw_rpc_in_progress", "Calls going on", ["method"]);
  const refused = counter("thaw_rpc_refused_total", "Calls turned away before any work: no token, a limit", ["code"]);
  const runs = gauge("thaw_runs", "Runs by state; those QUEUED are the queue", ["state"]);
  const steps = new Histogram({
    name: "thaw_step_duration_seconds",
    help: "Training steps by how long they took on the clock of the GPU process",
    buckets: STEP_BUCKETS,
    registers,
  });
  const tokens = counter(
    "thaw_trained_tokens_total",
    "Tokens trained on that are not padding, repeated steps included",
  );
  const warnings = counter("thaw_run_warnings_total", "Warnings in the logs of runs, by reason", ["reason"]);
  const step = gauge("thaw_run_step", "Optimizer steps completed by the run on the GPU", ["run"]);
  const loss = gauge("thaw_run_loss", "Cross-entropy of the last step in nats per target token", ["run"]);
  const learningRate = gauge("thaw_run_learning_rate", "Learning rate of the last step", ["run"]);
  const gradientNorm = gauge("thaw_run_gradient_norm", "Global gradient norm of the last step before clipping", [
    "run",
  ]);
  const speed = gauge("thaw_run_tokens_per_second", "Tokens of the last step over its duration", ["run"]);
  const imbalance = gauge(
    "thaw_run_load_imbalance",
    "Share of the busiest expert of a layer over an even share, of the last step; 1 is even",
    ["run", "stack", "layer"],
  );
  const gpuUp = gauge("thaw_gpu_up", "Whether the GPU process is up");
  const gpuStarts = counter("thaw_gpu_process_starts_total", "GPU processes started; 1 is none that ended");
  const gpuBytes = gauge("thaw_gpu_bytes", "Device bytes planned at the peak of the runs on the GPU; 0 when idle");
  const watchers = gauge("thaw_watchers", "Open watches of runs that wait for events");
  const subscribers = gauge("thaw_assignment_subscribers", "Open subscriptions to assignments");
  const matched = counter("thaw_assignment_messages_total", "Messages of assignments that matched a subscription");
  const dropped = counter(
    "thaw_assignment_messages_dropped_total",
    "Those of them that were dropped because the reader was slow",
  );
  const free = gauge("thaw_data_free_bytes", "Free bytes where the data directory is");
  const info = gauge("thaw_info", "Always 1; the version is the label", ["version"]);
  if (!("Deno" in globalThis)) collectDefaultMetrics({ register: series });

  const ofRun = [step, loss, learningRate, gradientNorm, speed, imbalance];
  /** The last step of each run on the GPU; those have series of their own. */
  const lastSteps = new Map<string, StepMetrics>();

  function stepped(run: string, metrics: StepMetrics): void {
    lastSteps.set(run, metrics);
    const { seconds, nanos } = metrics.stepDuration ?? { seconds: 0n, nanos: 0 };
    steps.observe(Number(seconds) + nanos / 1e9);
    tokens.inc(Number(metrics.tokens));
  }

  function show(run: string, metrics: StepMetrics): void {
    step.set({ run }, Number(metrics.step));
    loss.set({ run }, metrics.loss);
    learningRate.set({ run }, metrics.learningRate);
    gradientNorm.set({ run }, metrics.gradientNorm);
    speed.set({ run }, metrics.tokensPerSecond);
    for (const { stack, layer, load } of metrics.layers) {
      imbalance.set({ run, stack: enums.stack.fromProto(stack, "stack"), layer: String(layer) }, loadImbalance(load));
    }
  }

  return {
    calls({ method }) {
      const name = methodName(method);
      inProgress.inc({ method: name });
      const begun = performance.now();
      return {
        end(code) {
          inProgress.dec({ method: name });
          calls.observe({ method: name, code }, (performance.now() - begun) / 1000);
        },
      };
    },
    refused: (code) => refused.inc({ code }),
    written(run, { event }) {
      if (event.case === "metrics") stepped(run, event.value);
      // Also forgotten at a scrape; but there may be none.
      if (event.case === "state" && (hasEnded(event.value.to) || event.value.to === RunState.QUEUED))
        lastSteps.delete(run);
      if (event.case === "warning") warnings.inc({ reason: event.value.reason });
    },
    async scrape({ registry, runs: { active }, gpu, runLog, routes, dataDirectory, version }) {
      for (const one of ofRun) one.reset();
      for (const [run, metrics] of lastSteps) {
        if (active.some(({ name }) => name === run)) show(run, metrics);
        else lastSteps.delete(run);
      }
      const counted = await registry.countRuns();
      for (const state of STATES) runs.set({ state: stateName(state) }, counted.get(state) ?? 0);
      gpuUp.set(gpu.hello ? 1 : 0);
      total(gpuStarts, gpu.starts);
      gpuBytes.set(active.reduce((sum, { allocatedBytes }) => sum + Number(allocatedBytes), 0));
      watchers.set(runLog.watchers);
      const { counts } = routes;
      subscribers.set(counts.subscribers);
      total(matched, counts.matched);
      total(dropped, counts.dropped);
      const { bavail, bsize } = await statfs(dataDirectory);
      free.set(bavail * bsize);
      info.set({ version }, 1);
      return series.metrics();
    },
    contentType: series.contentType,
  };
}
