// What `thaw doctor` found about one thing, and how it is told: a line that says how it is, and one that says what to do
// about it where something is to be done.

export interface Finding {
  readonly about: string;
  /** `warn`: a server starts, but may not do what one expects. `fail`: none starts, or none trains. */
  readonly level: "ok" | "warn" | "fail";
  readonly found: string;
  /** Where the level is not ok. */
  readonly remedy?: string;
}

export const ok = (about: string, found: string): Finding => ({ about, level: "ok", found });
export const warn = (about: string, found: string, remedy: string): Finding => ({
  about,
  level: "warn",
  found,
  remedy,
});
export const fail = (about: string, found: string, remedy: string): Finding => ({
  about,
  level: "fail",
  found,
  remedy,
});

/**
 *     ok    runtime          Node 20.20.2
 *     warn  disk             3.1 GiB free
 *                            → …
 */
export function findingText({ about, level, found, remedy }: Finding): string {
  const line = `${level.padEnd(4)}  ${about.padEnd(15)}  ${found}\n`;
  return remedy ? `${line}${" ".repeat(23)}→ ${remedy}\n` : line;
}

const GIB = 2 ** 30;
export const gib = (bytes: number): string => `${(bytes / GIB).toFixed(1)} GiB`;
