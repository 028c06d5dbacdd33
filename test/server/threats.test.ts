// The page of threats names the test of each defence: they must be there, by file and by title.

import { existsSync, readFileSync } from "node:fs";
import { test } from "uvu";
import * as assert from "uvu/assert";

const at = (path: string): URL => new URL(`../../${path}`, import.meta.url);
const page = readFileSync(at("docs/threats.md"), "utf8");

/** `| threat | defence | tests |` of the table of defences. */
const rows = page
  .slice(page.indexOf("## What is defended"), page.indexOf("## What is not"))
  .split("\n")
  .filter((line) => line.startsWith("| "))
  .slice(1)
  .map((line) => line.slice(2, -2).split(" | "));

test("every defence names a test that is there", () => {
  assert.ok(rows.length > 15, "the table was read");
  for (const [threat, defence, tests = ""] of rows) {
    assert.ok(threat && defence, `a row is whole: ${threat}`);
    const names = [...tests.matchAll(/`([a-z]+\/[a-z_]+)`/g)].map(([, name]) => name);
    const files = names.map((name) => `test/${name}.${name.startsWith("faults/") ? "faults" : "test"}.ts`);
    assert.ok(files.length > 0, `"${threat}" names no test`);
    for (const file of files) assert.ok(existsSync(at(file)), file);
    const texts = files.map((file) => readFileSync(at(file), "utf8")).join("\n");
    for (const [, title] of tests.matchAll(/"([^"]+)"/g)) {
      for (const part of title.split("…").filter(Boolean)) assert.ok(texts.includes(part), `no test "${title}"`);
    }
  }
});

test.run();
