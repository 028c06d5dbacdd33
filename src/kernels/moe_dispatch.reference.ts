// Dispatch on plain arrays: what `moeDispatch` writes, and each assignment's slot, from which flaxformer's
// dispatch_mask [group, token, expert, slot] can be built.

import { type DispatchDims, NO_ROW } from "./moe_dispatch.ts";
import { groupCount } from "./token_groups.ts";

export interface Dispatch {
  rowOfAssignment: Uint32Array; // [tokens, topK]
  sourceOfRow: Uint32Array; //     [maxRows]
  expertOfBlock: Uint32Array; //   [maxRows / rowTile]
  expertOffset: Uint32Array; //    [experts + 1]
  expertCount: Uint32Array; //     [experts]
  demand: Uint32Array; //          [experts]
  /** [tokens, topK] rank in (group, expert): the slot of a kept assignment; NO_ROW where dropped or masked. */
  slot: Uint32Array;
}

/**
 * Walks each group's assignments in order (choice, token), or (choice, place in `tokenOrder`), keeping the first `capacity`
 * of every expert.
 */
export function moeDispatchReference(
  expertIds: ArrayLike<number>, // [tokens, topK]; ≥ experts = masked
  dims: DispatchDims & { maxRows: number },
  tokenOrder?: ArrayLike<number>, // [tokens]; left to right when absent
): Dispatch {
  const { tokens, tokensPerGroup, topK, experts, capacity, lastCapacity = capacity, rowTile, maxRows } = dims;
  const groups = groupCount(dims);
  const slot = new Uint32Array(tokens * topK).fill(NO_ROW);
  const demand = new Uint32Array(experts);
  const keptOf = Array.from({ length: experts }, (): number[] => []);
  for (let g = 0; g < groups; g++) {
    const taken = new Uint32Array(experts);
    const slots = g === groups - 1 ? lastCapacity : capacity;
    const end = Math.min((g + 1) * tokensPerGroup, tokens);
    for (let choice = 0; choice < topK; choice++)
      for (let place = g * tokensPerGroup; place < end; place++) {
        const token = tokenOrder ? tokenOrder[place] : place;
        const a = token * topK + choice;
        const e = expertIds[a];
        if (e >= experts) continue;
        demand[e] += 1;
        if (taken[e] >= slots) continue;
        slot[a] = taken[e]++;
        keptOf[e].push(a);
      }
  }
  const rowOfAssignment = new Uint32Array(tokens * topK).fill(NO_ROW);
  const sourceOfRow = new Uint32Array(maxRows).fill(NO_ROW);
  const expertOfBlock = new Uint32Array(maxRows / rowTile).fill(experts);
  const expertOffset = new Uint32Array(experts + 1);
  keptOf.forEach((kept, e) => {
    const begin = expertOffset[e];
    kept.forEach((a, i) => {
      rowOfAssignment[a] = begin + i;
      sourceOfRow[begin + i] = a;
    });
    const blocks = Math.ceil(kept.length / rowTile);
    expertOfBlock.fill(e, begin / rowTile, begin / rowTile + blocks);
    expertOffset[e + 1] = begin + blocks * rowTile;
  });
  const expertCount = Uint32Array.from(keptOf, (kept) => kept.length);
  return { rowOfAssignment, sourceOfRow, expertOfBlock, expertOffset, expertCount, demand, slot };
}
