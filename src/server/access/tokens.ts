// Bearer tokens: `thaw_{id}_{secret}`, where the id is public and finds the token's record, and the secret is 256 random
// bits that are shown once and never stored.
//
// At rest there is the secret's SHA-256. A slow password hash guards what people can remember; of 256 random bits nobody
// tries a noticeable share, so a fast hash is as good and costs a call microseconds. Whoever reads the registry learns
// nothing to log in with. The comparison takes the same time wherever the digests differ, and for an id that is unknown.

import { createHash, randomBytes, timingSafeEqual } from "node:crypto";
import { status } from "@grpc/grpc-js";
import { newId } from "../ids.ts";
import type { TokenRecord, TokenStore } from "../registry/tokens.ts";
import { refusal } from "../rpc/errors.ts";
import type { Role } from "./roles.ts";

const SECRET_BYTES = 32;
const TOKEN = /^thaw_(t-[a-z2-9]{10})_([A-Za-z0-9_-]{43})$/;
const NOBODY = Buffer.alloc(32);

const digestOf = (secret: string): Buffer => createHash("sha256").update(secret).digest();

/** Makes and records a token. The text returned is the only copy of its secret. */
export function createToken(
  store: TokenStore,
  about: { readonly role: Role; readonly label: string; readonly expireTime: Date | undefined },
): { readonly record: TokenRecord; readonly token: string } {
  const secret = randomBytes(SECRET_BYTES).toString("base64url");
  const id = newId("t");
  const record = { ...about, id, digest: digestOf(secret), createTime: new Date(), revokeTime: undefined };
  store.create(record);
  return { record, token: `thaw_${id}_${secret}` };
}

/** Why a token that was once good is not: `revoked`, `expired`; undefined while it is. */
export function endOf({ revokeTime, expireTime }: TokenRecord, now = Date.now()): "revoked" | "expired" | undefined {
  if (revokeTime) return "revoked";
  return expireTime && expireTime.getTime() <= now ? "expired" : undefined;
}

const unauthenticated = (reason: string, message: string) => refusal(status.UNAUTHENTICATED, reason, message);

/** @throws RpcError UNAUTHENTICATED when the token was revoked or has expired */
export function requireLive(record: TokenRecord | undefined): void {
  const end = record ? endOf(record) : "revoked";
  if (end) throw unauthenticated(`TOKEN_${end.toUpperCase()}`, `the token ${end === "expired" ? "has" : "was"} ${end}`);
}

/**
 * The token that a call's `authorization` metadata carries.
 * @throws RpcError UNAUTHENTICATED saying whether it is missing, not a token of this server, revoked or expired
 */
export function authenticate(store: TokenStore, authorization: readonly unknown[]): TokenRecord {
  if (authorization.length === 0) {
    throw unauthenticated("TOKEN_MISSING", "this server wants a token: metadata `authorization: Bearer TOKEN`");
  }
  const [, text = ""] = /^bearer +(\S+)$/i.exec(String(authorization[0])) ?? [];
  const [, id = "", secret = ""] = TOKEN.exec(text) ?? [];
  const record = store.token(id);
  const same = timingSafeEqual(digestOf(secret), record?.digest ?? NOBODY);
  if (!record || !same) {
    throw unauthenticated("TOKEN_UNKNOWN", "the `authorization` metadata holds no token of this server");
  }
  requireLive(record);
  return record;
}

/** Whether any token is good now. */
export const anyToken = (store: TokenStore): boolean => store.tokens().some((record) => !endOf(record));
