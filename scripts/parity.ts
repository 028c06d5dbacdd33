// npm run -s parity -- DIR: compares thaw with one reference fixture directory. The kind is found from the files.

import { access } from "node:fs/promises";
import { join, resolve } from "node:path";
import process from "node:process";
import { openDevice } from "../src/kernels/device/open.ts";
import { ensureGpuEnvironment } from "../src/kernels/device/relaunch.ts";
import { modelParity } from "../src/trainer/parity/model_parity.ts";
import { optimizerParity } from "../src/trainer/parity/optimizer_parity.ts";
import { routingParity } from "../src/trainer/parity/routing_parity.ts";
import { ErrorTable, formatTable } from "../src/trainer/parity/table.ts";

ensureGpuEnvironment();

const exists = (path: string) =>
  access(path).then(
    () => true,
    () => false,
  );

const [argument] = process.argv.slice(2);
if (argument === undefined) {
  console.error("usage: npm run -s parity -- DIR");
  process.exit(2);
}
const directory = resolve(argument);
const table = new ErrorTable();
let failure = "";
try {
  const device = await openDevice();
  if (await exists(join(directory, "routing.safetensors"))) await routingParity(device, directory, table);
  else if (await exists(join(directory, "expected.safetensors"))) await modelParity(device, directory, table);
  else if (await exists(join(directory, "trajectory.safetensors"))) await optimizerParity(device, directory, table);
  else
    throw new Error(
      "this is no fixture: a model has expected.safetensors, routing routing.safetensors, an optimizer trajectory.safetensors",
    );
} catch (error) {
  failure = (error as Error).message;
}
if (table.rows.length > 0) console.log(formatTable(table.rows));
if (failure === "") failure = table.failures.map((row) => `${row.quantity} (${row.where})`).join(", ");
console.log(failure === "" ? "parity ok" : `parity FAILED ${failure}`);
process.exit(failure === "" ? 0 : 1);
