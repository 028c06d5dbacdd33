// What a model directory holds, and what a model answered, for the server.

import { create, type JsonObject } from "@bufbuild/protobuf";
import * as proto from "../../../../proto/gen/thaw/v1/model_pb.ts";
import type { Generation, ModelDescription } from "../../../trainer/types.ts";
import * as enums from "./enums.ts";
import { tensorToProto } from "./report.ts";
import { routesToProto } from "./routes.ts";
import { count } from "./scalars.ts";

/**
 * Groups come without resource names: the server knows what the model is called. All of a model's parameters count as
 * trainable.
 */
export function descriptionToProto(d: ModelDescription): proto.ModelDescription {
  return create(proto.ModelDescriptionSchema, {
    modelType: d.modelType,
    parameters: count(d.parameters),
    config: d.config as JsonObject, // parsed from config.json
    groups: d.groups.map((group) => ({
      kind: enums.parameterKind.toProto(group.kind),
      tensors: d.tensors.filter((tensor) => tensor.kind === group.kind).map(tensorToProto),
      parameters: count(group.parameters),
      trainableParameters: count(group.parameters),
      sizeBytes: count(group.bytes),
    })),
  });
}

/** @param index of the input in the request; example ids of the routes must already be that index */
export function generationToProto(g: Generation, index: number, includeRoutes: boolean): proto.Generation {
  return create(proto.GenerationSchema, {
    inputIndex: count(index),
    input: g.input,
    text: g.text,
    inputTokenIds: [...g.inputIds],
    tokenIds: [...g.tokenIds],
    score: g.score,
    routes: includeRoutes ? g.routes.map((batch) => routesToProto(batch, { tokenIds: true, gates: true })) : [],
  });
}
