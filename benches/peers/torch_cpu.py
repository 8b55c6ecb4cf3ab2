"""Times the PyTorch peers on the CPU: one JSON object per line.

    python torch_cpu.py --what all --threads 2 --json

A training row is one step (forward, backward, AdamW, zero_grad) on B=8 sequences of T=256 random tokens; a decode row
is one token, batch 1, from position 100 on. Every row runs in a process of its own, so that its peak RSS is its own.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace

import torch
import torch.nn.functional as F

import models

BATCH, LENGTH = 8, 256
WARM_UP_STEPS, MIN_STEPS = 3, 10
PREFILL, WARM_UP_TOKENS, TIMED_TOKENS = 68, 32, 100

# what -> (config, compiled). "blocks16" is the hybrid with the sub-chunk form instead of the faster halving form.
TRAINING = {
    "transformer": (models.TRANSFORMER, False),
    "transformer-compile": (models.TRANSFORMER, True),
    "hybrid": (models.HYBRID, False),
    "hybrid-compile": (models.HYBRID, True),
    "hybrid-blocks16": (replace(models.HYBRID, intra="blocks16"), False),
    "hybrid-blocks16-compile": (replace(models.HYBRID, intra="blocks16"), True),
}
# what -> (config, compiled, dtype). In bf16 the peer keeps everything in bf16, states too.
DECODING = {
    "decode": (models.DECODE, False, torch.float32),
    "decode-compile": (models.DECODE, True, torch.float32),
    "decode-bf16": (models.DECODE, False, torch.bfloat16),
}
ROWS = ("machine", *TRAINING, *DECODING)
EAGER = ("transformer", "hybrid", "decode", "decode-bf16")


def peak_rss_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def busy_cpu_seconds() -> float:
    """CPU seconds that all processes of the machine have used, from /proc/stat; without the idle columns."""
    with open("/proc/stat") as file:
        columns = [int(x) for x in file.readline().split()[1:]]
    return (sum(columns[:8]) - columns[3] - columns[4]) / os.sysconf("SC_CLK_TCK")


def timed(run, seconds: float, least: int) -> dict:
    """Median and minimum of the calls, their number, and how many cores other processes kept busy meanwhile."""
    times = []
    busy, own = busy_cpu_seconds(), time.process_time()
    while len(times) < least or sum(times) < seconds:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    others = busy_cpu_seconds() - busy - (time.process_time() - own)
    return {
        "ms": statistics.median(times) * 1e3,
        "min_ms": min(times) * 1e3,
        "steps": len(times),
        "other_load": max(0.0, others / sum(times)),
    }


def optimiser_for(model):
    """AdamW with weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=4e-4, betas=(0.9, 0.95), fused=True)


def refuse_eager_fallback():
    """Makes a compiled row fail where it would otherwise go on, and be timed, in eager mode."""
    import torch._dynamo  # here, not above: it adds 150 MB to the memory of an eager row

    torch._dynamo.config.fail_on_recompile_limit_hit = True
    torch._dynamo.config.suppress_errors = False


def training_step(config, compiled: bool):
    model = models.LanguageModel(config)
    optimiser = optimiser_for(model)
    tokens = torch.randint(config.vocab, (BATCH, LENGTH + 1))
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    if compiled:  # block by block: one compilation per kind of block
        refuse_eager_fallback()
        for block in model.blocks:
            block.compile()

    def step():
        loss = model(inputs, targets)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step, model


def decoding_step(config, compiled: bool, dtype: torch.dtype):
    model = models.LanguageModel(config).eval().to(dtype)
    states = [
        state.to(dtype) if torch.is_tensor(state) else tuple(x.to(dtype) for x in state)
        for state in model.init_state(1)
    ]
    token, position = torch.zeros(1, dtype=torch.long), 0
    forward = model.step
    if compiled:
        refuse_eager_fallback()
        forward = torch.compile(forward, dynamic=True)

    def step():
        nonlocal token, position
        token = forward(token, states, position).argmax(-1)
        position += 1

    return step, model


def time_training(what: str, seconds: float) -> dict:
    step, model = training_step(*TRAINING[what])
    for _ in range(WARM_UP_STEPS):
        step()
    return row(timed(step, seconds, MIN_STEPS), BATCH * LENGTH, model, batch=BATCH, length=LENGTH)


@torch.inference_mode()
def time_decoding(what: str, seconds: float) -> dict:
    step, model = decoding_step(*DECODING[what])
    for _ in range(PREFILL + WARM_UP_TOKENS):
        step()
    return row(timed(step, 0.0, TIMED_TOKENS), 1, model, batch=1, position=PREFILL + WARM_UP_TOKENS)


def row(times: dict, tokens: int, model, **shape) -> dict:
    parameters = sum(p.numel() for p in model.parameters())
    return {"tokens_per_second": tokens / times["ms"] * 1e3, **times, "parameters": parameters, **shape}


def time_machine(_what: str, seconds: float) -> dict:
    """GEMM rates in GFLOP/s and memory rates in GB/s: what the machine allows."""

    def rate(amount: float, run) -> float:
        return amount / timed(run, seconds / 6, MIN_STEPS)["ms"] / 1e6

    def gemm(m: int, n: int, k: int) -> float:
        x, weight = torch.randn(m, k), torch.randn(n, k)
        return rate(2 * m * n * k, lambda: F.linear(x, weight))

    source = torch.ones(128 * 2**20)  # 512 MiB
    target = torch.ones_like(source)
    size = source.numel() * source.element_size()
    weights, token = source.view(-1, 512, 512), torch.ones(1, 512)  # 512 layers of one token's decoding
    return {
        "gemm_1024_gflops": gemm(1024, 1024, 1024),
        "gemm_2048x256x256_gflops": gemm(2048, 256, 256),
        "copy_gbps": rate(2 * size, lambda: target.copy_(source)),
        "read_gbps": rate(size, lambda: source.sum()),
        "gemv_512_gbps": rate(size, lambda: [F.linear(token, weight) for weight in weights.unbind()]),
    }


TIMERS = {"machine": time_machine} | dict.fromkeys(TRAINING, time_training) | dict.fromkeys(DECODING, time_decoding)


def measure(what: str, seconds: float, rounds: int, threads: int) -> dict:
    """The round with the best median: a busy neighbour can only make a round slower."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    imported_mb = peak_rss_mb()
    timer = TIMERS[what]
    results = [timer(what, seconds / rounds) for _ in range(rounds)]
    if what == "machine":
        result = {rate: max(r[rate] for r in results) for rate in results[0]}
    else:
        result = min(results, key=lambda r: r["ms"])
    memory = {"peak_rss_mb": peak_rss_mb(), "import_rss_mb": imported_mb}
    return {"what": what, **result, **memory, "torch": torch.__version__, "threads": threads}


def profile(what: str, threads: int):
    """Prints the operators in which one step spends its own time."""
    torch.set_num_threads(threads)
    step, _ = training_step(*TRAINING[what]) if what in TRAINING else decoding_step(*DECODING[what])
    with torch.inference_mode(what in DECODING):
        for _ in range(WARM_UP_STEPS + WARM_UP_TOKENS * (what in DECODING)):
            step()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            for _ in range(MIN_STEPS):
                step()
    table = profiler.key_averages()
    total = sum(e.self_cpu_time_total for e in table)
    print(f"{what}: {total / MIN_STEPS / 1e3:.1f} ms per step under the profiler")
    for e in sorted(table, key=lambda e: -e.self_cpu_time_total)[:12]:
        milliseconds = e.self_cpu_time_total / MIN_STEPS / 1e3
        print(f"  {milliseconds:8.2f} ms {e.self_cpu_time_total / total:6.1%} {e.count / MIN_STEPS:7.0f} calls  {e.key}")


def show(result: dict, as_json: bool):
    if as_json:
        print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in result.items()}), flush=True)
        return
    numbers = (f"{k} {v:.1f}" if isinstance(v, float) else f"{k} {v}" for k, v in result.items() if k != "what")
    print(f"{result['what']:24}", ", ".join(numbers), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", default=["all"], choices=("all", "eager", *ROWS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=30.0, help="time measured per row, over all rounds")
    parser.add_argument("--rounds", type=int, default=3, help="the best round's median is reported")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--profile", action="store_true", help="print where a step spends its time instead")
    arguments = parser.parse_args()
    groups = {"all": ROWS, "eager": EAGER}
    rows = [r for what in arguments.what for r in groups.get(what, (what,))]

    if len(rows) == 1:
        if arguments.profile:
            profile(rows[0], arguments.threads)
        else:
            show(measure(rows[0], arguments.seconds, arguments.rounds, arguments.threads), arguments.json)
        return
    options = [o for o in ("json", "profile") if getattr(arguments, o)]
    for what in rows:
        command = [sys.executable, os.path.abspath(__file__), "--what", what, *(f"--{o}" for o in options)]
        for name in ("threads", "seconds", "rounds"):
            command += [f"--{name}", str(getattr(arguments, name))]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
