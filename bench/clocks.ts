// What clock the processors of an NVIDIA GPU run at while something is measured: a driver may hold them far below their most
// (345 of 1980 MHz was seen under a full load), and then rates say more about it than about a kernel.

import { execFile } from "node:child_process";

const EVERY_MS = 500;
const QUERY = ["--query-gpu=clocks.sm", "--format=csv,noheader,nounits"];

/**
 * Asks every half second. The function returned ends it and gives the least and the most seen, MHz; nothing where none was.
 */
export function watchClocks(): () => { readonly least: number; readonly most: number } | undefined {
  const seen: number[] = [];
  let asking = false;
  const ask = (): void => {
    if (asking) return;
    asking = true;
    execFile("nvidia-smi", QUERY, { encoding: "utf8", timeout: 5000 }, (error, text) => {
      asking = false;
      if (error) clearInterval(timer);
      else seen.push(Number.parseInt(text, 10));
    });
  };
  const timer = setInterval(ask, EVERY_MS);
  return () => {
    clearInterval(timer);
    const clocks = seen.filter((mhz) => mhz > 0);
    return clocks.length === 0 ? undefined : { least: Math.min(...clocks), most: Math.max(...clocks) };
  };
}
