// What WebGPU made for a run (bind groups, encoders, command buffers) is freed when its JavaScript object is collected, and
// V8 does not know how much memory of the driver's hangs on such a small object: left alone, it collects them after tens of
// runs, while new ones are allocated around them. So the GPU process collects when a run has left it.

import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

// V8 gives `gc` to contexts that are made once the flag is set.
setFlagsFromString("--expose-gc");
const gc: () => void = runInNewContext("gc");

/** Frees what nobody can reach any more; tens of milliseconds. */
export const collect = (): void => gc();
