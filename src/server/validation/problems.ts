// Collects everything wrong with a request, so that a caller can mend it in one go. One function per message says what is
// allowed in it; nothing else in the server checks a field.

import type { RpcError } from "../../../proto/rpc/status.ts";
import type { Problem } from "../../trainer/types.ts";
import { type Collection, ID_RULE, idIn, isId } from "../ids.ts";
import { invalidArgument } from "../rpc/errors.ts";

const MAX_REQUEST_ID = 128;
const MAX_DISPLAY_NAME = 256;
const MAX_LABELS = 64;
const MAX_LABEL_KEY = 63;
const MAX_LABEL_VALUE = 256;
const CONTROL = /\p{Cc}/u;
const MAX_PAGE_SIZE = 1000;
const DEFAULT_PAGE_SIZE = 50;

export interface Problems {
  add(field: string, message: string): void;
  /** Adds the message unless `valid`. */
  require(valid: boolean, field: string, message: string): void;
  /** @throws RpcError INVALID_ARGUMENT with all of them, when there are any */
  throwIfAny(): void;
}

export function collectProblems(): Problems {
  const problems: Problem[] = [];
  const add = (field: string, message: string): void => void problems.push({ field, message });
  return {
    add,
    require: (valid, field, message) => valid || add(field, message),
    throwIfAny() {
      if (problems.length > 0) throw invalidArgument(problems);
    },
  };
}

/** One function's problems, thrown at once: for messages with a field or two. */
export function check(collect: (problems: Problems) => void): void {
  const problems = collectProblems();
  collect(problems);
  problems.throwIfAny();
}

/** INVALID_ARGUMENT about one field. */
export const invalidField = (field: string, message: string): RpcError => invalidArgument([{ field, message }]);

/** The id in `{collection}/{id}`; "" after a problem. */
export function checkName(problems: Problems, collection: Collection, name: string, field: string): string {
  const id = idIn(collection, name);
  if (id !== undefined) return id;
  const example = `\`${collection}/{id}\``;
  problems.add(field, name === "" ? `required, ${example}` : `is not ${example}, where the id ${ID_RULE}`);
  return "";
}

/** A whole number in an inclusive range. */
export function checkRange(
  problems: Problems,
  field: string,
  value: bigint | number,
  least: number,
  most: number,
): void {
  const valid = value >= least && value <= most;
  if (!valid) problems.add(field, `is ${value}; must be from ${least} to ${most}`);
}

/** The id a caller chose, if any. */
export function checkNewId(problems: Problems, id: string, field: string): void {
  if (id !== "" && !isId(id)) problems.add(field, ID_RULE);
}

/**
 * Text that callers choose and others read: on a terminal, and from a registry whose driver ends a text at its first NUL.
 */
function checkText(problems: Problems, text: string, most: number, field: string): void {
  problems.require(text.length <= most, field, `longer than ${most} characters`);
  problems.require(!CONTROL.test(text), field, "holds control characters");
}

export function checkRequestId(problems: Problems, requestId: string, field = "request_id"): void {
  checkText(problems, requestId, MAX_REQUEST_ID, field);
}

export function checkDisplayName(problems: Problems, name: string, field: string): void {
  checkText(problems, name, MAX_DISPLAY_NAME, field);
}

export function checkLabels(problems: Problems, labels: Readonly<Record<string, string>>, field: string): void {
  const entries = Object.entries(labels);
  problems.require(entries.length <= MAX_LABELS, field, `has ${entries.length} labels; at most ${MAX_LABELS}`);
  for (const [key, value] of entries.slice(0, MAX_LABELS)) {
    const shown = JSON.stringify(key.slice(0, MAX_LABEL_KEY));
    const keyFits = key.length > 0 && key.length <= MAX_LABEL_KEY;
    problems.require(keyFits, field, `key ${shown} must have 1 to ${MAX_LABEL_KEY} characters`);
    problems.require(!CONTROL.test(key), field, `key ${shown} holds control characters`);
    checkText(problems, value, MAX_LABEL_VALUE, `${field}[${shown}]`);
  }
}

/** A page to fetch; one item more than asked for tells whether another page follows. */
export interface Page {
  readonly size: number;
  readonly before: number | undefined;
}

/** Tokens are opaque to callers: the position of the page's last item. */
export function checkPage(problems: Problems, request: { pageSize: number; pageToken: string }): Page {
  const { pageSize, pageToken } = request;
  checkRange(problems, "page_size", pageSize, 0, MAX_PAGE_SIZE);
  const position = /^[0-9a-z]{1,11}$/.test(pageToken) ? Number.parseInt(pageToken, 36) : undefined;
  const valid = pageToken === "" || Number.isSafeInteger(position);
  problems.require(valid, "page_token", "is not a token of this server");
  return { size: pageSize || DEFAULT_PAGE_SIZE, before: position };
}

/** The page's items and the token of the next page, from a query with `limit: size + 1`. */
export function pageOf<T>(found: readonly { position: number; item: T }[], page: Page): { items: T[]; next: string } {
  const shown = found.slice(0, page.size);
  const next = found.length > page.size ? shown[shown.length - 1].position.toString(36) : "";
  return { items: shown.map(({ item }) => item), next };
}
