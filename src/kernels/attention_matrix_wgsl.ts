// The parts that the attention kernels for matrix units share (matrix_tiles.ts says what those are). Operands are f16, or
// f32 that is rounded on its way into workgroup memory; sums are f32, and scores exist as one tile in workgroup memory.
//
// A workgroup's four subgroups own rows of one side (queries, or keys) and walk the other side in tiles of 32 rows.
// Fragments are opaque, so what happens to single scores happens in memory: a product is stored to a patch, [owned rows, 32
// walked rows] of f32; each lane takes one row of its subgroup's 32, or half a row of 16, into registers, and leaves f16
// where it read: 16 of them in the place of the first eight of 16 numbers. The next product reads those.
//
// The walked rows are on the left of the products that give scores: their fragments are read as they lie. The owned rows, on
// the right, are read transposed, but once.
//
// What decides the speed is not the units but the instructions around them, for each score. So no score loads anything that
// its row or its tile can, and which pairs are visible is a bit each, looked at only in tiles that are not visible as a
// whole.

import { type AttentionVariant, repeat } from "./attention_wgsl.ts";
import { type BufferDeclaration, prefetched } from "./kernel.ts";

/** Threads of a workgroup: four subgroups. */
export const THREADS = 128;
/** Rows of a tile. */
export const WALKED = 32;
/** vec4u of a patch's row: one more than it holds, so that rows begin in different banks. */
export const PATCH_ROW = WALKED / 4 + 1;
/** Eights of dimensions that a patch can hold of each owned row. */
const OWN_PACKS = 8;

/** Which side a kernel owns, and how many rows a workgroup has: 128, one for each lane, or 64, half of one. */
export interface Ownership {
  readonly side: "query" | "key";
  readonly rows: 64 | 128;
}

/** WGSL of a side: its length; of a row, its segment and its first vec4f in q or k. */
const SIDES = {
  query: {
    length: "params.query_length",
    segment: (row: string) => `query_segment(b, ${row})`,
    at: (row: string) => `query_at(b, query_h, ${row})`,
  },
  key: {
    length: "params.key_length",
    segment: (row: string) => `key_segment(b, ${row})`,
    at: (row: string) => `key_at(b, kv_h, ${row})`,
  },
};
export const ownedSide = (o: Ownership) => SIDES[o.side];
export const walkedSide = (o: Ownership) => SIDES[o.side === "query" ? "key" : "query"];

/** Scores of a lane, and vec4f of them. */
export const laneScores = (o: Ownership): number => o.rows / 4;
export const laneVectors = (o: Ownership): number => laneScores(o) / 4;

/** A vec4u is eight f16 of a staged row; one more a row keeps rows in different banks. */
export const packsOf = (v: AttentionVariant): number => v.headDim / 8;
export const stagedRow = (v: AttentionVariant): number => packsOf(v) + 1;
/** Fragments along a head, and of 16 owned rows in a subgroup. */
const fragmentsOf = (v: AttentionVariant): number => v.headDim / 16;
const blocksOf = (o: Ownership): number => o.rows / 64;

/** Eight numbers of `array`, from its fours `at` on, as f16; `at` is even. */
export const eight = (v: AttentionVariant, array: string, at: string): string =>
  v.half ? `${array}[${at} / 2u]` : `packed(${array}[${at}], ${array}[${at} + 1u])`;

/** Declares arrays whose numbers a kernel reads by {@link eight}. */
export const eights = <B extends string>(v: AttentionVariant, arrays: readonly B[]) => {
  const declarations = arrays.map((array) => [array, prefetched(v.half ? "vec4u" : "vec4f")]);
  return Object.fromEntries(declarations) as Record<B, BufferDeclaration>;
};
/** Fragments NAME{n}_{d}, of 16 rows and 16 dimensions, of the subgroup's owned rows in `array`; the patch stages them. */
export function ownFragments(v: AttentionVariant, o: Ownership, name: string, array: string): string {
  const { length, at } = ownedSide(o);
  return repeat(Math.ceil(packsOf(v) / OWN_PACKS), (part) => {
    const from = part * OWN_PACKS;
    const packs = Math.min(OWN_PACKS, packsOf(v) - from);
    const fragment = (x: number): string => {
      const [n, d] = [Math.floor(x / (packs / 2)), x % (packs / 2)];
      const start = `(first + ${n * 16}u) * ${PATCH_ROW}u + ${d * 2}u`;
      return `let ${name}${n}_${from / 2 + d} = subgroupMatrixLoad<Right, col_major>(&scores_patch, ${start}, ${PATCH_ROW}u);`;
    };
    return /* wgsl */ `
  for (var t = lid; t < ${o.rows * packs}u; t += ${THREADS}u) {
    let r = block + t / ${packs}u;
    let exists = r < ${length};
    let at = select(0u, ${at("r")} + ${from * 2}u + t % ${packs}u * 2u, exists);
    let to = t / ${packs}u * ${PATCH_ROW}u + t % ${packs}u;
    scores_patch[to] = select(vec4u(), ${eight(v, array, "at")}, vec4<bool>(exists));
  }
  workgroupBarrier();
  ${repeat((blocksOf(o) * packs) / 2, fragment, "\n  ")}
  workgroupBarrier();`;
  });
}

/** patch [own rows, walked rows] = own · stagedᵀ. */
export const productsToPatch = (
  v: AttentionVariant,
  o: Ownership,
  own: string,
  staged: string,
  patch: string,
): string =>
  repeat(
    WALKED / 16,
    (m) => /* wgsl */ `{
      ${repeat(blocksOf(o), (n) => `var scores${n} = Sums();`, " ")}
      ${repeat(
        fragmentsOf(v),
        (d) =>
          `let w${d} = subgroupMatrixLoad<Left, row_major>(&${staged}, ${m * 16 * stagedRow(v) + d * 2}u, ${stagedRow(v)}u);
      ${repeat(blocksOf(o), (n) => `scores${n} = subgroupMatrixMultiplyAccumulate(w${d}, ${own}${n}_${d}, scores${n});`, "\n      ")}`,
        "\n      ",
      )}
      ${repeat(blocksOf(o), (n) => `subgroupMatrixStore<col_major>(&${patch}, (first + ${n * 16}u) * ${PATCH_ROW}u + ${m * 4}u, scores${n}, ${PATCH_ROW}u);`, "\n      ")}
    }`,
    "\n    ",
  );

/** Every sum of the subgroup's rows: `text(name, n, d)` for 16 rows n and 16 dimensions d. */
const eachSum = (
  v: AttentionVariant,
  o: Ownership,
  sums: string,
  text: (name: string, n: number, d: number) => string,
): string =>
  repeat(
    blocksOf(o) * fragmentsOf(v),
    (x) => {
      const [n, d] = [Math.floor(x / fragmentsOf(v)), x % fragmentsOf(v)];
      return text(`${sums}${n}_${d}`, n, d);
    },
    "\n    ",
  );

export const declareSums = (v: AttentionVariant, o: Ownership, sums: string): string =>
  eachSum(v, o, sums, (name) => `var ${name} = Sums();`);

/** Declares NAME0 …: the lane's vectors NUMBERS0 …, two at a time, as f16. */
export const packNumbers = (o: Ownership, name: string, numbers: string): string =>
  repeat(laneVectors(o) / 2, (x) => `let ${name}${x} = packed(${numbers}${2 * x}, ${numbers}${2 * x + 1});`, "\n    ");

/** Leaves them in the patch, whose numbers the lane has read from `at` on: in the first half of their place, or the second. */
export const packedToPatch = (o: Ownership, name: string, patch: string, offset: 0 | 2 = 0): string =>
  repeat(
    laneVectors(o) / 2,
    (x) => `${patch}[at + ${Math.floor(x / 2) * 4 + (x % 2) + offset}u] = ${name}${x};`,
    "\n    ",
  );

/** Where packed numbers lie, in vec4u: rows of so many, of which 16 walked rows begin so far apart, behind an offset. */
export interface Packed {
  readonly array: string;
  readonly row: number;
  readonly apart: number;
  readonly offset: number;
}

/** As {@link packedToPatch} leaves them. */
export const packedIn = (patch: string, offset: 0 | 2 = 0): Packed => ({
  array: patch,
  row: PATCH_ROW,
  apart: 4,
  offset,
});

/** sums += packed numbers · staged. */
export const addPacked = (v: AttentionVariant, o: Ownership, sums: string, packed: Packed, staged: string): string =>
  repeat(
    WALKED / 16,
    (m) => /* wgsl */ `{
      ${repeat(blocksOf(o), (n) => `let weights${n} = subgroupMatrixLoad<Left, row_major>(&${packed.array}, (first + ${n * 16}u) * ${packed.row}u + ${m * packed.apart + packed.offset}u, ${packed.row}u);`, "\n      ")}
      ${repeat(
        fragmentsOf(v),
        (d) =>
          `let w${d} = subgroupMatrixLoad<Right, row_major>(&${staged}, ${m * 16 * stagedRow(v) + d * 2}u, ${stagedRow(v)}u);
      ${repeat(blocksOf(o), (n) => `${sums}${n}_${d} = subgroupMatrixMultiplyAccumulate(weights${n}, w${d}, ${sums}${n}_${d});`, "\n      ")}`,
        "\n      ",
      )}
    }`,
    "\n    ",
  );

/** Parts of the sums that fit a patch's row: pairs of dimensions' fragments. */
const partsOf = (v: AttentionVariant): number => Math.ceil(fragmentsOf(v) / 2);

/** The sums of a part to the patch, or (`load`) back from there. */
const movePart = (v: AttentionVariant, o: Ownership, sums: string, patch: string, part: number, load = false): string =>
  eachSum(v, o, sums, (name, n, d) => {
    if (Math.floor(d / 2) !== part) return "";
    const start = `(first + ${n * 16}u) * ${PATCH_ROW}u + ${(d % 2) * 4}u`;
    return load
      ? `${name} = subgroupMatrixLoad<Sums, row_major>(&${patch}, ${start}, ${PATCH_ROW}u);`
      : `subgroupMatrixStore<row_major>(&${patch}, ${start}, ${name}, ${PATCH_ROW}u);`;
  });

/** Multiplies each owned row's sums by its lane's `factor`, where rows have a lane each. Overwrites the patch. */
export const rescaleSums = (v: AttentionVariant, o: Ownership, sums: string, patch: string, factor: string): string =>
  repeat(
    partsOf(v),
    (part) => /* wgsl */ `
      ${movePart(v, o, sums, patch, part)}
      workgroupBarrier();
      for (var x = 0u; x < ${WALKED / 4}u; x++) {
        let at = own * ${PATCH_ROW}u + x;
        ${patch}[at] = bitcast<vec4u>(bitcast<vec4f>(${patch}[at]) * ${factor});
      }
      workgroupBarrier();
      ${movePart(v, o, sums, patch, part, true)}
      workgroupBarrier();`,
  );

/** Stores `factor` · sums to the owned rows of `into` that there are; `factor` may depend on r, a row of the workgroup's. */
export const storeRows = (
  v: AttentionVariant,
  o: Ownership,
  sums: string,
  patch: string,
  into: string,
  factor: string,
): string =>
  repeat(partsOf(v), (part) => {
    const vectors = Math.min(8, v.headDim / 4 - part * 8);
    return /* wgsl */ `
  workgroupBarrier();
  ${movePart(v, o, sums, patch, part)}
  workgroupBarrier();
  for (var t = lane; t < ${(o.rows / 4) * vectors}u; t += 32u) {
    let r = first + t / ${vectors}u;
    let to = block + r;
    if (to < ${ownedSide(o).length}) {
      let sum = bitcast<vec4f>(${patch}[r * ${PATCH_ROW}u + t % ${vectors}u]);
      store_${into}(${ownedSide(o).at("to")} + ${part * 8}u + t % ${vectors}u, sum * ${factor});
    }
  }`;
  });
