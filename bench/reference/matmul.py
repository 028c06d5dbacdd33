"""torch.matmul, on a GPU cuBLAS: the twin of bench/parts/matmul.ts. f32 without TF32, and bf16 beside mixed precision."""

from common import DEVICE, arguments, describe, report, seconds_of, torch

given = arguments()
torch.backends.cuda.matmul.allow_tf32 = False

for precision, dtype in (("f32", torch.float32), ("mixed", torch.bfloat16)):
    for product in given["products"]:
        m, n, k, transposes = product["m"], product["n"], product["k"], product["transposes"]
        a = torch.rand((k, m) if transposes[0] == "t" else (m, k), device=DEVICE, dtype=dtype)
        b = torch.rand((n, k) if transposes[1] == "t" else (k, n), device=DEVICE, dtype=dtype)
        a, b = (a.T if transposes[0] == "t" else a), (b.T if transposes[1] == "t" else b)
        seconds = seconds_of(lambda: torch.matmul(a, b))
        rate = given["rate"]
        figures = {"dtype": str(dtype), "ms": 1e3 * seconds, rate: 2 * m * n * k / seconds / given["unit"]}
        report(f"{product['name']} {precision}", rate, **figures, device=describe())
