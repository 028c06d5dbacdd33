#!/usr/bin/env node
// Starts the `thaw` command under Node: the command is TypeScript, and tsx runs it as it stands. Deno needs no launcher.
import { register } from "tsx/esm/api";

register();
await import("./main.ts");
