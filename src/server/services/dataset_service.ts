// DatasetService: the data runs train on. A dataset is read once, when it arrives, with every problem by split and line;
// what DescribeDataset says is counted then and kept.

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
  type SplitDescription,
  SplitDescriptionSchema,
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
import { type Example, parseJsonl } from "../../trainer/data/jsonl.ts";
import { InputError, type Problem } from "../../trainer/types.ts";
import type { Core } from "../core.ts";
import { newId } from "../ids.ts";
import { NameTakenError } from "../registry/registry.ts";
import { invalidArgument, refusal } from "../rpc/errors.ts";
import type { Handlers } from "../rpc/serve.ts";
import { notFound } from "../runs/states.ts";
import { discard, publish, temporaryDirectory } from "../storage/layout.ts";
import { type ReceivedFile, type Receiver, receiver } from "../storage/upload.ts";
import { knownEnum } from "../validation/plan.ts";
import {
  check,
  checkName,
  checkPage,
  checkRequestId,
  collectProblems,
  invalidField,
  pageOf,
} from "../validation/problems.ts";
import { SPLIT_NAME } from "../validation/run_spec.ts";
import { checkHeader, refuseWhileUsed } from "./model_service.ts";
import { previewBatches } from "./preview.ts";

const MAX_SPLITS = 16;
const FREQUENT_TARGETS = 20;

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
      const directory = temporaryDirectory(layout);
      const files = receiver(directory, settings.limits.maxUploadBytes);
      try {
        const header = await receiveDataset(requests, files);
        const received = await files.finish();
        if (received.length === 0) throw invalidField("split", "a dataset needs at least one");
        const digests = received.map(({ path, sha256 }) => `${path} ${sha256}`).join("\n");
        const once = { schema: DatasetHeaderSchema, body: header, extra: digests };
        return await answers.once(header.requestId, once, UploadDatasetResponseSchema, async (remember) => {
          const splits = await describeSplits(directory, received);
          const id = header.datasetId || newId("dataset");
          const target = join(layout.datasets, id);
          const dataset: Dataset = create(DatasetSchema, {
            name: `datasets/${id}`,
            displayName: header.displayName,
            format: DatasetFormat.JSONL,
            splits: splits.map(({ split }) => split!),
            sizeBytes: received.reduce((sum, file) => sum + BigInt(file.bytes), 0n),
            createTime: timestampNow(),
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
        await files.abandon();
        await discard(directory);
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

/** Takes the splits of an upload. @throws RpcError INVALID_ARGUMENT when they come in the wrong form */
async function receiveDataset(requests: AsyncIterable<UploadDatasetRequest>, files: Receiver): Promise<DatasetHeader> {
  let header: DatasetHeader | undefined;
  const names = new Set<string>();
  for await (const { part } of requests) {
    if (!header) {
      if (part.case !== "dataset") throw invalidField("dataset", "must come first");
      header = part.value;
      const { datasetId, displayName, requestId, format } = header;
      checkHeader(datasetId, displayName, requestId, "dataset", "dataset_id");
      check((problems) => knownEnum(problems, "dataset.format", DatasetFormatSchema, format));
    } else if (part.case === "split") {
      const { name } = part.value;
      if (!SPLIT_NAME.test(name)) throw invalidField("split.name", "must be [a-z0-9_]+");
      if (names.has(name)) throw invalidField("split.name", `${name} comes twice`);
      if (names.size === MAX_SPLITS) throw invalidField("split.name", `more than ${MAX_SPLITS} splits`);
      names.add(name);
      await files.begin(`${name}.jsonl`);
    } else if (part.case === "data") {
      if (!files.current) throw invalidField("data", "comes before any split");
      await files.write(part.value);
    } else {
      throw invalidField(part.case ?? "part", "must be a split or data");
    }
  }
  if (!header) throw invalidField("dataset", "required");
  return header;
}

/** What is in each split. @throws RpcError INVALID_ARGUMENT with the problems of all splits */
async function describeSplits(directory: string, files: readonly ReceivedFile[]): Promise<SplitDescription[]> {
  const problems: Problem[] = [];
  const described: SplitDescription[] = [];
  for (const { path, bytes } of files) {
    const name = path.replace(/\.jsonl$/, "");
    try {
      described.push(describeSplit(name, bytes, await parseJsonl(join(directory, path))));
    } catch (error) {
      if (!(error instanceof InputError)) throw error;
      problems.push(...error.problems.map(({ message }) => ({ field: `splits.${name}`, message })));
    }
  }
  if (problems.length > 0) throw invalidArgument(problems);
  return described;
}

function describeSplit(name: string, bytes: number, examples: readonly Example[]): SplitDescription {
  const targets = new Map<string, number>();
  let longestInput = 0;
  let longestTarget = 0;
  for (const example of examples) {
    if (!("target" in example)) continue;
    targets.set(example.target, (targets.get(example.target) ?? 0) + 1);
    longestInput = Math.max(longestInput, new TextEncoder().encode(example.input).length);
    longestTarget = Math.max(longestTarget, new TextEncoder().encode(example.target).length);
  }
  const frequent = [...targets].sort(([a, m], [b, n]) => n - m || (a < b ? -1 : 1)).slice(0, FREQUENT_TARGETS);
  return create(SplitDescriptionSchema, {
    split: { name, examples: BigInt(examples.length), sizeBytes: BigInt(bytes) },
    distinctTargets: BigInt(targets.size),
    frequentTargets: frequent.map(([target, count]) => ({ target, examples: BigInt(count) })),
    longestInputBytes: BigInt(longestInput),
    longestTargetBytes: BigInt(longestTarget),
  });
}
