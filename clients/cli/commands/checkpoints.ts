// `thaw checkpoints …`: keep, list, fetch and export what a run has learnt.

import type { Command } from "commander";
import { CheckpointReasonSchema, CheckpointSchema } from "../../../proto/gen/thaw/v1/checkpoint_pb.ts";
import {
  DeleteCheckpointResponseSchema,
  ListCheckpointsResponseSchema,
} from "../../../proto/gen/thaw/v1/checkpoint_service_pb.ts";
import { downloadFiles } from "../../typescript/index.ts";
import { bytes, count, enumName, resource, table, time } from "../format.ts";
import { allPages } from "../pages.ts";
import { note, type Session, show, withSession } from "../session.ts";
import { addExport } from "./models.ts";

export function addCheckpoints(program: Command): void {
  const checkpoints = program.command("checkpoints").description("checkpoints of runs");
  checkpoints.command("list <run>").description("a run's checkpoints, newest first").action(withSession(list));
  checkpoints
    .command("save <run>")
    .description("save a checkpoint between two steps")
    .action(
      withSession(async (session, run: string) => {
        const { checkpoint } = await session.thaw.checkpoints.saveCheckpoint({ run: resource("runs", run) });
        show(session, CheckpointSchema, checkpoint!, (c) => `${c.name}  step ${c.step}, ${bytes(c.sizeBytes)}`);
        return undefined;
      }),
    );
  addExport(checkpoints);
  checkpoints
    .command("download <checkpoint> <directory>")
    .description("the files of runs/{run}/checkpoints/{checkpoint}, into a directory that does not exist")
    .action(
      withSession(async (session, name: string, directory: string) => {
        const files = await downloadFiles(session.thaw.checkpoints.downloadCheckpoint({ name }), directory);
        note(
          `${count(files.length)} files, ${bytes(files.reduce((sum, f) => sum + f.sizeBytes, 0n))}, in ${directory}`,
        );
        return undefined;
      }),
    );
  checkpoints
    .command("delete <checkpoint>")
    .description("delete runs/{run}/checkpoints/{checkpoint}")
    .action(
      withSession(async (session, name: string) => {
        const response = await session.thaw.checkpoints.deleteCheckpoint({ name });
        show(session, DeleteCheckpointResponseSchema, response, () => `${name} deleted`);
        return undefined;
      }),
    );
}

async function list(session: Session, run: string) {
  const response = await allPages(ListCheckpointsResponseSchema, "checkpoints", (page) =>
    session.thaw.checkpoints.listCheckpoints({ parent: resource("runs", run), ...page }),
  );
  show(session, ListCheckpointsResponseSchema, response, ({ checkpoints }) =>
    table(
      [
        { title: "CHECKPOINT" },
        { title: "STEP", figures: true },
        { title: "SIZE", figures: true },
        { title: "REASON" },
        { title: "CREATED" },
      ],
      checkpoints.map((checkpoint) => [
        checkpoint.name,
        count(checkpoint.step),
        bytes(checkpoint.sizeBytes),
        enumName(CheckpointReasonSchema, checkpoint.reason).toLowerCase(),
        time(checkpoint.createTime),
      ]),
      "no checkpoints",
    ),
  );
  return undefined;
}
