// Real tokens per second of padded, packed and bucketed training on the adapter at hand, by the clock and by the
// processor time spent (which on a CPU adapter does not depend on who else is at work), and what share of the batches is
// padding. Rows are as long as the longest input and target; packed rows may have longer targets, which let their inputs
// fill.
//
//   npx tsx bench/batching.ts [MODEL_DIRECTORY [DATA.jsonl]]
//
// Without data of one's own, inputs are of 4 to 128 tokens and targets of 2 to 16, short ones more frequent (their
// logarithm is uniform).

import { mkdtemp, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { openDevice } from "../src/kernels/device/open.ts";
import { ensureGpuEnvironment } from "../src/kernels/device/relaunch.ts";
import { lengthsOf } from "../src/trainer/data/batching.ts";
import { encodeDataset } from "../src/trainer/data/dataset.ts";
import { parseJsonl } from "../src/trainer/data/jsonl.ts";
import { randomBelow } from "../src/trainer/data/random.ts";
import { loadTokenizer } from "../src/trainer/data/tokenizer.ts";
import { openRun } from "../src/trainer/engine.ts";
import { tinyRun } from "../test/support/tiny_model.ts";

ensureGpuEnvironment();

const STEPS = 16;
const WARM_UP = 4;
const LIMITS = { input: 512, target: 128 };
const EXAMPLES = 512;

const exampleModel = join(import.meta.dirname, "../examples/models/mini-switch");
const [model = exampleModel, data = await unequalData()] = process.argv.slice(2);

async function unequalData(): Promise<string> {
  const path = join(await mkdtemp(join(tmpdir(), "thaw-data-")), "train.jsonl");
  const ids = (shortest: number, longest: number, stream: number, i: number) => {
    const share = randomBelow(2 ** 20, stream, 0, i) / 2 ** 20;
    const length = Math.round(shortest * (longest / shortest) ** share);
    return [...Array.from({ length: length - 1 }, (_, j) => 2 + randomBelow(900, stream, i + 1, j)), 1];
  };
  const lines = Array.from({ length: EXAMPLES }, (_, i) =>
    JSON.stringify({ input_ids: ids(4, 128, 1, i), target_ids: ids(2, 16, 2, i) }),
  );
  await writeFile(path, `${lines.join("\n")}\n`);
  return path;
}

const whole = { maxInputTokens: LIMITS.input, maxTargetTokens: LIMITS.target, vocabularySize: 2 ** 31, eosTokenId: 1 };
const { examples } = encodeDataset(await parseJsonl(data), await loadTokenizer(model), whole);
const longest = lengthsOf(examples, LIMITS);
const device = await openDevice();
const base = { clock: 0, processor: 0 };
for (const batching of ["padded", "packed", "bucketed"] as const) {
  const maxTargetTokens = batching === "packed" ? LIMITS.target : longest.target;
  const sizes = { batchSize: 8, maxInputTokens: longest.input, maxTargetTokens };
  const run = await openRun(device, tinyRun(model, data, { batching, steps: WARM_UP + STEPS, ...sizes }));
  for (let step = 0; step < WARM_UP; step++) await run.trainStep();
  const [begin, used] = [performance.now(), process.cpuUsage()];
  let tokens = 0;
  for (let step = 0; step < STEPS; step++) tokens += (await run.trainStep()).tokens;
  const { user, system } = process.cpuUsage(used);
  const rate = { clock: (1e3 * tokens) / (performance.now() - begin), processor: (1e6 * tokens) / (user + system) };
  if (batching === "padded") Object.assign(base, rate);
  const { padding, shapes } = run.data;
  const rows = shapes.map(({ input, target, share }) => `${input}+${target} ${(100 * share).toFixed(0)} %`).join(", ");
  const figure = (by: "clock" | "processor") => `${rate[by].toFixed(0)} (${(rate[by] / base[by]).toFixed(2)}×)`;
  console.log(
    `${batching}: ${figure("clock")} tokens/s, ${figure("processor")} tokens/processor second,` +
      ` padding ${(100 * padding).toFixed(1)} %, ${(run.cost.peakBytes / 1e6).toFixed(1)} MB, rows ${rows}`,
  );
  run.close();
}
device.destroy();
