// The server without its front: registry, GPU process, runs, and the handlers of every service. One object to start and
// to stop; a test gives it a worker of its own.

import type { DescService } from "@bufbuild/protobuf";
import { CheckpointService } from "../../proto/gen/thaw/v1/checkpoint_service_pb.ts";
import { DatasetService } from "../../proto/gen/thaw/v1/dataset_service_pb.ts";
import { GroupService } from "../../proto/gen/thaw/v1/group_service_pb.ts";
import { ModelService } from "../../proto/gen/thaw/v1/model_service_pb.ts";
import { RoutingService } from "../../proto/gen/thaw/v1/routing_service_pb.ts";
import { RunService } from "../../proto/gen/thaw/v1/run_service_pb.ts";
import { StepService } from "../../proto/gen/thaw/v1/step_service_pb.ts";
import { SystemService } from "../../proto/gen/thaw/v1/system_service_pb.ts";
import { createAnswers } from "./answers.ts";
import type { Core } from "./core.ts";
import type { HandlersFor } from "./front/front.ts";
import { childWorker, type StartWorker } from "./gpu/connection.ts";
import { superviseWorker } from "./gpu/supervisor.ts";
import type { Log } from "./log.ts";
import { loggedCalls, observed } from "./observe/calls.ts";
import { createMetrics, type Metrics } from "./observe/metrics.ts";
import { createTensorBoard } from "./observe/tensorboard.ts";
import type { Registry } from "./registry/registry.ts";
import { openRegistry } from "./registry/sqlite.ts";
import { createRouteHub } from "./routing/hub.ts";
import type { Handlers } from "./rpc/serve.ts";
import { runCheckpoints } from "./runs/checkpoints.ts";
import { createRunLog } from "./runs/log.ts";
import { createRuns } from "./runs/manager.ts";
import { checkpointService } from "./services/checkpoint_service.ts";
import { datasetService } from "./services/dataset_service.ts";
import { groupService } from "./services/group_service.ts";
import { modelService } from "./services/model_service.ts";
import { routingService } from "./services/routing_service.ts";
import { runService } from "./services/run_service.ts";
import { stepService } from "./services/step_service.ts";
import { PACKAGE, systemService } from "./services/system_service.ts";
import type { Settings } from "./settings.ts";
import { openIntake } from "./storage/intake.ts";
import { type Layout, openLayout, sweep } from "./storage/layout.ts";
import { lockDataDirectory } from "./storage/lock.ts";
import { unusable } from "./storage/unusable.ts";

/** More than anybody has. */
const ALL = { before: undefined, limit: 1_000_000 };

export interface ServerParts {
  readonly startWorker?: StartWorker;
  readonly log: Log;
  /** First wait before an interrupted run is opened again, in milliseconds. */
  readonly retryMs?: number;
}

export interface ThawServer {
  readonly handlersFor: HandlersFor;
  /** The server's figures in Prometheus' text format. */
  readonly metrics: Pick<Metrics, "contentType" | "refused"> & { scrape(): Promise<string> };
  /** The adapter's line, once a GPU process is up; undefined until then. */
  readonly adapterLine: string | undefined;
  /**
   * Checkpoints the run on the GPU, ends watches and subscriptions with UNAVAILABLE, ends the GPU process. One that takes
   * longer than `stopSeconds` is killed, and the run goes on from its last checkpoint when the server starts again.
   */
  stop(): Promise<void>;
  /** Closes the registry: when no call is left. */
  close(): Promise<void>;
}

/** @throws Error that says why the data directory cannot be used, or that another server uses it */
export async function startServer(settings: Settings, parts: ServerParts): Promise<ThawServer> {
  try {
    return await start(settings, parts);
  } catch (error) {
    const why = unusable(error);
    throw why === undefined ? error : new Error(why, { cause: error });
  }
}

async function start(settings: Settings, parts: ServerParts): Promise<ThawServer> {
  const { log, retryMs = 1000 } = parts;
  const unlock = lockDataDirectory(settings.dataDirectory);
  const layout = openLayout(settings.dataDirectory);
  const registry = openRegistry(layout.registry);
  await sweepLeftovers(registry, layout);

  const { otlpEndpoint } = settings;
  const tracing = otlpEndpoint
    ? (await import("./observe/tracing.ts")).openTracing(otlpEndpoint, PACKAGE.version)
    : undefined;
  const startWorker = parts.startWorker ?? childWorker(settings, log);
  const gpu = superviseWorker(startWorker, log, settings.gpuTimeoutSeconds * 1000, tracing?.gpuRequests);
  const metrics = createMetrics();
  const { tensorBoardDirectory } = settings;
  const board = tensorBoardDirectory === undefined ? undefined : createTensorBoard(tensorBoardDirectory, log);
  const runLog = createRunLog(registry, log, settings.limits, (run, event) => {
    metrics.written(run, event);
    board?.written(run, event);
  });
  const checkpoints = runCheckpoints(registry, layout, gpu, runLog, log);
  const isOpen = (name: string): boolean => runs.target(name.replace(/^runs\//, "")) !== undefined;
  const routes = createRouteHub(gpu, settings.limits, isOpen, log);
  const live = { registry, layout, gpu, runLog, checkpoints, log, retryMs };
  const runs = createRuns(
    { ...live, onOpen: routes.opened, onRoutes: routes.publish, onRoutesLeftOut: routes.leftOut, onEnd: routes.end },
    settings.limits,
  );
  const answers = createAnswers(registry);
  const intake = openIntake(layout, settings.limits);
  const stored = { registry, layout, answers, intake, checkpoints };
  const core: Core = { settings, ...stored, gpu, runs, runLog, routes, log, startTime: Date.now() };
  await runs.start();

  const handlers = new Map<string, object>();
  const observers = [loggedCalls(log), metrics.calls, ...(tracing ? [tracing.calls] : [])];
  const add = <S extends DescService>(service: S, own: Handlers<S>): void =>
    void handlers.set(service.typeName, observed(service, own, observers));
  add(RunService, runService(core));
  add(GroupService, groupService(core));
  add(RoutingService, routingService(core));
  add(CheckpointService, checkpointService(core));
  add(ModelService, modelService(core));
  add(DatasetService, datasetService(core));
  add(StepService, stepService(core));
  add(SystemService, systemService(core));
  const { dataDirectory } = settings;
  const measured = { registry, runs, gpu, runLog, routes, dataDirectory, version: PACKAGE.version };
  return {
    handlersFor: <S extends DescService>(service: S) => handlers.get(service.typeName) as Handlers<S>,
    metrics: { contentType: metrics.contentType, refused: metrics.refused, scrape: () => metrics.scrape(measured) },
    get adapterLine() {
      return gpu.hello?.adapter?.line;
    },
    async stop() {
      const timer = setTimeout(() => {
        log("warning", `the GPU process has not come to a stop in ${settings.stopSeconds} s; it is killed`);
        gpu.kill();
      }, settings.stopSeconds * 1000);
      try {
        await runs.stop();
      } finally {
        clearTimeout(timer);
        runLog.stop();
        routes.stop();
        await gpu.stop();
        await board?.stop();
      }
    },
    async close() {
      await tracing?.stop();
      registry.close();
      unlock();
    },
  };
}

/** Removes folders that were complete but never indexed. */
async function sweepLeftovers(registry: Registry, layout: Layout): Promise<void> {
  const models = await registry.models(ALL);
  await sweep(layout.models, new Set(models.map(({ item }) => item.directory)));
  const datasets = await registry.datasets(ALL);
  await sweep(layout.datasets, new Set(datasets.map(({ item }) => item.dataset.name.replace(/^datasets\//, ""))));
  const runs = await registry.runs({ ...ALL, states: [], labels: {} });
  const ids = runs.map(({ item }) => item.run.name.replace(/^runs\//, ""));
  await sweep(layout.checkpoints, new Set(ids));
  for (const id of ids) {
    const kept = await registry.checkpoints(id, ALL);
    await sweep(`${layout.checkpoints}/${id}`, new Set(kept.map(({ item }) => item.directory))).catch(() => {});
  }
}
