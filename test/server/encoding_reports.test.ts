import { suite } from "uvu";
import * as assert from "uvu/assert";
import { reportEncoding } from "../../src/server/worker/encoding_reports.ts";

const test = suite("encoding reports");

test("a report a second of each split, and one when it is complete", () => {
  const reports: string[] = [];
  let time = 0;
  const report = reportEncoding(
    [
      { name: "datasets/a", splitFiles: { train: "/a/train", validation: "/a/validation" } },
      { name: "datasets/b", splitFiles: { train: "/b/train" } },
    ],
    ({ dataset, split, done, total, truncatedInputs }) =>
      reports.push(`${time}: ${dataset} ${split} ${done}/${total}, ${truncatedInputs} cut`),
    () => time,
  );
  const progress = (file: string, encoded: number, total: number) =>
    report(file, { encoded, total, truncatedInputs: 1, truncatedTargets: 0 });
  // Every 100 ms; a split is complete after 2.5 s.
  for (let i = 1; i <= 25; i++, time += 100) progress("/a/train", i, 25);
  progress("/b/train", 1, 9);
  progress("/a/validation", 3, 3);
  progress("/elsewhere", 1, 1);
  assert.equal(reports, [
    "0: datasets/a train 1/25, 1 cut",
    "1000: datasets/a train 11/25, 1 cut",
    "2000: datasets/a train 21/25, 1 cut",
    "2400: datasets/a train 25/25, 1 cut",
    "2500: datasets/b train 1/9, 1 cut",
    "2500: datasets/a validation 3/3, 1 cut",
  ]);
});

test.run();
