// The T5-shaped sparse models: Hugging Face `switch_transformers`, and `st_moe`.

import type { Model } from "../family.ts";
import { parseSwitchConfig } from "./config.ts";
import { decodingGraphs } from "./incremental.ts";
import { selectionBiases, switchAliases, switchParameters } from "./parameters.ts";
import { decoderGraph, encoderGraph, trainingGraph } from "./programs.ts";
import { routingProblems } from "./routing.ts";

/** A Switch or ST-MoE model from its config.json. @throws InputError naming every field that is wrong or not supported */
export function switchModel(
  configJson: Readonly<Record<string, unknown>>,
  checkpointKeys: ReadonlySet<string> = new Set(),
): Model {
  const config = parseSwitchConfig(configJson, checkpointKeys);
  const parameters = switchParameters(config);
  return {
    modelType: config.modelType,
    parameters,
    aliases: switchAliases(config),
    selectionBiases: selectionBiases(parameters),
    vocabularySize: config.vocabularySize,
    padTokenId: config.padTokenId,
    eosTokenId: config.eosTokenId,
    decoderStartTokenId: config.decoderStartTokenId,
    routingProblems: (routing, losses) => routingProblems(config, routing, losses),
    trainingGraph: (target, trainable, options, optimizer) =>
      trainingGraph(target, config, parameters, trainable, options, optimizer),
    encoderGraph: (target, options) => encoderGraph(target, config, parameters, options),
    decoderGraph: (target, options) => decoderGraph(target, config, parameters, options),
    decodingGraphs: (target, options, beams) => decodingGraphs(target, config, parameters, options, beams),
  };
}
