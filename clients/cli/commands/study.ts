// `thaw study`: the runs of a study file, its results and its report. Ctrl-C leaves; the same command goes on.

import { mkdir, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import process from "node:process";
import type { Command } from "commander";
import { CLAIM_IDS } from "../../study/claims.ts";
import { readStudy, type Study, StudyFileError } from "../../study/file.ts";
import { cellLabels } from "../../study/labels.ts";
import { planCells } from "../../study/plan.ts";
import { renderStudyReport } from "../../study/report.ts";
import type { StudyDescription } from "../../study/results.ts";
import { readOutcome, runStudy, type StudyOutcome, type StudyProgress } from "../../study/runner.ts";
import { AXES } from "../../study/schema.ts";
import { type OwnServer, startServer } from "../../study/server.ts";
import { connectThaw, type Thaw } from "../../typescript/index.ts";
import { connectTo, serverOf } from "../connection.ts";
import { EXIT } from "../exit_codes.ts";
import { percent } from "../format.ts";
import { liveLine } from "../live.ts";
import { note, print, reportError, UsageError } from "../session.ts";

interface StudyFlags {
  readonly out?: string;
  readonly models?: string;
  readonly plan?: boolean;
  readonly report?: boolean;
}

export function addStudy(program: Command): void {
  program
    .command("study <file>")
    .description("train every cell of a study file and report what they show; again, it goes on where it was left")
    .option("--out <dir>", "results.jsonl, failures.jsonl and report.html go here; default: study-{name}")
    .option("--models <dir>", "models folder of the server started when no --server is given")
    .option("--plan", "print the cells and train nothing")
    .option("--report", "write the report of the cells that have a result, and train nothing")
    .action(async (file: string, flags: StudyFlags, command: Command) => {
      const { json = false } = command.optsWithGlobals<{ json?: boolean }>();
      const given = program.getOptionValueSource("server") !== "default" || process.env.THAW_SERVER;
      try {
        process.exitCode = await study(file, flags, given ? () => connectTo(command) : undefined);
      } catch (error) {
        process.exitCode = reportError(error, json, serverOf(command));
      }
    });
}

/** @param connect to the server named; undefined: the study starts one of its own */
async function study(path: string, flags: StudyFlags, connect: (() => Thaw) | undefined): Promise<number> {
  const read = await readFileOrSay(path);
  if (flags.plan) {
    const cells = planCells(read);
    const label = cellLabels(cells.map(({ settings }) => settings));
    for (const { id, settings } of cells) print(`${id}  ${label(settings)}`);
    return EXIT.OK;
  }
  const out = resolve(flags.out ?? `study-${read.name}`);
  if (flags.report) return await report(read, out, await readOutcome(read, out));
  const leave = new AbortController();
  const interrupt = () => leave.abort(new Error("interrupted"));
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, interrupt);
  let own: OwnServer | undefined;
  try {
    if (!connect) {
      await mkdir(out, { recursive: true });
      own = await startServer(join(out, "server"), flags.models && resolve(flags.models), leave.signal);
      note(`a server of its own on ${own.address}, ${own.adapter}`);
    }
    return await carryOut(read, out, connect?.() ?? connectThaw(own!.address), leave.signal);
  } catch (error) {
    if (!leave.signal.aborted) throw error;
    note("Left; the same command goes on where it was.");
    return EXIT.DETACHED;
  } finally {
    await own?.stop();
  }
}

async function readFileOrSay(path: string): Promise<Study> {
  try {
    return await readStudy(path, CLAIM_IDS);
  } catch (error) {
    throw error instanceof StudyFileError ? new UsageError(error.message) : error;
  }
}

async function carryOut(study: Study, out: string, thaw: Thaw, signal: AbortSignal): Promise<number> {
  const live = process.stdout.isTTY ? liveLine(process.stdout) : undefined;
  const say = (text: string) => (live ? live.print(text) : note(text));
  const label = cellLabels(planCells(study).map(({ settings }) => settings));
  const progress: StudyProgress = {
    say,
    show: (cell, { step, loss }) =>
      live?.paint(`${label(cell.settings)}  step ${step}/${cell.task.steps}  ${lossText(loss)}`),
    done: (cell, outcome, { ended, of }) => {
      const told = "error" in outcome ? outcome.error : `${outcome.metric} ${percent(outcome.score)}`;
      say(`${ended}/${of}  ${label(cell.settings)}  ${told}`);
    },
  };
  try {
    const outcome = await runStudy(thaw, study, out, progress, signal);
    const { failures } = outcome;
    if (failures.length > 0)
      say(`without a result: ${failures.length} of the cells; ${join(out, "failures.jsonl")} says why`);
    return await report(study, out, outcome);
  } finally {
    live?.end();
    thaw.close();
  }
}

async function report(study: Study, out: string, { results, failures }: StudyOutcome): Promise<number> {
  await writeFile(join(out, "report.html"), renderStudyReport(description(study), results, failures));
  print(join(out, "results.jsonl"));
  print(join(out, "report.html"));
  return failures.length === 0 ? EXIT.OK : EXIT.FAILED;
}

const lossText = (loss: number | undefined): string => (loss === undefined ? "" : `loss ${loss.toFixed(3)}`);

/** What the report says about the study. Folders of this machine are left out: the file names them its own way. */
function description(study: Study): StudyDescription {
  const { datasets: _, folders: __, ...file } = study;
  const { name, question, axis, baseline, claims, equivalenceMargin } = file;
  const cells = planCells(study).map(({ id, settings }) => ({ cell: id, settings }));
  return { name, question, axis: AXES[axis], baseline, claims: [...claims], equivalenceMargin, cells, settings: file };
}
