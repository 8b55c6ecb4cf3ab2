"""Times PyTorch on a GPU: one JSON object per line, the rows of `weft bench` beside which docs/benchmarks.md stands.

    python torch_gpu.py                          # every row
    python torch_gpu.py --what train decode      # rows whose name begins so
    python torch_gpu.py --smoke --device cpu     # tiny sizes: does the script run?

Training is forward, backward and fused AdamW, no clipping, on random tokens: autocast to bf16 over f32 masters, which
is what Weft does, and as a second variant parameters and moments in bf16 throughout, which moves fewer bytes but is
another training. Decoding feeds the most likely token back without waiting for it, everything in bf16. `ms` is the
best of three medians, by events around as many calls as fill a millisecond, as Weft's is.
"""

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import models

WARM_UP, ROUNDS, SAMPLES = 3, 3, (3, 101)
TRANSFORMER = models.Config(
    dim=768, layers=12, pattern=("attention",), hidden=2048, vocab=32_000, attention_heads=12, max_len=4096
)
HYBRID = models.Config(
    dim=1024,
    layers=24,
    pattern=models.HYBRID_PATTERN,
    hidden=2752,
    vocab=32_000,
    attention_heads=16,
    gdn2_heads=8,
    gdn2_head_dim=128,
    max_len=8192,
)


class Clock:
    """Milliseconds of a call: see the head of this file."""

    def __init__(self, device: str, seconds: float):
        self.device, self.seconds = device, seconds

    def sample(self, run, calls: int) -> float:
        if self.device == "cpu":
            start = time.perf_counter()
            for _ in range(calls):
                run()
            return (time.perf_counter() - start) * 1e3 / calls
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / calls

    def ms(self, run) -> float:
        for _ in range(WARM_UP):
            run()
        if self.device != "cpu":
            torch.cuda.synchronize()
        once = max(self.sample(run, 1), 1e-6)
        calls = min(max(round(1 / once), 1), 1000)
        fit = int(1e3 * self.seconds / (ROUNDS * once * calls))
        samples = min(max(fit, SAMPLES[0]), SAMPLES[1]) | 1
        return min(statistics.median(self.sample(run, calls) for _ in range(samples)) for _ in range(ROUNDS))


class Bench:
    """The rows. Each method times one thing and gives the numbers of its row."""

    def __init__(self, device: str, smoke: bool, seconds: float):
        self.device, self.smoke = device, smoke
        self.clock = Clock(device, seconds)

    def size(self, number: int, small: int) -> int:
        return small if self.smoke else number

    def randn(self, *shape, dtype=torch.bfloat16, grad=False):
        return torch.randn(*shape, dtype=dtype, device=self.device, requires_grad=grad)

    def copy(self) -> dict:
        source = torch.ones(self.size(1 << 30, 1 << 20), device=self.device)
        target = torch.empty_like(source)
        ms = self.clock.ms(lambda: target.copy_(source))
        return {"ms": ms, "bytes_per_second": 2e3 * source.numel() * source.element_size() / ms}

    def product(self) -> dict:
        n = self.size(8192, 64)
        a, b = self.randn(n, n), self.randn(n, n)
        ms = self.clock.ms(lambda: a @ b)
        return {"ms": ms, "shape": f"{n} x {n} x {n}", "flops_per_second": 2e3 * n**3 / ms}

    def attention(self, backend: SDPBackend, backward: bool) -> dict:
        """Causal, B4 T4096 H16 D128; half of the products count, as in `weft bench`."""
        batch, tokens, heads, dim = 4, self.size(4096, 64), 16, 128
        q, k, v = (self.randn(batch, heads, tokens, dim, grad=backward) for _ in range(3))
        flops = 2.0 * batch * heads * tokens * tokens * dim
        shape = f"B{batch} T{tokens} H{heads} D{dim}"
        if self.device == "cpu":
            backend = SDPBackend.MATH
        with sdpa_kernel(backend):
            forward = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)
            if not backward:
                ms = self.clock.ms(forward)
                return {"ms": ms, "shape": shape, "flops_per_second": 1e3 * flops / ms}
            o = forward()
            g = torch.randn_like(o)
            ms = self.clock.ms(lambda: torch.autograd.grad(o, (q, k, v), g, retain_graph=True))
        return {"ms": ms, "shape": shape, "flops_per_second": 2.5e3 * flops / ms}

    def training(self, batch: int, tokens: int, compiled: bool, pure: bool) -> dict:
        config, tokens = TRANSFORMER, self.size(tokens, 64)
        if self.smoke:
            config = replace(config, dim=64, layers=2, hidden=64, vocab=100, attention_heads=1, max_len=64)
        torch.manual_seed(0)
        model = models.LanguageModel(config).to(self.device)
        if pure:
            model = model.to(torch.bfloat16)
        matrices = [p for p in model.parameters() if p.dim() >= 2]
        others = [p for p in model.parameters() if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        optimiser = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=True)
        ids = torch.randint(config.vocab, (batch, tokens + 1), device=self.device)
        inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
        forward = torch.compile(model) if compiled else model

        def step():
            with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=not pure):
                loss = forward(inputs, targets)
            loss.backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

        ms = self.clock.ms(step)
        parameters = sum(p.numel() for p in model.parameters())
        shape = f"B{batch} T{tokens}"
        return {"ms": ms, "shape": shape, "tokens_per_second": 1e3 * batch * tokens / ms, "parameters": parameters}

    @torch.inference_mode()
    def decoding(self) -> dict:
        config = HYBRID
        if self.smoke:
            config = replace(config, dim=128, layers=4, hidden=64, vocab=100, attention_heads=2, gdn2_heads=1)
        torch.manual_seed(0)
        with torch.device(self.device):
            model = models.LanguageModel(config).eval().to(torch.bfloat16)
            states = [
                state.to(torch.bfloat16) if torch.is_tensor(state) else tuple(x.to(torch.bfloat16) for x in state)
                for state in model.init_state(1)
            ]
            token = torch.zeros(1, dtype=torch.long)
        position = 0

        def step():
            nonlocal token, position
            token = model.step(token, states, position).argmax(-1)
            position += 1

        for _ in range(100):
            step()
        ms = self.clock.ms(step)
        parameters = sum(p.numel() for p in model.parameters())
        return {"ms": ms, "batch": 1, "position": 100, "tokens_per_second": 1e3 / ms, "parameters": parameters}

    def linear_attention(self, rule: str, tokens: int, backward: bool) -> dict:
        """flash-linear-attention, where it is installed: the shapes that it publishes, K = V = 128."""
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule
        from fla.ops.kda import chunk_kda

        tokens, key_heads, heads, dim = self.size(tokens, 64), 16 if rule == "gdn" else 32, 32, 128
        q, k = (self.randn(1, tokens, key_heads, dim, grad=backward) for _ in range(2))
        v = self.randn(1, tokens, heads, dim, grad=backward)
        width = (dim,) if rule == "kda" else ()
        g = (-0.1 * torch.rand(1, tokens, heads, *width, device=self.device)).requires_grad_(backward)
        beta = torch.rand(1, tokens, heads, device=self.device).to(torch.bfloat16).requires_grad_(backward)
        op = chunk_kda if rule == "kda" else chunk_gated_delta_rule
        forward = lambda: op(q, k, v, g=g, beta=beta, use_qk_l2norm_in_kernel=True)[0]
        if not backward:
            with torch.no_grad():
                return {"ms": self.clock.ms(forward), "shape": f"B1 T{tokens}"}
        o = forward()
        along = torch.randn_like(o)
        ms = self.clock.ms(lambda: torch.autograd.grad(o, (q, k, v, g, beta), along, retain_graph=True))
        return {"ms": ms, "shape": f"B1 T{tokens}"}

    def rows(self) -> dict:
        flash, cudnn = SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION
        rows = {"copy": self.copy, "product": self.product}
        for name, backend in (("flash", flash), ("cudnn", cudnn)):
            rows[f"sdpa-{name}"] = lambda b=backend: self.attention(b, False)
            rows[f"sdpa-{name}-back"] = lambda b=backend: self.attention(b, True)
        for batch, tokens in ((16, 1024), (4, 4096)):
            for kind, compiled, pure in (
                ("eager", False, False),
                ("compile", True, False),
                ("eager-bf16", False, True),
                ("compile-bf16", True, True),
            ):
                arguments = (batch, tokens, compiled, pure)
                rows[f"train-{tokens}-{kind}"] = lambda a=arguments: self.training(*a)
        rows["decode"] = self.decoding
        for rule, tokens, backward in (
            ("gdn", 8192, False),
            ("gdn", 32_768, False),
            ("kda", 8192, False),
            ("kda", 8192, True),
        ):
            name = f"fla-{rule}-{tokens}" + ("-back" if backward else "")
            rows[name] = lambda a=(rule, tokens, backward): self.linear_attention(*a)
        return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", default=[""], help="rows whose name begins so")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=2.0, help="about how long each row is measured")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes")
    arguments = parser.parse_args()
    bench = Bench(arguments.device, arguments.smoke, arguments.seconds)
    machine = "cpu" if arguments.device == "cpu" else torch.cuda.get_device_name()
    failed = 0
    for what, run in bench.rows().items():
        if not any(what.startswith(prefix) for prefix in arguments.what):
            continue
        try:
            result = run()
        except ModuleNotFoundError as error:
            print(f"{what}: left out, {error}", file=sys.stderr)
            continue
        except Exception as error:  # one row must not cost the others
            print(f"{what}: {type(error).__name__}: {error}", file=sys.stderr)
            failed += 1
            continue
        finally:
            torch._dynamo.reset()
            if arguments.device != "cpu":
                torch.cuda.empty_cache()
        line = {"what": what, **result, "torch": torch.__version__, "machine": machine}
        print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()}), flush=True)
    sys.exit(f"{failed} rows failed" if failed else 0)


if __name__ == "__main__":
    main()
