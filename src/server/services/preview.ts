// PreviewBatches: the batches a run would train on, made by the trainer's own code on the host, without a GPU.

import { create } from "@bufbuild/protobuf";
import {
  type PreviewBatchesRequest,
  type PreviewBatchesResponse,
  PreviewBatchesResponseSchema,
} from "../../../proto/gen/thaw/v1/dataset_service_pb.ts";
import { Batching, BatchingSchema } from "../../../proto/gen/thaw/v1/run_pb.ts";
import { NO_EXAMPLE } from "../../trainer/data/batches.ts";
import { trainingData } from "../../trainer/data/batching.ts";
import { encodeDataset } from "../../trainer/data/dataset.ts";
import { parseJsonl } from "../../trainer/data/jsonl.ts";
import { mixtureOrder } from "../../trainer/data/mixture.ts";
import { loadTokenizer } from "../../trainer/data/tokenizer.ts";
import { encodedFiles, isPlainText } from "../../trainer/run/encoded_files.ts";
import { InputError } from "../../trainer/types.ts";
import type { Core } from "../core.ts";
import { invalidArgument } from "../rpc/errors.ts";
import { notFound } from "../runs/states.ts";
import { modelDirectory } from "../storage/layout.ts";
import { knownEnum } from "../validation/plan.ts";
import { checkName, checkRange, collectProblems } from "../validation/problems.ts";
import { checkShape, SPLIT_NAME } from "../validation/run_spec.ts";
import { batching } from "../worker/convert/enums.ts";
import { findSplit } from "./model_service.ts";

const MAX_BATCHES = 16;
/** Rows of packed batches up to the last that is shown: to find one, all before it are packed. */
const MAX_PACKED_ROWS = 2 ** 20;
const DEFAULT_EOS = 1;

export async function previewBatches(core: Core, request: PreviewBatchesRequest): Promise<PreviewBatchesResponse> {
  const problems = collectProblems();
  checkName(problems, "datasets", request.dataset, "dataset");
  const modelId = checkName(problems, "models", request.model, "model");
  problems.require(request.split === "" || SPLIT_NAME.test(request.split), "split", "must be [a-z0-9_]+");
  checkShape(problems, request);
  checkRange(problems, "seed", request.seed, 0, 2 ** 32 - 1);
  checkRange(problems, "first_step", request.firstStep, 0, 2 ** 40);
  checkRange(problems, "batches", request.batches, 0, MAX_BATCHES);
  knownEnum(problems, "batching", BatchingSchema, request.batching);
  const count = Number(request.batches || 1n);
  const first = Number(request.firstStep);
  const size = Number(request.batchSize || 16n);
  const reachable = request.batching !== Batching.PACKED || (first + count) * size <= MAX_PACKED_ROWS;
  problems.require(reachable, "first_step", `packed batches are shown up to row ${MAX_PACKED_ROWS}`);
  problems.throwIfAny();
  const model = await core.registry.model(modelId);
  if (!model) throw notFound(request.model);
  const { file } = await findSplit(core, request.dataset, request.split || "train");

  const config = model.description.config ?? {};
  const setting = (name: string, fallback: number): number =>
    typeof config[name] === "number" ? config[name] : fallback;
  const inputLength = Number(request.maxInputTokens || 128n);
  const targetLength = Number(request.maxTargetTokens || 32n);
  const padTokenId = setting("pad_token_id", 0);
  try {
    const written = isPlainText(file) ? [] : await parseJsonl(file);
    const tokenizer = await loadTokenizer(modelDirectory(core.layout, model.directory));
    const options = {
      maxInputTokens: inputLength,
      maxTargetTokens: targetLength,
      vocabularySize: setting("vocab_size", Number.POSITIVE_INFINITY),
      eosTokenId: setting("eos_token_id", DEFAULT_EOS),
    };
    const seed = Number(request.seed);
    const files = encodedFiles({ tokenizer, model: options }, options);
    const data = await files.trained(file, (first + count) * size, seed);
    const exampleOf = (id: number, row: number) => {
      const { inputIds, labels, input = "", target = "" } = data.examples[id];
      const uncut = { ...options, maxInputTokens: Number.POSITIVE_INFINITY, maxTargetTokens: Number.POSITIVE_INFINITY };
      const whole = encodeDataset(id in written ? [written[id]] : [], tokenizer, uncut);
      return {
        exampleId: BigInt(id),
        input,
        target,
        inputTokenIds: [...inputIds],
        targetTokenIds: [...labels],
        inputTruncated: whole.inputTokens > inputIds.length,
        targetTruncated: whole.targetTokens > labels.length,
        row,
      };
    };
    const decoderStartTokenId = setting("decoder_start_token_id", padTokenId);
    const { batches } = trainingData(data.examples, mixtureOrder([data], seed), {
      batching: batching.fromProto(request.batching || Batching.PADDED, "batching"),
      size,
      limits: { input: inputLength, target: targetLength },
      seed,
      padTokenId,
      decoderStartTokenId,
    });
    return create(PreviewBatchesResponseSchema, {
      batches: Array.from({ length: count }, (_, index) => {
        const { exampleIds, examplesPerRow } = batches.batchAt(first + index);
        const examples = [...exampleIds].flatMap((id, place) =>
          id === NO_EXAMPLE ? [] : exampleOf(id, Math.floor(place / examplesPerRow)),
        );
        return { step: BigInt(first + index), examples };
      }),
      examples: BigInt(data.size),
      truncatedInputs: BigInt(data.truncatedInputs),
      truncatedTargets: BigInt(data.truncatedTargets),
    });
  } catch (error) {
    if (!(error instanceof InputError)) throw error;
    throw invalidArgument(error.problems.map(({ message }) => ({ field: "dataset", message })));
  }
}
