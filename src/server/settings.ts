// Every setting of the server: one table from which flags, environment variables, the configuration file's keys, defaults,
// `--help` and `--print-config` follow. A flag wins over the environment, the environment over the file.

import { homedir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import type { TlsFiles } from "./front/tls.ts";
import { FORMATS, LEVELS, type LogOptions } from "./log.ts";
import { oneOf, onOff, path, paths, type Setting, text, url, type Values, whole } from "./settings/kinds.ts";
import { type Environment, givenSettings, keyOf, variableOf } from "./settings/sources.ts";

export interface Limits {
  /** Largest message received. */
  readonly maxMessageBytes: number;
  /** Largest metadata of a call. */
  readonly maxMetadataBytes: number;
  /** Streams per connection. */
  readonly maxConcurrentStreams: number;
  /** Calls in progress on all connections, streams included. */
  readonly maxOpenCalls: number;
  readonly maxQueuedRuns: number;
  /** Runs on the GPU at a time, where their planned memory fits. */
  readonly maxRunsOnGpu: number;
  /** Bytes of one dataset or model upload. */
  readonly maxUploadBytes: number;
  /** Uploads in progress. */
  readonly maxUploads: number;
  /** Bytes of the data directory's disk that uploads leave free. */
  readonly minFreeDiskBytes: number;
  /** Watches of one run. */
  readonly maxWatchers: number;
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
  /** Beyond loopback, without encryption or without a token. */
  readonly insecure: boolean;
  /** Undefined: no encryption. */
  readonly tls: TlsFiles | undefined;
  /** Whether callers need a token. */
  readonly tokens: boolean;
  /** Undefined: hardware where there is some. */
  readonly adapter: "hardware" | "software" | undefined;
  /** Device memory that runs may use together; undefined: half the machine's on a CPU adapter, unknown on a GPU. */
  readonly gpuMemoryBytes: number | undefined;
  /** How long the GPU process may be busy without getting on before it is ended and started again. */
  readonly gpuTimeoutSeconds: number;
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
  "tls-cert": path(undefined, "FILE", "the server's certificate chain, PEM; encrypts the port"),
  "tls-key": path(undefined, "FILE", "its private key, PEM"),
  "tls-client-ca": path(undefined, "FILE", "let in only clients with a certificate of these authorities, PEM"),
  tokens: oneOf(undefined, ["on", "off"], "on|off", "whether callers need a token [on beyond loopback]"),
  "gpu-memory-bytes": whole(
    undefined,
    [1, Number.MAX_SAFE_INTEGER],
    "N",
    "device memory that runs may use together [half the machine's on a CPU adapter; else unknown: one run at a time]",
  ),
  "gpu-timeout-seconds": whole(
    300,
    [3, 86_400],
    "N",
    "time the GPU process may be busy without getting on before it is started again",
  ),
  "max-message-bytes": whole(16 * MIB, [64 * 1024, MOST], "N", "largest message received"),
  // Node's HTTP/2 itself takes 64 KiB.
  "max-metadata-bytes": whole(16 * 1024, [1024, 60 * 1024], "N", "largest metadata of a call"),
  "max-concurrent-streams": whole(256, [1, MOST], "N", "streams per connection"),
  "max-open-calls": whole(4096, [1, MOST], "N", "calls in progress on all connections"),
  "max-queued-runs": whole(64, [0, MOST], "N", "runs waiting for a GPU"),
  "max-runs-on-gpu": whole(4, [1, 64], "N", "runs that share the GPU, where their planned memory fits"),
  "max-upload-bytes": whole(16 * GIB, [0, Number.MAX_SAFE_INTEGER], "N", "bytes of one dataset or model upload"),
  "max-uploads": whole(16, [0, MOST], "N", "uploads in progress"),
  "min-free-disk-bytes": whole(GIB, [0, Number.MAX_SAFE_INTEGER], "N", "bytes of disk that uploads leave free"),
  "max-watchers": whole(1024, [0, MOST], "N", "watches of one run"),
  "max-assignment-subscribers": whole(256, [0, MOST], "N", "subscribers of one run's assignments"),
  "assignment-buffer-messages": whole(64, [1, MOST], "N", "messages buffered per subscriber before some are dropped"),
  "stop-seconds": whole(60, [1, 3600], "N", "how long a stop waits for the run on the GPU to be checkpointed"),
  "log-level": oneOf("info", LEVELS, "LEVEL", `least of ${LEVELS.join(", ")} that is logged [info]`),
  "log-format": oneOf("text", FORMATS, "FORM", "`text` for people or `json`, an object a line [text]"),
  "metrics-port": whole(undefined, [0, 65535], "PORT", "Prometheus metrics on 127.0.0.1:PORT/metrics [none]"),
  "tensorboard-dir": path(undefined, "DIR", "TensorBoard event files of every run, a folder each [none]"),
  "otlp-endpoint": url(undefined, "URL", "OTLP/HTTP collector that gets a trace of every call [none]"),
  insecure: onOff("allow an address beyond this machine without encryption or tokens"),
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

const isLoopback = (host: string): boolean => LOOPBACK.test(host);

/** Whether callers need a token. */
const wantsTokens = ({ host, tokens, insecure }: Values<typeof TABLE>): boolean =>
  tokens === undefined ? !isLoopback(host) && !insecure : tokens === "on";

/** What other machines reach is encrypted and asks who is there, unless `--insecure` says otherwise. */
function checkReachable(read: Values<typeof TABLE>, place: string | undefined, problems: string[]): void {
  const certificate = read["tls-cert"];
  const clientAuthority = read["tls-client-ca"];
  const encrypted = certificate ?? read["tls-key"] ?? clientAuthority;
  if (encrypted && !certificate) problems.push("--tls-cert is missing; encryption needs a certificate and its key");
  if (encrypted && !read["tls-key"]) problems.push("--tls-key is missing; encryption needs a certificate and its key");
  if (isLoopback(read.host) || read.insecure) return;
  const reachable = `${place} ${read.host} is reachable from other machines`;
  if (!encrypted) problems.push(`${reachable}: encrypt with --tls-cert and --tls-key, or say --insecure`);
  if (!wantsTokens(read) && !clientAuthority) {
    problems.push(`${reachable}: --tokens off needs --tls-client-ca, or --insecure`);
  }
}

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
  checkReachable(read, given.get("host")?.place, problems);
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
    tls: values["tls-cert"]
      ? { certificate: values["tls-cert"], key: values["tls-key"]!, clientAuthority: values["tls-client-ca"] }
      : undefined,
    tokens: wantsTokens(values),
    adapter: values.adapter,
    gpuMemoryBytes: values["gpu-memory-bytes"],
    gpuTimeoutSeconds: values["gpu-timeout-seconds"],
    limits: {
      maxMessageBytes: values["max-message-bytes"],
      maxMetadataBytes: values["max-metadata-bytes"],
      maxConcurrentStreams: values["max-concurrent-streams"],
      maxOpenCalls: values["max-open-calls"],
      maxQueuedRuns: values["max-queued-runs"],
      maxRunsOnGpu: values["max-runs-on-gpu"],
      maxUploadBytes: values["max-upload-bytes"],
      maxUploads: values["max-uploads"],
      minFreeDiskBytes: values["min-free-disk-bytes"],
      maxWatchers: values["max-watchers"],
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
