// A small file written so that it is on the disk when the call returns.

import { open } from "node:fs/promises";
import { failpoint } from "../../failpoints.ts";

export async function writeFileDurably(path: string, text: string): Promise<void> {
  const file = await open(path, "w");
  try {
    await file.writeFile(text);
    failpoint("checkpoint.before_state");
    await file.sync();
  } finally {
    await file.close();
  }
}
