// Routes that a caller had recorded, kept here so that they can be replayed without travelling. A run has room for so many
// bytes of them: the newest stay.

import { InputError, type RouteBatch } from "../../trainer/types.ts";
import { newId } from "../ids.ts";

/** Per run. A batch of 16 examples of 160 tokens in 12 layers with 2 choices is about 1 MB. */
const MAX_BYTES = 64 * 2 ** 20;

/** Routes of one example, one entry per sparse layer. */
type Routes = readonly RouteBatch[];

export interface Recordings {
  /** Keeps the routes of examples; returns what they are found by. */
  keep(examples: readonly Routes[]): string;
  /** @throws InputError at `field` when there are none, or none any more */
  find(recording: string, example: number, field: string): Routes;
}

const sizeOf = (examples: readonly Routes[]): number =>
  examples
    .flat()
    .flatMap((r) => [r.exampleIds, r.positions, r.tokenIds, r.expertIds, r.gates, r.kept])
    .reduce((bytes, array) => bytes + array.byteLength, 0);

export function keepRecordings(maxBytes = MAX_BYTES): Recordings {
  const kept = new Map<string, { readonly examples: readonly Routes[]; readonly bytes: number }>();
  let total = 0;
  return {
    keep(examples) {
      const id = newId("routes");
      const bytes = sizeOf(examples);
      kept.set(id, { examples, bytes });
      total += bytes;
      for (const [oldest, { bytes: freed }] of kept) {
        if (total <= maxBytes || oldest === id) break;
        kept.delete(oldest);
        total -= freed;
      }
      return id;
    },
    find(recording, example, field) {
      const found = kept.get(recording);
      if (!found)
        throw new InputError([{ field, message: "no such recording, or no longer: the run keeps the newest" }]);
      const routes = found.examples[example];
      if (routes) return routes;
      throw new InputError([
        { field, message: `the recording has ${found.examples.length} examples, none ${example}` },
      ]);
    },
  };
}
