// The process of one part: `node --import tsx bench/part_process.ts NAME SCALE CEILINGS SECONDS`. Rows leave it as lines of
// JSON on file descriptor 3 as they are measured, behind a first line that says what the GPU is, once it is opened.

import { writeSync } from "node:fs";
import process from "node:process";
import type { Device } from "../src/kernels/device/device.ts";
import { adapterLine, openDevice } from "../src/kernels/device/open.ts";
import type { Ceilings, Scale } from "./part.ts";
import { PARTS } from "./parts.ts";
import type { Row } from "./rows.ts";

/** What leaves the process. */
export type Message = { readonly adapter: string } | { readonly row: Row };

const OUT = 3;
const [name, scale, ceilings, seconds] = process.argv.slice(2);
const part = PARTS.find((p) => p.name === name);
if (!part) throw new Error(`no part is called ${name}`);
const send = (message: Message): void => void writeSync(OUT, `${JSON.stringify(message)}\n`);
const end = performance.now() + 1e3 * Number(seconds);
let opened: Promise<Device> | undefined;

await part.measure({
  scale: scale as Scale,
  ceilings: JSON.parse(ceilings) as Ceilings,
  device() {
    opened ??= openDevice().then((device) => {
      send({ adapter: adapterLine(device.capabilities) });
      return device;
    });
    return opened;
  },
  secondsLeft: () => (end - performance.now()) / 1e3,
  report: (row) => send({ row }),
});
(await opened)?.destroy();
