"""Times the sequential recurrences in PyTorch on the CPU: one JSON object per line, the lines of
`cargo bench -p weft-mixers --bench recurrent`.

    python recurrent.py --threads 2

"plain" is the recurrence token by token, as it is written in the papers; "fused" is torch.nn's own module where
there is one, without its input projection's share (identity-sized inputs would still cost a product, so the fused
rows time the whole module and say so).
"""

import argparse
import json
import time

import torch


def fastest(run, runs=5):
    run()
    best = float("inf")
    for _ in range(runs):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best * 1e3


def leaf(*shape, std=1.0):
    return (torch.randn(*shape) * std).requires_grad_()


def elman(x, w, h):
    outputs = []
    for t in range(x.shape[1]):
        h = torch.tanh(x[:, t] + h @ w.T)
        outputs.append(h)
    return torch.stack(outputs, 1)


def gru(x, w, h, bias):
    outputs = []
    for t in range(x.shape[1]):
        (xr, xz, xn), (ur, uz, un) = x[:, t].chunk(3, -1), (h @ w.T).chunk(3, -1)
        r, z = torch.sigmoid(xr + ur), torch.sigmoid(xz + uz)
        n = torch.tanh(xn + r * (un + bias))
        h = z * h + (1 - z) * n
        outputs.append(h)
    return torch.stack(outputs, 1)


def lstm(x, w, h, s):
    outputs = []
    for t in range(x.shape[1]):
        i, f, g, o = (x[:, t] + h @ w.T).chunk(4, -1)
        s = torch.sigmoid(i) * torch.tanh(g) + torch.sigmoid(f) * s
        h = torch.sigmoid(o) * torch.tanh(s)
        outputs.append(h)
    return torch.stack(outputs, 1)


class ClipCarry(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return g.clamp(-1, 1)


def m2rnn(q, k, v, f, w, h):
    outputs = []
    for t in range(q.shape[1]):
        z = torch.tanh(h @ w + k[:, t, :, :, None] * v[:, t, :, None, :])
        gate = f[:, t, :, None, None]
        h = gate * h + (1 - gate) * z
        outputs.append((q[:, t, :, None, :] @ h).squeeze(-2))
        h = ClipCarry.apply(h)
    return torch.stack(outputs, 1)


def report(name, kind, run, leaves, threads):
    def ahead():
        with torch.no_grad():
            run()

    def both():
        torch.autograd.grad(run().sum(), leaves)

    row = {"what": name, "kind": kind, "forward_ms": fastest(ahead), "with_backward_ms": fastest(both)}
    row = {k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()}
    print(json.dumps({**row, "torch": torch.__version__, "threads": threads}), flush=True)


def vector(b, t, n, threads):
    scale = 0.5 / n**0.5
    h, s, bias = leaf(b, n), leaf(b, n), leaf(n)
    for name, cell, gates, more in [("elman", elman, 1, []), ("gru", gru, 3, [bias]), ("lstm", lstm, 4, [s])]:
        x, w = leaf(b, t, gates * n), leaf(gates * n, n, std=scale)
        leaves = [x, w, h, *more]
        label = f"{name} B{b} T{t} H{n}"
        report(label, "plain", lambda: cell(*leaves), leaves, threads)
        module = {"elman": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[name]
        module = module(n, n, batch_first=True)
        inputs = leaf(b, t, n)
        report(label, "torch.nn, with its input projection", lambda: module(inputs)[0], [inputs, *module.parameters()], threads)


def matrix(b, t, n, k, v, threads):
    leaves = [leaf(b, t, 1, k), leaf(b, t, 1, k), leaf(b, t, n, v)]
    gate = torch.sigmoid(torch.randn(b, t, n)).requires_grad_()
    leaves += [gate, leaf(n, v, v, std=0.5 / v**0.5), leaf(b, n, k, v, std=0.1)]
    report(f"m2rnn B{b} T{t} N{n} K{k} V{v}", "plain", lambda: m2rnn(*leaves), leaves, threads)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    threads = parser.parse_args().threads
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    for b, t, n in [(8, 256, 256), (1, 256, 256), (32, 256, 64)]:
        vector(b, t, n, threads)
    matrix(8, 256, 16, 64, 16, threads)
    matrix(1, 512, 84, 64, 16, threads)


if __name__ == "__main__":
    main()
