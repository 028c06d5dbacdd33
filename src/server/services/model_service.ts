// ModelService: register, ask and score models.

import { create, type MessageShape } from "@bufbuild/protobuf";
import { status } from "@grpc/grpc-js";
import type { DatasetTask } from "../../../proto/gen/thaw/v1/dataset_pb.ts";
import { type Model, ModelOrigin } from "../../../proto/gen/thaw/v1/model_pb.ts";
import {
  DeleteModelRequestSchema,
  DeleteModelResponseSchema,
  GenerateResponseSchema,
  LoadModelRequestSchema,
  LoadModelResponseSchema,
  type ModelHeader,
  ModelHeaderSchema,
  type ModelService,
  type UploadModelRequest,
  UploadModelResponseSchema,
} from "../../../proto/gen/thaw/v1/model_service_pb.ts";
import { ModelTargetSchema, type Target, TargetSchema } from "../../../proto/gen/thaw/worker/v1/worker_pb.ts";
import type { Core } from "../core.ts";
import { asCallerError, forCaller } from "../gpu/failures.ts";
import { idIn } from "../ids.ts";
import { refusal } from "../rpc/errors.ts";
import type { Handlers } from "../rpc/serve.ts";
import { ALLOWED, notFound, requireState, wrongState } from "../runs/states.ts";
import { download } from "../storage/download.ts";
import { discard, modelDirectory, splitFile } from "../storage/layout.ts";
import { type Receiver, untilEnd } from "../storage/upload.ts";
import { checkDecoding } from "../validation/decoding.ts";
import {
  checkDisplayName,
  checkName,
  checkNewId,
  checkPage,
  checkRange,
  checkRequestId,
  collectProblems,
  invalidField,
  type Problems,
  pageOf,
} from "../validation/problems.ts";
import { checkShape, SPLIT_NAME } from "../validation/run_spec.ts";
import { checkParent, named } from "./group_service.ts";
import { registerLoaded, registerManaged } from "./models.ts";

/** Relative, with `/`, no hidden parts and so no `..`. */
const RELATIVE_PATH = /^[A-Za-z0-9_][\w.+-]*(\/[A-Za-z0-9_][\w.+-]*){0,15}$/;
const MAX_PATH = 512;
const MAX_FILES = 4096;
const MAX_INPUTS = 256;
const MAX_INPUT_CHARACTERS = 1_000_000;
const MAX_NEW_TOKENS = 4096;
/** Inputs at a time when a model is asked. */
const GENERATION_BATCH = 16;

const isRelative = (path: string): boolean => path.length <= MAX_PATH && RELATIVE_PATH.test(path);

export function modelService(core: Core): Handlers<typeof ModelService> {
  const { registry, runs, answers, gpu, layout } = core;

  async function find(name: string, field = "name") {
    const problems = collectProblems();
    const id = checkName(problems, "models", name, field);
    problems.throwIfAny();
    const record = await registry.model(id);
    if (!record) throw notFound(name);
    return { id, ...record, path: modelDirectory(layout, record.directory) };
  }

  /** A run on the GPU, or a model with shapes. */
  async function targetOf(
    name: string,
    shape: { batchSize: bigint; maxInputTokens: bigint; maxTargetTokens: bigint },
  ): Promise<Target> {
    const run = idIn("runs", name);
    if (run) {
      const record = await runs.get(run);
      requireState(record.run, ALLOWED.usePresentParameters);
      const target = runs.target(run);
      if (!target) throw wrongState(record.run, ALLOWED.usePresentParameters, "it is not on the GPU; resume it first");
      return target;
    }
    const { path } = await find(name);
    const value = create(ModelTargetSchema, { directory: path, ...shape });
    return create(TargetSchema, { target: { case: "model", value } });
  }

  return {
    async loadModel(request) {
      const problems = collectProblems();
      problems.require(isRelative(request.directory), "directory", "must be a path below the server's models folder");
      checkNewId(problems, request.modelId, "model_id");
      checkDisplayName(problems, request.displayName, "display_name");
      checkRequestId(problems, request.requestId);
      problems.throwIfAny();
      const once = { schema: LoadModelRequestSchema, body: request };
      return answers.once(request.requestId, once, LoadModelResponseSchema, async (remember) => {
        const answer = (model: Model) => create(LoadModelResponseSchema, { model });
        const init = { id: request.modelId, displayName: request.displayName };
        return answer(await registerLoaded(core, request.directory, init, (model) => remember?.(answer(model))));
      });
    },

    async uploadModel(requests) {
      const { directory, files, end } = core.intake.begin();
      try {
        const header = await receiveModel(requests, files);
        const received = await files.finish();
        const digests = received.map(({ path, bytes, sha256 }) => `${path} ${bytes} ${sha256}`).join("\n");
        const once = { schema: ModelHeaderSchema, body: header, extra: digests };
        return await answers.once(header.requestId, once, UploadModelResponseSchema, async (remember) => {
          const answer = (model: Model) => create(UploadModelResponseSchema, { model });
          const about = { id: header.modelId, displayName: header.displayName, source: "" };
          const init = { ...about, origin: ModelOrigin.UPLOADED };
          return answer(await registerManaged(core, directory, init, (model) => remember?.(answer(model))));
        });
      } finally {
        await end();
      }
    },

    async *downloadModel({ name }) {
      yield* download((await find(name)).path);
    },

    async listModels(request) {
      const problems = collectProblems();
      const page = checkPage(problems, request);
      problems.throwIfAny();
      const found = await registry.models({ before: page.before, limit: page.size + 1 });
      const { items, next } = pageOf(found, page);
      return { models: items.map(({ model }) => model), nextPageToken: next };
    },

    async describeModel({ name }) {
      const { model, description } = await find(name);
      return { model, description: named(name, description) };
    },

    async deleteModel(request) {
      const problems = collectProblems();
      checkRequestId(problems, request.requestId);
      checkName(problems, "models", request.name, "name");
      problems.throwIfAny();
      const once = { schema: DeleteModelRequestSchema, body: request };
      return answers.once(request.requestId, once, DeleteModelResponseSchema, async (remember) => {
        const { id, model, path } = await find(request.name);
        await refuseWhileUsed(core, "model", id);
        const response = create(DeleteModelResponseSchema);
        await registry.deleteModel(id, remember?.(response));
        if (model.origin !== ModelOrigin.LOADED) await discard(path);
        return response;
      });
    },

    async *generate(request, { signal }) {
      const problems = collectProblems();
      const parent = checkParent(problems, request.name, "name");
      const { inputs } = request;
      const counted = inputs.length >= 1 && inputs.length <= MAX_INPUTS;
      problems.require(counted, "inputs", `has ${inputs.length}; must be 1 to ${MAX_INPUTS}`);
      inputs.slice(0, MAX_INPUTS).forEach((input, index) => {
        const fits = input.length > 0 && input.length <= MAX_INPUT_CHARACTERS;
        problems.require(fits, `inputs[${index}]`, `must have 1 to ${MAX_INPUT_CHARACTERS} characters`);
      });
      checkRange(problems, "max_new_tokens", request.maxNewTokens, 0, MAX_NEW_TOKENS);
      checkDecoding(problems, request.decoding);
      checkShape(problems, { batchSize: 0n, maxInputTokens: request.maxInputTokens, maxTargetTokens: 0n });
      if (parent && "run" in parent && request.maxInputTokens !== 0n) {
        problems.add("max_input_tokens", "must be unset for a run: its own holds");
      }
      const keeps = !request.recordRoutes || (parent !== undefined && "run" in parent);
      problems.require(keeps, "record_routes", "needs a run: it keeps the routes, and its passes replay them");
      problems.throwIfAny();
      const maxNewTokens = request.maxNewTokens || 32n;
      const target = await targetOf(request.name, {
        batchSize: BigInt(Math.min(inputs.length, GENERATION_BATCH)),
        maxInputTokens: request.maxInputTokens || 128n,
        maxTargetTokens: maxNewTokens,
      });
      const { includeRoutes, recordRoutes, decoding } = request;
      if (recordRoutes && target.target.case !== "run") {
        const message = `${request.name} is not on the GPU, where routes are kept`;
        throw refusal(status.FAILED_PRECONDITION, "WRONG_STATE", message);
      }
      const value = { target, inputs, maxNewTokens, includeRoutes, recordRoutes, decoding };
      try {
        for await (const { result } of gpu.stream({ case: "generate", value }, signal)) {
          if (result.case !== "generation") throw new Error(`Generate answered with ${result.case}`);
          yield create(GenerateResponseSchema, { generation: result.value });
        }
      } catch (thrown) {
        throw asCallerError(thrown);
      }
    },

    async evaluate(request, { signal }) {
      const problems = collectProblems();
      const parent = checkParent(problems, request.name, "name");
      const ofRun = parent !== undefined && "run" in parent;
      if (request.dataset || !ofRun) checkName(problems, "datasets", request.dataset, "dataset");
      problems.require(request.split === "" || SPLIT_NAME.test(request.split), "split", "must be [a-z0-9_]+");
      checkRange(problems, "max_examples", request.maxExamples ?? 0n, 0, 2 ** 40);
      checkShape(problems, request);
      if (ofRun && request.batchSize + request.maxInputTokens + request.maxTargetTokens !== 0n) {
        problems.add("batch_size", "this and max_*_tokens must be unset for a run: its own hold");
      }
      problems.throwIfAny();
      const dataset = request.dataset || (ofRun ? (await runs.get(parent.run)).run.spec!.dataset : "");
      const split = request.split || "validation";
      const { file, task } = await findSplit(core, dataset, split);
      const target = await targetOf(request.name, {
        batchSize: request.batchSize || 16n,
        maxInputTokens: request.maxInputTokens || 128n,
        maxTargetTokens: request.maxTargetTokens || 32n,
      });
      const value = { target, file, split, maxExamples: request.maxExamples ?? 256n, task };
      const reply = await forCaller(gpu.request({ case: "evaluate", value }, signal));
      if (reply.result.case !== "evaluation") throw new Error(`Evaluate answered with ${reply.result.case}`);
      const result = { ...reply.result.value, dataset };
      if (ofRun) await runs.evaluated(parent.run, result);
      return { result };
    },
  };
}

export async function refuseWhileUsed({ registry }: Core, what: "model" | "dataset", id: string): Promise<void> {
  const user = await registry.runUsing(what, id);
  if (!user) return;
  const message = `runs/${user} has not ended and uses it`;
  throw refusal(status.FAILED_PRECONDITION, "IN_USE", message, { run: `runs/${user}` });
}

/** The file of a dataset's split, and the dataset's task. */
export async function findSplit(
  { registry, layout }: Core,
  name: string,
  split: string,
): Promise<{ readonly file: string; readonly task: DatasetTask | undefined }> {
  const id = idIn("datasets", name)!;
  const record = await registry.dataset(id);
  if (!record) throw notFound(name);
  if (record.dataset.splits.every((one) => one.name !== split)) {
    const has = record.dataset.splits.map((one) => one.name).join(", ");
    throw invalidField("split", `${name} has ${has}, not ${split}`);
  }
  return { file: splitFile(layout, record.dataset, split), task: record.dataset.task };
}

/** Takes the files of an upload. @throws RpcError INVALID_ARGUMENT when they come in the wrong form */
async function receiveModel(requests: AsyncIterable<UploadModelRequest>, files: Receiver): Promise<ModelHeader> {
  let header: MessageShape<typeof ModelHeaderSchema> | undefined;
  let announced = 0n;
  const paths = new Set<string>();
  const complete = (): void => {
    const { current } = files;
    if (!current || BigInt(current.bytes) === announced) return;
    throw invalidField("file.size_bytes", `${current.path} has ${current.bytes} bytes, ${announced} were announced`);
  };
  for await (const { part } of untilEnd(requests)) {
    if (!header) {
      if (part.case !== "model") throw invalidField("model", "must come first");
      header = part.value;
      checkHeader(header.modelId, header.displayName, header.requestId, "model", "model_id");
    } else if (part.case === "file") {
      complete();
      const { path, sizeBytes } = part.value;
      if (!isRelative(path)) throw invalidField("file.path", "must be a relative path of plain names");
      if (paths.has(path)) throw invalidField("file.path", `${path} comes twice`);
      if (paths.size === MAX_FILES) throw invalidField("file.path", `more than ${MAX_FILES} files`);
      paths.add(path);
      announced = sizeBytes;
      await files.begin(path);
    } else if (part.case === "data") {
      if (!files.current) throw invalidField("data", "comes before any file");
      await files.write(part.value);
      if (BigInt(files.current.bytes) > announced) complete();
    } else {
      throw invalidField(part.case ?? "part", "must be a file or data");
    }
  }
  if (!header) throw invalidField("model", "required");
  complete();
  return header;
}

/** What headers of uploads have in common. */
export function checkHeader(id: string, displayName: string, requestId: string, field: string, idField: string): void {
  const problems: Problems = collectProblems();
  checkNewId(problems, id, `${field}.${idField}`);
  checkDisplayName(problems, displayName, `${field}.display_name`);
  checkRequestId(problems, requestId, `${field}.request_id`);
  problems.throwIfAny();
}
