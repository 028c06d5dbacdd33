// `thaw routes …`: what the routers of a run decide.

import process from "node:process";
import type { Command } from "commander";
import { type Stack, StackSchema } from "../../../proto/gen/thaw/v1/group_pb.ts";
import { type AssignmentSlice, type RouteSource, RouteSourceSchema } from "../../../proto/gen/thaw/v1/routing_pb.ts";
import {
  type StreamAssignmentsResponse,
  SummarizeRoutingResponseSchema,
} from "../../../proto/gen/thaw/v1/routing_service_pb.ts";
import { type Assignments, decodeAssignments } from "../../typescript/index.ts";
import { EXIT } from "../exit_codes.ts";
import { bars, count, enumName, figure, percent, resource, table } from "../format.ts";
import { enumList, enumValue, integer, integerList, real } from "../parse.ts";
import { note, print, type Session, show, withSession } from "../session.ts";

interface StreamFlags {
  readonly stacks?: Stack[];
  readonly layers?: number[];
  readonly experts?: number[];
  readonly examples?: number[];
  readonly sources?: RouteSource[];
  readonly samplingRate?: number;
  readonly tokenIds?: boolean;
  readonly gates?: boolean;
  readonly limit?: bigint;
}

interface SummaryFlags {
  readonly source?: RouteSource;
  readonly firstStep?: bigint;
  readonly lastStep?: bigint;
}

export function addRoutes(program: Command): void {
  const routes = program.command("routes").description("what the routers decide");
  routes
    .command("stream <run>")
    .description("assignments from now on: one line per layer and batch, with --json every token; Ctrl-C ends it")
    .option("--stacks <names>", "encoder, decoder", enumList(StackSchema))
    .option("--layers <list>", "layers inside their stack, for instance 1,3", integerList)
    .option("--experts <list>", "tokens with one of these experts", integerList)
    .option("--examples <list>", "examples by index in their split, for instance 0-3", integerList)
    .option("--sources <names>", "training, evaluation, generation", enumList(RouteSourceSchema))
    .option("--sampling-rate <x>", "share of sequences, in (0, 1]", real)
    .option("--token-ids", "with vocabulary ids")
    .option("--gates", "with gates")
    .option("--limit <n>", "end after so many slices", integer)
    .action(withSession(stream));
  routes
    .command("summary <run>")
    .description("load, entropy, drops and drift per layer over a window of steps")
    .option("--source <name>", "training or evaluation", enumValue(RouteSourceSchema))
    .option("--first-step <n>", "the window's first step", integer)
    .option("--last-step <n>", "the window's last step", integer)
    .action(withSession(summary));
}

async function stream(session: Session, run: string, flags: StreamFlags): Promise<number | undefined> {
  const stop = new AbortController();
  let interrupted = false;
  const interrupt = () => {
    interrupted = true;
    stop.abort();
  };
  process.once("SIGINT", interrupt);
  const request = {
    run: resource("runs", run),
    filter: {
      stacks: flags.stacks,
      layers: flags.layers,
      experts: flags.experts,
      exampleIds: flags.examples?.map(BigInt),
      sources: flags.sources,
      samplingRate: flags.samplingRate,
    },
    includeTokenIds: flags.tokenIds ?? false,
    includeGates: flags.gates ?? false,
  };
  let shown = 0n;
  let dropped = 0n;
  try {
    for await (const message of session.thaw.routing.streamAssignments(request, { signal: stop.signal })) {
      dropped = message.dropped;
      if (!message.assignments) {
        if (!session.json && message.sequence === 0n) note(`subscribed to ${request.run}`);
        continue;
      }
      print(session.json ? JSON.stringify(sliceJson(message, message.assignments)) : sliceLine(message.assignments));
      shown++;
      if (shown === flags.limit) break;
    }
  } catch (error) {
    if (!interrupted) throw error;
  } finally {
    process.off("SIGINT", interrupt);
  }
  if (!session.json) note(`${count(shown)} slices, ${count(dropped)} dropped on the way`);
  return interrupted ? EXIT.DETACHED : undefined;
}

/** `step 12  encoder.1  training  512 tokens  load ▃█▁▂  3 dropped`. */
function sliceLine(slice: AssignmentSlice): string {
  const { expertIds, kept, expertCount } = decodeAssignments(slice);
  const load = new Array<number>(expertCount).fill(0);
  let lost = 0;
  expertIds.forEach((expert, i) => {
    if (expert >= expertCount) return; // no expert: where experts choose, some tokens have fewer than others
    load[expert]++;
    lost += 1 - kept[i];
  });
  const tokens = `${count(slice.tokenCount)} tokens`;
  return `step ${slice.step}  ${layerName(slice)}  ${sourceName(slice.source)}  ${tokens}  ${loadText(load)}  ${lost} dropped`;
}

/** Loads as bars, with figures too while they fit a line. */
function loadText(load: readonly number[]): string {
  return load.length <= 16 ? `load ${bars(load)} [${load.join(" ")}]` : `load ${bars(load)}`;
}

/** One slice with its arrays unpacked: rows of k per token. */
function sliceJson({ sequence, dropped }: StreamAssignmentsResponse, slice: AssignmentSlice): object {
  const decoded = decodeAssignments(slice);
  return {
    sequence: String(sequence),
    dropped: String(dropped),
    source: sourceName(slice.source),
    step: String(slice.step),
    stack: enumName(StackSchema, slice.stack).toLowerCase(),
    layer: slice.layer,
    expertCount: slice.expertCount,
    exampleIds: [...decoded.exampleIds],
    positions: [...decoded.positions],
    ...(decoded.tokenIds ? { tokenIds: [...decoded.tokenIds] } : {}),
    expertIds: rows(decoded, decoded.expertIds),
    ...(decoded.gates ? { gates: rows(decoded, decoded.gates) } : {}),
    kept: rows(decoded, decoded.kept),
  };
}

const rows = ({ tokenCount, topK }: Assignments, values: ArrayLike<number>): number[][] =>
  Array.from({ length: tokenCount }, (_, i) => Array.from({ length: topK }, (_, k) => values[i * topK + k]));

const layerName = ({ stack, layer }: { readonly stack: Stack; readonly layer: number }): string =>
  `${enumName(StackSchema, stack).toLowerCase()}.${layer}`;

const sourceName = (source: RouteSource): string => enumName(RouteSourceSchema, source).toLowerCase();

async function summary(session: Session, run: string, { source, firstStep, lastStep }: SummaryFlags) {
  const request = { run: resource("runs", run), source, firstStep, lastStep };
  const response = await session.thaw.routing.summarizeRouting(request);
  show(session, SummarizeRoutingResponseSchema, response, ({ layers, firstStep, lastStep, records, referenceStep }) => {
    const body = table(
      [
        { title: "LAYER" },
        { title: "ASSIGNMENTS", figures: true },
        { title: "DROPPED", figures: true },
        { title: "ENTROPY", figures: true },
        { title: "IMBALANCE", figures: true },
        { title: "DRIFT", figures: true },
        { title: "BUSIEST", figures: true },
        { title: "LOAD" },
      ],
      layers.map((layer) => [
        layerName(layer),
        count(layer.assignments),
        percent(Number(layer.dropped) / Math.max(1, Number(layer.assignments))),
        `${figure(layer.loadEntropyNats)} of ${figure(Math.log(layer.load.length))}`,
        figure(layer.loadImbalance),
        figure(layer.drift),
        String(layer.load.indexOf(Math.max(...layer.load))),
        bars(layer.load),
      ]),
      "no sparse layers",
    );
    return `steps ${firstStep}–${lastStep}, ${records} records, drift against step ${referenceStep}\n${body}`;
  });
  return undefined;
}
