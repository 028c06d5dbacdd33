// Ranges of real numbers; unset values pass, NaN fails every one of them.

import type { Problems } from "./problems.ts";

export function positive(problems: Problems, field: string, value: number | undefined): void {
  const valid = value === undefined || (value > 0 && value < Number.POSITIVE_INFINITY);
  if (!valid) problems.add(field, `is ${value}; must be above 0`);
}

export function nonNegative(problems: Problems, field: string, value: number | undefined): void {
  const valid = value === undefined || (value >= 0 && value < Number.POSITIVE_INFINITY);
  if (!valid) problems.add(field, `is ${value}; must be at least 0`);
}

export function fraction(problems: Problems, field: string, value: number | undefined): void {
  const valid = value === undefined || (value >= 0 && value < 1);
  if (!valid) problems.add(field, `is ${value}; must be in [0, 1)`);
}
