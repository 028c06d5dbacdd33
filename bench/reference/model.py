"""Fine-tuning of the same model with transformers: bf16, fused AdamW, groups frozen by requires_grad, no dropout, random
tokens. The twin of bench/parts/model.ts; its `mode` is eager or compiled (torch.compile)."""

import time

from common import DEVICE, arguments, describe, missing, report, synchronize, torch

try:
    from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration
except ImportError:
    missing("transformers")

given = arguments()
batch, inputs, targets = (given["shape"][k] for k in ("batch", "input", "target"))


def is_moe(name):
    return ".experts." in name or ".router." in name


def is_attention(name):
    return ".SelfAttention." in name or ".EncDecAttention." in name


STRATEGIES = {
    "all": lambda name: True,
    "non_moe": lambda name: not is_moe(name),
    "moe": is_moe,
    "attention": is_attention,
    "ffn": lambda name: ".mlp." in name and not is_moe(name),
}

config = SwitchTransformersConfig(**given["config"])
config.dropout_rate = config.router_jitter_noise = 0.0
config.expert_capacity = batch * max(inputs, targets)  # nothing is dropped
config.use_cache = False
torch.manual_seed(1)

for name, trains in STRATEGIES.items():
    torch._dynamo.reset()
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    with torch.device(DEVICE):
        model = SwitchTransformersForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    model.train()
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(trains(key))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.01, fused=DEVICE == "cuda")
    run = torch.compile(model) if given["mode"] == "compiled" else model
    ids = torch.randint(2, config.vocab_size, (batch, inputs), device=DEVICE)
    labels = torch.randint(2, config.vocab_size, (batch, targets), device=DEVICE)

    def step():
        loss = run(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    synchronize()
    first = time.perf_counter() - begin

    def steps_for(lasting, least):
        """Seconds of a step and how many there were."""
        begin, count = time.perf_counter(), 0
        while count < least or time.perf_counter() - begin < lasting:
            step()
            synchronize()
            count += 1
        return (time.perf_counter() - begin) / count, count

    steps_for(given["seconds"] / 4, 2)
    seconds, steps = steps_for(given["seconds"], 3)
    figures = {
        "mode": given["mode"],
        "tokens/s": batch * (inputs + targets) / seconds,
        "step, ms": 1e3 * seconds,
        "steps": steps,
        "first step, s": first,
        "trained": sum(p.numel() for p in trained),
    }
    if DEVICE == "cuda":
        figures["peak GiB"] = torch.cuda.max_memory_allocated() / 2**30
    report(name, "tokens/s", **figures, device=describe())
    del model, run, optimizer, trained
