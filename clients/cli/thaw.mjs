#!/usr/bin/env node
// Starts the `thaw` command under Node: the command is TypeScript, and tsx runs it as it stands. Deno needs no launcher.
import process from "node:process";
import { register } from "tsx/esm/api";

// `npm run thaw` moves to the package's folder; paths are meant from where it was typed.
if (process.env.npm_lifecycle_event === "thaw" && process.env.INIT_CWD) process.chdir(process.env.INIT_CWD);

register();
await import("./main.ts");
