// Beam search as transformers does it (`GenerationMixin._beam_search`, without early stopping): for every example the
// best 2·beams continuations are ranked, those that end are kept as finished when they stand among the first `beams`,
// the best `beams` others go on. An example is done when no running beam can beat its worst finished one any more.
// Pure host code over log-probabilities; who computes them is not its concern.

/** A hypothesis; token ids without the start token. */
export interface Hypothesis {
  readonly tokenIds: readonly number[];
  /** Sum of log-probabilities, and over length^lengthPenalty once finished. */
  readonly score: number;
  /** Row that decoded each of its tokens: routes are found by it. */
  readonly rows: readonly number[];
}

/** One example's search. */
export interface BeamSearch {
  readonly beams: number;
  readonly lengthPenalty: number;
  readonly eosTokenId: number;
  running: readonly Hypothesis[];
  /** Best first, at most `beams`. */
  finished: readonly Hypothesis[];
  done: boolean;
}

export const beginBeamSearch = (o: { beams: number; lengthPenalty: number; eosTokenId: number }): BeamSearch => ({
  ...o,
  running: [{ tokenIds: [], score: 0, rows: [] }],
  finished: [],
  done: false,
});

interface Candidate {
  readonly parent: number;
  readonly token: number;
  readonly score: number;
}

/** The 2·beams best continuations, best first; the earlier beam, then the lower token among equals. */
function bestContinuations(search: BeamSearch, logProbabilities: readonly Float64Array[]): Candidate[] {
  const keep = 2 * search.beams;
  const best: Candidate[] = [];
  search.running.forEach(({ score }, parent) => {
    const row = logProbabilities[parent];
    for (let token = 0; token < row.length; token++) {
      const total = score + row[token];
      if (best.length === keep && !(total > best[keep - 1].score)) continue;
      let at = best.length;
      while (at > 0 && total > best[at - 1].score) at--;
      best.splice(at, 0, { parent, token, score: total });
      if (best.length > keep) best.pop();
    }
  });
  return best;
}

/**
 * One position: `logProbabilities[i]` [vocabulary] and `rows[i]` belong to running hypothesis i. `last` ends every
 * continuation: the length limit is reached. Returns the parent of each hypothesis that runs on.
 */
export function advanceBeams(
  search: BeamSearch,
  logProbabilities: readonly Float64Array[],
  rows: readonly number[],
  last: boolean,
): number[] {
  const { beams, lengthPenalty, eosTokenId } = search;
  const extend = ({ parent, token, score }: Candidate): Hypothesis => {
    const from = search.running[parent];
    return { tokenIds: [...from.tokenIds, token], score, rows: [...from.rows, rows[parent]] };
  };
  const candidates = bestContinuations(search, logProbabilities);
  const ends = (c: Candidate) => last || c.token === eosTokenId;
  const length = search.running[0].tokenIds.length + 1;
  const ended = candidates
    .slice(0, beams)
    .filter(ends)
    .map((c) => ({ ...extend(c), score: c.score / length ** lengthPenalty }));
  search.finished = [...search.finished, ...ended].sort((a, b) => b.score - a.score).slice(0, beams);
  const on = candidates.filter((c) => !ends(c)).slice(0, beams);
  if (on.length > 0) search.running = on.map(extend);
  const best = on.length > 0 ? on[0].score / length ** lengthPenalty : Number.NEGATIVE_INFINITY;
  search.done = on.length === 0 || (search.finished.length === beams && best <= search.finished[beams - 1].score);
  return on.map((c) => c.parent);
}
