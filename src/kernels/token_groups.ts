// Groups of consecutive tokens. Tokens compete for an expert's slots inside their group, and router losses are means over
// a group. Every group has the same number of tokens, except that the last may have fewer, and then fewer slots too.

export interface TokenGroups {
  readonly tokens: number;
  /** Of every group but the last, which has what is left. */
  readonly tokensPerGroup: number;
}

export interface GroupSlots {
  /** Slots per (group, expert). */
  readonly capacity: number;
  /** The same in the last group. Default: `capacity`. */
  readonly lastCapacity?: number;
}

export const groupCount = ({ tokens, tokensPerGroup }: TokenGroups): number => Math.ceil(tokens / tokensPerGroup);

/** Tokens of the last group. */
export const lastGroupTokens = (dims: TokenGroups): number =>
  dims.tokens - (groupCount(dims) - 1) * dims.tokensPerGroup;

/** WGSL of a kernel with parameters tokens and tokens_per_group: the first token of a group, and the one after its last. */
export const GROUP_BOUNDS = /* wgsl */ `
fn group_first(group: u32) -> u32 { return group * params.tokens_per_group; }
fn group_end(group: u32) -> u32 { return min((group + 1u) * params.tokens_per_group, params.tokens); }
`;

/** WGSL of a kernel with parameters capacity, last_capacity, tokens and tokens_per_group: slots of a group. */
export const GROUP_CAPACITY = /* wgsl */ `
fn group_capacity(group: u32) -> u32 {
  return select(params.capacity, params.last_capacity, (group + 1u) * params.tokens_per_group >= params.tokens);
}
`;
