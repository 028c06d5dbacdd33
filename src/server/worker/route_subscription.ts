// The routes of a run on their way to the server. Lossy by design: while the pipe is backed up, slices are left out and
// counted; subscribers are told of them with the next slice, and a warning on the run says how many once the pipe flows
// again.

import type { AssignmentSlice } from "../../../proto/gen/thaw/v1/routing_pb.ts";
import type { SubscribeRoutes } from "../../../proto/gen/thaw/worker/v1/worker_pb.ts";
import type { RouteBatch } from "../../trainer/types.ts";
import { type RouteFields, routesToProto } from "./convert/routes.ts";
import { routeFilter } from "./route_filter.ts";

/** Bytes waiting in the pipe beyond which slices are dropped: a few batches' worth. */
export const MAX_BACKLOG_BYTES = 4 * 1024 * 1024;

/** At most one warning in this time, milliseconds: the log of a run is kept for ever. */
const WARNING_INTERVAL = 30_000;

export interface RouteSink {
  readonly backlogBytes: () => number;
  readonly send: (slice: AssignmentSlice) => void;
  /** So many slices were left out since it was last said. */
  readonly leftOut: (slices: number) => void;
  readonly warn: (message: string) => void;
}

export interface RouteSubscription {
  /** Sends what the filter lets through, or counts it as dropped. Encoded before it returns. */
  offer(batch: RouteBatch): void;
  /** Says what is still unsaid about dropped slices. */
  end(): void;
}

/** @throws nothing: a filter that matches nothing sends nothing */
export function subscribeRoutes(request: SubscribeRoutes, sink: RouteSink): RouteSubscription {
  const choose = routeFilter(request.filter);
  const fields: RouteFields = { tokenIds: request.includeTokenIds, gates: request.includeGates };
  /** Not warned of yet. */
  let dropped = 0;
  /** Not told to the subscribers yet. */
  let untold = 0;
  let lastWarning = Number.NEGATIVE_INFINITY;

  function warn(): void {
    sink.warn(`${dropped} route slices were dropped because the server did not read them in time`);
    dropped = 0;
    lastWarning = performance.now();
  }
  function tell(): void {
    if (untold > 0) sink.leftOut(untold);
    untold = 0;
  }
  return {
    offer(batch) {
      const tokens = choose(batch);
      if (tokens === undefined) return;
      if (sink.backlogBytes() > MAX_BACKLOG_BYTES) {
        dropped++;
        untold++;
        return;
      }
      tell();
      if (dropped > 0 && performance.now() - lastWarning >= WARNING_INTERVAL) warn();
      sink.send(routesToProto(batch, fields, tokens === "all" ? undefined : tokens));
    },
    end() {
      tell();
      if (dropped > 0) warn();
    },
  };
}
