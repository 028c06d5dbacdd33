// The trainer of one device.

import type { Device } from "../kernels/device/device.ts";
import { type OpenModel, openModelDirectory } from "./model/open.ts";
import { openTrainingData } from "./run/data.ts";
import type { OnEncoding } from "./run/encoded_files.ts";
import { DROPLESS, type OpenOptions } from "./run/options.ts";
import { defaultMemoryLimit } from "./run/plan.ts";
import { Run } from "./run/run.ts";
import type { Engine, RunConfig } from "./types.ts";

export interface EngineOptions {
  /**
   * Device memory that what is open may use together, bytes; unset: half the machine's on a CPU adapter, no limit on a GPU.
   */
  readonly memoryLimitBytes?: number;
}

/** Its runs and models share the device: each has the memory that the others have not planned. */
export function createEngine(device: Device, options: EngineOptions = {}): Engine {
  const limit = options.memoryLimitBytes ?? defaultMemoryLimit(device.capabilities);
  const open = new Set<Run>();

  async function opened(work: (memoryLimitBytes: () => number) => Promise<Run>): Promise<Run> {
    let own: Run | undefined;
    const left = (): number => {
      let bytes = limit;
      for (const run of open) {
        if (run.plannedBytes === 0) open.delete(run);
        else if (run !== own) bytes -= run.plannedBytes;
      }
      return bytes;
    };
    own = await work(left);
    open.add(own);
    return own;
  }

  return {
    openRun: (config, resumeFrom, onEncoding) =>
      opened((memoryLimitBytes) => openRun(device, config, { resumeFrom, memoryLimitBytes, onEncoding })),
    openModel: (directory, batchSize, maxInputTokens, maxTargetTokens, routing = INFERENCE.routing) =>
      opened((memoryLimitBytes) =>
        withModel(directory, (source) =>
          Run.open(
            device,
            source,
            { ...INFERENCE, batchSize, maxInputTokens, maxTargetTokens, routing },
            { inference: { input: 1, target: 1 }, memoryLimitBytes },
          ),
        ),
      ),
  };
}

/**
 * Opens a run on its data, from its model or from a checkpoint of it.
 * @throws as {@link Engine.openRun}
 */
export function openRun(
  device: Device,
  config: RunConfig,
  {
    onEncoding,
    ...options
  }: Pick<OpenOptions, "resumeFrom" | "memoryLimitBytes"> & { readonly onEncoding?: OnEncoding } = {},
): Promise<Run> {
  return withModel(options.resumeFrom ?? config.modelDirectory, async (source) => {
    const data = await openTrainingData(source, config, onEncoding);
    return Run.open(device, source, config, { ...data, ...options });
  });
}

/** Opens a model directory; whatever `use` throws, its checkpoint is closed. */
async function withModel(directory: string, use: (source: OpenModel) => Promise<Run>): Promise<Run> {
  const source = await openModelDirectory(directory);
  try {
    return await use(source);
  } finally {
    await source.checkpoint.close();
  }
}

/** A model that is not trained: no dropout, no drops, no optimizer. */
const INFERENCE = {
  steps: 0,
  seed: 0,
  dropout: 0,
  losses: { balanceCoefficient: 0, zCoefficient: 0 },
  routing: DROPLESS,
  optimizer: {
    algorithm: { kind: "sgd", momentum: 0, weightDecay: 0 },
    learningRate: 0,
    maxGradientNorm: 0,
    schedule: "constant",
    warmupSteps: 0,
  },
} as const;
