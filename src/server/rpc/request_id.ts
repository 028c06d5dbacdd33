// Which call an entry of the log, a span or an answer belongs to: the caller's `x-request-id`, or one of our own where there
// is none. It goes back in the trailing metadata. Not `request_id` of a mutating request, which makes repeating it safe.

import { randomUUID } from "node:crypto";
import type { Metadata } from "@grpc/grpc-js";

export const REQUEST_ID_KEY = "x-request-id";

/** Anything longer or stranger has no business in a log. */
const ACCEPTED = /^[\w.:-]{1,128}$/;

/** The call's id, which is in its metadata from now on. */
export function requestIdOf(metadata: Metadata): string {
  const given = metadata.get(REQUEST_ID_KEY)[0];
  const id = typeof given === "string" && ACCEPTED.test(given) ? given : randomUUID();
  metadata.set(REQUEST_ID_KEY, id);
  return id;
}
