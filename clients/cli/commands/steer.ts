// `thaw runs steer`: one SteerRun stream. Lines typed (or piped in) command the run, its events and the answers come out.
//
//   pause | resume | cancel | save | train <the flags of a plan, for instance: ffn --router on>
//
// At the end of the input the watch goes on. The stream is not resumed when the connection breaks: a command whose answer
// was lost must not be repeated unasked.

import process from "node:process";
import { createInterface } from "node:readline";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { Command } from "commander";
import type { RunEvent } from "../../../proto/gen/thaw/v1/event_pb.ts";
import {
  type SteerAcknowledgement,
  SteerAcknowledgementSchema,
  type SteerRunRequestSchema,
} from "../../../proto/gen/thaw/v1/run_service_pb.ts";
import { problemsOfStatus } from "../../typescript/index.ts";
import { resource } from "../format.ts";
import { type PlanFlags, planFlags, planOf } from "../plan.ts";
import { messageJson, note, print, type Session } from "../session.ts";
import { showEvents } from "../watching.ts";

type SteerRequest = MessageInitShape<typeof SteerRunRequestSchema>;

export async function steer(session: Session, typed: string): Promise<number> {
  const { run } = await session.thaw.runs.getRun({ name: resource("runs", typed) });
  const { name, spec, state, revision } = run!;
  if (session.terminal)
    note("pause | resume | cancel | save | train <preset> [--add …] [--remove …] [--router on|off]");

  return showEvents(session, async ({ signal, say }) => {
    const lines = createInterface({ input: process.stdin });
    signal.addEventListener("abort", () => lines.close());
    async function* commands(): AsyncGenerator<SteerRequest> {
      yield { command: { case: "watch", value: { name, afterRevision: revision } } };
      for await (const line of lines) {
        const request = line.trim() === "" ? undefined : parseCommand(line.trim());
        if (request) yield request;
      }
    }
    const answered = (answer: SteerAcknowledgement) => {
      if (session.json) print(JSON.stringify({ acknowledgement: messageJson(SteerAcknowledgementSchema, answer) }));
      else say(answerText(answer));
    };
    async function* events(): AsyncGenerator<RunEvent> {
      try {
        for await (const { reply } of session.thaw.runs.steerRun(commands(), { signal })) {
          if (reply.case === "events") yield* reply.value.events;
          else if (reply.case === "acknowledgement") answered(reply.value);
        }
      } finally {
        lines.close(); // An open stdin would keep the process waiting.
      }
    }
    return { name, steps: Number(spec?.steps ?? 0n), state, after: revision, events: events() };
  });
}

function answerText({ commandNumber, effectiveStep, result }: SteerAcknowledgement): string {
  if (result.case !== "error") return `command ${commandNumber}: ${result.case} at step ${effectiveStep}`;
  const { code, message } = problemsOfStatus(result.value);
  return `command ${commandNumber}: ${code}: ${message}`;
}

/** The request for one line, or undefined after saying what is wrong with it. */
export function parseCommand(line: string): SteerRequest | undefined {
  const [word, ...rest] = line.split(/\s+/);
  switch (word) {
    case "pause":
      return { command: { case: "pause", value: {} } };
    case "resume":
      return { command: { case: "resume", value: {} } };
    case "cancel":
      return { command: { case: "cancel", value: {} } };
    case "save":
      return { command: { case: "saveCheckpoint", value: {} } };
    case "train": {
      // A preset may stand without its flag.
      const flags = rest[0] && !rest[0].startsWith("-") ? ["--train", ...rest] : rest;
      const parser = planFlags(new Command("train")).exitOverride().helpOption(false);
      try {
        parser.parse(flags, { from: "user" });
      } catch {
        return undefined; // Commander has said why.
      }
      const plan = planOf(parser.opts<PlanFlags>());
      if (plan) return { command: { case: "setTrainable", value: { plan } } };
      note("train what? For instance: train ffn --router on");
      return undefined;
    }
    default:
      note(`${word} is none of pause, resume, cancel, save, train`);
      return undefined;
  }
}
