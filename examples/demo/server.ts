// A thaw server of the demo's own, with a temporary data folder that goes when the server is stopped.

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { type OwnServer, startServer as startOwnServer } from "../../clients/study/server.ts";

export type DemoServer = OwnServer;

/** The folder LoadModel may read. */
const MODELS = fileURLToPath(new URL("../models", import.meta.url));

/**
 * @param signal gives up while the server is still coming up
 * @throws Error with the server's own words when it does not come up
 */
export async function startServer(signal: AbortSignal): Promise<DemoServer> {
  const data = await mkdtemp(join(tmpdir(), "thaw-demo-"));
  const discard = () => rm(data, { recursive: true, force: true });
  try {
    const server = await startOwnServer(data, MODELS, signal);
    return { ...server, stop: () => server.stop().then(discard) };
  } catch (error) {
    await discard();
    throw error;
  }
}
