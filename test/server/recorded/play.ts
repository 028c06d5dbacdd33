// Requests as the client of a release sent them, byte for byte, and what it could read in the answers. `{version}.jsonl` has
// a call a line, in the order of the tour (test/support/tour.ts); `{version}.binpb` is the contract of that release, with
// which the answers are decoded, as that client does.
//
// What is remembered of an answer are its traits: which fields are filled, and the values of those that say what something
// is. Numbers, times, bytes and texts for people may come out otherwise on another server; their fields may not be empty.

import { Buffer } from "node:buffer";
import { readFileSync } from "node:fs";
import { createFileRegistry, type FileRegistry, fromBinary, ScalarType, toJson } from "@bufbuild/protobuf";
import { type ReflectMessage, reflect } from "@bufbuild/protobuf/reflect";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { type Client, Metadata, status } from "@grpc/grpc-js";
import { problemsOf } from "../../../clients/typescript/index.ts";
import { fromWire } from "../../../proto/rpc/status.ts";

const DEADLINE_MS = 60_000;
/** Chosen by the server: random ids, versions. */
const OWN = /^([a-z]+-[a-z2-9]{10}|\d+\.\d+\.\d+)$/;

export interface RecordedCall {
  /** `thaw.v1.RunService/CreateRun`. */
  readonly path: string;
  /** In base 64. */
  readonly requests: readonly string[];
  /** The replies are read until the JSON of one holds this; else to their end. */
  readonly until?: string;
  /** Sorted. Of a call that was refused: its code, its reason, and the fields that were wrong. */
  readonly answer: readonly string[];
}

export const fileOf = (name: string): URL => new URL(name, import.meta.url);

export const readContract = (version: string): FileRegistry =>
  createFileRegistry(fromBinary(FileDescriptorSetSchema, readFileSync(fileOf(`${version}.binpb`))));

/** Sends the recorded bytes as they are. @returns the traits of the answer, sorted */
export async function play(
  channel: Client,
  contract: FileRegistry,
  { path, requests, until }: Omit<RecordedCall, "answer">,
): Promise<string[]> {
  const [service, name] = path.split("/");
  const output = contract.getService(service)!.methods.find((method) => method.name === name)!.output;
  const asIs = (bytes: Buffer): Buffer => bytes;
  // On the wire the four kinds of call are one: messages, an end, messages and a status.
  const call = channel.makeBidiStreamRequest(`/${path}`, asIs, asIs, new Metadata(), {
    deadline: Date.now() + DEADLINE_MS,
  });
  const traits = new Set<string>();
  try {
    for (const request of requests) call.write(Buffer.from(request, "base64"));
    call.end();
    for await (const bytes of call) {
      const message = fromBinary(output, new Uint8Array(bytes as Buffer));
      for (const trait of traitsOf(reflect(output, message), "")) traits.add(trait);
      if (until !== undefined && JSON.stringify(toJson(output, message, { registry: contract })).includes(until)) break;
    }
  } catch (error) {
    const { code, reason, fields } = problemsOf(fromWire(error));
    if (code === status[status.DEADLINE_EXCEEDED]) throw error;
    return [`code ${code}`, `reason ${reason}`, ...fields.map(({ field }) => `field ${field}`)].sort();
  } finally {
    call.cancel();
  }
  return [...traits].sort();
}

function* traitsOf(message: ReflectMessage, at: string): Generator<string> {
  for (const field of message.fields) {
    if (!message.isSet(field)) continue;
    const path = at ? `${at}.${field.name}` : field.name;
    switch (field.fieldKind) {
      case "message":
        yield* inMessage(message.get(field), path);
        break;
      case "list":
        for (const item of message.get(field)) {
          if (field.listKind === "message") yield* inMessage(item as ReflectMessage, `${path}[]`);
          else yield `${path}[]${said(field, item)}`;
        }
        break;
      case "map":
        for (const [key, value] of message.get(field)) {
          if (field.mapKind === "message") yield* inMessage(value as ReflectMessage, `${path}[${String(key)}]`);
          else yield `${path}[${String(key)}]${said(field, value)}`;
        }
        break;
      default:
        yield `${path}${said(field, message.get(field))}`;
    }
  }
}

/** Google's own messages are values; times and durations, mostly. */
function* inMessage(message: ReflectMessage, path: string): Generator<string> {
  yield path;
  if (!message.desc.typeName.startsWith("google.protobuf.")) yield* traitsOf(message, path);
}

/** ` = value` where the value says what something is, else nothing. */
function said(
  {
    scalar,
    enum: type,
  }: {
    readonly scalar?: ScalarType;
    readonly enum?: { readonly value: Readonly<Record<number, { readonly name: string }>> };
  },
  value: unknown,
): string {
  if (type) return ` = ${type.value[Number(value)]?.name ?? `unknown ${value}`}`;
  if (scalar === ScalarType.BOOL) return ` = ${value}`;
  if (scalar !== ScalarType.STRING || OWN.test(String(value)) || / /.test(String(value))) return "";
  return ` = ${String(value).replace(/step-\d+(-\d+)?$/, "step-…")}`;
}
