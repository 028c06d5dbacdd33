// Figures, names and tables as people read them.

import type { DescEnum } from "@bufbuild/protobuf";
import { type Duration, durationMs, type Timestamp, timestampDate } from "@bufbuild/protobuf/wkt";

type Figure = number | bigint;

/** 1234567 → `1,234,567`. */
export const count = (n: Figure): string => n.toLocaleString("en-US", { maximumFractionDigits: 0 });

/** 1536n → `1.5 KiB`. */
export function bytes(n: Figure): string {
  let value = Number(n);
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; Math.abs(value) >= 1024 && unit < units.length - 1; unit++) value /= 1024;
  return `${unit === 0 ? value : value.toFixed(1)} ${units[unit]}`;
}

/** 1234567 → `1.23 M`, for parameters and floating point operations. */
export function metric(n: Figure): string {
  let value = Number(n);
  const units = ["", " k", " M", " G", " T", " P"];
  let unit = 0;
  // From 999.5 on three digits would round to 1000.
  for (; Math.abs(value) >= (unit === 0 ? 1000 : 999.5) && unit < units.length - 1; unit++) value /= 1000;
  return unit === 0 ? String(value) : `${value.toPrecision(3)}${units[unit]}`;
}

/** 0.1234 → `12.3 %`. */
export const percent = (share: number): string => `${(share * 100).toFixed(1)} %`;

/** Four significant digits, never in exponent form between 1e-3 and 1e6. */
export function figure(value: number): string {
  if (value === 0 || !Number.isFinite(value)) return String(value);
  const size = Math.abs(value);
  return size < 1e-3 || size >= 1e6 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}

/** Milliseconds → `420 ms`, `4.2 s`, `3 min 05 s`, `2 h 07 min`. */
export function duration(ms: number): string {
  if (ms < 999.5) return `${ms.toFixed(0)} ms`;
  if (ms < 59_950) return `${(ms / 1000).toFixed(1)} s`;
  const seconds = Math.round(ms / 1000);
  const two = (n: number) => String(Math.floor(n)).padStart(2, "0");
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${two(seconds % 60)} s`;
  return `${Math.floor(seconds / 3600)} h ${two((seconds % 3600) / 60)} min`;
}

export const wireDuration = (value: Duration | undefined): string => (value ? duration(durationMs(value)) : "");

/** Local time to the second; empty when unset. */
export function time(value: Timestamp | undefined): string {
  if (!value) return "";
  const date = timestampDate(value);
  return new Date(date.getTime() - date.getTimezoneOffset() * 60_000).toISOString().slice(0, 19).replace("T", " ");
}

/** An enum value by its bare name: `RUNNING`; empty for the zero value. */
export function enumName(schema: DescEnum, value: number): string {
  return value === 0 ? "" : (schema.value[value]?.localName ?? String(value));
}

/** The last step of a resource name: `runs/glue` → `glue`. */
export const id = (name: string): string => name.slice(name.lastIndexOf("/") + 1);

/** A resource name from what a person typed: `glue` → `runs/glue`; `runs/glue` and `models/x` stay. */
export const resource = (collection: string, typed: string): string =>
  typed.includes("/") ? typed : `${collection}/${typed}`;

export interface Column {
  readonly title: string;
  /** Figures are right-aligned. */
  readonly figures?: boolean;
}

/** A table with a heading, two spaces between columns; or `empty` when there are no rows. */
export function table(columns: readonly Column[], rows: readonly (readonly string[])[], empty: string): string {
  if (rows.length === 0) return empty;
  const lines = [columns.map(({ title }) => title), ...rows];
  const widths = columns.map((_, c) => Math.max(...lines.map((line) => [...line[c]].length)));
  const pad = (text: string, c: number) => {
    const spaces = " ".repeat(widths[c] - [...text].length);
    return columns[c].figures ? spaces + text : text + spaces;
  };
  return lines.map((line) => line.map(pad).join("  ").trimEnd()).join("\n");
}

/** `name: value` lines with aligned values; pairs with an empty value are left out. */
export function fields(pairs: readonly (readonly [string, string])[]): string {
  const shown = pairs.filter(([, value]) => value !== "");
  const width = Math.max(...shown.map(([name]) => name.length)) + 1;
  return shown.map(([name, value]) => `${`${name}:`.padEnd(width)} ${value}`).join("\n");
}

/** One character per share, scaled to the largest. */
export function bars(shares: readonly number[]): string {
  const most = Math.max(...shares, Number.MIN_VALUE);
  return shares.map((share) => "▁▂▃▄▅▆▇█"[Math.min(7, Math.floor((share / most) * 8))]).join("");
}
