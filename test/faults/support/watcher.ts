// A client in a process of its own, to be stopped: watches a run so many times, each on a connection of its own, and says
// every revision that a watch has got, one a line: `WATCH:REVISION`.

import process from "node:process";
import { connectThaw, watchRun } from "../../../clients/typescript/index.ts";

const [address, run, watches] = process.argv.slice(2);
for (let watch = 0; watch < Number(watches); watch++) {
  const thaw = connectThaw(address);
  void (async () => {
    for await (const { revision } of watchRun(thaw, run)) process.stdout.write(`${watch}:${revision}\n`);
    thaw.close();
  })();
}
