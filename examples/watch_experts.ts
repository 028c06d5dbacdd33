// Follows the routers of a run while it trains: which expert took how many tokens, layer by layer.
//
//   npx tsx examples/watch_experts.ts RUN

import { argv } from "node:process";
import { connectThaw, decodeAssignments } from "../clients/typescript/index.ts";
import { Stack } from "../proto/gen/thaw/v1/group_pb.ts";
import { RouteSource } from "../proto/gen/thaw/v1/routing_pb.ts";

const thaw = connectThaw();
const subscription = thaw.routing.streamAssignments({
  run: `runs/${argv[2]}`,
  filter: { sources: [RouteSource.TRAINING], samplingRate: 0.25 },
});
for await (const { assignments, dropped } of subscription) {
  if (!assignments) continue; // The first message says that the subscription is in place, a last one what was dropped.
  const { expertIds, expertCount } = decodeAssignments(assignments);
  const load = new Array<number>(expertCount).fill(0);
  for (const expert of expertIds) if (expert < expertCount) load[expert]++; // else none, where experts choose
  const stack = assignments.stack === Stack.ENCODER ? "encoder" : "decoder";
  console.log(
    `step ${assignments.step}  ${stack} ${assignments.layer}  ${load.join(" ")}  (${dropped} slices dropped)`,
  );
}
thaw.close();
