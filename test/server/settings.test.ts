// Flags, environment and defaults, and what is refused about them.

import { test } from "uvu";
import * as assert from "uvu/assert";
import { HELP, readSettings, UsageError } from "../../src/server/settings.ts";

test("a flag wins over the environment, the environment over the default", () => {
  const env = { THAW_PORT: "6000", THAW_MODELS: "/a:/b", THAW_MAX_QUEUED_RUNS: "3" };
  const settings = readSettings(["--port", "7000", "--adapter", "software"], env);
  assert.equal([settings.host, settings.port, settings.adapter], ["127.0.0.1", 7000, "software"]);
  assert.equal(settings.modelRoots, ["/a", "/b"]);
  assert.equal([settings.limits.maxQueuedRuns, settings.limits.assignmentBufferMessages], [3, 64]);
  for (const flag of ["--host", "--data-dir", "--models", "--insecure", "THAW_PORT"]) assert.ok(HELP.includes(flag));
});

test("loopback needs nothing, any other address --insecure", () => {
  for (const host of ["127.0.0.1", "127.8.0.1", "localhost", "::1"])
    assert.is(readSettings(["--host", host], {}).host, host);
  for (const host of ["0.0.0.0", "::", "10.0.0.1", "127.0.0.1.example.com"]) {
    assert.throws(() => readSettings(["--host", host], {}), /reachable from other machines/);
    assert.is(readSettings(["--host", host, "--insecure"], {}).host, host);
  }
});

test("everything wrong is said at once", () => {
  const wrong = { THAW_PORT: "70000", THAW_ADAPTER: "quantum", THAW_MAX_UPLOAD_BYTES: "1e3" };
  const refused = () => readSettings(["--host", "0.0.0.0"], wrong);
  assert.throws(refused, (error: unknown) => {
    const told = error instanceof UsageError ? error.message : "";
    return ["--port", "--adapter", "--max-upload-bytes", "--insecure"].every((flag) => told.includes(flag));
  });
  assert.throws(
    () => readSettings(["--prot", "1"], {}),
    (error: unknown) => error instanceof UsageError,
  );
});

test.run();
