// Compares routing with flaxformer's: dispatch mask, combine array, both router losses and the gradients of all three.
// Format: the reference fixtures' routing folders (case.json, routing.safetensors).

import { readFile } from "node:fs/promises";
import { join } from "node:path";
import type { Device } from "../../kernels/device/device.ts";
import { NO_ROW } from "../../kernels/moe_dispatch.ts";
import { runProgram } from "../../kernels/program.ts";
import { packStepScalars, STEP_SCALARS_BYTES } from "../../kernels/step_scalars.ts";
import { openSafetensors } from "../formats/safetensors.ts";
import { differentiate } from "../graph/autodiff.ts";
import { elements, Graph, type Tensor } from "../graph/graph.ts";
import { lowerGraph } from "../graph/lowered.ts";
import { type Routing, route } from "../graph/ops/routing.ts";
import { DeviceMemory } from "../run/device_memory.ts";
import type { ErrorTable } from "./table.ts";

const LIMIT = 1e-5;

interface Case {
  /** Who chooses whom. */
  readonly kind: "tokens" | "experts";
  readonly groups: number;
  readonly tokens_per_group: number;
  readonly num_experts: number;
  readonly top_k: number;
  readonly expert_capacity: number;
  readonly batch_prioritized_routing: boolean;
  readonly padding: boolean;
  /** Otherwise the z-loss is of the logits as they are, padding included. */
  readonly z_loss_uses_logits_zeroed_at_padding: boolean;
}

const byExperts = (c: Case): boolean => c.kind === "experts";
/** Choices of a token: where experts choose, all experts are. */
const choices = (c: Case): number => (byExperts(c) ? c.num_experts : c.top_k);

export async function routingParity(device: Device, directory: string, table: ErrorTable): Promise<void> {
  const settings: Case = JSON.parse(await readFile(join(directory, "case.json"), "utf8"));
  const file = await openSafetensors(join(directory, "routing.safetensors"));
  const read = async (name: string) => Float32Array.from((await file.read(name)) as Float32Array | Int32Array);
  try {
    const fixture = {
      logits: await read("router_logits"),
      mask: settings.padding ? await read("padding_mask") : undefined,
      probe: await read("combine_probe"),
    };
    const zFixture = settings.z_loss_uses_logits_zeroed_at_padding ? fixture : { ...fixture, mask: undefined };
    const forward = await runRouting(device, settings, fixture, "none");
    const forwardZ = await runRouting(device, settings, zFixture, "none");
    const { dispatch, combine } = slots(settings, forward);
    const wrong = (await read("dispatch_mask")).filter((x, i) => x !== dispatch[i]).length;
    table.add("dispatch", "dispatch_mask", wrong, 0);
    table.compare("combine array", "combine_array", combine, await read("combine_array"), LIMIT);
    table.compare("load-balancing loss", "aux_loss", [forward.losses[0]], await read("aux_loss"), LIMIT);
    table.compare("z-loss", "z_loss", [forwardZ.losses[1]], await read("z_loss"), LIMIT);
    for (const [loss, name] of [
      ["balance", "grad_aux"],
      ["z", "grad_z"],
      ["probe", "grad_combine_probe"],
    ] as const) {
      const { gradient } = await runRouting(device, settings, loss === "z" ? zFixture : fixture, loss, forward);
      table.compare("gradients", name, gradient, await read(name), LIMIT);
    }
  } finally {
    await file.close();
  }
}

interface Fixture {
  readonly logits: Float32Array<ArrayBuffer>;
  readonly mask: Float32Array | undefined;
  readonly probe: Float32Array;
}

interface Outcome {
  readonly expertIds: Uint32Array;
  readonly gates: Float32Array;
  readonly rows: Uint32Array;
  readonly losses: Float32Array;
  /** Of the logits; empty without a loss. */
  readonly gradient: Float32Array;
}

/** Routes the fixture's logits and differentiates one loss of them. */
async function runRouting(
  device: Device,
  c: Case,
  fixture: Fixture,
  loss: "none" | "balance" | "z" | "probe",
  known?: Outcome,
): Promise<Outcome> {
  const tokens = c.groups * c.tokens_per_group;
  const g = new Graph(device.target);
  const spec = {
    name: "router_logits",
    kind: "router",
    shape: [tokens, c.num_experts],
    keys: ["router_logits"],
  } as const;
  const logits = g.tensor({
    name: spec.name,
    shape: spec.shape,
    role: "parameter",
    requiresGradient: loss !== "none",
    parameter: spec,
  });
  g.parameters.set(spec.name, logits);
  const mask = g.input("mask", [tokens], "u32");
  const step = g.input("step_scalars", [STEP_SCALARS_BYTES / 4], "f32");
  const routing = route(g, "router", logits, mask, {
    topK: byExperts(c) ? 1 : c.top_k,
    normalizeGates: false,
    secondExpertPolicy: "always",
    priority: c.batch_prioritized_routing ? "batch_prioritized" : "position",
    choose: c.kind,
    tokensPerGroup: c.tokens_per_group,
    capacity: { rule: "fixed", slots: c.expert_capacity },
    countAll: true,
    denominator: "all",
    balanceCoefficient: loss === "balance" ? 1 : 0,
    zCoefficient: loss === "z" ? 1 : 0,
    lossGradient: true,
    step,
  });
  const dGates = g.input("d_gates", [tokens, choices(c)], "f32");
  if (loss === "probe") probeNode(g, routing, dGates);
  const gradient = differentiate(g).get(spec.name);

  const memory = new DeviceMemory(device);
  try {
    await memory.createParameters(g.parameters);
    device.upload(memory.parameters.get(spec.name)!.buffer, fixture.logits);
    const lowered = lowerGraph(g, device.capabilities.limits.minUniformBufferOffsetAlignment);
    await memory.prepare([lowered]);
    const upload = (
      name: string,
      data: Float32Array<ArrayBuffer> | Uint32Array<ArrayBuffer> | Uint8Array<ArrayBuffer>,
    ) => {
      const input = memory.inputs.get(name);
      if (input) device.upload(input, data);
    };
    upload(
      "mask",
      Uint32Array.from({ length: tokens }, (_, t) => (fixture.mask ? Number(fixture.mask[t] > 0) : 1)),
    );
    upload(
      "step_scalars",
      packStepScalars({ step: 0, seed: 0, lossScale: 1, inverseTargetCount: 1, maxGradientNorm: 0 }),
    );
    if (known) upload("d_gates", gateGradients(c, fixture, known));
    const recorded = await memory.record("routing parity", lowered);
    runProgram(device, recorded.program);
    const values = async (t: Tensor | undefined) =>
      t ? device.read(recorded.range(t).buffer, 4 * elements(t.shape)) : new ArrayBuffer(0);
    const outcome = {
      expertIds: new Uint32Array(await values(routing.expertIds)),
      gates: new Float32Array(await values(routing.gates)),
      rows: new Uint32Array(await values(routing.rowOfAssignment)),
      losses: new Float32Array(await values(routing.losses)),
      gradient: new Float32Array(await values(gradient)),
    };
    recorded.destroy();
    return outcome;
  } finally {
    memory.destroy();
  }
}

/** A loss whose gradient with respect to the gates is given. */
function probeNode(g: Graph, routing: Routing, dGates: Tensor): void {
  g.add({
    name: "probe",
    reads: [routing.gates, dGates],
    writes: [],
    startsGradient: true,
    lower: () => [],
    backward: (gradients) => gradients.addTensor(routing.gates, dGates, false),
  });
}

/** Slot of every assignment inside its group and expert; undefined where it has none. */
function slotOf(c: Case, outcome: Outcome): (number | undefined)[] {
  const first = new Map<string, number>(); // lowest row of a group at an expert
  const where = (a: number) => `${Math.floor(a / (choices(c) * c.tokens_per_group))} ${outcome.expertIds[a]}`;
  const kept = [...outcome.rows.keys()].filter((a) => outcome.rows[a] !== NO_ROW);
  // Where experts choose, flaxformer's slots are in the order of the gates; ours in that of the tokens.
  const before = (a: number, b: number) =>
    outcome.gates[a] > outcome.gates[b] || (outcome.gates[a] === outcome.gates[b] && a < b);
  for (const a of kept) first.set(where(a), Math.min(first.get(where(a)) ?? Number.POSITIVE_INFINITY, outcome.rows[a]));
  const slots: (number | undefined)[] = new Array(outcome.rows.length).fill(undefined);
  for (const a of kept)
    slots[a] = byExperts(c)
      ? kept.filter((b) => where(b) === where(a) && before(b, a)).length
      : outcome.rows[a] - first.get(where(a))!;
  return slots;
}

/** flaxformer's arrays [group, token, expert, slot]. */
function slots(c: Case, outcome: Outcome): { dispatch: Float32Array; combine: Float32Array } {
  const size = (outcome.expertIds.length / choices(c)) * c.num_experts * c.expert_capacity;
  const dispatch = new Float32Array(size);
  const combine = new Float32Array(size);
  slotOf(c, outcome).forEach((slot, a) => {
    if (slot === undefined) return;
    const at = cell(c, outcome, a, slot);
    dispatch[at] = 1;
    combine[at] = outcome.gates[a];
  });
  return { dispatch, combine };
}

const cell = (c: Case, outcome: Outcome, assignment: number, slot: number): number =>
  (Math.floor(assignment / choices(c)) * c.num_experts + outcome.expertIds[assignment]) * c.expert_capacity + slot;

/** d(Σ combine · probe) / d(gates). */
function gateGradients(c: Case, fixture: Fixture, outcome: Outcome): Float32Array<ArrayBuffer> {
  return Float32Array.from(slotOf(c, outcome), (slot, a) =>
    slot === undefined ? 0 : fixture.probe[cell(c, outcome, a, slot)],
  );
}
