// A full disk in the words of those who report it: the system, or SQLite.

// SHMSIZE: the index of SQLite's write-ahead log cannot be made, or made larger.
const CODES: readonly unknown[] = ["ENOSPC", "EDQUOT", "SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_SHMSIZE"];

export const isDiskFull = (error: unknown): boolean =>
  error instanceof Error && CODES.includes((error as NodeJS.ErrnoException).code);
