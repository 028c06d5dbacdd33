// What clock the processors of an NVIDIA GPU run at while something is measured: a driver lowers it where power or heat ask for
// it (1815 of 1980 MHz at 572 TFLOP/s of an H100), and lets a GPU that waits fall far below (345), and then rates say more
// about it than about a kernel. Which of several GPUs a process computes on is not to be had from nvidia-smi, so nothing is
// said where it lists several: the one beside may be idle.

import { execFile } from "node:child_process";

const EVERY_MS = 500;
const QUERY = ["--query-gpu=clocks.sm", "--format=csv,noheader,nounits"];

/** MHz in the answer, which has a line for each GPU; undefined where there are several, or none says it. */
export function clockOf(answer: string): number | undefined {
  const lines = answer.trim().split("\n");
  const mhz = Number.parseInt(lines[0], 10);
  return lines.length === 1 && mhz > 0 ? mhz : undefined;
}

/**
 * Asks every half second. The function returned ends it and gives the least and the most seen, MHz; nothing where none was.
 */
export function watchClocks(): () => { readonly least: number; readonly most: number } | undefined {
  const clocks: number[] = [];
  let asking = false;
  const ask = (): void => {
    if (asking) return;
    asking = true;
    execFile("nvidia-smi", QUERY, { encoding: "utf8", timeout: 5000 }, (error, text) => {
      asking = false;
      const mhz = error ? undefined : clockOf(text);
      if (mhz === undefined) clearInterval(timer);
      else clocks.push(mhz);
    });
  };
  const timer = setInterval(ask, EVERY_MS);
  return () => {
    clearInterval(timer);
    return clocks.length === 0 ? undefined : { least: Math.min(...clocks), most: Math.max(...clocks) };
  };
}
