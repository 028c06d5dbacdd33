// Opens a model directory in Hugging Face form: configuration, parameters checked against the checkpoint, tokenizer.
// Everything here runs on the host; no GPU is needed to learn that a model is wrong.

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { loadTokenizer, type Tokenizer } from "../data/tokenizer.ts";
import { openCheckpoint } from "../formats/checkpoint.ts";
import { inputError, problemList } from "../formats/problems.ts";
import type { SafetensorsFile } from "../formats/safetensors.ts";
import { elements } from "../graph/graph.ts";
import { describeGroups, matchedTensor } from "../groups.ts";
import type { ModelDescription } from "../types.ts";
import type { Model } from "./family.ts";
import { keyShape, type ParameterSpec } from "./parameters.ts";
import { switchModel } from "./switch/switch.ts";

type Json = Readonly<Record<string, unknown>>;

/** Model families by `model_type`. */
const FAMILIES: Readonly<Record<string, (config: Json, checkpointKeys: ReadonlySet<string>) => Model>> = {
  switch_transformers: switchModel,
  st_moe: switchModel,
};

export interface OpenModel {
  readonly directory: string;
  readonly config: Json;
  readonly model: Model;
  readonly tokenizer: Tokenizer | undefined;
  readonly checkpoint: SafetensorsFile;
}

/**
 * Opens a model directory; the caller closes `checkpoint`.
 * @throws InputError naming every field, missing key, wrong shape and key nobody reads
 */
export async function openModelDirectory(directory: string): Promise<OpenModel> {
  const config = await readConfig(directory);
  checkModelType(config);
  const tokenizer = await loadTokenizer(directory);
  const checkpoint = await openCheckpoint(directory);
  let model: Model;
  try {
    model = modelOf(config, new Set(checkpoint.tensors.keys()));
    if (tokenizer && tokenizer.vocabularySize > model.vocabularySize)
      throw inputError("tokenizer.json", [
        `has ${tokenizer.vocabularySize} tokens; the model's vocabulary has ${model.vocabularySize}`,
      ]);
    checkCheckpoint(model, checkpoint);
  } catch (error) {
    await checkpoint.close();
    throw error;
  }
  return { directory, config, model, tokenizer, checkpoint };
}

async function readConfig(directory: string): Promise<Json> {
  let config: unknown;
  try {
    config = JSON.parse(await readFile(join(directory, "config.json"), "utf8"));
  } catch (error) {
    const missing = (error as NodeJS.ErrnoException).code === "ENOENT";
    throw inputError("config.json", [missing ? "the file does not exist" : "is not JSON"]);
  }
  if (typeof config !== "object" || config === null || Array.isArray(config))
    throw inputError("config.json", ["must be a JSON object"]);
  return config as Json;
}

/** The `model_type`, if there is a family of it. */
function checkModelType(config: Json): string {
  const type = config.model_type;
  if (typeof type !== "string" || !Object.hasOwn(FAMILIES, type))
    throw inputError("config.json", [
      `model_type ${JSON.stringify(type)} is not supported; supported: ${Object.keys(FAMILIES).join(", ")}`,
    ]);
  return type;
}

/**
 * The model of a configuration and, where a family leaves the choice to the checkpoint, of the keys that are there.
 * @throws InputError for an unknown `model_type` or a configuration that is not supported
 */
export function modelOf(config: Json, checkpointKeys: ReadonlySet<string> = new Set()): Model {
  return FAMILIES[checkModelType(config)](config, checkpointKeys);
}

/** Compares names, shapes and types of a checkpoint with the model's; throws one InputError listing every mismatch. */
function checkCheckpoint(model: Model, checkpoint: SafetensorsFile): void {
  const problems = problemList("model.safetensors");
  const shapes = new Map<string, string>();
  for (const p of model.parameters) for (const key of p.keys) shapes.set(key, `[${keyShape(p).join(", ")}]`);
  const needed = [...shapes];
  for (const { key, experts } of model.selectionBiases)
    if (checkpoint.tensors.has(key)) needed.push([key, `[${experts}]`]);
  for (const [key, expected] of needed) {
    const info = checkpoint.tensors.get(key);
    if (!info) {
      problems.add(`${key} is missing, expected ${expected}`);
      continue;
    }
    const actual = `[${info.shape.join(", ")}]`;
    if (actual !== expected) problems.add(`${key} has shape ${actual}, expected ${expected}`);
    if (!["F32", "F16", "BF16", "F64"].includes(info.dtype))
      problems.add(`${key} has type ${info.dtype}, expected a float`);
  }
  for (const [key, info] of checkpoint.tensors) {
    if (shapes.has(key) || model.selectionBiases.some((bias) => bias.key === key)) continue;
    const repeated = model.aliases[key];
    if (repeated === undefined) problems.add(`${key} [${info.shape.join(", ")}] belongs to no parameter of this model`);
    else if (`[${info.shape.join(", ")}]` !== shapes.get(repeated))
      problems.add(
        `${key} has shape [${info.shape.join(", ")}], expected that of ${repeated}, ${shapes.get(repeated)}`,
      );
  }
  const error = problems.error();
  if (error) throw error;
}

/** Reads one parameter as f32, its experts one after another. Returns `elements(p.shape)` numbers. */
export async function readParameter(checkpoint: SafetensorsFile, p: ParameterSpec): Promise<Float32Array<ArrayBuffer>> {
  const data = new Float32Array(elements(p.shape));
  const size = data.length / p.keys.length;
  for (const [i, key] of p.keys.entries()) await checkpoint.readInto(key, data.subarray(i * size, (i + 1) * size));
  return data;
}

/** What a model directory holds. @throws InputError as {@link openModelDirectory} */
export async function describeModel(directory: string): Promise<ModelDescription> {
  const { model, config, checkpoint } = await openModelDirectory(directory);
  await checkpoint.close();
  return {
    modelType: model.modelType,
    parameters: model.parameters.reduce((n, p) => n + elements(p.shape), 0),
    config,
    groups: describeGroups(model.parameters),
    tensors: model.parameters.map((p) => matchedTensor(p)),
  };
}
