// Steers a run on one stream (SteerRun): the attention layers train first, and from the middle on the routers and the
// experts do. The answer says from which step, and what that costs.
//
//   npx tsx examples/thaw_halfway.ts mini-switch entailment

import { argv } from "node:process";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { connectThaw } from "../clients/typescript/index.ts";
import { Preset } from "../proto/gen/thaw/v1/group_pb.ts";
import type { SteerRunRequestSchema } from "../proto/gen/thaw/v1/run_service_pb.ts";

const STEPS = 40n;
const [model = "mini-switch", dataset = "entailment"] = argv.slice(2);
const thaw = connectThaw();
const { run } = await thaw.runs.createRun({
  spec: {
    model: `models/${model}`,
    dataset: `datasets/${dataset}`,
    steps: STEPS,
    trainable: { selection: { preset: Preset.ATTENTION } },
  },
});

let halfway = () => {};
const middle = new Promise<void>((resolve) => {
  halfway = resolve;
});

async function* commands(): AsyncGenerator<MessageInitShape<typeof SteerRunRequestSchema>> {
  yield { command: { case: "watch", value: { name: run?.name } } };
  await middle;
  yield { command: { case: "setTrainable", value: { plan: { selection: { preset: Preset.MOE } } } } };
}

for await (const { reply } of thaw.runs.steerRun(commands())) {
  if (reply.case === "acknowledgement") {
    const { result, effectiveStep } = reply.value;
    if (result.case === "error") console.error(result.value.message);
    if (result.case !== "setTrainable") continue;
    const { before, after } = result.value.report ?? {};
    console.log(`moe from step ${effectiveStep}: ${before?.peakBytes} → ${after?.peakBytes} bytes at the peak`);
  }
  if (reply.case !== "events") continue;
  for (const { event, step } of reply.value.events) {
    if (event.case === "metrics") console.log(`step ${step}  loss ${event.value.loss.toFixed(4)}`);
    if (step >= STEPS / 2n) halfway();
  }
}
thaw.close();
