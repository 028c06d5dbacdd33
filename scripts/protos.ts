// The contract's tooling: `npm run protos` lints proto/ and writes the generated TypeScript to proto/gen; `--check` (CI)
// lints, generates into a temporary folder and fails when proto/gen differs, and runs `buf breaking` (FILE) against
// proto/baseline.binpb, the descriptors of the last release; `--baseline` writes that file and belongs to making a release.
//
// The baseline is a committed file and not a git tag because CI clones without tags and without history. While there is
// none, nothing has been released and anything may still change; the check says so.

import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { argv, chdir, exit, stdout } from "node:process";

const GENERATED = "proto/gen";
const BASELINE = "proto/baseline.binpb";

/** Runs buf in the repository root; its complaints go to the terminal. Throws when it finds any. */
function buf(...args: string[]): void {
  execFileSync(join("node_modules", ".bin", "buf"), args, { stdio: ["ignore", "inherit", "inherit"] });
}

/** Contents of every file below a folder, by relative path. */
function contents(folder: string): Map<string, string> {
  if (!existsSync(folder)) return new Map();
  const entries = readdirSync(folder, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
  const paths = entries.map((entry) => join(entry.parentPath, entry.name));
  return new Map(paths.map((path) => [path.slice(folder.length + 1), readFileSync(path, "utf8")]));
}

/** Paths that are missing, surplus or different in proto/gen. */
function drift(): string[] {
  const folder = mkdtempSync(join(tmpdir(), "thaw-protos-"));
  try {
    buf("generate", "--output", folder);
    const fresh = contents(join(folder, GENERATED));
    const committed = contents(GENERATED);
    const paths = new Set([...fresh.keys(), ...committed.keys()]);
    return [...paths].filter((path) => fresh.get(path) !== committed.get(path)).sort();
  } finally {
    rmSync(folder, { recursive: true });
  }
}

function check(): string[] {
  const problems = drift().map((path) => `${GENERATED}/${path} differs from its proto: run npm run protos`);
  if (!existsSync(BASELINE)) {
    stdout.write(`buf breaking: skipped, there is no ${BASELINE} before the first release\n`);
    return problems;
  }
  try {
    buf("breaking", "--against", BASELINE);
  } catch {
    problems.push(`breaking changes against ${BASELINE}`);
  }
  return problems;
}

chdir(join(import.meta.dirname, ".."));
try {
  buf("lint");
} catch {
  exit(1);
}
switch (argv[2]) {
  case "--check": {
    const problems = check();
    stdout.write(problems.length > 0 ? `${problems.join("\n")}\n` : "protos ok\n");
    exit(problems.length > 0 ? 1 : 0);
    break;
  }
  case "--baseline":
    buf("build", "--as-file-descriptor-set", "--exclude-source-info", "--output", BASELINE);
    break;
  default:
    buf("generate");
}
