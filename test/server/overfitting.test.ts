import { create } from "@bufbuild/protobuf";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { EvaluationMetric, OverfittingWatchSchema } from "../../proto/gen/thaw/v1/run_pb.ts";
import { watchOverfitting } from "../../src/server/worker/overfitting.ts";
import type { EvaluationResult } from "../../src/trainer/types.ts";

const test = suite("overfitting watch");

const result = (step: number, matthews: number): EvaluationResult => ({
  step,
  split: "validation",
  examples: 4,
  loss: 1,
  tokenAccuracy: 0.5,
  exactMatch: 0.5,
  accuracy: 0.5,
  metrics: { accuracy: 0.5, matthews },
  primaryMetric: "matthews",
  layers: [],
  seconds: 1,
});

test("the primary metric is watched, below zero too, and across a resumption", () => {
  const watch = create(OverfittingWatchSchema, { metric: EvaluationMetric.PRIMARY, patience: 2n });
  const first = watchOverfitting(watch, undefined, 0);
  const reports = [result(1, -0.5), result(2, -0.25), result(3, -0.75)].map((one) => first.evaluated(one));
  assert.equal(
    reports.map(({ report, improved }) => [report.bestValue, Number(report.bestStep), improved, report.stops]),
    [
      [-0.5, 1, true, false],
      [-0.25, 2, true, false],
      [-0.25, 2, false, false],
    ],
  );
  const resumed = watchOverfitting(watch, reports[2].report, 4);
  const { report } = resumed.evaluated(result(4, -0.5));
  assert.equal([report.bestValue, report.bestStep, report.stops], [-0.25, 2n, true]);
});

test.run();
