// What the adapter offers, for the server's system report.

import { create } from "@bufbuild/protobuf";
import { type Adapter, AdapterSchema } from "../../../../proto/gen/thaw/v1/system_pb.ts";
import type { Capabilities } from "../../../kernels/capabilities.ts";
import { count } from "./scalars.ts";

/** @param line which adapter runs and why (`adapterLine`) */
export function adapterToProto(c: Capabilities, line: string): Adapter {
  return create(AdapterSchema, {
    line,
    implementation: c.implementation,
    vendor: c.vendor,
    architecture: c.architecture,
    description: c.description,
    software: c.software,
    f16: c.f16,
    subgroups: c.subgroups,
    subgroupMinSize: c.subgroupMinSize,
    subgroupMaxSize: c.subgroupMaxSize,
    matrixShapes: c.matrixShapes.map((shape) => ({ ...shape })),
    timestampQuery: c.timestampQuery,
    maxBufferBytes: count(c.limits.maxBufferSize),
    maxStorageBindingBytes: count(c.limits.maxStorageBufferBindingSize),
  });
}
