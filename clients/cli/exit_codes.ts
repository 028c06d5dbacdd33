// What the command's exit code tells a script. Documented in clients/README.md.

export const EXIT = {
  OK: 0,
  /** The watched run failed or was cancelled, a replay differed, or an error with no code of its own. */
  FAILED: 1,
  /** The command line makes no sense. */
  USAGE: 2,
  INVALID_ARGUMENT: 3,
  NOT_FOUND: 4,
  /** Not in this state: FAILED_PRECONDITION, ABORTED, ALREADY_EXISTS. */
  PRECONDITION: 5,
  /** No server there, or it is going away. */
  UNAVAILABLE: 6,
  RESOURCE_EXHAUSTED: 7,
  /** UNAUTHENTICATED, PERMISSION_DENIED. */
  DENIED: 8,
  /** Ctrl-C; a run that was being watched goes on. */
  DETACHED: 130,
} as const;

const BY_CODE: Readonly<Record<string, number>> = {
  INVALID_ARGUMENT: EXIT.INVALID_ARGUMENT,
  OUT_OF_RANGE: EXIT.INVALID_ARGUMENT,
  NOT_FOUND: EXIT.NOT_FOUND,
  FAILED_PRECONDITION: EXIT.PRECONDITION,
  ABORTED: EXIT.PRECONDITION,
  ALREADY_EXISTS: EXIT.PRECONDITION,
  UNAVAILABLE: EXIT.UNAVAILABLE,
  DEADLINE_EXCEEDED: EXIT.UNAVAILABLE,
  RESOURCE_EXHAUSTED: EXIT.RESOURCE_EXHAUSTED,
  UNAUTHENTICATED: EXIT.DENIED,
  PERMISSION_DENIED: EXIT.DENIED,
};

/** The exit code for a gRPC code by name. */
export const exitCode = (code: string): number => BY_CODE[code] ?? EXIT.FAILED;
