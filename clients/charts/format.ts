// Numbers as reports show them. What is missing is an en dash, never 0.

const MISSING = "–";

/** A number, or a dash where it is missing or not finite. */
const shown = (value: number | undefined, text: (value: number) => string): string =>
  value === undefined || !Number.isFinite(value) ? MISSING : text(value);

/** A share as a percentage: 0.734 → 73.4%. */
export const percent = (share: number | undefined, digits = 1): string =>
  shown(share, (v) => `${(v * 100).toFixed(digits)}%`);

/** A difference of shares in percentage points, with its sign: +3.1. */
export const points = (difference: number | undefined): string =>
  shown(difference, (v) => {
    const text = Math.abs(v * 100).toFixed(1);
    return Number(text) === 0 ? text : `${v < 0 ? "−" : "+"}${text}`;
  });

/** 12,345 */
export const count = (value: number | undefined): string => shown(value, (v) => Math.round(v).toLocaleString("en-US"));

/** Bytes in decimal units: 4.5 MB. */
export const bytes = (value: number | undefined): string =>
  shown(value, (v) => {
    if (v < 1e3) return `${v} B`;
    const [size, unit] = v < 1e6 ? [v / 1e3, "kB"] : v < 1e9 ? [v / 1e6, "MB"] : [v / 1e9, "GB"];
    return `${size.toFixed(size < 10 ? 2 : size < 100 ? 1 : 0)} ${unit}`;
  });

/** Floating point operations: 412 MFLOP. */
export const flops = (value: number | undefined): string =>
  shown(value, (v) => {
    const [size, unit] = v < 1e6 ? [v / 1e3, "kFLOP"] : v < 1e9 ? [v / 1e6, "MFLOP"] : [v / 1e9, "GFLOP"];
    return `${size.toFixed(size < 10 ? 2 : size < 100 ? 1 : 0)} ${unit}`;
  });

/** Seconds as milliseconds: 231 ms. */
export const milliseconds = (seconds: number | undefined): string =>
  shown(seconds, (v) => `${(v * 1e3).toFixed(v < 0.01 ? 1 : 0)} ms`);

/** 3 min 12 s */
export const duration = (seconds: number): string =>
  seconds < 60 ? `${seconds.toFixed(0)} s` : `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;

/** With three decimals: 0.693. */
export const nats = (value: number | undefined): string => shown(value, (v) => v.toFixed(3));
