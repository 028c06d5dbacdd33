// The splits of an upload on their way to disk: read once, with every problem by split and line, written in the form that
// runs read, and described.
//
// What is stored is JSON Lines of examples (data/jsonl.ts), or plain text: a Parquet file's rows become lines, and a task's
// lines are written out, with their accepted answers, groups and labels beside the text. Nothing later meets another form.

import { Buffer } from "node:buffer";
import { once } from "node:events";
import { createWriteStream } from "node:fs";
import { rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { finished } from "node:stream/promises";
import { create } from "@bufbuild/protobuf";
import { DatasetFormat, type SplitDescription, SplitDescriptionSchema } from "../../../proto/gen/thaw/v1/dataset_pb.ts";
import { EXAMPLE_FIELDS, type Example, parseJsonl } from "../../trainer/data/jsonl.ts";
import type { ParquetColumns } from "../../trainer/data/parquet.ts";
import { openParquetReader, type ParquetReader } from "../../trainer/data/parquet_reader.ts";
import { readDocuments } from "../../trainer/data/plain_text.ts";
import { inputError } from "../../trainer/formats/problems.ts";
import { convertTask } from "../../trainer/tasks/convert.ts";
import type { TaskDefinition } from "../../trainer/tasks/task.ts";
import { InputError, type Problem } from "../../trainer/types.ts";
import { invalidArgument } from "../rpc/errors.ts";
import { splitFileName } from "../storage/layout.ts";
import type { ReceivedFile } from "../storage/upload.ts";

const FREQUENT_TARGETS = 20;

/** Where the bytes of a split arrive. */
export const receivedName = (split: string): string => `${split}.upload`;
const splitOf = ({ path }: ReceivedFile): string => path.slice(0, -".upload".length);

/** What the splits of an upload are. */
export interface UploadForm {
  readonly format: DatasetFormat;
  readonly task: TaskDefinition | undefined;
  /** Of a split as JSON Lines, however small its file was. */
  readonly maxBytes: number;
}

/**
 * Writes the splits in `directory` as they are stored, in place of the files received there.
 * @throws RpcError INVALID_ARGUMENT with the problems of all splits
 */
export async function storeSplits(
  directory: string,
  files: readonly ReceivedFile[],
  { format, task, maxBytes }: UploadForm,
): Promise<SplitDescription[]> {
  const problems: Problem[] = [];
  const described: SplitDescription[] = [];
  const parquet = format === DatasetFormat.PARQUET ? openParquetReader({ maxBytes }) : undefined;
  try {
    for (const file of files) {
      const split = splitOf(file);
      const received = join(directory, file.path);
      try {
        const target = join(directory, splitFileName(split, format));
        if (format === DatasetFormat.PLAIN_TEXT) {
          described.push(await describeText(split, file.bytes, received));
          await rename(received, target);
        } else {
          const examples = await storeSplit(received, target, split, task, parquet);
          described.push(describeSplit(split, file.bytes, examples));
        }
      } catch (error) {
        if (!(error instanceof InputError)) throw error;
        problems.push(...error.problems.map(({ message }) => ({ field: `splits.${split}`, message })));
      }
    }
  } finally {
    await parquet?.close();
  }
  if (problems.length > 0) throw invalidArgument(problems);
  return described;
}

async function storeSplit(
  received: string,
  target: string,
  split: string,
  task: TaskDefinition | undefined,
  parquet: ParquetReader | undefined,
): Promise<readonly Described[]> {
  let lines = received;
  if (parquet) {
    lines = `${received}.rows`;
    await parquet.toJsonl(received, lines, columnsOf(task));
    await rm(received);
  }
  const unit = parquet ? "row" : "line";
  if (!task) {
    const examples = await parseJsonl(lines, "", unit);
    await rename(lines, target);
    return examples;
  }
  const examples = await convertTask(task, lines, split === "train" ? "training" : "evaluation", "", unit);
  await writeLines(target, examples);
  await rm(lines);
  return examples;
}

/** Columns of examples, or those that a task's fields are in. */
function columnsOf(task: TaskDefinition | undefined): ParquetColumns {
  const { text, tokens, optional } = EXAMPLE_FIELDS;
  if (!task) return { read: [...text, ...tokens, ...optional], required: [text, tokens] };
  const outermost = (fields: TaskDefinition["fields"]) => [
    ...new Set(fields.map(({ path }) => path.split(".")[0].replace(/\[\]$/, ""))),
  ];
  return { read: outermost(task.fields), required: [outermost(task.fields.filter((field) => !field.optional))] };
}

async function writeLines(path: string, values: readonly unknown[]): Promise<void> {
  const file = createWriteStream(path, { flags: "wx" });
  const written = finished(file);
  written.catch(() => undefined); // Seen below, however early the file fails.
  for (const value of values) {
    if (!file.write(`${JSON.stringify(value)}\n`)) await Promise.race([once(file, "drain"), written]);
  }
  file.end();
  await written;
}

/** @throws InputError with the first line that is no text, or where there is none */
async function describeText(name: string, bytes: number, file: string): Promise<SplitDescription> {
  let documents = 0;
  let longest = 0;
  for await (const { text } of readDocuments(file)) {
    documents++;
    longest = Math.max(longest, Buffer.byteLength(text));
  }
  if (documents === 0) throw inputError("", ["the file has no text"]);
  return create(SplitDescriptionSchema, {
    split: { name, examples: BigInt(documents), sizeBytes: BigInt(bytes) },
    longestInputBytes: BigInt(longest),
  });
}

/** Examples as far as a description goes. */
type Described = Pick<Example, "task"> & ({ readonly input: string; readonly target: string } | object);

function describeSplit(name: string, bytes: number, examples: readonly Described[]): SplitDescription {
  const targets = new Map<string, number>();
  let longestInput = 0;
  let longestTarget = 0;
  for (const example of examples) {
    if (!("target" in example)) continue;
    targets.set(example.target, (targets.get(example.target) ?? 0) + 1);
    longestInput = Math.max(longestInput, Buffer.byteLength(example.input));
    longestTarget = Math.max(longestTarget, Buffer.byteLength(example.target));
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
