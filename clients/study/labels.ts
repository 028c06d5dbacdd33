// Settings in words, for people: an axis, and a cell by the settings that tell it from the other cells of its study.

import type { CellSettings } from "./results.ts";
import { AXES, type Axis, axisValues, settingOf } from "./statistics.ts";

/** An axis in words. */
export const AXIS_NAMES: Readonly<Record<Axis, string>> = {
  task: "task",
  strategy: "strategy",
  seed: "seed",
  model: "model",
  learningRate: "learning rate",
  batchSize: "batch size",
  capacityFactor: "capacity factor",
  dropout: "dropout",
  expertDropout: "expert dropout",
};

/** `task reading, strategy ffn, seed 3` of a cell, given all cells of its study: the settings that they differ in. */
export function cellLabels(all: readonly CellSettings[]): (settings: CellSettings) => string {
  const differ = AXES.filter((axis) => axisValues(all, axis).length > 1);
  const told: readonly Axis[] = differ.length > 0 ? differ : ["task", "strategy"];
  return (settings) => told.map((axis) => `${AXIS_NAMES[axis]} ${settingOf(settings, axis)}`).join(", ");
}
