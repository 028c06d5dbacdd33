// `thaw runs …`: create, look at, watch and steer runs.

import type { Command } from "commander";
import type { RunEvent } from "../../../proto/gen/thaw/v1/event_pb.ts";
import { type Run, RunSchema } from "../../../proto/gen/thaw/v1/run_pb.ts";
import {
  CancelRunResponseSchema,
  type CreateRunResponse,
  CreateRunResponseSchema,
  DeleteRunResponseSchema,
  ForkRunResponseSchema,
  ListRunsResponseSchema,
  PauseRunResponseSchema,
  ResumeRunResponseSchema,
} from "../../../proto/gen/thaw/v1/run_service_pb.ts";
import { type RunState, RunStateSchema } from "../../../proto/gen/thaw/v1/run_state_pb.ts";
import { problemsOfStatus, startRun, watchRun } from "../../typescript/index.ts";
import { dataText } from "../events.ts";
import { type ForkFlags, forkRunRequest } from "../fork_flags.ts";
import { count, duration, enumName, fields, figure, id, resource, table, time } from "../format.ts";
import { allPages } from "../pages.ts";
import { enumList, integer, keyValue } from "../parse.ts";
import { planText, reportText, trainableText } from "../plan.ts";
import { createRunRequest, type RunFlags, runFlags } from "../run_flags.ts";
import { messageJson, note, print, type Session, show, withSession } from "../session.ts";
import { showEvents, type Watched } from "../watching.ts";
import { replay } from "./replay.ts";
import { steer } from "./steer.ts";

type CreateFlags = RunFlags & { readonly dryRun?: boolean; readonly watch?: boolean };
type ListFlags = { readonly state?: RunState[]; readonly label?: Record<string, string> };

export function addRuns(program: Command): void {
  const runs = program.command("runs").description("fine-tuning runs");
  runFlags(runs.command("create").description("create a run; it starts when a GPU has room for it"))
    .option("--dry-run", "check everything and price the plan, create nothing")
    .option("--watch", "watch it")
    .action(withSession(createRun));
  runFlags(runs.command("start").description("create a run and watch it, in one call (StartRun)")).action(
    withSession(start),
  );
  runFlags(runs.command("fork <checkpoint>").description("go on from a run's checkpoint with changed settings"))
    .option("--reset-optimizer-state", "take the parameters alone and begin at step 0")
    .option("--watch", "watch it")
    .action(withSession(fork));
  runs
    .command("list")
    .description("runs, newest first")
    .option("--state <names>", "only in these states, for instance running,paused", enumList(RunStateSchema))
    .option("--label <key=value>", "only with this label; may be repeated", keyValue)
    .action(withSession(list));
  runs.command("get <run>").description("how a run stands").action(withSession(get));
  runs
    .command("watch <run>")
    .description("a run's events, all of them and then its future; Ctrl-C detaches")
    .option("--after <revision>", "only events after this revision", integer, 0n)
    .action(withSession(watch));
  runs
    .command("steer <run>")
    .description("watch a run and command it by lines typed, in one call (SteerRun)")
    .action(withSession(steer));
  runs
    .command("pause <run>")
    .description("pause between two steps")
    .action(
      withSession(async (session, run: string) => {
        const response = await session.thaw.runs.pauseRun({ name: resource("runs", run) });
        show(
          session,
          PauseRunResponseSchema,
          response,
          ({ run, effectiveStep }) => `${stateOf(run)} at step ${effectiveStep}`,
        );
        return undefined;
      }),
    );
  runs
    .command("resume <run>")
    .description("go on")
    .option("--pause-at <step>", "pause again, by itself, when so many steps are done", integer, 0n)
    .action(
      withSession(async (session, run: string, { pauseAt }: { readonly pauseAt: bigint }) => {
        const response = await session.thaw.runs.resumeRun({ name: resource("runs", run), pauseAtStep: pauseAt });
        show(
          session,
          ResumeRunResponseSchema,
          response,
          ({ run, effectiveStep }) => `${stateOf(run)} from step ${effectiveStep}`,
        );
        return undefined;
      }),
    );
  runs
    .command("cancel <run>")
    .description("end a run between two steps")
    .action(
      withSession(async (session, run: string) => {
        const response = await session.thaw.runs.cancelRun({ name: resource("runs", run) });
        show(
          session,
          CancelRunResponseSchema,
          response,
          ({ run, effectiveStep }) => `${stateOf(run)} at step ${effectiveStep}`,
        );
        return undefined;
      }),
    );
  runs
    .command("replay <run>")
    .description("train it once more as its log says, as a new run, and compare every loss")
    .option("--id <id>", "the id in runs/{run} of the new run; chosen by the server when left out")
    .action(withSession(replay));
  runs
    .command("delete <run>")
    .description("delete an ended run with its log and checkpoints")
    .action(
      withSession(async (session, run: string) => {
        const name = resource("runs", run);
        const response = await session.thaw.runs.deleteRun({ name });
        show(session, DeleteRunResponseSchema, response, () => `${name} deleted`);
        return undefined;
      }),
    );
}

async function createRun(session: Session, flags: CreateFlags): Promise<number | undefined> {
  const request = await createRunRequest(flags);
  const response = await session.thaw.runs.createRun({ ...request, validateOnly: flags.dryRun ?? false });
  const run = response.run!;
  if (flags.watch && !flags.dryRun) {
    jsonLine(session, response);
    return watchFrom(session, run, 0n);
  }
  show(session, CreateRunResponseSchema, response, ({ report }) => {
    if (flags.dryRun) return report ? reportText(report) : "everything is in order";
    return `${run.name} ${enumName(RunStateSchema, run.state)}${ahead(run)}`;
  });
  if (!flags.dryRun && !session.json) note(`watch it:  thaw runs watch ${run.name}${session.serverFlag}`);
  return undefined;
}

async function fork(session: Session, checkpoint: string, flags: ForkFlags & { readonly watch?: boolean }) {
  const response = await session.thaw.runs.forkRun(await forkRunRequest(checkpoint, flags));
  const run = response.run!;
  if (flags.watch) {
    if (session.json) print(JSON.stringify(messageJson(ForkRunResponseSchema, response)));
    return watchFrom(session, run, 0n);
  }
  const from = run.sourceCheckpoint || run.spec?.initialCheckpoint;
  const begins = () => `${run.name} ${enumName(RunStateSchema, run.state)}${ahead(run)}, from ${from}`;
  show(session, ForkRunResponseSchema, response, begins);
  return undefined;
}

async function start(session: Session, flags: RunFlags): Promise<number> {
  const request = await createRunRequest(flags);
  return showEvents(session, async (hooks) => {
    const { created, events } = await startRun(session.thaw, request, hooks);
    jsonLine(session, created);
    return watched(session, created.run!, 0n, events);
  });
}

/** The created run before its events, for scripts that do not know its name yet. */
function jsonLine(session: Session, created: CreateRunResponse): void {
  if (session.json) print(JSON.stringify(messageJson(CreateRunResponseSchema, created)));
}

async function watch(session: Session, typed: string, { after }: { readonly after: bigint }): Promise<number> {
  const { run } = await session.thaw.runs.getRun({ name: resource("runs", typed) });
  return watchFrom(session, run!, after);
}

function watchFrom(session: Session, run: Run, after: bigint): Promise<number> {
  return showEvents(session, async (hooks) => {
    const events = watchRun(session.thaw, run.name, { afterRevision: after, ...hooks });
    return watched(session, run, after, events);
  });
}

function watched(session: Session, run: Run, after: bigint, events: AsyncIterable<RunEvent>): Watched {
  if (!session.json) note(`${run.name}${ahead(run)}`);
  return { name: run.name, steps: Number(run.spec?.steps ?? 0n), state: run.state, after, events };
}

async function list(session: Session, { state = [], label = {} }: ListFlags): Promise<undefined> {
  const response = await allPages(ListRunsResponseSchema, "runs", (page) =>
    session.thaw.runs.listRuns({ ...page, states: state, labels: label }),
  );
  show(session, ListRunsResponseSchema, response, ({ runs }) =>
    table(
      [
        { title: "RUN" },
        { title: "STATE" },
        { title: "STEP", figures: true },
        { title: "LOSS", figures: true },
        { title: "TRAINS" },
        { title: "MODEL" },
        { title: "DATASET" },
        { title: "CREATED" },
      ],
      runs.map((run) => [
        id(run.name),
        enumName(RunStateSchema, run.state),
        `${run.step}/${run.spec?.steps ?? "?"}`,
        run.metrics ? figure(run.metrics.loss) : "",
        planText(run.trainable),
        id(run.spec?.model ?? ""),
        id(run.spec?.dataset ?? ""),
        time(run.createTime),
      ]),
      "no runs",
    ),
  );
  return undefined;
}

async function get(session: Session, typed: string): Promise<undefined> {
  const { run } = await session.thaw.runs.getRun({ name: resource("runs", typed) });
  show(session, RunSchema, run!, runText);
  return undefined;
}

function runText(run: Run): string {
  const { spec, metrics, error, cost, data } = run;
  const took = run.startTime && run.endTime ? Number(run.endTime.seconds - run.startTime.seconds) * 1000 : undefined;
  return fields([
    ["run", run.name],
    ["name", run.displayName],
    [
      "labels",
      Object.entries(run.labels)
        .map(([key, value]) => `${key}=${value}`)
        .join(" "),
    ],
    ["state", enumName(RunStateSchema, run.state) + ahead(run)],
    ["error", error ? `${problemsOfStatus(error).code}: ${error.message}` : ""],
    ["step", `${run.step} of ${spec?.steps ?? "?"}`],
    ["model", spec?.model ?? ""],
    ["dataset", [spec?.dataset ?? "", ...(spec?.mixture?.datasets ?? [])].join(", ")],
    ["data", data ? dataText(data) : ""],
    ["trains", planText(run.trainable) + (cost ? `, ${trainableText(cost)}` : "")],
    ["loss", metrics ? figure(metrics.loss) : ""],
    ["speed", metrics ? `${count(metrics.tokensPerSecond)} tokens/s` : ""],
    ["checkpoint", run.latestCheckpoint],
    ["revision", String(run.revision)],
    ["restarts", run.restarts > 0n ? String(run.restarts) : ""],
    ["created", time(run.createTime)],
    ["started", time(run.startTime)],
    ["ended", time(run.endTime) + (took === undefined ? "" : ` (after ${duration(took)})`)],
  ]);
}

const ahead = ({ queuePosition }: Run): string => (queuePosition > 0n ? ` (${queuePosition} ahead)` : "");

const stateOf = (run: Run | undefined): string => `${run?.name} ${enumName(RunStateSchema, run?.state ?? 0)}`;
