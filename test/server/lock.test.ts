// A data directory serves one server at a time, and a killed server leaves it free.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { test } from "uvu";
import * as assert from "uvu/assert";
import { lockDataDirectory } from "../../src/server/storage/lock.ts";

const LOCK = fileURLToPath(new URL("../../src/server/storage/lock.ts", import.meta.url));

test("a second process is refused while the first lives, and served after it was killed", async () => {
  const root = join(await mkdtemp(join(tmpdir(), "thaw-lock-")), "data");
  const hold = `import(${JSON.stringify(LOCK)}).then((m) => { m.lockDataDirectory(${JSON.stringify(root)}); console.log("held"); setInterval(() => {}, 1000); })`;
  const child = spawn(process.execPath, [...process.execArgv, "--input-type=module", "-e", hold]);
  await once(child.stdout, "data");
  assert.throws(() => lockDataDirectory(root), /another server uses this data directory/);
  child.kill("SIGKILL");
  await once(child, "exit");
  const unlock = lockDataDirectory(root);
  unlock();
  lockDataDirectory(root)();
});

test.run();
