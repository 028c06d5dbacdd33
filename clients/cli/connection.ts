// How a command reaches its server: the address, the certificates, the token. A token is never an argument, which every
// user of the machine could read.

import { readFileSync } from "node:fs";
import process from "node:process";
import { type Command, Option } from "commander";
import { type ConnectOptions, connectThaw, DEFAULT_ADDRESS, type Thaw } from "../typescript/index.ts";

/** A mistake in what was typed, found before anything was sent. */
export class UsageError extends Error {}

const LOOPBACK = /^(localhost|127(\.\d{1,3}){3}|\[::1\]):\d+$/;

interface ConnectionFlags {
  readonly server: string;
  readonly tls?: boolean;
  readonly tlsCa?: string;
  readonly tlsCert?: string;
  readonly tlsKey?: string;
  readonly tokenFile?: string;
}

export function addConnectionFlags(program: Command): void {
  const file = (name: string, variable: string, help: string) => new Option(`--${name} <file>`, help).env(variable);
  program
    .option(
      "--server <address>",
      "host:port of the server; also THAW_SERVER",
      process.env.THAW_SERVER || DEFAULT_ADDRESS,
    )
    .addOption(new Option("--tls", "encrypt, trusting the authorities that the runtime knows").env("THAW_CLIENT_TLS"))
    .addOption(file("tls-ca", "THAW_CLIENT_TLS_CA", "encrypt, trusting these authorities, PEM"))
    .addOption(file("tls-cert", "THAW_CLIENT_TLS_CERT", "encrypt, with this certificate of the client, PEM"))
    .addOption(file("tls-key", "THAW_CLIENT_TLS_KEY", "its private key, PEM"))
    .addOption(file("token-file", "THAW_TOKEN_FILE", "the token to send; THAW_TOKEN holds it itself"));
}

/** The address that a command goes to. */
export const serverOf = (command: Command): string => command.optsWithGlobals<ConnectionFlags>().server;

/** Connects as the command's flags and the environment say. @throws UsageError naming everything wrong with them */
export function connectTo(command: Command): Thaw {
  const { server, tls, tlsCa, tlsCert, tlsKey, tokenFile } = command.optsWithGlobals<ConnectionFlags>();
  const problems: string[] = [];
  const read = (flag: string, path: string | undefined): string | undefined => {
    try {
      return path && readFileSync(path, "utf8");
    } catch (error) {
      problems.push(`${flag} ${path} cannot be read (${(error as NodeJS.ErrnoException).code})`);
      return undefined;
    }
  };
  const authorities = read("--tls-ca", tlsCa);
  const chain = read("--tls-cert", tlsCert);
  const key = read("--tls-key", tlsKey);
  const token = (read("--token-file", tokenFile) ?? process.env.THAW_TOKEN)?.trim();
  if (!tlsCert !== !tlsKey) problems.push("--tls-cert and --tls-key belong together");
  if (token !== undefined && !/^[\x21-\x7e]*$/.test(token)) problems.push("the token is not one word");
  if (problems.length > 0) throw new UsageError(problems.join("\n  "));
  const encrypted = tls || tlsCa || tlsCert;
  if (token && !encrypted && !LOOPBACK.test(server)) {
    process.stderr.write(`thaw: the token goes to ${server} without encryption, for everyone on the way to read\n`);
  }
  const certificate = chain && key ? { chain, key } : undefined;
  const options: ConnectOptions = { token, tls: encrypted ? { authorities, certificate } : undefined };
  try {
    return connectThaw(server, options);
  } catch (error) {
    throw new UsageError(`the certificates cannot be used: ${(error as Error).message}`);
  }
}
