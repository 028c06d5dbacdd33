// Who may call what: one table, a role for every method of every service. It is typed by the descriptors, so a method of
// the contract without an entry does not compile; `requireRoles` holds the descriptors of a running server to it as well.

import type { DescMethod, DescService } from "@bufbuild/protobuf";
import { Health } from "../../../proto/gen/grpc/health/v1/health_pb.ts";
import { ServerReflection } from "../../../proto/gen/grpc/reflection/v1/reflection_pb.ts";
import { ServerReflection as ServerReflectionAlpha } from "../../../proto/gen/grpc/reflection/v1alpha/reflection_pb.ts";
import { CheckpointService } from "../../../proto/gen/thaw/v1/checkpoint_service_pb.ts";
import { DatasetService } from "../../../proto/gen/thaw/v1/dataset_service_pb.ts";
import { GroupService } from "../../../proto/gen/thaw/v1/group_service_pb.ts";
import { ModelService } from "../../../proto/gen/thaw/v1/model_service_pb.ts";
import { RoutingService } from "../../../proto/gen/thaw/v1/routing_service_pb.ts";
import { RunService } from "../../../proto/gen/thaw/v1/run_service_pb.ts";
import { StepService } from "../../../proto/gen/thaw/v1/step_service_pb.ts";
import { SystemService } from "../../../proto/gen/thaw/v1/system_service_pb.ts";

/**
 * Lowest first, each may do what the one before may: a viewer watches and asks, an operator uses the GPU, the disk and the
 * weights, an admin also removes the models and datasets that everybody's runs start from.
 */
export const ROLES = ["viewer", "operator", "admin"] as const;
export type Role = (typeof ROLES)[number];

/** `open` needs no token: whether the server is up, and the contract, which is public. */
export type Access = "open" | Role;

type Table<S extends DescService> = Readonly<Record<keyof S["method"], Access>>;

const RUNS: Table<typeof RunService> = {
  startRun: "operator",
  steerRun: "operator",
  createRun: "operator",
  getRun: "viewer",
  listRuns: "viewer",
  updateRun: "operator",
  deleteRun: "operator",
  pauseRun: "operator",
  resumeRun: "operator",
  cancelRun: "operator",
  forkRun: "operator",
  watchRun: "viewer",
};
const GROUPS: Table<typeof GroupService> = {
  listGroups: "viewer",
  planTrainable: "viewer",
  setTrainable: "operator",
  getTrainable: "viewer",
};
const ROUTING: Table<typeof RoutingService> = { streamAssignments: "viewer", summarizeRouting: "viewer" };
const CHECKPOINTS: Table<typeof CheckpointService> = {
  saveCheckpoint: "operator",
  listCheckpoints: "viewer",
  deleteCheckpoint: "operator",
  downloadCheckpoint: "operator",
  exportModel: "operator",
};
const MODELS: Table<typeof ModelService> = {
  loadModel: "operator",
  uploadModel: "operator",
  downloadModel: "operator",
  listModels: "viewer",
  describeModel: "viewer",
  deleteModel: "admin",
  generate: "operator",
  evaluate: "operator",
};
const DATASETS: Table<typeof DatasetService> = {
  uploadDataset: "operator",
  listDatasets: "viewer",
  describeDataset: "viewer",
  previewBatches: "viewer",
  deleteDataset: "admin",
};
const STEPS: Table<typeof StepService> = { forwardBackward: "operator", optimStep: "operator" };
const SYSTEM: Table<typeof SystemService> = { getSystem: "viewer" };
const HEALTH: Table<typeof Health> = { check: "open", list: "open", watch: "open" };
const REFLECTION: Table<typeof ServerReflection> = { serverReflectionInfo: "open" };

const TABLES: readonly (readonly [DescService, Readonly<Record<string, Access>>])[] = [
  [RunService, RUNS],
  [GroupService, GROUPS],
  [RoutingService, ROUTING],
  [CheckpointService, CHECKPOINTS],
  [ModelService, MODELS],
  [DatasetService, DATASETS],
  [StepService, STEPS],
  [SystemService, SYSTEM],
  [Health, HEALTH],
  [ServerReflection, REFLECTION],
  [ServerReflectionAlpha, REFLECTION],
];

const BY_PATH: ReadonlyMap<string, Access> = new Map(
  TABLES.flatMap(([service, table]) =>
    Object.entries(table).map(([method, access]) => [pathOf(service.method[method]), access] as const),
  ),
);

/** `/thaw.v1.RunService/GetRun` */
export function pathOf(method: DescMethod): string {
  return `/${method.parent.typeName}/${method.name}`;
}

/** What a call needs; nobody may call what is not in the table. */
export const accessTo = (path: string): Access | undefined => BY_PATH.get(path);

export const mayAct = (role: Role, needed: Role): boolean => ROLES.indexOf(role) >= ROLES.indexOf(needed);

/** @throws Error naming every method of the services that has no entry */
export function requireRoles(services: readonly DescService[]): void {
  const missing = services.flatMap((service) => service.methods.filter((m) => !BY_PATH.has(pathOf(m))).map(pathOf));
  if (missing.length > 0) throw new Error(`no role may call ${missing.join(", ")}: roles.ts has no entry for it`);
}
