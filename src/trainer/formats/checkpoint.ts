// The weights of a Hugging Face model directory as one file, whether they are one `model.safetensors` or shards listed
// by `model.safetensors.index.json`: {"weight_map": {tensor name: shard file name}}.

import { access, readFile } from "node:fs/promises";
import { join } from "node:path";
import type { InputError } from "../types.ts";
import { inputError } from "./problems.ts";
import { openSafetensors, type SafetensorsFile, type TensorInfo } from "./safetensors.ts";

const SINGLE = "model.safetensors";
const INDEX = "model.safetensors.index.json";

const exists = (path: string): Promise<boolean> =>
  access(path).then(
    () => true,
    () => false,
  );

/** A file of the same directory; an index is a stranger's file and may not point elsewhere. */
const isShardName = (name: unknown): name is string => typeof name === "string" && /^[\w.-]+\.safetensors$/.test(name);

async function readWeightMap(path: string): Promise<Map<string, string>> {
  let weightMap: unknown;
  try {
    weightMap = JSON.parse(await readFile(path, "utf8"))?.weight_map;
  } catch {
    throw inputError(INDEX, ["is not JSON"]);
  }
  if (typeof weightMap !== "object" || weightMap === null || Array.isArray(weightMap)) {
    throw inputError(INDEX, ["weight_map is not an object"]);
  }
  const entries = Object.entries(weightMap);
  const bad = entries.filter(([, shard]) => !isShardName(shard));
  if (bad.length > 0) {
    throw inputError(
      INDEX,
      bad.map(([name, shard]) => `tensor ${JSON.stringify(name)} is in ${JSON.stringify(shard)}, not a shard's name`),
    );
  }
  return new Map(entries);
}

/**
 * Opens all weights of a model directory. `model.safetensors` is taken when both forms exist, as transformers does.
 *
 * @throws InputError listing every missing or malformed shard and every tensor its shard does not hold
 */
export async function openCheckpoint(directory: string): Promise<SafetensorsFile> {
  if (await exists(join(directory, SINGLE))) return openSafetensors(join(directory, SINGLE));
  if (!(await exists(join(directory, INDEX)))) throw inputError(SINGLE, [`neither this file nor ${INDEX} exists`]);
  const weightMap = await readWeightMap(join(directory, INDEX));

  const shards = new Map<string, SafetensorsFile>();
  const close = async (): Promise<void> => {
    await Promise.all([...shards.values()].map((shard) => shard.close()));
  };
  const problems: string[] = [];
  for (const name of [...new Set(weightMap.values())].sort()) {
    try {
      shards.set(name, await openSafetensors(join(directory, name)));
    } catch (error) {
      if ((error as Error).name !== "InputError") throw error;
      problems.push(...(error as InputError).problems.map((problem) => problem.message));
    }
  }
  const tensors = new Map<string, TensorInfo>();
  for (const [name, shardName] of weightMap) {
    const info = shards.get(shardName)?.tensors.get(name);
    if (info) tensors.set(name, info);
    else if (shards.has(shardName)) problems.push(`${shardName} has no tensor ${JSON.stringify(name)}`);
  }
  if (problems.length > 0) {
    await close();
    throw inputError(INDEX, problems);
  }

  const shardOf = (name: string): SafetensorsFile => {
    const shardName = weightMap.get(name);
    if (shardName === undefined) throw inputError(INDEX, [`has no tensor ${JSON.stringify(name)}`]);
    return shards.get(shardName)!;
  };
  return {
    tensors,
    metadata: Object.assign({}, ...[...shards.values()].map((shard) => shard.metadata)),
    read: async (name) => shardOf(name).read(name),
    readInto: async (name, target) => shardOf(name).readInto(name, target),
    close,
  };
}
