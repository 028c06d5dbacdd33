// The reference fixtures: other people's code, run in float64 (shared/docs/fixtures.md).

import { access } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { test } from "uvu";
import * as assert from "uvu/assert";
import { modelParity } from "../../src/trainer/parity/model_parity.ts";
import { routingParity } from "../../src/trainer/parity/routing_parity.ts";
import { ErrorTable, formatTable } from "../../src/trainer/parity/table.ts";
import { testDevice } from "../support/gpu.ts";

const FIXTURES = fileURLToPath(new URL("../../../shared/fixtures/", import.meta.url));

const CASES = [
  ["switch-tiny", modelParity],
  ["switch-untied-odd", modelParity],
  ["routing/top1-cf1.0", routingParity],
  ["routing/top2-cf1.25", routingParity],
  ["routing/top2-padded", routingParity],
  ["routing/top2-cf1.0-bpr", routingParity],
  ["routing/experts-choose", routingParity],
] as const;

for (const [name, parity] of CASES)
  test(`${name} agrees with its reference`, async () => {
    const directory = `${FIXTURES}${name}`;
    await access(directory).catch(() => {
      throw new Error(
        `the reference fixture ${name} is missing: this test needs the folder shared/ beside the checkout`,
      );
    });
    const table = new ErrorTable();
    await parity(await testDevice(), directory, table);
    assert.ok(table.rows.length > 4, "something was compared");
    assert.equal(table.failures, [], formatTable(table.rows));
  });

test("a table with a wrong, a missing or a NaN value fails", () => {
  for (const actual of [[1.1, 2], [1], [Number.NaN, 2]]) {
    const table = new ErrorTable();
    table.compare("good", "a", [1, 2], [1, 2], 1e-6);
    table.compare("bad", "b", actual, [1, 2], 1e-6);
    assert.equal(
      table.failures.map((row) => row.quantity),
      ["bad"],
    );
  }
  const zeros = new ErrorTable();
  zeros.compare("zero", "c", [0, 1e-30], [0, 0], 1);
  assert.is(zeros.failures.length, 1, "exactly 0 where the reference is 0");
});

test.run();
