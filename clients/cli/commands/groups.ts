// `thaw groups …`: what there is to train, what a plan would cost, what trains.

import type { Command } from "commander";
import { type Group, StackSchema } from "../../../proto/gen/thaw/v1/group_pb.ts";
import {
  GetTrainableResponseSchema,
  ListGroupsResponseSchema,
  PlanTrainableResponseSchema,
  SetTrainableResponseSchema,
} from "../../../proto/gen/thaw/v1/group_service_pb.ts";
import { bytes, count, enumName, id, metric, resource, table } from "../format.ts";
import { allPages } from "../pages.ts";
import { integer } from "../parse.ts";
import { kindText, type PlanFlags, planFlags, planOf, planText, reportText, trainableText } from "../plan.ts";
import { type Session, show, UsageError, withSession } from "../session.ts";

const PARENT = "a run (glue, runs/glue) or a model (models/mini-switch)";

interface SizeFlags {
  readonly batchSize?: bigint;
  readonly maxInputTokens?: bigint;
  readonly maxTargetTokens?: bigint;
}

export function addGroups(program: Command): void {
  const groups = program.command("groups").description("parameter groups and what trains");
  groups
    .command("list")
    .description("the groups of a run or a model")
    .argument("<parent>", PARENT)
    .option("--tensors", "every tensor of every group")
    .action(withSession(list));
  planFlags(groups.command("plan").description("what a freeze plan matches, saves and costs; changes nothing"))
    .argument("<parent>", PARENT)
    .option("--batch-size <n>", "for a model: examples per step", integer)
    .option("--max-input-tokens <n>", "for a model: tokens per input", integer)
    .option("--max-target-tokens <n>", "for a model: tokens per target", integer)
    .action(withSession(plan));
  planFlags(groups.command("set").description("change what a run trains, between two steps"))
    .argument("<run>")
    .option("--dry-run", "check and price the plan, change nothing")
    .action(withSession(set));
  groups.command("get <run>").description("the freeze plan in force").action(withSession(get));
}

async function list(session: Session, parent: string, { tensors = false }: { readonly tensors?: boolean }) {
  const response = await allPages(ListGroupsResponseSchema, "groups", (page) =>
    session.thaw.groups.listGroups({ parent: resource("runs", parent), ...page }),
  );
  show(session, ListGroupsResponseSchema, response, ({ groups }) =>
    tensors ? tensorTable(groups) : groupTable(groups),
  );
  return undefined;
}

export function groupTable(groups: readonly Group[]): string {
  return table(
    [
      { title: "GROUP" },
      { title: "TENSORS", figures: true },
      { title: "PARAMETERS", figures: true },
      { title: "TRAINABLE", figures: true },
      { title: "BYTES", figures: true },
    ],
    groups.map((group) => [
      id(group.name) || kindText(group.kind),
      count(group.tensors.length),
      count(group.parameters),
      count(group.trainableParameters),
      bytes(group.sizeBytes),
    ]),
    "no groups",
  );
}

function tensorTable(groups: readonly Group[]): string {
  return table(
    [
      { title: "TENSOR" },
      { title: "GROUP" },
      { title: "STACK" },
      { title: "LAYER", figures: true },
      { title: "SHAPE", figures: true },
      { title: "TRAINS" },
    ],
    groups.flatMap(({ tensors }) =>
      tensors.map((tensor) => [
        tensor.name,
        kindText(tensor.kind),
        enumName(StackSchema, tensor.stack).toLowerCase(),
        tensor.layer === undefined ? "" : String(tensor.layer),
        tensor.shape.join(" × "),
        tensor.experts.length > 0 ? `experts ${tensor.experts.join(",")}` : tensor.trainable ? "yes" : "no",
      ]),
    ),
    "no tensors",
  );
}

async function plan(session: Session, parent: string, flags: PlanFlags & SizeFlags) {
  const { batchSize, maxInputTokens, maxTargetTokens } = flags;
  const response = await session.thaw.groups.planTrainable({
    parent: resource("runs", parent),
    plan: required(flags),
    batchSize,
    maxInputTokens,
    maxTargetTokens,
  });
  show(session, PlanTrainableResponseSchema, response, ({ report, savedBytes, savedFlops }) => {
    const saved = `saves ${bytes(savedBytes)} and ${metric(savedFlops)} FLOPs per step`;
    return `${report ? reportText(report) : ""}\n${saved}`;
  });
  return undefined;
}

async function set(session: Session, run: string, flags: PlanFlags & { readonly dryRun?: boolean }) {
  const response = await session.thaw.groups.setTrainable({
    name: resource("runs", run),
    plan: required(flags),
    validateOnly: flags.dryRun ?? false,
  });
  show(session, SetTrainableResponseSchema, response, ({ report }) => (report ? reportText(report) : ""));
  return undefined;
}

async function get(session: Session, run: string) {
  const response = await session.thaw.groups.getTrainable({ name: resource("runs", run) });
  show(session, GetTrainableResponseSchema, response, ({ plan, cost, matched, effectiveStep }) => {
    const share = cost ? `, ${trainableText(cost)}` : "";
    return `${planText(plan)}${share}\n${count(matched.length)} tensors train since step ${effectiveStep}`;
  });
  return undefined;
}

function required(flags: PlanFlags) {
  const plan = planOf(flags);
  if (!plan) throw new UsageError("train what? Give --train, --add or --router");
  return plan;
}
