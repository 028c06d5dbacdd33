// The certificate of the port: whether a server starts with it, and for how long.

import { X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import { readTls } from "../front/tls.ts";
import { type Settings, UsageError } from "../settings.ts";
import { type Finding, fail, ok, warn } from "./findings.ts";

const DAY_MS = 86_400_000;
const SOON_DAYS = 14;

export function tlsFindings({ tls }: Settings): Finding[] {
  if (!tls) return [];
  try {
    readTls(tls);
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    return error.message.split("\n").map((problem) => fail("tls", problem, "correct the file or the option"));
  }
  const { validTo } = new X509Certificate(readFileSync(tls.certificate));
  const days = (new Date(validTo).getTime() - Date.now()) / DAY_MS;
  const found = `the certificate ends on ${validTo}`;
  return [
    days < SOON_DAYS ? warn("tls", found, "renew it, and start the server again with the new one") : ok("tls", found),
  ];
}
