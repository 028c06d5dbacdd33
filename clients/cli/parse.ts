// Values of flags, as commander's argument parsers, and their way into messages. They check the form; what a value may be
// is the server's to say.

import type { GenEnum } from "@bufbuild/protobuf/codegenv2";
import { InvalidArgumentError } from "commander";

/** A whole number at least 0. */
export function integer(text: string): bigint {
  if (!/^\d+$/.test(text)) throw new InvalidArgumentError("It must be a whole number.");
  return BigInt(text);
}

/** A whole number that an int32 field takes. */
export function smallInteger(text: string): number {
  const value = integer(text);
  if (value >= 2n ** 31n) throw new InvalidArgumentError("It is too large.");
  return Number(value);
}

export function real(text: string): number {
  const value = Number(text);
  if (text.trim() === "" || !Number.isFinite(value)) throw new InvalidArgumentError("It must be a number.");
  return value;
}

/** `0,2,4-7` → [0, 2, 4, 5, 6, 7]. */
export function integerList(text: string): number[] {
  return text.split(",").flatMap((part) => {
    const range = /^(\d+)(?:-(\d+))?$/.exec(part.trim());
    if (!range) throw new InvalidArgumentError("It must be whole numbers or ranges, for instance 0,2,4-7.");
    const [first, last] = [Number(range[1]), Number(range[2] ?? range[1])];
    if (last < first || last - first >= 65536) throw new InvalidArgumentError(`${part} is no range.`);
    return Array.from({ length: last - first + 1 }, (_, i) => first + i);
  });
}

/** The values of an enum by name in small letters: `running,paused`. */
export function enumList<E extends number>(schema: GenEnum<E>): (text: string) => E[] {
  const values = new Map(schema.values.filter(({ number }) => number !== 0).map((v) => [v.localName.toLowerCase(), v]));
  return (text) =>
    text.split(",").map((name) => {
      // `attention.self` as in the kinds' documentation.
      const value = values.get(name.trim().toLowerCase().replace(".", "_"));
      if (!value) throw new InvalidArgumentError(`It can be ${[...values.keys()].join(", ")}.`);
      return value.number as E;
    });
}

/** One value of an enum by name in small letters. */
export function enumValue<E extends number>(schema: GenEnum<E>): (text: string) => E {
  const list = enumList(schema);
  return (text) => {
    const values = list(text);
    if (values.length > 1) throw new InvalidArgumentError("It must be one name.");
    return values[0];
  };
}

/** `on` or `off`. */
export function onOff(text: string): boolean {
  if (text !== "on" && text !== "off") throw new InvalidArgumentError("It must be on or off.");
  return text === "on";
}

/** Collects `key=value` flags given repeatedly. */
export function keyValue(text: string, before: Record<string, string> = {}): Record<string, string> {
  const at = text.indexOf("=");
  if (at < 1) throw new InvalidArgumentError("It must be key=value.");
  return { ...before, [text.slice(0, at)]: text.slice(at + 1) };
}

/** Sets the fields that have a value; whether there was one. */
export function assign<T extends object>(target: T, values: { readonly [K in keyof T]?: T[K] }): boolean {
  const said = Object.entries(values).filter(([, value]) => value !== undefined);
  Object.assign(target, Object.fromEntries(said));
  return said.length > 0;
}
