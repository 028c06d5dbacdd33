// Who a call is from, between the gate that found out and the handlers: metadata, which also crosses to another process.

import type { Metadata } from "@grpc/grpc-js";

const CALLER_KEY = "x-thaw-caller";

/** Notes who calls; what the caller itself said about that is forgotten. @param token the token's id */
export function setCaller(metadata: Metadata, token: string | undefined): void {
  metadata.remove(CALLER_KEY);
  if (token !== undefined) metadata.set(CALLER_KEY, token);
}

/** The id of the caller's token; "" where the server asks for none. */
export const callerOf = (metadata: Metadata): string => String(metadata.get(CALLER_KEY)[0] ?? "");
