import { test } from "uvu";
import * as assert from "uvu/assert";
import { parseSwitchConfig } from "../../src/trainer/model/switch/config.ts";
import { initialValues } from "../../src/trainer/model/switch/init.ts";
import { switchParameters } from "../../src/trainer/model/switch/parameters.ts";

const parameters = switchParameters(
  parseSwitchConfig({
    vocab_size: 300,
    d_model: 48,
    d_kv: 16,
    num_heads: 4,
    d_ff: 96,
    num_layers: 2,
    num_decoder_layers: 2,
    num_sparse_encoder_layers: 1,
    num_sparse_decoder_layers: 1,
    num_experts: 6,
  }),
);
const find = (ending: string) => parameters.find((p) => p.name.endsWith(ending))!;

/** Standard deviation of a standard normal cut at ±2. */
const CUT = 0.8796256610342398;

const cases = [
  { ending: "shared.weight", std: 1, cut: false },
  { ending: "router.classifier.weight", std: 0.02, cut: false },
  { ending: "relative_attention_bias.weight", std: 0.02, cut: false },
  { ending: "SelfAttention.q.weight", std: Math.sqrt(0.1 / 48), cut: true },
  { ending: "EncDecAttention.o.weight", std: Math.sqrt(0.1 / 64), cut: true },
  { ending: "experts.wi.weight", std: Math.sqrt(0.1 / 48), cut: true },
  { ending: "experts.wo.weight", std: Math.sqrt(0.1 / 96), cut: true },
  { ending: "encoder.block.0.layer.1.mlp.wo.weight", std: Math.sqrt(0.1 / 96), cut: true },
];

for (const { ending, std, cut } of cases) {
  test(`${ending}: mean 0, deviation ${std.toFixed(3)}${cut ? " cut at two" : ""}`, () => {
    const p = find(ending);
    const values = initialValues(p, 7, parameters.indexOf(p));
    const n = values.length;
    const mean = values.reduce((sum, v) => sum + v, 0) / n;
    const deviation = Math.sqrt(values.reduce((sum, v) => sum + (v - mean) ** 2, 0) / n);
    const expected = cut ? std * CUT : std;
    // Four standard errors: std/sqrt(n) of the mean, std/sqrt(2n) of the deviation (less for a cut normal).
    assert.ok(Math.abs(mean) < (4 * std) / Math.sqrt(n), `mean ${mean} of ${n}`);
    assert.ok(Math.abs(deviation - expected) < (4 * std) / Math.sqrt(2 * n), `deviation ${deviation}, not ${expected}`);
    const largest = values.reduce((m, v) => Math.max(m, Math.abs(v)), 0);
    if (cut) assert.ok(largest <= Math.fround(2 * std) && largest > 1.8 * std, `largest ${largest}`);
  });
}

test("norms start as ones", () => {
  assert.equal([...new Set(initialValues(find("final_layer_norm.weight"), 7, 0))], [1]);
});

test("the same seed and stream repeat, others differ", () => {
  const p = find("experts.wi.weight");
  const values = initialValues(p, 7, 3);
  assert.equal(initialValues(p, 7, 3), values);
  assert.not.equal(initialValues(p, 8, 3), values);
  assert.not.equal(initialValues(p, 7, 4), values);
});

test.run();
