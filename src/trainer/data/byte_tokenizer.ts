// A tokenizer without a vocabulary file: a token is a byte of UTF-8, as in ByT5 (Xue et al. 2022). No text is out of
// vocabulary and nothing has to be trained, at the price of sequences several times as long.
//
//   id   0 <pad>   1 </s>   2 <unk>   3 … 258 bytes 0 … 255   259 … <extra_id_0>, <extra_id_1>, …
//
// A model directory asks for it by `"tokenizer_class": "ByT5Tokenizer"` in tokenizer_config.json and has no
// tokenizer.json. Special tokens may be listed there (`added_tokens_decoder`); otherwise they are as above, with
// `extra_ids` sentinels (125 unless given).

import { inputError } from "../formats/problems.ts";
import type { Tokenizer } from "./tokenizer.ts";

const EOS = 1;
/** Id of byte 0. */
const FIRST_BYTE = 3;
const FIRST_SENTINEL = FIRST_BYTE + 256;
const DEFAULT_SENTINELS = 125;
const MAX_ID = 1 << 14;

function specialTokens(config: Readonly<Record<string, unknown>>): Map<string, number> {
  const refuse = (what: string): never => {
    throw inputError("tokenizer_config.json", [what]);
  };
  const specials = new Map([
    ["<pad>", 0],
    ["</s>", EOS],
    ["<unk>", 2],
  ]);
  if (config.added_tokens_decoder === undefined) {
    const sentinels = Number(config.extra_ids ?? DEFAULT_SENTINELS);
    if (!Number.isInteger(sentinels) || sentinels < 0 || sentinels > MAX_ID) refuse("extra_ids is not a count");
    for (let i = 0; i < sentinels; i++) specials.set(`<extra_id_${i}>`, FIRST_SENTINEL + i);
    return specials;
  }
  for (const [key, token] of Object.entries(config.added_tokens_decoder ?? {})) {
    const id = Number(key);
    const content = (token as { content?: unknown } | null)?.content;
    const isByte = id >= FIRST_BYTE && id < FIRST_SENTINEL;
    if (!Number.isInteger(id) || id < 0 || id > MAX_ID || isByte || typeof content !== "string" || content === "") {
      return refuse(`added_tokens_decoder: "${key}" is not the id of a token beside the bytes`);
    }
    for (const [name, other] of specials) if (other === id) specials.delete(name);
    specials.set(content, id);
  }
  return specials;
}

/**
 * @param config the content of tokenizer_config.json
 * @throws InputError when it lists special tokens that cannot be
 */
export function byteTokenizer(config: Readonly<Record<string, unknown>>): Tokenizer {
  const specials = specialTokens(config);
  const contents = new Map([...specials].map(([content, id]) => [id, content]));
  const escaped = [...specials.keys()].map((content) => content.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&"));
  // Split at a group, so that the special tokens themselves stay; the longer of two that begin alike is tried first.
  const boundary = new RegExp(`(${escaped.sort((a, b) => b.length - a.length).join("|")})`, "u");
  const toBytes = new TextEncoder();
  return {
    encode(text, { special }) {
      const ids: number[] = [];
      for (const part of text.split(boundary)) {
        const id = specials.get(part);
        if (id !== undefined) ids.push(id);
        else for (const byte of toBytes.encode(part)) ids.push(byte + FIRST_BYTE);
      }
      if (special && ids.at(-1) !== EOS) ids.push(EOS);
      return ids;
    },
    /** Bytes that are no UTF-8 come as U+FFFD, ids that are no token (rows that pad the embedding) not at all. */
    decode(ids, { skipSpecial }) {
      const bytes: number[] = [];
      for (const id of ids) {
        const content = contents.get(id);
        if (content === undefined) {
          if (id >= FIRST_BYTE && id < FIRST_SENTINEL) bytes.push(id - FIRST_BYTE);
        } else if (!skipSpecial) bytes.push(...toBytes.encode(content));
      }
      return new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(bytes));
    },
    vocabularySize: Math.max(FIRST_SENTINEL, ...[...contents.keys()].map((id) => id + 1)),
    specials,
  };
}
