// Certificates and keys of the gRPC port, read and checked once: everything wrong with them is said before anything starts.

import { createPrivateKey, X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import { ServerCredentials } from "@grpc/grpc-js";
import { UsageError } from "../settings.ts";

export interface TlsFiles {
  /** The server's certificate and what it was issued by, PEM. */
  readonly certificate: string;
  /** Its private key, PEM, not encrypted. */
  readonly key: string;
  /**
   * Certificates of the authorities that sign clients', PEM: no client gets in without one. Undefined: none is asked for.
   */
  readonly clientAuthority: string | undefined;
}

/** @throws UsageError naming everything wrong with the files */
export function readTls(files: TlsFiles): ServerCredentials {
  const problems: string[] = [];
  const read = <T>(flag: string, file: string, what: string, parse: (pem: Buffer) => T) => {
    let pem: Buffer;
    try {
      pem = readFileSync(file);
    } catch (error) {
      problems.push(`${flag} ${file} cannot be read (${(error as NodeJS.ErrnoException).code})`);
      return undefined;
    }
    try {
      return { pem, parsed: parse(pem) };
    } catch {
      problems.push(`${flag} ${file} is not ${what} in PEM`);
      return undefined;
    }
  };
  const certificateOf = (pem: Buffer): X509Certificate => new X509Certificate(pem);
  const certificate = read("--tls-cert", files.certificate, "a certificate", certificateOf);
  const key = read("--tls-key", files.key, "an unencrypted private key", (pem) => createPrivateKey(pem));
  const ask = files.clientAuthority;
  const authority = ask === undefined ? undefined : read("--tls-client-ca", ask, "a certificate", certificateOf);
  if (certificate && key && !certificate.parsed.checkPrivateKey(key.parsed)) {
    problems.push(`--tls-key ${files.key} is not the key of --tls-cert ${files.certificate}`);
  }
  for (const [flag, file, one] of [
    ["--tls-cert", files.certificate, certificate],
    ["--tls-client-ca", ask, authority],
  ] as const) {
    if (one && new Date(one.parsed.validTo).getTime() <= Date.now()) {
      problems.push(`${flag} ${file} expired on ${one.parsed.validTo}`);
    }
  }
  if (problems.length > 0 || !certificate || !key) throw new UsageError(problems.join("\n"));
  // Where clients are not asked for a certificate, nothing is checked against the authorities; but given none, grpc-js
  // would take the runtime's list, which Deno then sends to every client, and which is too long for them.
  const authorities = authority?.pem ?? certificate.pem;
  const pair = { cert_chain: certificate.pem, private_key: key.pem };
  return ServerCredentials.createSsl(authorities, [pair], authority !== undefined);
}
