// What WebGPU made for a run (bind groups, encoders, command buffers) is freed when its JavaScript object is collected. V8
// knows only of the small objects, and lets some 70 MiB of its own heap fill with them and the rest before it collects; so
// the GPU process collects when a run has left it.

import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";

// V8 gives `gc` to contexts that are made once the flag is set.
setFlagsFromString("--expose-gc");
const gc: () => void = runInNewContext("gc");

/** Frees what nobody can reach any more; tens of milliseconds. */
export const collect = (): void => gc();
