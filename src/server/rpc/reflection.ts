// grpc.reflection.v1, and v1alpha for older clients, from protobuf-es descriptors: a client without our protos can list and
// call everything.

import { createRegistry, type DescFile, type DescService, toBinary } from "@bufbuild/protobuf";
import { FileDescriptorProtoSchema } from "@bufbuild/protobuf/wkt";
import { type Server, status } from "@grpc/grpc-js";
import { file_google_rpc_error_details } from "../../../proto/gen/google/rpc/error_details_pb.ts";
import { ServerReflection } from "../../../proto/gen/grpc/reflection/v1/reflection_pb.ts";
import { ServerReflection as ServerReflectionAlpha } from "../../../proto/gen/grpc/reflection/v1alpha/reflection_pb.ts";
import { type FaultListener, serve } from "./serve.ts";

// The request of v1 and of v1alpha: the same but for the name of their types.
type Query =
  | { case: undefined }
  | { case: "listServices" | "fileByFilename" | "fileContainingSymbol" | "allExtensionNumbersOfType"; value: string }
  | { case: "fileContainingExtension"; value: { containingType: string; extensionNumber: number } };

/** Files and everything they import, by name. */
function withImports(files: readonly DescFile[], found = new Map<string, DescFile>()): Map<string, DescFile> {
  for (const file of files) {
    if (found.has(file.proto.name)) continue;
    found.set(file.proto.name, file);
    withImports(file.dependencies, found);
  }
  return found;
}

function fileResponse(file: DescFile) {
  const files = [...withImports([file]).values()];
  const fileDescriptorProto = files.map(({ proto }) => toBinary(FileDescriptorProtoSchema, proto));
  return { case: "fileDescriptorResponse" as const, value: { fileDescriptorProto } };
}

function notFound(what: string) {
  return {
    case: "errorResponse" as const,
    value: { errorCode: status.NOT_FOUND, errorMessage: `${what} not found` },
  };
}

/** Serves reflection for the given services and for itself. */
export function serveReflection(server: Server, services: readonly DescService[], onFault: FaultListener): void {
  const listed = [...services, ServerReflection, ServerReflectionAlpha];
  // What errors carry is packed, so no service's file imports it.
  const files = withImports([...listed.map((service) => service.file), file_google_rpc_error_details]);
  const registry = createRegistry(...files.values());

  const answer = (query: Query) => {
    switch (query.case) {
      case "listServices": {
        const service = listed.map(({ typeName }) => ({ name: typeName }));
        return { case: "listServicesResponse" as const, value: { service } };
      }
      case "fileByFilename": {
        const file = files.get(query.value);
        return file ? fileResponse(file) : notFound(query.value);
      }
      case "fileContainingSymbol": {
        // A method or a field is found through its parent.
        const parent = query.value.slice(0, Math.max(0, query.value.lastIndexOf(".")));
        const found = registry.get(query.value) ?? registry.get(parent);
        return found ? fileResponse(found.file) : notFound(query.value);
      }
      case "fileContainingExtension": {
        const { containingType, extensionNumber } = query.value;
        const type = registry.getMessage(containingType);
        const extension = type && registry.getExtensionFor(type, extensionNumber);
        return extension ? fileResponse(extension.file) : notFound(`extension ${extensionNumber} of ${containingType}`);
      }
      case "allExtensionNumbersOfType": {
        if (!registry.getMessage(query.value)) return notFound(query.value);
        const extensions = [...registry].filter((type) => type.kind === "extension");
        const extensionNumber = extensions.filter((e) => e.extendee.typeName === query.value).map((e) => e.number);
        return {
          case: "allExtensionNumbersResponse" as const,
          value: { baseTypeName: query.value, extensionNumber },
        };
      }
      default:
        return {
          case: "errorResponse" as const,
          value: { errorCode: status.INVALID_ARGUMENT, errorMessage: "the request asks for nothing" },
        };
    }
  };
  serve(
    server,
    ServerReflection,
    {
      async *serverReflectionInfo(requests) {
        for await (const request of requests) {
          yield { validHost: request.host, originalRequest: request, messageResponse: answer(request.messageRequest) };
        }
      },
    },
    onFault,
  );
  serve(
    server,
    ServerReflectionAlpha,
    {
      async *serverReflectionInfo(requests) {
        for await (const request of requests) {
          yield { validHost: request.host, originalRequest: request, messageResponse: answer(request.messageRequest) };
        }
      },
    },
    onFault,
  );
}
