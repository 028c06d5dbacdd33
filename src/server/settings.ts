// Every setting of the server: one table from which flags, environment variables, the configuration file's keys, defaults,
// `--help` and `--print-config` follow. A flag wins over the environment, the environment over the file.

import { homedir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { FORMATS, LEVELS, type LogOptions } from "./log.ts";
import { oneOf, onOff, path, paths, type Setting, text, url, type Values, whole } from "./settings/kinds.ts";
import { type Environment, givenSettings, keyOf, variableOf } from "./settings/sources.ts";

export interface Limits {
  /** Largest message received. */
  readonly maxMessageBytes: number;
  /** Streams per connection. */
  readonly maxConcurrentStreams: number;
  readonly maxQueuedRuns: number;
  /** Bytes of one dataset or model upload. */
  readonly maxUploadBytes: number;
  /** Subscribers of one run's assignments. */
  readonly maxAssignmentSubscribers: number;
  /** Messages buffered per subscriber before some are dropped. */
  readonly assignmentBufferMessages: number;
}

export interface Settings {
  readonly host: string;
  /** 0: any free port. */
  readonly port: number;
  readonly dataDirectory: string;
  /** Folders that LoadModel may read from. */
  readonly modelRoots: readonly string[];
  readonly insecure: boolean;
  /** Undefined: hardware where there is some. */
  readonly adapter: "hardware" | "software" | undefined;
  readonly limits: Limits;
  /** How long the run on the GPU may take to be checkpointed when the server stops. */
  readonly stopSeconds: number;
  readonly log: Pick<LogOptions, "level" | "format">;
  /** Undefined: no metrics. 0: any free port. */
  readonly metricsPort: number | undefined;
  /** Undefined: no event files. */
  readonly tensorBoardDirectory: string | undefined;
  /** An OTLP/HTTP collector's; undefined: no traces. */
  readonly otlpEndpoint: string | undefined;
}

const MIB = 2 ** 20;
const GIB = 2 ** 30;
const MOST = 2 ** 31 - 1;

const TABLE = {
  host: text("127.0.0.1", "ADDRESS", "address to listen on"),
  port: whole(50051, [0, 65535], "PORT", "port; 0 takes a free one"),
  "data-dir": path(
    join(homedir(), ".local", "share", "thaw"),
    "DIR",
    "registry, models, datasets, checkpoints [~/.local/share/thaw]",
  ),
  models: paths("DIR", "folder LoadModel may read from; repeatable (in the variable separated by `:`)"),
  adapter: oneOf(
    undefined,
    ["hardware", "software"],
    "KIND",
    "`hardware` or `software` [hardware where there is some]",
  ),
  "max-message-bytes": whole(16 * MIB, [64 * 1024, MOST], "N", "largest message received"),
  "max-concurrent-streams": whole(256, [1, MOST], "N", "streams per connection"),
  "max-queued-runs": whole(64, [0, MOST], "N", "runs waiting for a GPU"),
  "max-upload-bytes": whole(16 * GIB, [0, Number.MAX_SAFE_INTEGER], "N", "bytes of one dataset or model upload"),
  "max-assignment-subscribers": whole(256, [0, MOST], "N", "subscribers of one run's assignments"),
  "assignment-buffer-messages": whole(64, [1, MOST], "N", "messages buffered per subscriber before some are dropped"),
  "stop-seconds": whole(60, [1, 3600], "N", "how long a stop waits for the run on the GPU to be checkpointed"),
  "log-level": oneOf("info", LEVELS, "LEVEL", `least of ${LEVELS.join(", ")} that is logged [info]`),
  "log-format": oneOf("text", FORMATS, "FORM", "`text` for people or `json`, an object a line [text]"),
  "metrics-port": whole(undefined, [0, 65535], "PORT", "Prometheus metrics on 127.0.0.1:PORT/metrics [none]"),
  "tensorboard-dir": path(undefined, "DIR", "TensorBoard event files of every run, a folder each [none]"),
  "otlp-endpoint": url(undefined, "URL", "OTLP/HTTP collector that gets a trace of every call [none]"),
  insecure: onOff("listen beyond this machine without encryption and without a token"),
} as const;

const ENTRIES: readonly (readonly [string, Setting<unknown>])[] = Object.entries(TABLE);

/** What is wrong with the command line, the environment or the configuration file, in words for who wrote it. */
export class UsageError extends Error {
  override name = "UsageError";
}

const line = (option: string, words: string): string => `  ${option.padEnd(34)} ${words}`;

export const HELP = [
  "usage: serve [options]    (each also as an environment variable, or as a key of the configuration file)",
  "",
  ...ENTRIES.map(([name, { value, fallback, help }]) => {
    const shown = typeof fallback === "number" || name === "host" ? ` [${fallback}]` : "";
    return line(`--${name} ${value ?? ""}`, `${help}${shown}  (${variableOf(name)})`);
  }),
  line("--config FILE", `YAML or JSON, keys as the options with _ for -  (${variableOf("config")})`),
  line("--print-config", "print the settings in force as a configuration file, with where each is from, and end"),
].join("\n");

const LOOPBACK = /^(localhost|127(\.\d{1,3}){3}|::1)$/;

interface Resolved {
  readonly values: Values<typeof TABLE>;
  /** For people, by name: where the value is from. */
  readonly places: ReadonlyMap<string, string>;
}

/** @throws UsageError naming everything that is wrong */
function resolveSettings(args: readonly string[], env: Environment): Resolved {
  const problems: string[] = [];
  const given = givenSettings(TABLE, args, env, problems);
  const values: Record<string, unknown> = {};
  for (const [name, setting] of ENTRIES) {
    const source = given.get(name);
    const result = source ? setting.read(source) : { value: setting.fallback };
    if ("value" in result) values[name] = result.value;
    else problems.push(`${source?.place} is "${source?.texts.at(-1)}"; it must ${result.must}`);
  }
  const read = values as Values<typeof TABLE>;
  if (!LOOPBACK.test(read.host) && !read.insecure) {
    problems.push(
      `${given.get("host")?.place} ${read.host} is reachable from other machines, without encryption and without a ` +
        "token; say --insecure if that is what you want (TLS and tokens are not there yet)",
    );
  }
  if (problems.length > 0) throw new UsageError(problems.join("\n"));
  return { values: read, places: new Map([...given].map(([name, { place }]) => [name, place])) };
}

/**
 * Settings from flags, then the environment, then the configuration file that one of the two names, then defaults.
 * @throws UsageError naming everything that is wrong
 */
export function readSettings(args: readonly string[], env: Environment): Settings {
  const { values } = resolveSettings(args, env);
  return {
    host: values.host,
    port: values.port,
    dataDirectory: values["data-dir"],
    modelRoots: values.models,
    insecure: values.insecure,
    adapter: values.adapter,
    limits: {
      maxMessageBytes: values["max-message-bytes"],
      maxConcurrentStreams: values["max-concurrent-streams"],
      maxQueuedRuns: values["max-queued-runs"],
      maxUploadBytes: values["max-upload-bytes"],
      maxAssignmentSubscribers: values["max-assignment-subscribers"],
      assignmentBufferMessages: values["assignment-buffer-messages"],
    },
    stopSeconds: values["stop-seconds"],
    log: { level: values["log-level"], format: values["log-format"] },
    metricsPort: values["metrics-port"],
    tensorBoardDirectory: values["tensorboard-dir"],
    otlpEndpoint: values["otlp-endpoint"],
  };
}

/**
 * The settings in force as a configuration file that says the same, each with where it is from.
 * @throws UsageError as readSettings
 */
export function printedSettings(args: readonly string[], env: Environment): string {
  const { values, places } = resolveSettings(args, env);
  return ENTRIES.map(([name]) => {
    const value = values[name as keyof typeof values];
    const said = value === undefined ? `# ${keyOf(name)}:` : `${keyOf(name)}: ${JSON.stringify(value)}`;
    return `${said}  # ${places.get(name) ?? "default"}\n`;
  }).join("");
}

/** Settings from this process's environment and the given flags. */
export const settingsOfProcess = (args: readonly string[]): Settings => readSettings(args, process.env);
