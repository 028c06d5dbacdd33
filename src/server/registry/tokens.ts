// Tokens in the registry's file, with a connection of their own: the front asks for them on every call, wherever it runs,
// and `thaw tokens` changes them beside a running server.

import type { Role } from "../access/roles.ts";
import { type Blob, bytesOf, openDatabase } from "./sqlite.ts";

export interface TokenRecord {
  readonly id: string;
  readonly role: Role;
  /** For people. */
  readonly label: string;
  /** SHA-256 of the secret. */
  readonly digest: Uint8Array;
  readonly createTime: Date;
  /** Undefined: never. */
  readonly expireTime: Date | undefined;
  readonly revokeTime: Date | undefined;
}

export interface TokenStore {
  create(record: TokenRecord): void;
  token(id: string): TokenRecord | undefined;
  /** Oldest first, the revoked and expired ones too. */
  tokens(): TokenRecord[];
  /** False when there is no such token; one already revoked stays as it is. */
  revoke(id: string): boolean;
  close(): void;
}

interface TokenRow {
  id: string;
  role: Role;
  label: string;
  digest: Blob;
  create_time: number;
  expire_time: number | null;
  revoke_time: number | null;
}

const timeOf = (ms: number | null): Date | undefined => (ms === null ? undefined : new Date(ms));

const recordOf = (row: TokenRow): TokenRecord => ({
  id: row.id,
  role: row.role,
  label: row.label,
  digest: bytesOf(row.digest),
  createTime: new Date(row.create_time),
  expireTime: timeOf(row.expire_time),
  revokeTime: timeOf(row.revoke_time),
});

/** @param path the registry's file, made where it is missing */
export function openTokens(path: string): TokenStore {
  const { sql, close } = openDatabase(path);
  return {
    create({ id, role, label, digest, createTime, expireTime, revokeTime }) {
      sql.run(
        "INSERT INTO tokens (id, role, label, digest, create_time, expire_time, revoke_time) VALUES (?, ?, ?, ?, ?, ?, ?)",
        id,
        role,
        label,
        digest,
        createTime.getTime(),
        expireTime?.getTime() ?? null,
        revokeTime?.getTime() ?? null,
      );
    },
    token(id) {
      const row = sql.get<TokenRow>("SELECT * FROM tokens WHERE id = ?", id);
      return row && recordOf(row);
    },
    tokens: () => sql.all<TokenRow>("SELECT * FROM tokens ORDER BY create_time, id").map(recordOf),
    revoke(id) {
      sql.run("UPDATE tokens SET revoke_time = ? WHERE id = ? AND revoke_time IS NULL", Date.now(), id);
      return sql.get("SELECT id FROM tokens WHERE id = ?", id) !== undefined;
    },
    close,
  };
}
