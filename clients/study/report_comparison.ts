// What is set side by side in each section of a study's report: the values of the compared setting, in one order and with
// one colour each, once for every combination of the other settings. Values are those planned: one whose cells all failed
// is shown, with nothing.

import { SERIES_COLOURS } from "../charts/style.ts";
import { AXIS_NAMES } from "./labels.ts";
import type { CellResult, StudyDescription } from "./results.ts";
import { axisValues, type Cells, groupBy, otherAxes, restrict, settingOf, settingsBut } from "./statistics.ts";

/** Cells of one value, all seeds. */
export interface ValueCells {
  readonly value: string;
  readonly colour: number;
  /** Those that have a result. */
  readonly cells: readonly CellResult[];
  readonly planned: number;
}

export interface Comparison {
  /** `task reading, learning rate 0.001`; empty if the study has one combination. */
  readonly title: string;
  readonly of: Cells;
  readonly values: readonly ValueCells[];
}

/** The values in their order, with their cells among `of`; a colour is a value's in every comparison. */
function valuesOf(study: StudyDescription, all: Cells, of: Cells): ValueCells[] {
  const values = axisValues(all.planned, study.axis).map((value, i) => {
    const { planned, results } = restrict(of, (settings) => settingOf(settings, study.axis) === value);
    return { value, colour: i % SERIES_COLOURS, cells: results, planned: planned.length };
  });
  return values.filter(({ planned }) => planned > 0);
}

const comparison = (study: StudyDescription, all: Cells, of: Cells, title: string): Comparison => ({
  title,
  of,
  values: valuesOf(study, all, of),
});

/** One comparison for each combination of the settings that are not compared. */
export function comparisons(study: StudyDescription, all: Cells): Comparison[] {
  const others = otherAxes(all.planned, study.axis);
  const key = (settings: (typeof all.planned)[number]) => settingsBut(settings, [study.axis, "seed"]);
  return [...groupBy(all.planned, key)].map(([combination, [first]]) => {
    const title = others.map((axis) => `${AXIS_NAMES[axis]} ${settingOf(first, axis)}`).join(", ");
    return comparison(
      study,
      all,
      restrict(all, (settings) => key(settings) === combination),
      title,
    );
  });
}

/** The cells of each model, where the model is not what is compared: models differ in size and in layers. */
export function byModel(study: StudyDescription, all: Cells): Comparison[] {
  const models = study.axis === "model" ? [] : axisValues(all.planned, "model");
  if (models.length < 2) return [comparison(study, all, all, "")];
  return models.map((name) =>
    comparison(
      study,
      all,
      restrict(all, ({ model }) => model === name),
      `model ${name}`,
    ),
  );
}

/** How many cells a mean rests on: `5`, or `4 of 5` where a planned one has no result. */
export const restsOn = (found: number, planned: number): string =>
  found === planned ? `${planned}` : `${found} of ${planned}`;
