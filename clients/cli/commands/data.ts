// `thaw data …`: upload and look at datasets.

import { readdir, readFile, stat } from "node:fs/promises";
import { extname, join } from "node:path";
import type { Command } from "commander";
import {
  type Dataset,
  DatasetFormat,
  DatasetFormatSchema,
  DatasetSchema,
  type DatasetTask,
} from "../../../proto/gen/thaw/v1/dataset_pb.ts";
import {
  DeleteDatasetResponseSchema,
  DescribeDatasetResponseSchema,
  ListDatasetsResponseSchema,
  PreviewBatchesResponseSchema,
} from "../../../proto/gen/thaw/v1/dataset_service_pb.ts";
import { type Batching, BatchingSchema } from "../../../proto/gen/thaw/v1/run_pb.ts";
import { splitOfFile, uploadDataset } from "../../typescript/index.ts";
import { bytes, count, id, resource, table, time } from "../format.ts";
import { allPages } from "../pages.ts";
import { enumValue, integer } from "../parse.ts";
import { type Session, show, UsageError, withSession } from "../session.ts";

interface PreviewFlags {
  readonly model: string;
  readonly split?: string;
  readonly batchSize?: bigint;
  readonly batching?: Batching;
  readonly maxInputTokens?: bigint;
  readonly maxTargetTokens?: bigint;
  readonly seed?: bigint;
  readonly firstStep?: bigint;
  readonly batches?: bigint;
}

export function addData(program: Command): void {
  const data = program.command("data").description("datasets");
  data
    .command("upload <paths...>")
    .description("upload data: files named after their split (train.jsonl), split=file, or a folder of such files")
    .option(
      "--format <format>",
      "jsonl, parquet, plain_text; by the files' names when left out",
      enumValue(DatasetFormatSchema),
    )
    .option("--task <task>", "what the lines are of: superglue/boolq and the like, or a task file (examples/tasks)")
    .option("--id <id>", "the id in datasets/{dataset}; chosen by the server when left out")
    .option("--name <text>", "a name for people")
    .action(withSession(upload));
  data.command("list").description("datasets, newest first").action(withSession(list));
  data.command("describe <dataset>").description("what is in a dataset").action(withSession(describe));
  data
    .command("preview <dataset>")
    .description("the batches a run would train on")
    .requiredOption("--model <name>", "whose tokenizer is used")
    .option("--split <name>", "the split")
    .option("--batch-size <n>", "rows of a batch", integer)
    .option("--batching <how>", "padded, packed, bucketed", enumValue(BatchingSchema))
    .option("--max-input-tokens <n>", "tokens an input is cut to", integer)
    .option("--max-target-tokens <n>", "tokens a target is cut to", integer)
    .option("--seed <n>", "seeds the order", integer)
    .option("--first-step <n>", "the first step to show", integer)
    .option("--batches <n>", "batches to show", integer)
    .action(withSession(preview));
  data
    .command("delete <dataset>")
    .description("delete a dataset")
    .action(
      withSession(async (session, dataset: string) => {
        const name = resource("datasets", dataset);
        const response = await session.thaw.datasets.deleteDataset({ name });
        show(session, DeleteDatasetResponseSchema, response, () => `${name} deleted`);
        return undefined;
      }),
    );
}

async function upload(
  session: Session,
  paths: readonly string[],
  flags: { readonly id?: string; readonly name?: string; readonly task?: string; readonly format?: DatasetFormat },
) {
  const splits: Record<string, string> = {};
  for (const [split, path] of (await Promise.all(paths.map(splitFiles))).flat()) {
    if (splits[split]) throw new UsageError(`the split ${split} is given twice: ${splits[split]} and ${path}`);
    splits[split] = path;
  }
  const task = flags.task === undefined ? undefined : await taskOf(flags.task);
  const format = flags.format ?? formatOf(Object.values(splits));
  const header = { datasetId: flags.id, displayName: flags.name, format, task };
  const dataset = await uploadDataset(session.thaw, header, splits);
  show(session, DatasetSchema, dataset, ({ name, task, sizeBytes }) => {
    return `${name}  ${splitsText(dataset)}, ${bytes(sizeBytes)}${task ? `, ${taskText(task)}` : ""}`;
  });
  return undefined;
}

/** A task file, or the name of a task that the server knows. */
async function taskOf(typed: string) {
  return typed.endsWith(".json")
    ? { case: "taskDefinition" as const, value: await readFile(typed, "utf8") }
    : { case: "readyTask" as const, value: typed };
}

const FORMATS: Readonly<Record<string, DatasetFormat>> = {
  ".parquet": DatasetFormat.PARQUET,
  ".txt": DatasetFormat.PLAIN_TEXT,
};

/** What files are by their names; JSONL where these say nothing. */
function formatOf(paths: readonly string[]): DatasetFormat {
  const formats = new Set(paths.map((path) => FORMATS[extname(path)] ?? DatasetFormat.JSONL));
  if (formats.size > 1) throw new UsageError(`a dataset has one format; these are of several: ${paths.join(", ")}`);
  return [...formats][0] ?? DatasetFormat.JSONL;
}

/** Split and file of what was typed: `split=file`, `train.jsonl`, or a folder of data files. */
async function splitFiles(typed: string): Promise<[string, string][]> {
  const named = /^([a-z0-9_]+)=(.+)$/.exec(typed);
  if (named) return [[named[1], named[2]]];
  if (!(await stat(typed)).isDirectory()) return [[splitOfFile(typed), typed]];
  const names = (await readdir(typed)).sort();
  const examples = names.filter((name) => /\.(jsonl|parquet)$/.test(name));
  // Beside examples, a text is rather about them.
  const files = examples.length > 0 ? examples : names.filter((name) => name.endsWith(".txt"));
  if (files.length === 0) throw new UsageError(`${typed} holds no .jsonl, .parquet or .txt files`);
  const splits = files.map((name): [string, string] => [splitOfFile(name), join(typed, name)]);
  return splits.sort(([a], [b]) => rank(a) - rank(b));
}

/** The usual splits first, in the usual order. */
function rank(split: string): number {
  const usual = ["train", "validation", "test"].indexOf(split);
  return usual < 0 ? 3 : usual;
}

const splitsText = ({ splits }: Dataset): string =>
  splits.map(({ name, examples }) => `${name} ${count(examples)}`).join(", ");

/** `superglue/cb: f1_macro, accuracy`. */
const taskText = ({ name, metrics }: DatasetTask): string => `${name}: ${metrics.join(", ")}`;

async function list(session: Session) {
  const response = await allPages(ListDatasetsResponseSchema, "datasets", (page) =>
    session.thaw.datasets.listDatasets(page),
  );
  show(session, ListDatasetsResponseSchema, response, ({ datasets }) =>
    table(
      [
        { title: "DATASET" },
        { title: "TASK" },
        { title: "EXAMPLES" },
        { title: "SIZE", figures: true },
        { title: "CREATED" },
      ],
      datasets.map((d) => [id(d.name), d.task?.name ?? "", splitsText(d), bytes(d.sizeBytes), time(d.createTime)]),
      "no datasets",
    ),
  );
  return undefined;
}

async function describe(session: Session, dataset: string) {
  const response = await session.thaw.datasets.describeDataset({ name: resource("datasets", dataset) });
  show(session, DescribeDatasetResponseSchema, response, ({ dataset, splits }) => {
    const shown = table(
      [
        { title: "SPLIT" },
        { title: "EXAMPLES", figures: true },
        { title: "SIZE", figures: true },
        { title: "LONGEST INPUT", figures: true },
        { title: "LONGEST TARGET", figures: true },
        { title: "TARGETS", figures: true },
        { title: "MOST FREQUENT" },
      ],
      splits.map((s) => [
        s.split?.name ?? "",
        count(s.split?.examples ?? 0n),
        bytes(s.split?.sizeBytes ?? 0n),
        bytes(s.longestInputBytes),
        bytes(s.longestTargetBytes),
        count(s.distinctTargets),
        s.frequentTargets
          .slice(0, 3)
          .map((t) => `${cut(t.target, 24)} ${count(t.examples)}`)
          .join(", "),
      ]),
      "no splits",
    );
    return dataset?.task ? `${taskText(dataset.task)}\n${shown}` : shown;
  });
  return undefined;
}

async function preview(session: Session, dataset: string, { model, ...flags }: PreviewFlags) {
  const response = await session.thaw.datasets.previewBatches({
    dataset: resource("datasets", dataset),
    model: resource("models", model),
    ...flags,
  });
  show(session, PreviewBatchesResponseSchema, response, ({ batches, examples, truncatedInputs, truncatedTargets }) => {
    const rows = batches.flatMap(({ step, examples }) =>
      examples.map((e) => [
        String(step),
        String(e.row),
        String(e.exampleId),
        `${e.inputTokenIds.length}${e.inputTruncated ? " cut" : ""}`,
        `${e.targetTokenIds.length}${e.targetTruncated ? " cut" : ""}`,
        cut(e.input || e.inputTokenIds.join(" "), 60),
        cut(e.target || e.targetTokenIds.join(" "), 24),
      ]),
    );
    const columns = [
      { title: "STEP", figures: true },
      { title: "ROW", figures: true },
      { title: "EXAMPLE", figures: true },
      { title: "INPUT TOKENS", figures: true },
      { title: "TARGET TOKENS", figures: true },
      { title: "INPUT" },
      { title: "TARGET" },
    ];
    const cuts = `${count(truncatedInputs)} inputs and ${count(truncatedTargets)} targets cut`;
    return `${table(columns, rows, "no batches")}\n${count(examples)} examples, ${cuts}`;
  });
  return undefined;
}

/** Text on one line, at most `width` characters. */
function cut(text: string, width: number): string {
  const line = [...text.replaceAll(/\s+/g, " ")];
  return line.length <= width ? line.join("") : `${line.slice(0, width - 1).join("")}…`;
}
