// `thaw doctor`: whether a server with these settings would start and train here, and what to do where it would not. It
// takes the options of `thaw serve`, changes nothing, and ends with 1 when something failed.

import process from "node:process";
import { childWorker } from "../gpu/connection.ts";
import { HELP, type Settings, settingsOfProcess, UsageError } from "../settings.ts";
import { adapterFindings } from "./adapter.ts";
import { type Finding, fail, findingText, ok } from "./findings.ts";
import { machineFindings } from "./machine.ts";
import { placeFindings } from "./places.ts";
import { tlsFindings } from "./tls.ts";

async function examine(args: readonly string[], tell: (finding: Finding) => void): Promise<void> {
  machineFindings().forEach(tell);
  let settings: Settings;
  try {
    settings = settingsOfProcess(args);
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    for (const problem of error.message.split("\n")) tell(fail("settings", problem, "thaw serve --help lists them"));
    return;
  }
  tell(ok("settings", "as they should be; thaw serve --print-config shows them"));
  (await placeFindings(settings)).forEach(tell);
  tlsFindings(settings).forEach(tell);
  const said: string[] = [];
  const start = childWorker(settings, (_, message) => void said.push(message));
  (await adapterFindings(start, settings.adapter, () => said)).forEach(tell);
}

const args = process.argv.slice(2);
if (args.includes("--help")) {
  process.stdout.write(`${HELP.replace("serve", "doctor")}\n`);
  process.exit(0);
}
let failed = false;
await examine(args, (finding) => {
  failed ||= finding.level === "fail";
  process.stdout.write(findingText(finding));
});
process.exit(failed ? 1 : 0);
