// npm run bench:gpu: the sizes that docs/performance.md reports. Where there is no npm, `node --import tsx bench/gpu.ts`.
// With `--with-reference`, PyTorch runs its side on the same machine.

import process from "node:process";
import { bench } from "./bench.ts";

await bench("gpu", process.argv.slice(2));
