// Adafactor in float64: the definition that adafactor.ts is tested against.

export interface AdafactorSettings {
  decayRate: number;
  clipThreshold: number;
  epsilon: number;
  minParameterScale: number;
}

/** A trainable slice of a tensor: what is updated, by what, and what its update depends on besides. */
export interface AdafactorSlice {
  parameter: Float64Array;
  /** Already clipped. */
  gradient: ArrayLike<number>;
  /** Of the rows and columns of [row.length, column.length], or of every element. */
  moments: { row: Float64Array; column: Float64Array } | { v: Float64Array };
  learningRate: number;
  weightDecay: number;
  /** Steps taken including this one. */
  t: number;
}

/** One step of a tensor in place, slice by slice; both root mean squares are over all of `slices`. */
export function adafactorReference(slices: readonly AdafactorSlice[], settings: AdafactorSettings): void {
  const updates = slices.map((slice) => unscaledUpdate(slice, settings));
  const parameterScale = Math.max(rms(slices.map((s) => s.parameter)), settings.minParameterScale);
  const scale = parameterScale / Math.max(1, rms(updates) / settings.clipThreshold);
  slices.forEach(({ parameter, learningRate, weightDecay }, s) => {
    for (const i of parameter.keys())
      parameter[i] += -weightDecay * parameter[i] - learningRate * scale * updates[s][i];
  });
}

/** Moves the moments and returns u. */
function unscaledUpdate(
  { gradient, moments, t }: AdafactorSlice,
  { decayRate, epsilon }: AdafactorSettings,
): Float64Array {
  const decay = 1 - t ** -decayRate;
  const average = (moment: Float64Array, i: number, square: number) => {
    moment[i] = decay * moment[i] + (1 - decay) * square;
  };
  const squares = Float64Array.from(gradient, (g) => g * g + epsilon);
  if ("v" in moments) {
    for (const [i, square] of squares.entries()) average(moments.v, i, square);
    return Float64Array.from(gradient, (g, i) => g / Math.sqrt(moments.v[i]));
  }
  const { row, column } = moments;
  const width = column.length;
  const rowSums = new Float64Array(row.length);
  const columnSums = new Float64Array(width);
  squares.forEach((square, i) => {
    rowSums[Math.floor(i / width)] += square;
    columnSums[i % width] += square;
  });
  for (const [i, sum] of rowSums.entries()) average(row, i, sum / width);
  for (const [j, sum] of columnSums.entries()) average(column, j, sum / row.length);
  const mean = row.reduce((sum, x) => sum + x, 0) / row.length;
  return Float64Array.from(gradient, (g, i) => g * Math.sqrt(mean / (row[Math.floor(i / width)] * column[i % width])));
}

function rms(parts: readonly Float64Array[]): number {
  const squares = parts.reduce((sum, part) => part.reduce((s, x) => s + x * x, sum), 0);
  return Math.sqrt(squares / parts.reduce((n, part) => n + part.length, 0));
}
