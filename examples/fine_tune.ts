// Fine-tunes the dense feed-forward layers of a model and prints the loss as it falls.
//
//   npx tsx examples/fine_tune.ts mini-switch entailment

import { argv } from "node:process";
import { connectThaw, startRun } from "../clients/typescript/index.ts";
import { Preset } from "../proto/gen/thaw/v1/group_pb.ts";

const [model = "mini-switch", dataset = "entailment"] = argv.slice(2);
const thaw = connectThaw();
const { created, events } = await startRun(thaw, {
  spec: {
    model: `models/${model}`,
    dataset: `datasets/${dataset}`,
    steps: 50n,
    trainable: { selection: { preset: Preset.FFN } },
  },
});
console.log(created.run?.name);
for await (const { event, step } of events) {
  if (event.case === "metrics") console.log(`step ${step}  loss ${event.value.loss.toFixed(4)}`);
  if (event.case === "evaluation") console.log(`${event.value.split} accuracy ${event.value.accuracy.toFixed(3)}`);
  if (event.case === "state" && event.value.error) console.error(event.value.error.message);
}
thaw.close();
