// From a protobuf-es service descriptor to the grpc-js form of the service, so that no second code generator is needed:
// the descriptor knows every method's path, kind and message schemas. Shared by the server (src/server/rpc/serve.ts) and
// the TypeScript client (clients/typescript/rpc/connect.ts); neither may import the other.

import { Buffer } from "node:buffer";
import {
  type DescMessage,
  type DescMethod,
  type DescService,
  fromBinary,
  type Message,
  toBinary,
} from "@bufbuild/protobuf";
import type { ChannelOptions, MethodDefinition, ServiceDefinition } from "@grpc/grpc-js";
import "./text.ts";

/** Largest message either side takes unless configured otherwise, in bytes. */
const DEFAULT_MAX_MESSAGE_BYTES = 16 * 2 ** 20;

/** Options for a grpc-js server or channel. An 8 MiB HTTP/2 window nearly doubles the throughput of large messages. */
export function channelOptions(maxMessageBytes: number = DEFAULT_MAX_MESSAGE_BYTES): ChannelOptions {
  return {
    "grpc.max_receive_message_length": maxMessageBytes,
    "grpc.max_send_message_length": maxMessageBytes,
    "grpc-node.flow_control_window": 8 * 2 ** 20,
  };
}

const serializer =
  (schema: DescMessage) =>
  (message: Message): Buffer => {
    const bytes = toBinary(schema, message);
    return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  };

// A plain Uint8Array view: protobuf-es takes `bytes` fields with subarray(), which on a Buffer would give Buffers.
const deserializer =
  (schema: DescMessage) =>
  (wire: Buffer): Message =>
    fromBinary(schema, new Uint8Array(wire.buffer, wire.byteOffset, wire.byteLength));

/** The grpc-js form of one method. */
export function methodDefinition(method: DescMethod): MethodDefinition<Message, Message> {
  const kind = method.methodKind;
  return {
    path: `/${method.parent.typeName}/${method.name}`,
    originalName: method.localName,
    requestStream: kind === "client_streaming" || kind === "bidi_streaming",
    responseStream: kind === "server_streaming" || kind === "bidi_streaming",
    requestSerialize: serializer(method.input),
    requestDeserialize: deserializer(method.input),
    responseSerialize: serializer(method.output),
    responseDeserialize: deserializer(method.output),
  };
}

/** The grpc-js form of a whole service, keyed by local (camelCase) method name. */
export function serviceDefinition(service: DescService): ServiceDefinition {
  return Object.fromEntries(service.methods.map((method) => [method.localName, methodDefinition(method)]));
}
