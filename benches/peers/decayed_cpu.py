"""Decayed linear attention in plain PyTorch on the CPU: what `cargo bench -p weft-mixers --bench decayed` stands beside.

    python decayed_cpu.py [--threads 2] [--json]

S <- diag(exp g) S + k v^T, o = S^T q, forward and backward by autograd, chunks of 64. A decay per head is one masked
product per chunk. A decay per channel does not factor; of the two textbook ways to compute it (a tensor of C x C x K
decays in chunks of 16, or chunks of 64 cut into blocks of 16 whose pairs are products) the faster one counts. Both are
first checked against the recurrence in float64.
"""

import argparse
import json
import statistics
import time

import torch

CHUNK, BLOCK = 64, 16
# (name, batch, tokens, key heads, value heads, K, V, decay per channel)
CASES = [
    ("head", 8, 256, 4, 4, 64, 64, False),
    ("head", 8, 256, 4, 4, 128, 128, False),
    ("head", 1, 2048, 8, 8, 64, 64, False),
    ("grouped", 8, 256, 1, 8, 128, 64, False),
    ("channel", 8, 256, 4, 4, 64, 64, True),
    ("channel", 8, 256, 4, 4, 128, 128, True),
    ("channel", 1, 2048, 8, 8, 64, 64, True),
]


def recurrence(q, k, v, g, state):
    """q, k [B, H, T, K], v [B, H, T, V], g [B, H, T, 1 or K], state [B, H, K, V]."""
    outputs = []
    for t in range(q.shape[2]):
        state = state * g[:, :, t].exp()[..., None] + k[:, :, t, :, None] * v[:, :, t, None]
        outputs.append((state * q[:, :, t, :, None]).sum(-2))
    return torch.stack(outputs, 2), state


def chunked(x, length):
    return x.unflatten(2, (-1, length))


def through_states(q_start, k_end, v, intra, total, state):
    """What all forms share: q_start, k_end, v [B, H, N, C, ..], intra [B, H, N, C, V], total [B, H, N, 1 or K, 1]."""
    outputs = []
    written = k_end.transpose(-1, -2) @ v
    for n in range(v.shape[2]):
        outputs.append(intra[:, :, n] + q_start[:, :, n] @ state)
        state = state * total[:, :, n] + written[:, :, n]
    return torch.stack(outputs, 2).flatten(2, 3), state


def per_head(q, k, v, g, state):
    q, k, v, g = (chunked(x, CHUNK) for x in (q, k, v, g))
    sums = g.cumsum(-2)
    mask = torch.ones(CHUNK, CHUNK, dtype=torch.bool).tril()
    ratios = (sums - sums.transpose(-1, -2)).masked_fill(~mask, float("-inf")).exp()
    intra = ((q @ k.transpose(-1, -2)) * ratios) @ v
    last = sums[..., -1:, :]
    return through_states(q * sums.exp(), k * (last - sums).exp(), v, intra, last.exp().transpose(-1, -2), state)


def inside(q, k, sums):
    """Scores [.., C, C] of short pieces, decays multiplied out for each channel."""
    length = q.shape[-2]
    mask = torch.ones(length, length, dtype=torch.bool).tril()[..., None]
    ratios = (sums[..., :, None, :] - sums[..., None, :, :]).masked_fill(~mask, float("-inf")).exp()
    return torch.einsum("...ic,...ijc,...jc->...ij", q, ratios, k)


def per_channel_direct(q, k, v, g, state):
    q, k, v, g = (chunked(x, BLOCK) for x in (q, k, v, g))
    sums = g.cumsum(-2)
    last = sums[..., -1:, :]
    intra = inside(q, k, sums) @ v
    return through_states(q * sums.exp(), k * (last - sums).exp(), v, intra, last.exp().transpose(-1, -2), state)


def per_channel_blocks(q, k, v, g, state):
    q, k, v, g = (chunked(x, CHUNK) for x in (q, k, v, g))
    sums = g.cumsum(-2)
    last = sums[..., -1:, :]
    blocks = [x.unflatten(-2, (-1, BLOCK)) for x in (q, k, v, g)]
    own = inside(blocks[0], blocks[1], blocks[3].cumsum(-2)) @ blocks[2]
    pieces = [own[..., 0, :, :]]
    for i in range(1, CHUNK // BLOCK):
        start = i * BLOCK
        border = sums[..., start - 1 : start, :]
        near = q[..., start : start + BLOCK, :] * (sums[..., start : start + BLOCK, :] - border).exp()
        far = k[..., :start, :] * (border - sums[..., :start, :]).exp()
        pieces.append(own[..., i, :, :] + (near @ far.transpose(-1, -2)) @ v[..., :start, :])
    intra = torch.cat(pieces, -2)
    return through_states(q * sums.exp(), k * (last - sums).exp(), v, intra, last.exp().transpose(-1, -2), state)


def inputs(batch, tokens, heads, value_heads, key_dim, value_dim, channel, dtype=torch.float32):
    torch.manual_seed(0)
    make = lambda *shape: torch.rand(*shape, dtype=dtype) * 2 - 1
    keys = (batch, heads, tokens, key_dim)
    g = -0.1 * torch.rand(keys if channel else (batch, value_heads, tokens, 1), dtype=dtype)
    x = [make(*keys), make(*keys), make(batch, value_heads, tokens, value_dim), g]
    state = torch.zeros(batch, value_heads, key_dim, value_dim, dtype=dtype)
    return [t.requires_grad_() for t in x], state, value_heads // heads


def run(form, x, state, repeat):
    q, k, v, g = x
    if repeat > 1:
        q, k = (t.repeat_interleave(repeat, 1) for t in (q, k))
    return form(q, k, v, g, state)


def check(form, channel):
    x, state, repeat = inputs(2, 128, 2, 2 if channel else 4, 6, 5, channel, torch.float64)
    got, want = run(form, x, state, repeat), run(recurrence, x, state, repeat)
    for a, b in zip(got, want):
        assert torch.allclose(a, b, atol=1e-12), f"{form.__name__} is wrong by {(a - b).abs().max()}"


def median(f, seconds):
    f(), f()
    times = []
    while len(times) < 10 or sum(times) < seconds:
        start = time.perf_counter()
        f()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def measure(form, case, seconds):
    x, state, repeat = inputs(*case)
    weights = torch.ones_like(x[2])

    def ahead():
        with torch.no_grad():
            run(form, x, state, repeat)

    def both():
        for t in x:
            t.grad = None
        run(form, x, state, repeat)[0].backward(weights)

    return {"forward_ms": median(ahead, seconds), "both_ms": median(both, seconds)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    forms = {False: [per_head], True: [per_channel_direct, per_channel_blocks]}
    for channel, all_forms in forms.items():
        for form in all_forms:
            check(form, channel)
    for name, *case in CASES:
        rows = [(measure(form, case, arguments.seconds), form.__name__) for form in forms[case[-1]]]
        best, form = min(rows, key=lambda row: row[0]["both_ms"])
        if arguments.json:
            print(json.dumps({"what": name, "case": case[:-1], "form": form, "torch": torch.__version__, **best}))
        else:
            b, t, h, hv, k, v, _ = case
            times = "  ".join(f"{key} {value:.2f}" for key, value in best.items())
            print(f"{name:8} B{b} T{t} H{h} HV{hv} K{k} V{v}  {times}  ({form})", flush=True)


if __name__ == "__main__":
    main()
