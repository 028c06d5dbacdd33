// What is set side by side in each section of a study's report: the values of the compared setting, in one order and with
// one colour each, once for every combination of the other settings.

import { SERIES_COLOURS } from "../charts/style.ts";
import type { CellResult, StudyDescription } from "./results.ts";
import { type Axis, axisValues, groupBy, otherAxes, settingOf, settingsBut } from "./statistics.ts";

/** Cells of one value, all seeds. */
export interface ValueCells {
  readonly value: string;
  readonly colour: number;
  readonly cells: readonly CellResult[];
}

export interface Comparison {
  /** `task reading, learning rate 0.001`; empty if the study has one combination. */
  readonly title: string;
  readonly metric: string;
  readonly values: readonly ValueCells[];
}

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

/** The values in their order, with their cells; a colour is a value's in every comparison. */
export function valuesOf(study: StudyDescription, results: readonly CellResult[], of = results): ValueCells[] {
  return axisValues(results, study.axis).map((value, i) => ({
    value,
    colour: i % SERIES_COLOURS,
    cells: of.filter((r) => settingOf(r.settings, study.axis) === value),
  }));
}

/** One comparison for each combination of the settings that are not compared. */
export function comparisons(study: StudyDescription, results: readonly CellResult[]): Comparison[] {
  const others = otherAxes(results, study.axis);
  return [...groupBy(results, (r) => settingsBut(r.settings, [study.axis, "seed"])).values()].map((cells) => ({
    title: others.map((axis) => `${AXIS_NAMES[axis]} ${settingOf(cells[0].settings, axis)}`).join(", "),
    metric: [...new Set(cells.map((c) => c.metric))].join(", ").replaceAll("_", " "),
    values: valuesOf(study, results, cells).filter((v) => v.cells.length > 0),
  }));
}

/** The cells of each model, where the model is not what is compared: models differ in size and in layers. */
export function byModel(study: StudyDescription, results: readonly CellResult[]): Omit<Comparison, "metric">[] {
  const models = study.axis === "model" ? [] : axisValues(results, "model");
  if (models.length < 2) return [{ title: "", values: valuesOf(study, results) }];
  return models.map((model) => {
    const cells = results.filter((r) => r.settings.model === model);
    return { title: `model ${model}`, values: valuesOf(study, results, cells).filter((v) => v.cells.length > 0) };
  });
}
