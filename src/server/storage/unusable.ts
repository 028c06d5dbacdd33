// Why nothing can be begun in a data directory, in one sentence for who tries: its disk is full, or nothing may be written
// there. A server does not start for reading alone in either case: without a write no lock can be taken and no registry be
// opened. What is refused so has changed nothing of what was there.

import { isDiskFull } from "./disk_full.ts";

const FORBIDDEN = /^(EACCES|EPERM|EROFS|SQLITE_(READONLY|CANTOPEN)(_\w+)?)$/;

/** What to do where the disk is full. */
export const ROOM_REMEDY = "make room on it and try again: nothing in it is lost, and its runs go on where they were";
/** What to do where nothing may be written. */
export const WRITABLE_REMEDY = "give it to the server's user, mount its disk for writing, or choose another --data-dir";

/** The sentence where the data directory is to blame for `error`, else undefined. */
export function unusable(error: unknown): string | undefined {
  if (isDiskFull(error)) return `the disk of the data directory (--data-dir) is full; ${ROOM_REMEDY}`;
  const { code = "", syscall } = error as NodeJS.ErrnoException;
  // Making a folder on a read-only disk says that it is not there.
  if (!FORBIDDEN.test(code) && !(code === "ENOENT" && syscall === "mkdir")) return undefined;
  return `the data directory (--data-dir) cannot be written (${code}); ${WRITABLE_REMEDY}`;
}
