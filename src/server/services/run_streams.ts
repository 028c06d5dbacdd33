// StartRun and SteerRun: the unary handlers and the watch on one stream, and nothing of their own. A dropped stream stops
// nothing but itself.

import { create, type MessageInitShape } from "@bufbuild/protobuf";
import {
  type RunService,
  SteerAcknowledgementSchema,
  type SteerRunRequest,
  type SteerRunResponseSchema,
  WatchRunRequestSchema,
} from "../../../proto/gen/thaw/v1/run_service_pb.ts";
import { publicError, RpcError, toStatus } from "../../../proto/rpc/status.ts";
import type { Core } from "../core.ts";
import { idIn } from "../ids.ts";
import type { CallContext, Handlers } from "../rpc/serve.ts";
import { collectProblems, invalidField } from "../validation/problems.ts";
import { checkpointService } from "./checkpoint_service.ts";
import { groupService } from "./group_service.ts";
import { checkProgress, type RunHandlers, watch } from "./run_service.ts";

type Reply = MessageInitShape<typeof SteerRunResponseSchema>;
type Acknowledgement = MessageInitShape<typeof SteerAcknowledgementSchema>;
type Command = Exclude<SteerRunRequest["command"], { case: undefined } | { case: "watch" }>;

/**
 * Items of both sources as they come, each source at most one item ahead of the reader. Ends when `main` has ended and
 * `busy()` is false; fails when either fails.
 */
async function* together<T>(main: AsyncIterable<T>, side: AsyncIterable<T>, busy: () => boolean): AsyncGenerator<T> {
  const waiting: { readonly item: T; readonly taken: () => void }[] = [];
  let wake = (): void => {};
  let over = false;
  let failure: { readonly thrown: unknown } | undefined;

  async function pump(source: AsyncIterable<T>): Promise<void> {
    for await (const item of source) {
      await new Promise<void>((taken) => {
        waiting.push({ item, taken });
        wake();
      });
    }
  }
  const fail = (thrown: unknown): void => {
    failure ??= { thrown };
    wake();
  };
  pump(main).then(() => {
    over = true;
    wake();
  }, fail);
  pump(side).then(() => wake(), fail);

  while (true) {
    const next = waiting.shift();
    if (next) {
      yield next.item;
      next.taken();
    } else if (failure) throw failure.thrown;
    else if (over && !busy()) return;
    else {
      await new Promise<void>((resolve) => {
        wake = resolve;
      });
    }
  }
}

export function runStreams(
  core: Core,
  handlers: RunHandlers,
): Pick<Handlers<typeof RunService>, "startRun" | "steerRun"> {
  const groups = groupService(core);
  const checkpoints = checkpointService(core);

  /** Carries out one command as its unary method would. */
  async function carryOut(command: Command, name: string, context: CallContext): Promise<Acknowledgement> {
    const request = { ...command.value };
    const field = command.case === "saveCheckpoint" ? "run" : "name";
    const named = "run" in request ? request.run : request.name;
    if (named !== "" && named !== name) throw invalidField(field, `this stream steers ${name}`);
    switch (command.case) {
      case "pause": {
        const value = await handlers.pauseRun({ ...command.value, name }, context);
        return { effectiveStep: value.effectiveStep, result: { case: "pause", value } };
      }
      case "resume": {
        const value = await handlers.resumeRun({ ...command.value, name }, context);
        return { effectiveStep: value.effectiveStep, result: { case: "resume", value } };
      }
      case "cancel": {
        const value = await handlers.cancelRun({ ...command.value, name }, context);
        return { effectiveStep: value.effectiveStep, result: { case: "cancel", value } };
      }
      case "setTrainable": {
        const value = await groups.setTrainable({ ...command.value, name }, context);
        return { effectiveStep: value.report?.effectiveStep, result: { case: "setTrainable", value } };
      }
      case "saveCheckpoint": {
        const value = await checkpoints.saveCheckpoint({ ...command.value, run: name }, context);
        return { effectiveStep: value.checkpoint?.step, result: { case: "saveCheckpoint", value } };
      }
    }
  }

  async function acknowledge(command: Command, number: bigint, name: string, context: CallContext) {
    const about = { commandNumber: number, requestId: command.value.requestId };
    try {
      return create(SteerAcknowledgementSchema, { ...about, ...(await carryOut(command, name, context)) });
    } catch (thrown) {
      if (!(thrown instanceof RpcError)) core.log("error", `${command.case}: ${thrown}`, { run: name });
      const run = await core.registry.run(idIn("runs", name)!);
      const error = toStatus(publicError(thrown));
      const effectiveStep = run?.run.step ?? 0n;
      return create(SteerAcknowledgementSchema, { ...about, effectiveStep, result: { case: "error", value: error } });
    }
  }

  async function* commands(
    requests: AsyncIterator<SteerRunRequest>,
    name: string,
    context: CallContext,
    progress: { busy: boolean },
  ): AsyncGenerator<Reply> {
    let number = 0n;
    for (let next = await requests.next(); !next.done; next = await requests.next()) {
      progress.busy = true;
      const { command } = next.value;
      if (command.case === undefined) throw invalidField("command", "required");
      if (command.case === "watch") throw invalidField("watch", "only the first message watches");
      const value = await acknowledge(command, ++number, name, context);
      yield { reply: { case: "acknowledgement", value } };
      progress.busy = false;
    }
  }

  async function* events(request: Parameters<typeof watch>[1], signal: AbortSignal): AsyncGenerator<Reply> {
    for await (const reply of watch(core, request, signal)) yield { reply };
  }

  return {
    async *startRun({ create: asked, progressInterval }, context) {
      const problems = collectProblems();
      problems.require(asked !== undefined, "create", "required");
      checkProgress(problems, progressInterval);
      problems.throwIfAny();
      const created = await handlers.createRun(asked!, context);
      yield { reply: { case: "created", value: created } };
      if (asked!.validateOnly) return;
      const request = create(WatchRunRequestSchema, { name: created.run?.name, progressInterval });
      for await (const reply of watch(core, request, context.signal)) yield { reply };
    },

    async *steerRun(requests, context) {
      const incoming = requests[Symbol.asyncIterator]();
      const first = await incoming.next();
      if (first.done || first.value.command.case !== "watch") {
        throw invalidField("watch", "the first message must watch a run");
      }
      const request = first.value.command.value;
      // The stream ends with the run's log and the answer to the last command, whether or not the caller has half-closed.
      const progress = { busy: false };
      const answers = commands(incoming, request.name, context, progress);
      yield* together(events(request, context.signal), answers, () => progress.busy);
    },
  };
}
