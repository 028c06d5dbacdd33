// Failpoints: what each action does, when, and that a mistake in the variable is said.

import { spawnSync } from "node:child_process";
import process from "node:process";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { armFailpoints, failpoint } from "../../src/failpoints.ts";

const test = suite("failpoints");
test.after.each(() => armFailpoints(""));

const thrown = (work: () => void): unknown => {
  try {
    work();
  } catch (error) {
    return error;
  }
};

test("a point without an action does nothing", () => {
  armFailpoints("log.after_commit:error");
  failpoint("log.before_write");
});

test("a count is one passing, no count is all of them", () => {
  armFailpoints("log.before_write:error:2,log.after_commit:error");
  const failures = (name: Parameters<typeof failpoint>[0]) =>
    [1, 2, 3].map(() => thrown(() => failpoint(name)) !== undefined);
  assert.equal(failures("log.before_write"), [false, true, false]);
  assert.equal(failures("log.after_commit"), [true, true, true]);
});

test("errors are what the place makes of them; enospc is the disk's", () => {
  armFailpoints("device.lost:error,log.before_write:enospc");
  assert.instance(
    thrown(() => failpoint("device.lost", () => new RangeError("mine"))),
    RangeError,
  );
  assert.is((thrown(() => failpoint("log.before_write")) as NodeJS.ErrnoException).code, "ENOSPC");
});

test("exit is kill -9, and the variable arms a process", () => {
  const module = new URL("../../src/failpoints.ts", import.meta.url).href;
  const script = `(await import(${JSON.stringify(module)})).failpoint("worker.step"); console.log("alive")`;
  const args = ["--import", import.meta.resolve("tsx"), "--input-type=module", "-e", script];
  const child = (variable: string) =>
    spawnSync(process.execPath, args, { env: { ...process.env, THAW_FAILPOINTS: variable }, encoding: "utf8" });
  assert.is(child("").stdout, "alive\n");
  const { signal, stdout } = child("worker.step:exit");
  assert.equal([signal, stdout], ["SIGKILL", ""]);
});

test("every mistake in the variable is named", () => {
  const error = thrown(() =>
    armFailpoints("log.befor_write:exit,worker.step:stop,worker.step:exit:0,worker.step:exit"),
  );
  assert.is(
    (error as Error).message,
    "THAW_FAILPOINTS: log.befor_write:exit, worker.step:stop, worker.step:exit:0 is not name:exit|error|delay|enospc[:count]",
  );
});

test.run();
