// Idempotency: a mutating request with a `request_id` is carried out once. The same id and body gets the first answer,
// duplicates that arrive meanwhile wait for it, and the same id with another body is refused. Only answers are kept: a
// request that failed has changed nothing and may be sent again.

import { createHash } from "node:crypto";
import { type DescMessage, fromBinary, type MessageShape, toBinary, toJson } from "@bufbuild/protobuf";
import { status } from "@grpc/grpc-js";
import type { Answer, Registry } from "./registry/registry.ts";
import { refusal } from "./rpc/errors.ts";

/** Makes the record of a response, for operations that store it in the transaction of the change itself. */
export type Remember<O extends DescMessage> = (response: MessageShape<O>) => Answer;

export interface Answers {
  /**
   * Runs `work` once per request id.
   * @param body what must be the same: normally the request
   * @param work gets `remember`, undefined without a request id; what it did not store is stored when it returns
   * @throws RpcError ALREADY_EXISTS when the id came with another body
   */
  once<I extends DescMessage, O extends DescMessage>(
    requestId: string,
    request: { readonly schema: I; readonly body: MessageShape<I>; readonly extra?: string },
    response: O,
    work: (remember: Remember<O> | undefined) => Promise<MessageShape<O>>,
  ): Promise<MessageShape<O>>;
}

type Json = ReturnType<typeof toJson>;

/** JSON with sorted keys: the order of map entries on the wire means nothing. */
function canonical(value: Json): string {
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  const entries = Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1));
  return `{${entries.map(([key, item]) => `${JSON.stringify(key)}:${canonical(item)}`).join(",")}}`;
}

export function createAnswers(registry: Registry): Answers {
  const inProgress = new Map<string, { method: string; digest: string; response: Promise<Uint8Array> }>();

  return {
    async once(requestId, { schema, body, extra = "" }, output, work) {
      if (requestId === "") return work(undefined);
      const method = schema.typeName;
      const digest = createHash("sha256")
        .update(canonical(toJson(schema, body)))
        .update(extra)
        .digest("hex");
      const earlier = inProgress.get(requestId);
      const first = earlier ?? (await registry.answer(requestId)) ?? inProgress.get(requestId);
      if (first) {
        if (first.method !== method || first.digest !== digest) {
          throw refusal(
            status.ALREADY_EXISTS,
            "REQUEST_ID_REUSED",
            `request_id "${requestId}" was used for a different request (${first.method})`,
            { request_id: requestId },
          );
        }
        return fromBinary(output, await first.response);
      }
      const remember: Remember<typeof output> = (response) => ({
        requestId,
        method,
        digest,
        response: toBinary(output, response),
      });
      const result = work(remember);
      const encoded = result.then((response) => toBinary(output, response));
      encoded.catch(() => {}); // Duplicates may or may not be listening.
      inProgress.set(requestId, { method, digest, response: encoded });
      try {
        const response = await result;
        await registry.saveAnswer(remember(response));
        return response;
      } finally {
        inProgress.delete(requestId);
      }
    },
  };
}
