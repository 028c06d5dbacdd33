// The TypeScript client of thaw: a typed connection and the few helpers that every caller needs. Messages, enums and
// schemas are imported from proto/gen.

export { RpcError } from "../../proto/rpc/status.ts";
export { type Assignments, decodeAssignments } from "./assignments.ts";
export { type FieldProblem, type Problems, problemsOf, problemsOfStatus } from "./problems.ts";
export type { CallOptions } from "./rpc/connect.ts";
export { type ConnectOptions, connectThaw, DEFAULT_ADDRESS, type Thaw, type TlsOptions } from "./thaw.ts";
export { downloadFiles, type SplitSource, splitOfFile, uploadDataset, uploadModel } from "./transfer.ts";
export { startRun, type WatchOptions, watchRun } from "./watch.ts";
