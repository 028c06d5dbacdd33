// grpc.reflection.v1 and v1alpha on loopback: a client without our protos finds and can decode everything.

import { create, createFileRegistry, fromBinary } from "@bufbuild/protobuf";
import { FileDescriptorProtoSchema, FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { status } from "@grpc/grpc-js";
import { suite } from "uvu";
import * as assert from "uvu/assert";
import { connect } from "../../clients/typescript/rpc/connect.ts";
import { ServerReflection } from "../../proto/gen/grpc/reflection/v1/reflection_pb.ts";
import { ServerReflection as ServerReflectionAlpha } from "../../proto/gen/grpc/reflection/v1alpha/reflection_pb.ts";
import { GroupService } from "../../proto/gen/thaw/v1/group_service_pb.ts";
import { RunService } from "../../proto/gen/thaw/v1/run_service_pb.ts";
import { serveReflection } from "../../src/server/rpc/reflection.ts";
import { collect, loopback, noFault } from "./rpc_support.ts";

const QUERIES = [
  { case: "listServices" as const, value: "" },
  { case: "fileContainingSymbol" as const, value: "thaw.v1.RunService.WatchRun" },
  { case: "fileContainingSymbol" as const, value: "thaw.v1.RunSpec" },
  { case: "fileByFilename" as const, value: "thaw/v1/group.proto" },
  { case: "fileContainingSymbol" as const, value: "thaw.v1.NoSuch" },
  { case: "fileByFilename" as const, value: "../../etc/passwd" },
];

async function* queries() {
  for (const messageRequest of QUERIES) yield { host: "h", messageRequest };
}

const test = suite("reflection");

for (const service of [ServerReflection, ServerReflectionAlpha]) {
  test(`${service.typeName} lists services, gives files that decode, and says what it does not know`, async () => {
    const { channel, close } = await loopback((server) => serveReflection(server, [RunService, GroupService], noFault));
    const replies =
      service === ServerReflection
        ? await collect(connect(ServerReflection, channel).serverReflectionInfo(queries()))
        : await collect(connect(ServerReflectionAlpha, channel).serverReflectionInfo(queries()));
    await close();
    const results = replies.map((reply) => reply.messageResponse);

    assert.is(results[0].case, "listServicesResponse");
    if (results[0].case === "listServicesResponse") {
      assert.equal(
        results[0].value.service.map(({ name }) => name),
        [RunService.typeName, GroupService.typeName, ServerReflection.typeName, ServerReflectionAlpha.typeName],
      );
    }
    const registries = results.slice(1, 4).map((result) => {
      assert.is(result.case, "fileDescriptorResponse");
      if (result.case !== "fileDescriptorResponse") throw new Error("unreachable");
      // Imports must be in the answer, before the files that need them or after: a registry takes a set.
      const file = result.value.fileDescriptorProto
        .map((bytes) => fromBinary(FileDescriptorProtoSchema, bytes))
        .reverse();
      return createFileRegistry(create(FileDescriptorSetSchema, { file: dependenciesFirst(file) }));
    });
    assert.is(registries[0].getService("thaw.v1.RunService")?.method.watchRun.methodKind, "server_streaming");
    assert.is(registries[1].getMessage("thaw.v1.RunSpec")?.field.batchSize.number, 4);
    assert.ok(registries[2].getEnum("thaw.v1.ParameterKind"));
    for (const result of results.slice(4)) {
      assert.is(result.case, "errorResponse");
      if (result.case === "errorResponse") assert.is(result.value.errorCode, status.NOT_FOUND);
    }
    assert.equal([replies[2].validHost, replies[2].originalRequest?.host], ["h", "h"]);
  });
}

function dependenciesFirst<F extends { name: string; dependency: string[] }>(files: F[]): F[] {
  const sorted: F[] = [];
  const place = (file: F | undefined) => {
    if (!file || sorted.includes(file)) return;
    for (const name of file.dependency) place(files.find((other) => other.name === name));
    sorted.push(file);
  };
  files.forEach(place);
  return sorted;
}

test.run();
