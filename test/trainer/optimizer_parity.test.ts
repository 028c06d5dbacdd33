// The optimizer fixtures: optax, run in float64 (shared/docs/fixtures.md).

import { access, mkdtemp, readFile, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { test } from "uvu";
import * as assert from "uvu/assert";
import { optimizerParity } from "../../src/trainer/parity/optimizer_parity.ts";
import { ErrorTable, formatTable } from "../../src/trainer/parity/table.ts";
import { testDevice } from "../support/gpu.ts";

const FIXTURES = fileURLToPath(new URL("../../../shared/fixtures/optimizers/", import.meta.url));
const NAMES = ["adamw", "adamw-clipped", "adafactor"];

async function fixture(name: string): Promise<string> {
  const directory = `${FIXTURES}${name}`;
  await access(directory).catch(() => {
    throw new Error(`the reference fixture ${name} is missing: this test needs the folder shared/ beside the checkout`);
  });
  return directory;
}

/** A fixture whose case.json is changed. */
async function altered(name: string, changes: Record<string, unknown>): Promise<string> {
  const original = await fixture(name);
  const directory = await mkdtemp(join(tmpdir(), "thaw-fixture-"));
  const settings = JSON.parse(await readFile(join(original, "case.json"), "utf8"));
  await writeFile(join(directory, "case.json"), JSON.stringify({ ...settings, ...changes }));
  await symlink(join(original, "trajectory.safetensors"), join(directory, "trajectory.safetensors"));
  return directory;
}

for (const name of NAMES)
  test(`${name} agrees with its reference`, async () => {
    const table = new ErrorTable();
    await optimizerParity(await testDevice(), await fixture(name), table);
    assert.ok(table.rows.every((row) => row.count >= 12) && table.rows.length === 2, "every step was compared");
    assert.equal(table.failures, [], formatTable(table.rows));
  });

// What the comparison would not see, it would not show.
for (const [name, changes] of [
  ["adamw", { b2: 0.951 }],
  ["adamw-clipped", { max_grad_norm: 0 }],
  ["adafactor", { decay_rate: 0.79 }],
  ["adafactor", { min_dim_size_to_factor: 24 }],
  ["adafactor", { clipping_threshold: 0.99 }],
] as const)
  test(`${name} with ${JSON.stringify(changes)} does not agree`, async () => {
    const table = new ErrorTable();
    await optimizerParity(await testDevice(), await altered(name, changes), table);
    assert.ok(table.failures.length > 0, formatTable(table.rows));
  });

test("what is not supported is said", async () => {
  for (const [changes, message] of [
    [{ optimizer: "lion" }, /optimizer lion is not supported/],
    [{ momentum: 0.9 }, /momentum/],
    [{ eps: "small" }, /eps is not a number/],
  ] as const) {
    const directory = await altered("adafactor", changes);
    let error: unknown;
    await optimizerParity(await testDevice(), directory, new ErrorTable()).catch((e: unknown) => {
      error = e;
    });
    assert.match((error as Error).message, message);
  }
});

test.run();
