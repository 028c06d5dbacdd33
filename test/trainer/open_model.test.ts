// A model directory that is wrong is refused on the host, with every problem at once.

import { mkdtemp, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "uvu";
import * as assert from "uvu/assert";
import { writeSafetensors } from "../../src/trainer/formats/safetensors_writer.ts";
import { describeModel, modelOf } from "../../src/trainer/model/open.ts";
import { keyShape } from "../../src/trainer/model/parameters.ts";
import { InputError } from "../../src/trainer/types.ts";
import { TINY_CONFIG, tinyModel } from "../support/tiny_model.ts";

async function problemsOf(directory: string): Promise<string[]> {
  try {
    await describeModel(directory);
  } catch (error) {
    assert.instance(error, InputError);
    return (error as InputError).problems.map((p) => `${p.field} ${p.message}`.trim());
  }
  throw new Error("the model was accepted");
}

/** A model whose tensors were changed before they were written. */
async function changed(
  change: (tensors: Map<string, { shape: readonly number[] }>) => void,
  config: Record<string, unknown> = TINY_CONFIG,
): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), "thaw-model-"));
  await writeFile(join(directory, "config.json"), JSON.stringify(config));
  const tensors = new Map(
    modelOf(config).parameters.flatMap((p) => p.keys.map((key) => [key, { shape: keyShape(p) }])),
  );
  change(tensors);
  const size = (shape: readonly number[]) => shape.reduce((n, d) => n * d, 1);
  await writeSafetensors(
    join(directory, "model.safetensors"),
    [...tensors].map(([name, { shape }]) => ({ name, dtype: "F32", shape, data: new Float32Array(size(shape)) })),
  );
  return directory;
}

test("a model is described without a GPU", async () => {
  const description = await describeModel(await tinyModel());
  assert.is(description.modelType, "switch_transformers");
  assert.is(description.groups.length, 7);
  const total = description.tensors.reduce((n, t) => n + t.parameters, 0);
  assert.is(total, description.parameters);
});

test("missing, misshapen and unknown tensors are all listed", async () => {
  const directory = await changed((tensors) => {
    tensors.delete("encoder.final_layer_norm.weight");
    tensors.delete("encoder.block.1.layer.1.mlp.experts.expert_2.wi.weight");
    tensors.set("shared.weight", { shape: [37, 13] });
    tensors.set("encoder.block.9.layer.0.layer_norm.weight", { shape: [12] });
  });
  const problems = await problemsOf(directory);
  assert.is(problems.length, 4, problems.join("\n"));
  assert.ok(problems.some((p) => /final_layer_norm\.weight is missing, expected \[12\]/.test(p)));
  assert.ok(problems.some((p) => /expert_2\.wi\.weight is missing, expected \[20, 12\]/.test(p)));
  assert.ok(problems.some((p) => /shared\.weight has shape \[37, 13\], expected \[37, 12\]/.test(p)));
  assert.ok(problems.some((p) => /encoder\.block\.9.*belongs to no parameter/.test(p)));
});

test("keys that repeat a tied embedding are accepted when their shape fits", async () => {
  const repeated = await changed((tensors) => tensors.set("lm_head.weight", { shape: [37, 12] }));
  assert.is((await describeModel(repeated)).groups.length, 7);
  const misshapen = await changed((tensors) => tensors.set("decoder.embed_tokens.weight", { shape: [3, 12] }));
  assert.match((await problemsOf(misshapen))[0], /expected that of shared\.weight/);
});

test("an untied model has embeddings of its own where its checkpoint has them", async () => {
  const untied = { ...TINY_CONFIG, tie_word_embeddings: false };
  const names = async (directory: string) => (await describeModel(directory)).tensors.map((t) => t.name);
  const shared = await changed(() => {}, untied);
  assert.not.ok((await names(shared)).includes("encoder.embed_tokens.weight"));
  const separate = await changed((tensors) => {
    for (const stack of ["encoder", "decoder"]) tensors.set(`${stack}.embed_tokens.weight`, { shape: [37, 12] });
  }, untied);
  assert.ok((await names(separate)).includes("decoder.embed_tokens.weight"));
  const half = await changed((tensors) => tensors.set("encoder.embed_tokens.weight", { shape: [37, 12] }), untied);
  assert.match((await problemsOf(half))[0], /decoder\.embed_tokens\.weight is missing/);
});

const CONFIGS: [string, Record<string, unknown>, RegExp[]][] = [
  ["an unknown model type", { model_type: "bert" }, [/model_type "bert" is not supported; supported: switch_/]],
  ["no model type", { model_type: undefined }, [/model_type undefined is not supported/]],
  ["wrong numbers", { d_model: -1, num_heads: "four", d_kv: 1.5 }, [/d_model/, /num_heads/, /d_kv/]],
  ["what is not supported", { dense_act_fn: "gelu", router_bias: true }, [/dense_act_fn.*"relu"/, /router_bias/]],
  [
    "token ids outside the vocabulary",
    { eos_token_id: 37, pad_token_id: 99 },
    [/pad_token_id.*99/, /eos_token_id.*37/],
  ],
];
for (const [name, changes, patterns] of CONFIGS)
  test(`config: ${name}`, async () => {
    const directory = await tinyModel();
    await writeFile(join(directory, "config.json"), JSON.stringify({ ...TINY_CONFIG, ...changes }));
    const problems = await problemsOf(directory);
    assert.is(problems.length, patterns.length, problems.join("\n"));
    for (const pattern of patterns)
      assert.ok(
        problems.some((p) => pattern.test(p)),
        `${pattern} in ${problems}`,
      );
  });

test("a missing or malformed config.json, and a missing checkpoint", async () => {
  const empty = await mkdtemp(join(tmpdir(), "thaw-model-"));
  assert.match((await problemsOf(empty))[0], /config\.json: the file does not exist/);
  await writeFile(join(empty, "config.json"), "{");
  assert.match((await problemsOf(empty))[0], /is not JSON/);
  await writeFile(join(empty, "config.json"), "[1]");
  assert.match((await problemsOf(empty))[0], /must be a JSON object/);
  await writeFile(join(empty, "config.json"), JSON.stringify(TINY_CONFIG));
  const [problem] = await problemsOf(empty);
  assert.match(problem, /model\.safetensors/);
  assert.not.match(problem, /tmp/, "no path of the machine");
});

test.run();
