"""Proves models.py before it is timed: the chunk forms and the step equal the recurrence, in float64.

    python check.py [gated-deltanet-2.safetensors]

With a file of golden vectors (tests/golden/ of the repository) its operator and layer cases are read too.
"""

import json
import sys

import torch

from models import DECODE, INTRA, Config, GatedDeltaNet2, LanguageModel, gdn2_chunk, gdn2_recurrent

NAMES = ("q", "k", "v", "g", "b", "w")


def expect(what: str, got, want, tolerance: float):
    error = ((got - want).abs().max() / want.abs().max().clamp(min=1e-30)).item()
    print(f"{what:44} relative error {error:.1e}", file=sys.stderr)
    if not error <= tolerance:
        raise SystemExit(f"{what}: relative error {error:.1e} exceeds {tolerance:.0e}; the peer is wrong, do not time it.")


def random_operands(T: int, extreme: bool):
    """q, k, v, g, b, w [2, T, heads, 16] with 2 key and 4 value heads, and S0; `extreme` adds decays of -50."""
    torch.manual_seed(T)
    key = lambda: torch.randn(2, T, 2, 16, dtype=torch.float64)
    value = lambda: torch.randn(2, T, 4, 16, dtype=torch.float64)
    g = -torch.nn.functional.softplus(3 * key())
    if extreme:
        g = torch.where(key() > 1, -50.0, g)
    tensors = [key(), key(), value(), g, key().sigmoid() * 2, value().sigmoid()]
    return [x.requires_grad_() for x in tensors + [torch.randn(2, 4, 16, 16, dtype=torch.float64)]]


def check_operator():
    for intra in INTRA:
        for T in (1, 63, 64, 65, 200):
            for extreme in (False, True):
                results = []
                for op in (gdn2_recurrent, lambda *x: gdn2_chunk(*x, intra=intra)):
                    operands = random_operands(T, extreme)
                    o, state = op(*operands)
                    loss = (o * o.detach().cos()).sum() + (state * state.detach().sin()).sum()
                    results.append((o, state, *torch.autograd.grad(loss, operands)))
                for name, want, got in zip(("o", "state", *(f"grad.{n}" for n in NAMES), "grad.S0"), *results):
                    expect(f"{intra} T={T} extreme={extreme} {name}", got, want, 1e-9)


def check_step():
    torch.manual_seed(0)
    config = Config(dim=32, layers=4, pattern=DECODE.pattern, hidden=48, vocab=50, gdn2_head_dim=8, max_len=128)
    model = LanguageModel(config).double()
    tokens = torch.randint(50, (2, 100))
    captured = []
    model.head.register_forward_hook(lambda _module, _inputs, logits: captured.append(logits))
    with torch.inference_mode():
        model(tokens, tokens)
        states = [tuple(x.double() for x in s) if isinstance(s, tuple) else s.double() for s in model.init_state(2)]
        stepped = torch.stack([model.step(tokens[:, t], states, t) for t in range(100)], 1)
    expect("model: step against forward, logits", stepped, captured[0], 1e-9)


def check_golden(path: str):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        cases = json.loads(file.metadata()["json"])["cases"]
        data = {name: file.get_tensor(name) for name in file.keys()}
    for case, about in cases.items():
        tensors = {name.removeprefix(case + "/"): x for name, x in data.items() if name.startswith(case + "/")}
        for intra in INTRA:
            CASES[about["kind"]](f"golden {case} {intra}", tensors, about, intra)


def golden_op(what, x, _about, intra):
    names = [n for n in (*NAMES, "S0") if n in x]
    operands = [x[n].requires_grad_() for n in names]
    o, state = gdn2_chunk(*operands, intra=intra)
    expect(f"{what} o", o, x["o"], 1e-9)
    expect(f"{what} final_state", state, x["final_state"], 1e-9)
    loss = (o * x["w_o"]).sum() + (state * x["w_S"]).sum()
    for name, grad in zip(names, torch.autograd.grad(loss, operands)):
        expect(f"{what} grad.{name}", grad, x[f"grad.{name}"], 1e-9)


def golden_reductions(what, x, _about, intra):
    beta = x["beta"][..., None].expand_as(x["k"])
    for name, g in (("kda", x["g"]), ("gdn", x["g_scalar"][..., None].expand_as(x["k"]))):
        o, state = gdn2_chunk(x["q"], x["k"], x["v"], g, beta, beta, intra=intra)
        expect(f"{what} o_{name}", o, x[f"o_{name}"], 1e-9)
        expect(f"{what} state_{name}", state, x[f"state_{name}"], 1e-9)


def golden_layer(what, x, about, intra):
    sizes = [about[n] for n in ("hidden", "num_heads", "head_dim", "num_v_heads", "head_v_dim", "conv_size")]
    layer = GatedDeltaNet2(*sizes, intra=intra).double()
    layer.load_state_dict({n.removeprefix("param."): t.double() for n, t in x.items() if n.startswith("param.")})
    inputs = x["x"].double().requires_grad_()
    y = layer(inputs)
    expect(f"{what} y", y, x["y"].double(), about["tolerance"])
    (y * x["w_y"].double()).sum().backward()
    expect(f"{what} grad.x", inputs.grad, x["grad.x"].double(), about["tolerance"])
    for name, parameter in layer.named_parameters():
        expect(f"{what} grad.{name}", parameter.grad, x[f"grad.{name}"].double(), about["tolerance"])
    with torch.inference_mode():
        S, window, filters = (s.double() for s in layer.init_state(inputs.shape[0]))
        stepped = torch.stack([layer.step(inputs[:, t], (S, window, filters), t) for t in range(inputs.shape[1])], 1)
    expect(f"{what} y by steps", stepped, x["y"].double(), about["tolerance"])
    expect(f"{what} final_state", S, x["final_state"].double(), about["tolerance"])


CASES = {"op": golden_op, "reductions": golden_reductions, "layer": golden_layer}

if __name__ == "__main__":
    check_operator()
    check_step()
    for golden in sys.argv[1:]:
        check_golden(golden)
    print("all checks passed")
