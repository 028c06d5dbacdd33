"""What the PyTorch twins share: they are told their sizes as JSON by bench/reference.ts, and print rows as lines of JSON."""

import itertools
import json
import statistics
import sys
import time


def missing(package):
    """Says that a package is not there, and ends."""
    print(json.dumps({"missing": package}), flush=True)
    sys.exit(0)


try:
    import torch
except ImportError:
    missing("torch")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def arguments():
    """The sizes, as the caller gave them."""
    return json.loads(sys.argv[1])


def report(name, rate, **figures):
    """One row; `rate` is the column that is compared."""
    print(json.dumps({"name": name, "figures": figures, "rate": rate}), flush=True)


def describe():
    """What ran: device and versions, told with the first row."""
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
    return f"{name}, torch {torch.__version__}"


def synchronize():
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def seconds_of(work, budget=2.0, most=10, inner=3):
    """Median seconds of `work` by the clock, run `inner` times back to back, after a warm-up that lets a GPU raise its clock."""
    end = time.perf_counter() + (0.5 if DEVICE == "cuda" else 0.0)
    for turn in itertools.count(1):
        work()
        synchronize()
        if turn >= 3 and time.perf_counter() >= end:
            break
    times = []
    end = time.perf_counter() + budget
    while len(times) < most and (not times or time.perf_counter() < end):
        begin = time.perf_counter()
        for _ in range(inner):
            work()
        synchronize()
        times.append((time.perf_counter() - begin) / inner)
    return statistics.median(times)
