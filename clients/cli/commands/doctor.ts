// `thaw doctor`: asks the server's own files whether a server would start and train on this machine.

import process from "node:process";
import { fileURLToPath } from "node:url";
import type { Command } from "commander";
import { argumentsAfter, runProgram } from "./serve.ts";

const DOCTOR = fileURLToPath(new URL("../../../src/server/doctor/main.ts", import.meta.url));

export function addDoctor(program: Command): void {
  program
    .command("doctor")
    .description("check adapter, driver, memory, disk, ports and files for a server with the same options as serve")
    .argument("[options...]")
    .helpOption(false)
    .allowUnknownOption()
    .action(async () => {
      process.exitCode = await runProgram(DOCTOR, argumentsAfter("doctor"));
    });
}
