// How long commands take on the device.

import type { Device } from "../src/kernels/device/device.ts";
import type { Command } from "../src/kernels/kernel.ts";
import { type BufferArgument, type Program, profileProgram, recordProgram } from "../src/kernels/program.ts";

/** Repetitions of a measurement, and the time after which there are no more. */
const REPEATS = 10;
const SECONDS = 2;

export const median = (values: readonly number[]): number => {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
};

/** Runs `once` up to ten times, two seconds long at most, and at least once. */
export async function repeated<T>(once: () => Promise<T>): Promise<T[]> {
  const results: T[] = [];
  const end = performance.now() + 1e3 * SECONDS;
  do results.push(await once());
  while (results.length < REPEATS && performance.now() < end);
  return results;
}

/** A GPU that waits falls to a low clock (345 of 1980 MHz, H100) and rises from it with work: so long before it is timed. */
const WARM_UP_SECONDS = 0.5;

/** Runs a program once, and on a GPU until its clock has had time to rise. */
export async function warmUp(device: Device, program: Program): Promise<void> {
  const end = performance.now() + (device.capabilities.software ? 0 : 1e3 * WARM_UP_SECONDS);
  do await secondsOf(device, program, 1);
  while (performance.now() < end);
}

/** Submits a program `times` over, as a training loop does, and waits. Returns seconds of one. */
export async function secondsOf(device: Device, program: Program, times: number): Promise<number> {
  const begin = performance.now();
  for (let i = 0; i < times; i++) {
    const encoder = device.gpu.createCommandEncoder();
    program.encode(encoder);
    device.submit(encoder.finish());
  }
  await device.gpu.queue.onSubmittedWorkDone();
  return (performance.now() - begin) / 1e3 / times;
}

/**
 * Seconds of some commands: the median of repeated runs behind a warm-up, by the adapter's timestamps, or by the clock where
 * it has none.
 * @throws KernelError for a fault in any of them
 */
export async function timeCommands(
  device: Device,
  label: string,
  commands: readonly Command<BufferArgument>[],
): Promise<number> {
  const program = await recordProgram(device, label, commands);
  await warmUp(device, program);
  const stamped = async () => (await profileProgram(device, program)).reduce((sum, { seconds }) => sum + seconds, 0);
  const once = device.capabilities.timestampQuery ? stamped : () => secondsOf(device, program, 1);
  const seconds = median(await repeated(once));
  program.destroy();
  return seconds;
}
