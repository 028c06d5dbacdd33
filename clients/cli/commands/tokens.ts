// `thaw tokens`: who may call a server. It works on the server's data directory, not over gRPC, so it is the server's
// program; the client knows nothing of it but its file.

import { fileURLToPath } from "node:url";
import type { Command } from "commander";
import { argumentsAfter, runProgram } from "./serve.ts";

const TOKENS = fileURLToPath(new URL("../../../src/server/access/main.ts", import.meta.url));

export function addTokens(program: Command): void {
  program
    .command("tokens")
    .description("make, list and revoke tokens in a server's data directory; thaw tokens --help")
    .argument("[options...]")
    .helpOption(false)
    .allowUnknownOption()
    .action(async () => {
      process.exitCode = await runProgram(TOKENS, argumentsAfter("tokens"));
    });
}
