// Registering models: what a directory holds is read by the GPU process without its GPU, with every problem at once, and
// kept, so that groups and selectors need no process later.

import { existsSync } from "node:fs";
import { realpath } from "node:fs/promises";
import { join, sep } from "node:path";
import { create } from "@bufbuild/protobuf";
import { timestampNow } from "@bufbuild/protobuf/wkt";
import { status } from "@grpc/grpc-js";
import { type Model, type ModelDescription, ModelOrigin, ModelSchema } from "../../../proto/gen/thaw/v1/model_pb.ts";
import type { Core } from "../core.ts";
import { forCaller } from "../gpu/failures.ts";
import { newId } from "../ids.ts";
import { type Answer, NameTakenError } from "../registry/registry.ts";
import { refusal } from "../rpc/errors.ts";
import { discard, filesOf, publish } from "../storage/layout.ts";
import { invalidField } from "../validation/problems.ts";

export interface ModelInit {
  /** "": chosen by the server. */
  readonly id: string;
  readonly displayName: string;
  readonly origin: ModelOrigin;
  /** The run or checkpoint it was exported from. */
  readonly source: string;
}

type AnswerTo = (model: Model) => Answer | undefined;

async function describe({ gpu }: Core, directory: string): Promise<ModelDescription> {
  const reply = await forCaller(gpu.request({ case: "describeModel", value: { directory } }));
  if (reply.result.case !== "description") throw new Error(`DescribeModel answered with ${reply.result.case}`);
  return reply.result.value;
}

const taken = (name: string) => refusal(status.ALREADY_EXISTS, "NAME_TAKEN", `${name} exists`, { name });

async function register(
  core: Core,
  description: ModelDescription,
  init: ModelInit,
  name: string,
  directory: string,
  sizeBytes: number,
  answerTo: AnswerTo,
): Promise<Model> {
  const { displayName, origin, source } = init;
  const { modelType, parameters } = description;
  const about = { name, displayName, modelType, parameters, sizeBytes: BigInt(sizeBytes), origin, source };
  const model = create(ModelSchema, { ...about, createTime: timestampNow() });
  try {
    await core.registry.createModel({ model, description, directory }, answerTo(model));
  } catch (error) {
    throw error instanceof NameTakenError ? taken(name) : error;
  }
  return model;
}

const sizeOf = async (directory: string): Promise<number> =>
  (await filesOf(directory)).reduce((sum, file) => sum + file.bytes, 0);

/** Moves a finished temporary folder among the server's models, and registers it. Nothing is left when it fails. */
export async function registerManaged(
  core: Core,
  directory: string,
  init: ModelInit,
  answerTo: AnswerTo = () => undefined,
): Promise<Model> {
  const id = init.id || newId("model");
  const target = join(core.layout.models, id);
  const description = await describe(core, directory);
  const bytes = await sizeOf(directory);
  if (existsSync(target) || (await core.registry.model(id))) throw taken(`models/${id}`);
  publish(directory, target);
  try {
    return await register(core, description, init, `models/${id}`, id, bytes, answerTo);
  } catch (error) {
    await discard(target);
    throw error;
  }
}

/** Registers a directory below one of the configured roots, where it stays. */
export async function registerLoaded(
  core: Core,
  path: string,
  init: Omit<ModelInit, "origin" | "source">,
  answerTo: AnswerTo,
): Promise<Model> {
  const directory = await confined(core.settings.modelRoots, path);
  const description = await describe(core, directory);
  const name = `models/${init.id || newId("model")}`;
  const whole = { ...init, origin: ModelOrigin.LOADED, source: "" };
  return register(core, description, whole, name, directory, await sizeOf(directory), answerTo);
}

/**
 * The real path of a directory below one of the roots. Links are followed first, the directory's and its files': nothing
 * outside the roots is read.
 */
async function confined(roots: readonly string[], path: string): Promise<string> {
  if (roots.length === 0) {
    throw refusal(
      status.FAILED_PRECONDITION,
      "NO_MODELS_FOLDER",
      "the server was started without a models folder (--models DIR); UploadModel works without one",
    );
  }
  for (const root of roots) {
    const real = await realpath(root).catch(() => undefined);
    const directory = real && (await realpath(join(real, path)).catch(() => undefined));
    if (!real || !directory) continue;
    const inside = (file: string): boolean => file === real || file.startsWith(real.endsWith(sep) ? real : real + sep);
    const files = inside(directory) ? await filesOf(directory).catch(() => undefined) : undefined;
    if (!files) continue;
    const targets = await Promise.all(files.map((file) => realpath(join(directory, file.path))));
    if (targets.every(inside)) return directory;
    throw invalidField("directory", "holds links that lead out of the server's models folder");
  }
  throw invalidField("directory", "there is no such directory in the server's models folder");
}
