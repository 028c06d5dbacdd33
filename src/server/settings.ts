// Every setting of the server: one table from which flags, environment variables, defaults and `--help` follow.

import { homedir } from "node:os";
import { join, resolve } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";

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
  /** `hardware` or `software`; undefined: hardware where there is some. */
  readonly adapter: string | undefined;
  readonly limits: Limits;
}

interface Setting {
  readonly flag: string;
  readonly environment: string;
  readonly value: string;
  readonly fallback: string;
  readonly help: string;
}

const MIB = 2 ** 20;
const GIB = 2 ** 30;

const SETTINGS: readonly Setting[] = [
  { flag: "host", environment: "THAW_HOST", value: "ADDRESS", fallback: "127.0.0.1", help: "address to listen on" },
  { flag: "port", environment: "THAW_PORT", value: "PORT", fallback: "50051", help: "port; 0 takes a free one" },
  {
    flag: "data-dir",
    environment: "THAW_DATA_DIR",
    value: "DIR",
    fallback: "",
    help: "registry, models, datasets, checkpoints [~/.local/share/thaw]",
  },
  {
    flag: "models",
    environment: "THAW_MODELS",
    value: "DIR",
    fallback: "",
    help: "folder LoadModel may read from; repeatable (in the variable separated by `:`)",
  },
  {
    flag: "adapter",
    environment: "THAW_ADAPTER",
    value: "KIND",
    fallback: "",
    help: "`hardware` or `software` [hardware where there is some]",
  },
  {
    flag: "max-message-bytes",
    environment: "THAW_MAX_MESSAGE_BYTES",
    value: "N",
    fallback: String(16 * MIB),
    help: "largest message received",
  },
  {
    flag: "max-concurrent-streams",
    environment: "THAW_MAX_CONCURRENT_STREAMS",
    value: "N",
    fallback: "256",
    help: "streams per connection",
  },
  {
    flag: "max-queued-runs",
    environment: "THAW_MAX_QUEUED_RUNS",
    value: "N",
    fallback: "64",
    help: "runs waiting for a GPU",
  },
  {
    flag: "max-upload-bytes",
    environment: "THAW_MAX_UPLOAD_BYTES",
    value: "N",
    fallback: String(16 * GIB),
    help: "bytes of one dataset or model upload",
  },
  {
    flag: "max-assignment-subscribers",
    environment: "THAW_MAX_ASSIGNMENT_SUBSCRIBERS",
    value: "N",
    fallback: "256",
    help: "subscribers of one run's assignments",
  },
  {
    flag: "assignment-buffer-messages",
    environment: "THAW_ASSIGNMENT_BUFFER_MESSAGES",
    value: "N",
    fallback: "64",
    help: "messages buffered per subscriber before some are dropped",
  },
];

/** What is wrong with the command line or the environment, in words for the one who typed it. */
export class UsageError extends Error {
  override name = "UsageError";
}

export const HELP = [
  "usage: serve [options]    (each option also as an environment variable)",
  "",
  ...SETTINGS.map(({ flag, environment, value, fallback, help }) => {
    const option = `--${flag} ${value}`;
    return `  ${option.padEnd(34)} ${help}${fallback ? ` [${fallback}]` : ""}  (${environment})`;
  }),
  `  ${"--insecure".padEnd(34)} listen beyond this machine without encryption and without a token  (THAW_INSECURE=1)`,
].join("\n");

const LOOPBACK = /^(localhost|127(\.\d{1,3}){3}|::1)$/;

/**
 * Settings from flags, then the environment, then defaults.
 * @throws UsageError naming everything that is wrong
 */
export function readSettings(args: readonly string[], env: Readonly<Record<string, string | undefined>>): Settings {
  let flags: Readonly<Record<string, string[] | boolean | undefined>>;
  try {
    const options = Object.fromEntries(
      SETTINGS.map(({ flag }) => [flag, { type: "string" as const, multiple: true as const }]),
    );
    flags = parseArgs({ args: [...args], options: { ...options, insecure: { type: "boolean" } } }).values;
  } catch (error) {
    throw new UsageError((error as Error).message);
  }

  const problems: string[] = [];
  const values = (flag: string): string[] => {
    const setting = SETTINGS.find((candidate) => candidate.flag === flag)!;
    const given = flags[flag];
    if (Array.isArray(given)) return given;
    const variable = env[setting.environment];
    if (variable) return flag === "models" ? variable.split(":").filter(Boolean) : [variable];
    return setting.fallback ? [setting.fallback] : [];
  };
  const text = (flag: string): string | undefined => values(flag).at(-1);
  const count = (flag: string, least: number, most: number): number => {
    const given = text(flag) ?? "";
    const number = Number(given);
    const valid = /^\d+$/.test(given) && number >= least && number <= most;
    if (!valid) problems.push(`--${flag} is "${given}"; it must be a whole number from ${least} to ${most}`);
    return number;
  };

  const adapter = text("adapter");
  if (adapter && adapter !== "hardware" && adapter !== "software") {
    problems.push(`--adapter is "${adapter}"; it can be hardware or software`);
  }
  const settings: Settings = {
    host: text("host")!,
    port: count("port", 0, 65535),
    dataDirectory: resolve(text("data-dir") ?? join(homedir(), ".local", "share", "thaw")),
    modelRoots: values("models").map((root) => resolve(root)),
    insecure: flags.insecure === true || env.THAW_INSECURE === "1",
    adapter,
    limits: {
      maxMessageBytes: count("max-message-bytes", 64 * 1024, 2 ** 31 - 1),
      maxConcurrentStreams: count("max-concurrent-streams", 1, 2 ** 31 - 1),
      maxQueuedRuns: count("max-queued-runs", 0, 2 ** 31 - 1),
      maxUploadBytes: count("max-upload-bytes", 0, Number.MAX_SAFE_INTEGER),
      maxAssignmentSubscribers: count("max-assignment-subscribers", 0, 2 ** 31 - 1),
      assignmentBufferMessages: count("assignment-buffer-messages", 1, 2 ** 31 - 1),
    },
  };
  if (!LOOPBACK.test(settings.host) && !settings.insecure) {
    problems.push(
      `--host ${settings.host} is reachable from other machines, without encryption and without a token; ` +
        "say --insecure if that is what you want (TLS and tokens are not there yet)",
    );
  }
  if (problems.length > 0) throw new UsageError(problems.join("\n"));
  return settings;
}

/** Settings from this process's environment and the given flags. */
export const settingsOfProcess = (args: readonly string[]): Settings => readSettings(args, process.env);
