// CheckpointService: keep, fetch and export what a run has learnt.

import { create } from "@bufbuild/protobuf";
import { status } from "@grpc/grpc-js";
import {
  type CheckpointService,
  DeleteCheckpointRequestSchema,
  DeleteCheckpointResponseSchema,
  ExportModelRequestSchema,
  ExportModelResponseSchema,
  SaveCheckpointRequestSchema,
  SaveCheckpointResponseSchema,
} from "../../../proto/gen/thaw/v1/checkpoint_service_pb.ts";
import { type Model, ModelOrigin } from "../../../proto/gen/thaw/v1/model_pb.ts";
import { type Target, TargetSchema } from "../../../proto/gen/thaw/worker/v1/worker_pb.ts";
import type { Core } from "../core.ts";
import { forCaller } from "../gpu/failures.ts";
import { checkpointIn, idIn } from "../ids.ts";
import { refusal } from "../rpc/errors.ts";
import type { Handlers } from "../rpc/serve.ts";
import { ALLOWED, hasEnded, notFound, wrongState } from "../runs/states.ts";
import { download } from "../storage/download.ts";
import { discard, temporaryDirectory } from "../storage/layout.ts";
import {
  checkDisplayName,
  checkName,
  checkNewId,
  checkPage,
  checkRequestId,
  collectProblems,
  type Problems,
  pageOf,
} from "../validation/problems.ts";
import { registerManaged } from "./models.ts";

function checkCheckpoint(problems: Problems, name: string, field: string) {
  const ids = checkpointIn(name);
  if (!ids) problems.add(field, name === "" ? "required" : "is not `runs/{run}/checkpoints/{checkpoint}`");
  return ids ?? { run: "", checkpoint: "" };
}

export function checkpointService(core: Core): Handlers<typeof CheckpointService> {
  const { registry, runs, checkpoints, answers, gpu, layout } = core;

  async function find(ids: { run: string; checkpoint: string }) {
    const { run } = await runs.get(ids.run);
    const record = await registry.checkpoint(ids.run, ids.checkpoint);
    if (!record) throw notFound(`${run.name}/checkpoints/${ids.checkpoint}`);
    return { run, directory: checkpoints.directoryOf(ids.run, record.directory) };
  }

  /** The parameters to export: the open run's, or a checkpoint's. */
  async function exportTarget(source: string): Promise<Target> {
    const ids = checkpointIn(source);
    if (ids) {
      const { run, directory } = await find(ids);
      return create(TargetSchema, { target: { case: "model", value: await runs.modelTarget(run, directory) } });
    }
    const id = idIn("runs", source)!;
    const { run } = await runs.get(id);
    const open = runs.target(id);
    if (open) return open;
    const newest = await checkpoints.newest(id);
    if (!newest) {
      throw wrongState(run, ALLOWED.usePresentParameters, "it is not on the GPU and has no checkpoint");
    }
    const value = await runs.modelTarget(run, newest.directory);
    return create(TargetSchema, { target: { case: "model", value } });
  }

  return {
    async saveCheckpoint(request) {
      const problems = collectProblems();
      const id = checkName(problems, "runs", request.run, "run");
      checkRequestId(problems, request.requestId);
      problems.throwIfAny();
      const once = { schema: SaveCheckpointRequestSchema, body: request };
      return answers.once(request.requestId, once, SaveCheckpointResponseSchema, async () =>
        create(SaveCheckpointResponseSchema, { checkpoint: await runs.save(id) }),
      );
    },

    async listCheckpoints(request) {
      const problems = collectProblems();
      const id = checkName(problems, "runs", request.parent, "parent");
      const page = checkPage(problems, request);
      problems.throwIfAny();
      await runs.get(id);
      const found = await registry.checkpoints(id, { before: page.before, limit: page.size + 1 });
      const { items, next } = pageOf(found, page);
      return { checkpoints: items.map(({ checkpoint }) => checkpoint), nextPageToken: next };
    },

    async deleteCheckpoint(request) {
      const problems = collectProblems();
      const ids = checkCheckpoint(problems, request.name, "name");
      checkRequestId(problems, request.requestId);
      problems.throwIfAny();
      const once = { schema: DeleteCheckpointRequestSchema, body: request };
      return answers.once(request.requestId, once, DeleteCheckpointResponseSchema, async (remember) => {
        const { run, directory } = await find(ids);
        const newest = await checkpoints.newest(ids.run);
        if (newest?.checkpoint.name === request.name && !hasEnded(run.state)) {
          throw wrongState(run, ALLOWED.delete, "this checkpoint is what it would go on from");
        }
        const response = create(DeleteCheckpointResponseSchema);
        await registry.deleteCheckpoint(ids.run, ids.checkpoint, remember?.(response));
        await discard(directory);
        return response;
      });
    },

    async *downloadCheckpoint({ name }) {
      const problems = collectProblems();
      const ids = checkCheckpoint(problems, name, "name");
      problems.throwIfAny();
      yield* download((await find(ids)).directory);
    },

    async exportModel(request) {
      const problems = collectProblems();
      if (!checkpointIn(request.source)) checkName(problems, "runs", request.source, "source");
      checkNewId(problems, request.modelId, "model_id");
      checkDisplayName(problems, request.displayName, "display_name");
      checkRequestId(problems, request.requestId);
      problems.throwIfAny();
      const once = { schema: ExportModelRequestSchema, body: request };
      return answers.once(request.requestId, once, ExportModelResponseSchema, async (remember) => {
        if (request.modelId && (await registry.model(request.modelId))) {
          throw refusal(status.ALREADY_EXISTS, "NAME_TAKEN", `models/${request.modelId} exists`);
        }
        const target = await exportTarget(request.source);
        const directory = temporaryDirectory(layout);
        try {
          const reply = await forCaller(gpu.request({ case: "exportModel", value: { target, directory } }));
          if (reply.result.case !== "written") throw new Error(`ExportModel answered with ${reply.result.case}`);
          const { step } = reply.result.value;
          const answer = (model: Model) => create(ExportModelResponseSchema, { model, step });
          const about = { id: request.modelId, displayName: request.displayName, source: request.source };
          const init = { ...about, origin: ModelOrigin.EXPORTED };
          return answer(await registerManaged(core, directory, init, (model) => remember?.(answer(model))));
        } finally {
          await discard(directory);
        }
      });
    },
  };
}
