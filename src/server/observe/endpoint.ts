// `GET /metrics` on a port of its own, on this machine only: what Prometheus scrapes needs no token because nobody else
// reaches it.

import { createServer } from "node:http";
import type { AddressInfo } from "node:net";

export interface MetricsEndpoint {
  readonly port: number;
  stop(): Promise<void>;
}

/**
 * @param port 0: any free one
 * @param scrape the text of the answer
 * @throws Error when the port cannot be had
 */
export async function serveMetrics(
  port: number,
  contentType: string,
  scrape: () => Promise<string>,
): Promise<MetricsEndpoint> {
  const server = createServer((request, response) => {
    if (request.method !== "GET" || request.url?.split("?")[0] !== "/metrics") {
      response.writeHead(404).end("GET /metrics is all there is\n");
      return;
    }
    scrape().then(
      (text) => response.writeHead(200, { "content-type": contentType }).end(text),
      () => response.writeHead(503).end("the figures cannot be read\n"),
    );
  });
  await new Promise<void>((resolve, reject) => {
    server.once("error", (error: NodeJS.ErrnoException) => {
      reject(new Error(`metrics: 127.0.0.1:${port} cannot be listened on (${error.code})`));
    });
    server.listen(port, "127.0.0.1", resolve);
  });
  return {
    port: (server.address() as AddressInfo).port,
    stop: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}
