// A full disk in the words of those who report it: the system, or SQLite.

const CODES: readonly unknown[] = ["ENOSPC", "EDQUOT", "SQLITE_FULL", "SQLITE_IOERR_WRITE"];

export const isDiskFull = (error: unknown): boolean =>
  error instanceof Error && CODES.includes((error as NodeJS.ErrnoException).code);
