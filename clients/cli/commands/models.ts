// `thaw models …`: register, look at, ask, score and fetch models.

import process from "node:process";
import { text } from "node:stream/consumers";
import type { MessageInitShape } from "@bufbuild/protobuf";
import type { Command } from "commander";
import { ExportModelResponseSchema } from "../../../proto/gen/thaw/v1/checkpoint_service_pb.ts";
import { EvaluationResultSchema } from "../../../proto/gen/thaw/v1/evaluation_pb.ts";
import { GenerationSchema, type Model, ModelOriginSchema, ModelSchema } from "../../../proto/gen/thaw/v1/model_pb.ts";
import {
  DeleteModelResponseSchema,
  DescribeModelResponseSchema,
  type GenerateRequestSchema,
  ListModelsResponseSchema,
} from "../../../proto/gen/thaw/v1/model_service_pb.ts";
import { downloadFiles, uploadModel } from "../../typescript/index.ts";
import { evaluationText } from "../events.ts";
import { bytes, count, enumName, fields, id, metric, resource, table, time } from "../format.ts";
import { allPages } from "../pages.ts";
import { integer, real, smallInteger } from "../parse.ts";
import { messageJson, note, print, type Session, show, UsageError, withSession } from "../session.ts";
import { groupTable } from "./groups.ts";

/** Inputs that one Generate call takes. */
const INPUTS_PER_CALL = 256;

interface NewModelFlags {
  readonly id?: string;
  readonly name?: string;
}

interface GenerateFlags {
  readonly maxNewTokens?: bigint;
  readonly maxInputTokens?: bigint;
  readonly temperature?: number;
  readonly topP?: number;
  readonly seed?: bigint;
  readonly beams?: number;
  readonly lengthPenalty?: number;
  readonly routes?: boolean;
}

interface EvaluateFlags {
  readonly dataset?: string;
  readonly split?: string;
  readonly maxExamples?: bigint;
}

export function addModels(program: Command): void {
  const models = program.command("models").description("models to fine-tune, ask and score");
  naming(
    models.command("load <directory>").description("register a directory under the server's models folder"),
  ).action(withSession(load));
  naming(models.command("upload <directory>").description("upload a Hugging Face directory")).action(
    withSession(upload),
  );
  models.command("list").description("models, newest first").action(withSession(list));
  models.command("describe <model>").description("what a model holds").action(withSession(describe));
  models
    .command("generate <model> [texts...]")
    .description("generation by a model or a run, greedy unless told; without texts, one input per line of stdin")
    .option("--max-new-tokens <n>", "tokens generated at most", integer)
    .option("--max-input-tokens <n>", "tokens an input is cut to", integer)
    .option("--temperature <x>", "draw each token, with this temperature", real)
    .option("--top-p <x>", "draw each token, from the most probable ones that hold so much of the probability", real)
    .option("--seed <n>", "draw each token, with this seed", integer)
    .option("--beams <n>", "beam search with so many beams", smallInteger)
    .option("--length-penalty <x>", "beam search; more favours longer texts", real)
    .option("--routes", "with --json: where the tokens went")
    .action(withSession(generate));
  models
    .command("evaluate <model>")
    .description("scores of a model or a run on a split")
    .option("--dataset <name>", "the data; a run has its own")
    .option("--split <name>", "the split")
    .option("--max-examples <n>", "at most so many; 0 means all", integer)
    .action(withSession(evaluate));
  addExport(models);
  models
    .command("delete <model>")
    .description("delete a model")
    .action(
      withSession(async (session, model: string) => {
        const name = resource("models", model);
        const response = await session.thaw.models.deleteModel({ name });
        show(session, DeleteModelResponseSchema, response, () => `${name} deleted`);
        return undefined;
      }),
    );
}

/** The export command, which stands under `models` and under `checkpoints`. */
export function addExport(parent: Command): void {
  naming(parent.command("export <source>"))
    .description("a run's or a checkpoint's parameters as a model (Hugging Face); --to also fetches it, or any model")
    .option("--to <directory>", "write the files here; must not exist")
    .action(withSession(exportModel));
}

const naming = (command: Command): Command =>
  command
    .option("--id <id>", "the id in models/{model}; chosen by the server when left out")
    .option("--name <text>", "a name for people");

async function load(session: Session, directory: string, flags: NewModelFlags) {
  const { model } = await session.thaw.models.loadModel({ directory, modelId: flags.id, displayName: flags.name });
  show(session, ModelSchema, model!, modelLine);
  return undefined;
}

async function upload(session: Session, directory: string, flags: NewModelFlags) {
  const model = await uploadModel(session.thaw, directory, { modelId: flags.id, displayName: flags.name });
  show(session, ModelSchema, model, modelLine);
  return undefined;
}

const modelLine = ({ name, modelType, parameters, sizeBytes }: Model): string =>
  `${name}  ${modelType}, ${metric(parameters)} parameters, ${bytes(sizeBytes)}`;

async function list(session: Session) {
  const response = await allPages(ListModelsResponseSchema, "models", (page) => session.thaw.models.listModels(page));
  show(session, ListModelsResponseSchema, response, ({ models }) =>
    table(
      [
        { title: "MODEL" },
        { title: "TYPE" },
        { title: "PARAMETERS", figures: true },
        { title: "SIZE", figures: true },
        { title: "ORIGIN" },
        { title: "CREATED" },
      ],
      models.map((model) => [
        id(model.name),
        model.modelType,
        count(model.parameters),
        bytes(model.sizeBytes),
        [enumName(ModelOriginSchema, model.origin).toLowerCase(), model.source].filter(Boolean).join(" from "),
        time(model.createTime),
      ]),
      "no models",
    ),
  );
  return undefined;
}

async function describe(session: Session, model: string) {
  const response = await session.thaw.models.describeModel({ name: resource("models", model) });
  show(session, DescribeModelResponseSchema, response, ({ model, description }) => {
    const head: [string, string][] = [
      ["model", model?.name ?? ""],
      ["name", model?.displayName ?? ""],
      ["type", description?.modelType ?? ""],
      ["parameters", count(description?.parameters ?? 0n)],
      ["size", bytes(model?.sizeBytes ?? 0n)],
    ];
    // Numbers and switches of config.json; lists and objects are for --json.
    const config = Object.entries(description?.config ?? {})
      .filter(([, value]) => typeof value !== "object")
      .map(([key, value]): [string, string] => [`  ${key}`, String(value)]);
    return `${fields(head)}\n\n${groupTable(description?.groups ?? [])}\n\nconfig.json\n${fields(config)}`;
  });
  return undefined;
}

async function generate(session: Session, model: string, texts: readonly string[], flags: GenerateFlags) {
  const inputs = texts.length > 0 ? texts : lines(await text(process.stdin));
  if (inputs.length === 0) throw new UsageError("no input texts");
  const { maxNewTokens, maxInputTokens, routes: includeRoutes } = flags;
  const decoding = decodingOf(flags);
  for (let at = 0; at < inputs.length; at += INPUTS_PER_CALL) {
    const request = {
      name: resource("models", model),
      inputs: inputs.slice(at, at + INPUTS_PER_CALL),
      maxNewTokens,
      maxInputTokens,
      includeRoutes,
      decoding,
    };
    for await (const { generation } of session.thaw.models.generate(request)) {
      print(session.json ? JSON.stringify(messageJson(GenerationSchema, generation!)) : generation!.text);
    }
  }
  return undefined;
}

/** Greedy unless a flag of drawing or of beam search is there. @throws UsageError when there are both */
function decodingOf(flags: GenerateFlags): MessageInitShape<typeof GenerateRequestSchema>["decoding"] {
  const { temperature, topP, seed, beams, lengthPenalty } = flags;
  const draws = [temperature, topP, seed].some((flag) => flag !== undefined);
  const searches = [beams, lengthPenalty].some((flag) => flag !== undefined);
  if (draws && searches) throw new UsageError("--temperature, --top-p and --seed do not go with beam search");
  if (draws) return { case: "sample", value: { temperature, topP, seed } };
  if (searches) return { case: "beam", value: { beams, lengthPenalty } };
  return undefined;
}

const lines = (all: string): string[] => all.split(/\r?\n/).filter((line) => line !== "");

async function evaluate(session: Session, model: string, { dataset, split, maxExamples }: EvaluateFlags) {
  const { result } = await session.thaw.models.evaluate({
    name: resource("models", model),
    dataset: dataset === undefined ? undefined : resource("datasets", dataset),
    split,
    maxExamples,
  });
  show(session, EvaluationResultSchema, result!, evaluationText);
  return undefined;
}

async function exportModel(session: Session, source: string, flags: NewModelFlags & { readonly to?: string }) {
  const name = resource("runs", source);
  if (name.startsWith("models/")) {
    if (flags.to === undefined) throw new UsageError(`${name} is a model already; --to fetches its files`);
    await fetchModel(session, name, flags.to);
    return undefined;
  }
  const request = { source: name, modelId: flags.id, displayName: flags.name };
  const response = await session.thaw.checkpoints.exportModel(request);
  show(session, ExportModelResponseSchema, response, ({ model, step }) => `${modelLine(model!)}, after step ${step}`);
  if (flags.to !== undefined) await fetchModel(session, response.model!.name, flags.to);
  return undefined;
}

async function fetchModel(session: Session, name: string, directory: string): Promise<void> {
  const files = await downloadFiles(session.thaw.models.downloadModel({ name }), directory);
  note(`${count(files.length)} files, ${bytes(files.reduce((sum, f) => sum + f.sizeBytes, 0n))}, in ${directory}`);
}
