// npm run bench: every part at sizes that any machine manages, a CPU adapter included, in minutes. It shows that the bench
// works and how the adapter compares with itself; its figures say nothing of a GPU at work. Options: `--help` lists them.

import process from "node:process";
import { bench } from "./bench.ts";

await bench("small", process.argv.slice(2));
