// Who listens to which run's assignments. Each subscriber has a bounded buffer; what does not fit is counted and gone, so
// a slow reader costs memory up to its bound and never holds training up. The GPU process is told the union of what is
// wanted whenever it changes, and to stop when nobody listens.

import { status } from "@grpc/grpc-js";
import type { AssignmentSlice } from "../../../proto/gen/thaw/v1/routing_pb.ts";
import { untilAborted } from "../../../proto/rpc/waiting.ts";
import type { Gpu } from "../gpu/supervisor.ts";
import type { Log } from "../log.ts";
import { refusal } from "../rpc/errors.ts";
import type { Limits } from "../settings.ts";
import { narrowSlice, type RouteRequest, unionOf } from "./slices.ts";

export interface NumberedSlice {
  /** Among all slices that matched, from 1. */
  readonly sequence: bigint;
  /** Dropped so far on this subscription. */
  readonly dropped: bigint;
  /** Unset at the end of a subscription, for what was dropped after the last slice. */
  readonly assignments?: AssignmentSlice;
}

export interface Subscription {
  /** The next slice; undefined when the run has ended. */
  next(signal: AbortSignal): Promise<NumberedSlice | undefined>;
  close(): void;
}

export interface RouteHub {
  /** In place, on the GPU process too if the run is there, when it resolves. @throws RpcError at the limit of subscribers */
  subscribe(run: string, request: RouteRequest): Promise<Subscription>;
  /** A slice has come from the GPU process. */
  publish(run: string, slice: AssignmentSlice): void;
  /** So many slices of the run never came from the GPU process; whether they would have matched, nobody knows. */
  leftOut(run: string, slices: number): void;
  /** The run was opened on a GPU process. */
  opened(run: string): void;
  /** The run ended: its subscriptions end when their buffers are empty. */
  end(run: string): void;
  /** Ends every subscription with UNAVAILABLE. */
  stop(): void;
  /** Open subscriptions, and what they matched and lost since the start, those closed since then included. */
  readonly counts: { readonly subscribers: number; readonly matched: number; readonly dropped: number };
}

interface Subscriber {
  readonly request: RouteRequest;
  readonly buffer: { sequence: bigint; assignments: AssignmentSlice }[];
  matched: bigint;
  dropped: bigint;
  /** `dropped` as the subscriber knows it. */
  told: bigint;
  ended: boolean;
  wake(): void;
}

const STOPPING = () => refusal(status.UNAVAILABLE, "STOPPING", "the server is stopping", {}, 5);

/** @param isOpen whether the run is on the GPU process now */
export function createRouteHub(
  gpu: Gpu,
  limits: Pick<Limits, "maxAssignmentSubscribers" | "assignmentBufferMessages">,
  isOpen: (run: string) => boolean,
  log: Log,
): RouteHub {
  const subscribers = new Map<string, Set<Subscriber>>();
  const total = { matched: 0, dropped: 0 };
  let stopping = false;

  /** Tells the GPU process what is wanted of a run now. */
  async function announce(run: string): Promise<void> {
    if (!isOpen(run)) return;
    const wanted = [...(subscribers.get(run) ?? [])].map(({ request }) => request);
    try {
      if (wanted.length === 0) await gpu.request({ case: "unsubscribeRoutes", value: { run } });
      else await gpu.request({ case: "subscribeRoutes", value: { run, ...unionOf(wanted) } });
    } catch (error) {
      // The run has ended or its process has: the next opening announces again.
      log("info", `routes: ${error}`, { run });
    }
  }

  const hub: RouteHub = {
    async subscribe(run, request) {
      if (stopping) throw STOPPING();
      const all = subscribers.get(run) ?? new Set();
      const limit = limits.maxAssignmentSubscribers;
      if (all.size >= limit) {
        const message = `${run} has ${limit} subscribers of its assignments already`;
        throw refusal(status.RESOURCE_EXHAUSTED, "TOO_MANY_SUBSCRIBERS", message, { limit: String(limit) }, 1);
      }
      const own: Subscriber = { request, buffer: [], matched: 0n, dropped: 0n, told: 0n, ended: false, wake: () => {} };
      subscribers.set(run, all.add(own));
      await announce(run);
      return {
        async next(signal) {
          while (own.buffer.length === 0 && !own.ended) {
            const changed = new Promise<void>((resolve) => {
              own.wake = resolve;
            });
            await untilAborted(changed, signal);
          }
          const next = own.buffer.shift();
          if (!next && stopping) throw STOPPING();
          if (!next && own.told === own.dropped) return undefined;
          own.told = own.dropped;
          return { sequence: own.matched, ...next, dropped: own.dropped };
        },
        close() {
          all.delete(own);
          if (all.size === 0 && subscribers.get(run) === all) subscribers.delete(run);
          if (!own.ended) void announce(run);
        },
      };
    },

    publish(run, slice) {
      for (const subscriber of subscribers.get(run) ?? []) {
        const assignments = narrowSlice(slice, subscriber.request);
        if (!assignments) continue;
        const sequence = ++subscriber.matched;
        total.matched++;
        if (subscriber.buffer.length >= limits.assignmentBufferMessages) {
          subscriber.dropped++;
          total.dropped++;
          continue;
        }
        subscriber.buffer.push({ sequence, assignments });
        subscriber.wake();
      }
    },

    leftOut(run, slices) {
      for (const subscriber of subscribers.get(run) ?? []) {
        subscriber.matched += BigInt(slices);
        subscriber.dropped += BigInt(slices);
        total.matched += slices;
        total.dropped += slices;
      }
    },

    opened(run) {
      if (subscribers.has(run)) void announce(run);
    },

    end(run) {
      for (const subscriber of subscribers.get(run) ?? []) {
        subscriber.ended = true;
        subscriber.wake();
      }
    },

    stop() {
      stopping = true;
      for (const run of subscribers.keys()) hub.end(run);
    },

    get counts() {
      return { subscribers: [...subscribers.values()].reduce((sum, all) => sum + all.size, 0), ...total };
    },
  };
  return hub;
}
