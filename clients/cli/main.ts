// The `thaw` command: every method of proto/thaw/v1 from a shell. Exit codes and examples are in clients/README.md.

import process from "node:process";
import { Command, CommanderError } from "commander";
import { addCheckpoints } from "./commands/checkpoints.ts";
import { addData } from "./commands/data.ts";
import { addDoctor } from "./commands/doctor.ts";
import { addGroups } from "./commands/groups.ts";
import { addModels } from "./commands/models.ts";
import { addRoutes } from "./commands/routes.ts";
import { addRuns } from "./commands/runs.ts";
import { addServe } from "./commands/serve.ts";
import { addStudy } from "./commands/study.ts";
import { addSystem } from "./commands/system.ts";
import { addTokens } from "./commands/tokens.ts";
import { addConnectionFlags } from "./connection.ts";
import { EXIT } from "./exit_codes.ts";
import { reportError } from "./session.ts";

const program = new Command("thaw")
  .description("Fine-tune sparse Mixture-of-Experts transformers by parameter group")
  .option("--json", "print protobuf JSON; streams print one JSON object a line")
  .showHelpAfterError("(--help shows what there is)")
  .exitOverride();
addConnectionFlags(program);

for (const add of [
  addServe,
  addDoctor,
  addRuns,
  addGroups,
  addRoutes,
  addModels,
  addCheckpoints,
  addData,
  addStudy,
  addSystem,
  addTokens,
])
  add(program);

// A reader that goes away, as in `thaw runs list | head`, is no error.
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  process.exit(error.code === "EPIPE" ? EXIT.OK : EXIT.FAILED);
});

try {
  await program.parseAsync();
} catch (error) {
  // Help and --version end the same way as a mistake, with code 0.
  if (error instanceof CommanderError) process.exitCode = error.exitCode === 0 ? EXIT.OK : EXIT.USAGE;
  else process.exitCode = reportError(error, false, "");
}
