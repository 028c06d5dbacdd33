// Everything the services work with.

import type { Answers } from "./answers.ts";
import type { Gpu } from "./gpu/supervisor.ts";
import type { Log } from "./log.ts";
import type { Registry } from "./registry/registry.ts";
import type { RouteHub } from "./routing/hub.ts";
import type { Checkpoints } from "./runs/checkpoints.ts";
import type { RunLog } from "./runs/log.ts";
import type { Runs } from "./runs/manager.ts";
import type { Settings } from "./settings.ts";
import type { Intake } from "./storage/intake.ts";
import type { Layout } from "./storage/layout.ts";

export interface Core {
  readonly settings: Settings;
  readonly registry: Registry;
  readonly layout: Layout;
  readonly gpu: Gpu;
  readonly runs: Runs;
  readonly runLog: RunLog;
  readonly checkpoints: Checkpoints;
  readonly routes: RouteHub;
  readonly answers: Answers;
  readonly intake: Intake;
  readonly log: Log;
  /** When the server started, in milliseconds since 1970. */
  readonly startTime: number;
}
