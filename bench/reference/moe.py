"""One sparse layer forward and backward in bf16 on torch._grouped_mm, router and permutation included: the twin of
bench/parts/moe.ts, with the same GEGLU and the same mean of the inputs, which unbalances the router."""

import math

from common import DEVICE, arguments, describe, report, seconds_of, torch

F = torch.nn.functional
grouped_mm = getattr(F, "grouped_mm", None) or torch._grouped_mm
given = arguments()


def uniform(*shape, scale=1.0, offset=0.0):
    values = (torch.rand(shape, device=DEVICE) * 2 - 1) * scale + offset
    return values.to(torch.bfloat16).requires_grad_()


def layer(x, router, gate, up, down, top_k):
    """x [tokens, d_model]; router [experts, d_model]; gate, up [experts, d_model, d_ff]; down [experts, d_ff, d_model]."""
    experts = router.shape[0]
    probabilities = torch.softmax((x @ router.T).float(), dim=-1)
    gates, chosen = probabilities.topk(top_k, dim=-1)
    if top_k > 1:
        gates = gates / gates.sum(dim=-1, keepdim=True)
    order = chosen.flatten().argsort(stable=True)
    ends = torch.bincount(chosen.flatten(), minlength=experts).cumsum(0).to(torch.int32)
    rows = x.index_select(0, order // top_k)
    hidden = F.gelu(grouped_mm(rows, gate, offs=ends), approximate="tanh") * grouped_mm(rows, up, offs=ends)
    out = grouped_mm(hidden, down, offs=ends)
    by_choice = torch.zeros_like(out).index_copy(0, order, out).view(*chosen.shape, -1)
    return (by_choice * gates.unsqueeze(-1).to(x.dtype)).sum(dim=1)


for shape in given["shapes"]:
    tokens, d_model, d_ff, experts, top_k = (shape[k] for k in ("tokens", "dModel", "dFf", "experts", "topK"))
    inner, outer = math.sqrt(3 / d_model), math.sqrt(3 / d_ff)
    x = uniform(tokens, d_model, offset=0.2)
    router = uniform(experts, d_model, scale=inner)
    gate, up = uniform(experts, d_model, d_ff, scale=inner), uniform(experts, d_model, d_ff, scale=inner)
    down = uniform(experts, d_ff, d_model, scale=outer)
    leaves = [x, router, gate, up, down]
    gradient = torch.rand((tokens, d_model), device=DEVICE, dtype=torch.bfloat16)
    torch._dynamo.reset()
    for mode, run in (("eager", layer), ("compiled", torch.compile(layer))):

        def both():
            for leaf in leaves:
                leaf.grad = None
            run(*leaves, top_k).backward(gradient)

        def forward():
            with torch.no_grad():
                run(*leaves, top_k)

        flops = 6 * tokens * top_k * d_model * d_ff
        rate, unit = given["rate"], given["unit"]
        seconds = {"forward": seconds_of(forward), "both": seconds_of(both)}
        figures = {
            "mode": mode,
            "forward, ms": 1e3 * seconds["forward"],
            "both, ms": 1e3 * seconds["both"],
            f"forward {rate}": flops / seconds["forward"] / unit,
            rate: 3 * flops / seconds["both"] / unit,
        }
        report(f"{shape['name']} mixed", rate, **figures, device=describe())
