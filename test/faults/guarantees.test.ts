// The page of guarantees names tests that exist, and every failpoint is one that the fault suite passes.

import { existsSync, readdirSync, readFileSync } from "node:fs";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { FAILPOINTS } from "../../src/failpoints.ts";

const ROOT = new URL("../../", import.meta.url);
const test = suite("guarantees");

test("every promise names tests that exist", () => {
  const rows = readFileSync(new URL("docs/guarantees.md", ROOT), "utf8")
    .split("\n")
    .filter((line) => line.startsWith("| ") && !line.startsWith("| promise"));
  assert.ok(rows.length > 10);
  for (const row of rows) {
    const files = [...row.matchAll(/`(test\/[^`]+)`/g)].map(([, file]) => file);
    assert.ok(files.length > 0, `no test holds ${row}`);
    for (const file of files) assert.ok(existsSync(new URL(file, ROOT)), `${file} does not exist`);
  }
});

test("every failpoint is in a test", () => {
  const texts = ["test/faults/", "test/server/"].flatMap((folder) =>
    readdirSync(new URL(folder, ROOT))
      .filter((name) => /\.(faults|test)\.ts$/.test(name) && name !== "failpoints.test.ts")
      .map((name) => readFileSync(new URL(folder + name, ROOT), "utf8")),
  );
  for (const name of Object.keys(FAILPOINTS)) {
    assert.ok(
      texts.some((text) => text.includes(`"${name}`) || text.includes(`\`${name}`)),
      `nothing arms ${name}`,
    );
  }
});

test.run();
