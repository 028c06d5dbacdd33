// DatasetService: the data runs train on. A dataset is read once, when it arrives, with every problem by split and line
// (splits.ts); what DescribeDataset says is counted then and kept.

import { existsSync } from "node:fs";
import { join } from "node:path";
import { create } from "@bufbuild/protobuf";
import { timestampNow } from "@bufbuild/protobuf/wkt";
import { status } from "@grpc/grpc-js";
import {
  type Dataset,
  DatasetFormat,
  DatasetFormatSchema,
  DatasetSchema,
} from "../../../proto/gen/thaw/v1/dataset_pb.ts";
import {
  type DatasetHeader,
  DatasetHeaderSchema,
  type DatasetService,
  DeleteDatasetRequestSchema,
  DeleteDatasetResponseSchema,
  type UploadDatasetRequest,
  UploadDatasetResponseSchema,
} from "../../../proto/gen/thaw/v1/dataset_service_pb.ts";
import { taskFromDescription } from "../../trainer/tasks/description.ts";
import { READY_TASKS } from "../../trainer/tasks/ready.ts";
import type { TaskDefinition } from "../../trainer/tasks/task.ts";
import { InputError } from "../../trainer/types.ts";
import type { Core } from "../core.ts";
import { newId } from "../ids.ts";
import { NameTakenError } from "../registry/registry.ts";
import { refusal } from "../rpc/errors.ts";
import type { Handlers } from "../rpc/serve.ts";
import { notFound } from "../runs/states.ts";
import { discard, publish } from "../storage/layout.ts";
import { type Receiver, untilEnd } from "../storage/upload.ts";
import { knownEnum } from "../validation/plan.ts";
import {
  check,
  checkName,
  checkPage,
  checkRequestId,
  collectProblems,
  invalidField,
  type Problems,
  pageOf,
} from "../validation/problems.ts";
import { SPLIT_NAME } from "../validation/run_spec.ts";
import { taskToProto } from "../worker/convert/task.ts";
import { checkHeader, refuseWhileUsed } from "./model_service.ts";
import { previewBatches } from "./preview.ts";
import { receivedName, storeSplits } from "./splits.ts";

const MAX_SPLITS = 16;

const taken = (name: string) => refusal(status.ALREADY_EXISTS, "NAME_TAKEN", `${name} exists`, { name });

export function datasetService(core: Core): Handlers<typeof DatasetService> {
  const { registry, answers, layout, settings } = core;

  async function find(name: string) {
    const problems = collectProblems();
    const id = checkName(problems, "datasets", name, "name");
    problems.throwIfAny();
    const record = await registry.dataset(id);
    if (!record) throw notFound(name);
    return { id, ...record };
  }

  return {
    async uploadDataset(requests) {
      const { directory, files, end } = core.intake.begin();
      try {
        const { header, task } = await receiveDataset(requests, files);
        const received = await files.finish();
        if (received.length === 0) throw invalidField("split", "a dataset needs at least one");
        const digests = received.map(({ path, sha256 }) => `${path} ${sha256}`).join("\n");
        const once = { schema: DatasetHeaderSchema, body: header, extra: digests };
        return await answers.once(header.requestId, once, UploadDatasetResponseSchema, async (remember) => {
          const format = header.format || DatasetFormat.JSONL;
          const maxBytes = settings.limits.maxUploadBytes;
          const splits = await storeSplits(directory, received, { format, task, maxBytes });
          const id = header.datasetId || newId("dataset");
          const target = join(layout.datasets, id);
          const dataset: Dataset = create(DatasetSchema, {
            name: `datasets/${id}`,
            displayName: header.displayName,
            format,
            splits: splits.map(({ split }) => split!),
            sizeBytes: received.reduce((sum, file) => sum + BigInt(file.bytes), 0n),
            createTime: timestampNow(),
            task: task && taskToProto(header.task.case === "readyTask" ? header.task.value : task.name, task),
          });
          const response = create(UploadDatasetResponseSchema, { dataset });
          if (existsSync(target) || (await registry.dataset(id))) throw taken(dataset.name);
          publish(directory, target);
          try {
            await registry.createDataset({ dataset, splits }, remember?.(response));
          } catch (error) {
            await discard(target);
            throw error instanceof NameTakenError ? taken(dataset.name) : error;
          }
          return response;
        });
      } finally {
        await end();
      }
    },

    async listDatasets(request) {
      const problems = collectProblems();
      const page = checkPage(problems, request);
      problems.throwIfAny();
      const found = await registry.datasets({ before: page.before, limit: page.size + 1 });
      const { items, next } = pageOf(found, page);
      return { datasets: items.map(({ dataset }) => dataset), nextPageToken: next };
    },

    async describeDataset({ name }) {
      const { dataset, splits } = await find(name);
      return { dataset, splits: [...splits] };
    },

    previewBatches: (request) => previewBatches(core, request),

    async deleteDataset(request) {
      const problems = collectProblems();
      checkName(problems, "datasets", request.name, "name");
      checkRequestId(problems, request.requestId);
      problems.throwIfAny();
      const once = { schema: DeleteDatasetRequestSchema, body: request };
      return answers.once(request.requestId, once, DeleteDatasetResponseSchema, async (remember) => {
        const { id } = await find(request.name);
        await refuseWhileUsed(core, "dataset", id);
        const response = create(DeleteDatasetResponseSchema);
        await registry.deleteDataset(id, remember?.(response));
        await discard(join(layout.datasets, id));
        return response;
      });
    },
  };
}

interface ReceivedDataset {
  readonly header: DatasetHeader;
  readonly task: TaskDefinition | undefined;
}

/** Takes the splits of an upload. @throws RpcError INVALID_ARGUMENT when they come in the wrong form */
async function receiveDataset(
  requests: AsyncIterable<UploadDatasetRequest>,
  files: Receiver,
): Promise<ReceivedDataset> {
  let header: DatasetHeader | undefined;
  let task: TaskDefinition | undefined;
  const names = new Set<string>();
  for await (const { part } of untilEnd(requests)) {
    if (!header) {
      if (part.case !== "dataset") throw invalidField("dataset", "must come first");
      header = part.value;
      const { datasetId, displayName, requestId, format } = header;
      checkHeader(datasetId, displayName, requestId, "dataset", "dataset_id");
      check((problems) => {
        knownEnum(problems, "dataset.format", DatasetFormatSchema, format);
        task = taskOf(problems, part.value);
        const described = part.value.task.case !== undefined;
        if (format === DatasetFormat.PLAIN_TEXT && described) problems.add("dataset.format", "plain text has no task");
      });
    } else if (part.case === "split") {
      const { name } = part.value;
      if (!SPLIT_NAME.test(name)) throw invalidField("split.name", "must be [a-z0-9_]+");
      if (names.has(name)) throw invalidField("split.name", `${name} comes twice`);
      if (names.size === MAX_SPLITS) throw invalidField("split.name", `more than ${MAX_SPLITS} splits`);
      names.add(name);
      await files.begin(receivedName(name));
    } else if (part.case === "data") {
      if (!files.current) throw invalidField("data", "comes before any split");
      await files.write(part.value);
    } else {
      throw invalidField(part.case ?? "part", "must be a split or data");
    }
  }
  if (!header) throw invalidField("dataset", "required");
  return { header, task };
}

/** The task a header names or defines; undefined for none, and where it has problems. */
function taskOf(problems: Problems, { task }: DatasetHeader): TaskDefinition | undefined {
  if (task.case === "readyTask") {
    const ready = READY_TASKS.get(task.value);
    const known = [...READY_TASKS.keys()].join(", ");
    problems.require(ready !== undefined, "dataset.ready_task", `is none of ${known}`);
    return ready;
  }
  if (task.case === undefined) return undefined;
  try {
    return taskFromDescription(JSON.parse(task.value));
  } catch (error) {
    const told = error instanceof SyntaxError ? [{ message: "is not JSON" }] : undefined;
    if (!told && !(error instanceof InputError)) throw error;
    for (const { message } of told ?? (error as InputError).problems) problems.add("dataset.task_definition", message);
    return undefined;
  }
}
