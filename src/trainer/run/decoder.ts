// Incremental decoding on the device for as long as a generation lasts. Its caches and programs are made for it and
// freed after it, so that a run that only trains needs no memory for them; parameters, the encoder's output and the
// batch's mask are the run's.

import type { Device } from "../../kernels/device/device.ts";
import { runProgram } from "../../kernels/program.ts";
import type { DecodingGraphs } from "../model/family.ts";
import { DeviceMemory, type Lent, type RecordedGraph } from "./device_memory.ts";
import type { Planned } from "./plan.ts";
import { Readback, type Results } from "./readback.ts";

/** What a decoder is made for; rows are batch · beams. */
export interface DecoderShape {
  readonly rows: number;
  /** Most tokens of a row. */
  readonly length: number;
}

/** One decoded position of every row. */
export interface Decoded {
  /** [rows] */
  readonly predicted: Uint32Array;
  /** [rows, vocabulary]; only where logits were asked for. */
  readonly logits?: Float32Array;
  readonly results: Results;
}

export class Decoder {
  readonly shape: DecoderShape;
  readonly step: Planned<DecodingGraphs["step"]>;
  readonly #device: Device;
  readonly #memory: DeviceMemory;
  readonly #readLogits: boolean;
  #prefix: RecordedGraph | undefined;
  #step: RecordedGraph | undefined;
  #reorder: RecordedGraph | undefined;
  #readback: Readback | undefined;

  private constructor(memory: DeviceMemory, plan: DecoderPlan) {
    this.#device = memory.device;
    this.#memory = memory;
    this.#readLogits = plan.readLogits;
    this.shape = plan.shape;
    this.step = plan.step;
  }

  /** Allocates and records; `lent` are the run's buffers it reads. On any error nothing stays allocated. */
  static async open(device: Device, plan: DecoderPlan, lent: Lent): Promise<Decoder> {
    const memory = new DeviceMemory(device, lent);
    const decoder = new Decoder(memory, plan);
    try {
      await memory.prepare([plan.prefix.lowered, plan.step.lowered, plan.reorder.lowered]);
      decoder.#prefix = await memory.record("decoding prefix", plan.prefix.lowered);
      decoder.#step = await memory.record("decoding step", plan.step.lowered);
      decoder.#reorder = await memory.record("decoding reorder", plan.reorder.lowered);
      decoder.#readback = await Readback.create(device, decoder.#tensors);
      return decoder;
    } catch (error) {
      decoder.close();
      throw error;
    }
  }

  get #tensors() {
    const { logits, predicted } = this.step.built;
    return [predicted, ...(this.#readLogits ? [logits] : []), ...this.step.routes];
  }

  /** Takes over the encoder's output that is on the device now. */
  begin(): void {
    runProgram(this.#device, this.#prefix!.program);
  }

  /** Decodes `tokens` [rows] at `position`, the same for all rows; rows with `live` 0 are not routed. */
  async decode(tokens: Uint32Array<ArrayBuffer>, position: number, live: Uint32Array<ArrayBuffer>): Promise<Decoded> {
    const { rows, length } = this.shape;
    const set = (name: string, data: Uint32Array<ArrayBuffer>) => {
      const buffer = this.#memory.inputs.get(name);
      if (buffer) this.#device.upload(buffer, data);
    };
    set("decoding_ids", tokens);
    set("decoding_routed", live);
    set("decoding_position", Uint32Array.of(position));
    set("decoding_buckets", this.step.built.bucketsAt(position));
    set(
      "decoding_visible",
      Uint32Array.from({ length: rows * length }, (_, i) => Number(i % length <= position)),
    );
    const { logits, predicted } = this.step.built;
    const results = await (await this.#readback!.run(this.#step!, this.#tensors)).results;
    return {
      predicted: results.u32(predicted),
      ...(this.#readLogits && { logits: results.f32(logits) }),
      results,
    };
  }

  /** Row r goes on from what row parents[r] was. */
  reorder(parents: Uint32Array<ArrayBuffer>): void {
    this.#device.upload(this.#memory.inputs.get("beam_parents")!, parents);
    runProgram(this.#device, this.#reorder!.program);
  }

  close(): void {
    for (const recorded of [this.#prefix, this.#step, this.#reorder]) recorded?.destroy();
    this.#readback?.destroy();
    this.#memory.destroy();
  }
}

/** A decoder's programs, planned. */
export interface DecoderPlan {
  readonly shape: DecoderShape;
  readonly prefix: Planned<DecodingGraphs["prefix"]>;
  readonly step: Planned<DecodingGraphs["step"]>;
  readonly reorder: Planned<DecodingGraphs["reorder"]>;
  /** Whether logits come back, not only the most probable token. */
  readonly readLogits: boolean;
}
