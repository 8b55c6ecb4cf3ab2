"""Plain PyTorch models that Weft is measured against on the CPU.

A pre-norm decoder, x += mixer(RMSNorm(x)); x += SwiGLU(RMSNorm(x)), whose mixer is either softmax attention with
rotary positions or Gated DeltaNet-2 (GDN-2, arXiv 2605.22791). Per head, with row vectors q, k, g, b in R^K, v, w in
R^V and the state S in R^{K x V}, GDN-2 is

    S <- diag(exp g) S;   S <- S + k (w.v - S^T (b.k))^T;   o = K^-1/2 S^T q        "." is the elementwise product.

Training uses the chunkwise form (`gdn2_chunk`), decoding the recurrence itself (`GatedDeltaNet2.step`).
`gdn2_recurrent` is the definition, kept for the check in check.py. Shapes: activations [B, T, d], heads [B, T, H, D].
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHUNK = 64


@dataclass(frozen=True)
class Config:
    """Sizes of one model; `pattern` is repeated until `layers` mixers are named."""

    dim: int
    layers: int
    pattern: tuple[str, ...]
    hidden: int
    vocab: int = 2048
    attention_heads: int = 4
    gdn2_heads: int = 4
    gdn2_head_dim: int = 64
    max_len: int = 512
    intra: str = "halving"

    def mixers(self) -> list[str]:
        return [self.pattern[i % len(self.pattern)] for i in range(self.layers)]


HYBRID_PATTERN = ("gdn2", "gdn2", "gdn2", "attention")
TRANSFORMER = Config(dim=256, layers=6, pattern=("attention",), hidden=704)
HYBRID = Config(dim=256, layers=6, pattern=HYBRID_PATTERN, hidden=704)
DECODE = Config(
    dim=512, layers=12, pattern=HYBRID_PATTERN, hidden=1376, attention_heads=8, gdn2_head_dim=128
)


# The GDN-2 operator.


def l2_normalise(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def gdn2_recurrent(q, k, v, g, b, w, state=None):
    """The definition, token by token. q, k, g, b [B, T, H, K], v, w [B, T, HV, V], state [B, HV, K, V]."""
    q, k, g, b = repeat_key_heads(v.shape[2], l2_normalise(q), l2_normalise(k), g, b)
    scale = q.shape[-1] ** -0.5
    if state is None:
        state = v.new_zeros(v.shape[0], v.shape[2], k.shape[-1], v.shape[-1])
    outputs = []
    for t in range(v.shape[1]):
        state = state * g[:, t].exp()[..., None]
        stored = torch.einsum("bhk,bhkv->bhv", b[:, t] * k[:, t], state)
        state = state + k[:, t][..., None] * (w[:, t] * v[:, t] - stored)[..., None, :]
        outputs.append(torch.einsum("bhk,bhkv->bhv", scale * q[:, t], state))
    return torch.stack(outputs, 1), state


def gdn2_chunk(q, k, v, g, b, w, state=None, intra="halving"):
    """The chunkwise form; arguments and results as in `gdn2_recurrent`.

    With G the cumulative sum of g in a chunk, E = b.k and the triangles
        T_rs = sum_c E_rc k_sc exp(G_rc - G_sc)  (r > s),   P_rs = sum_c q_rc k_sc exp(G_rc - G_sc)  (r >= s),
    A = (I + T)^-1, Y = A (exp(G).E), U = A (w.v), each chunk does R = U - Y S, O = (exp(G).q) S + P R and
    S <- exp(G_C).S + (k.exp(G_C - G))^T R. Only the last three lines are sequential.
    """
    B, T, HV, V = v.shape
    q, k, g, b = repeat_key_heads(HV, l2_normalise(q) * q.shape[-1] ** -0.5, l2_normalise(k), g, b)
    K = q.shape[-1]
    padding = -T % CHUNK

    def to_chunks(x):  # [B, T, HV, D] -> [B * HV, N, C, D]
        x = F.pad(x, (0, 0, 0, 0, 0, padding)) if padding else x
        return x.transpose(1, 2).reshape(B * HV, -1, CHUNK, x.shape[-1])

    q, k, v, g, b, w = map(to_chunks, (q, k, v, g, b, w))
    G = g.cumsum(-2)
    gamma = G.exp()
    erase = b * k
    A, P = INTRA[intra](q, erase, k, G)
    Y = A @ (gamma * erase)
    U = A @ (w * v)
    q = gamma * q
    last = G[..., -1:, :]
    tail = (k * (last - G).exp()).mT
    decay = last.exp().mT

    S = v.new_zeros(B * HV, K, V) if state is None else state.reshape(B * HV, K, V)
    outputs = []
    for Y_n, U_n, q_n, P_n, tail_n, decay_n in zip(*(x.unbind(1) for x in (Y, U, q, P, tail, decay))):
        R = U_n - Y_n @ S
        outputs.append(q_n @ S + P_n @ R)
        S = decay_n * S + tail_n @ R
    o = torch.cat(outputs, 1)[:, :T]
    return o.reshape(B, HV, T, V).transpose(1, 2), S.reshape(B, HV, K, V)


def repeat_key_heads(heads, *tensors):
    """Gives every value head its own copy of the key head that it reads."""
    repeats = heads // tensors[0].shape[2]
    return tensors if repeats == 1 else tuple(x.repeat_interleave(repeats, 2) for x in tensors)


def lower_blocks(first: Tensor, second: Tensor, corner: Tensor) -> Tensor:
    """[[first, 0], [corner, second]] of s x s blocks."""
    top = F.pad(first, (0, corner.shape[-1]))
    return torch.cat((top, torch.cat((corner, second), -1)), -2)


def intra_halving(q, erase, k, G):
    """A = (I + T)^-1 and P, by doubling diagonal blocks from 1 to C.

    The corner between two neighbouring blocks is a matrix product once the decay is split at the first row of the
    second block: exp(G_r - G_s) = exp(G_r - ref) exp(ref - G_s), both factors <= 1. The inverse grows along:
    [[A1, 0], [-A2 T21 A1, A2]]. Nothing but matrix products and no exponent of a positive number.
    """
    P = (q * k).sum(-1)[..., None, None]  # [..., C blocks, 1, 1]
    A = torch.ones_like(P)
    size = 1
    while size < q.shape[-2]:
        halves = [x.unflatten(-2, (-1, 2, size)).unbind(-3) for x in (q, erase, k, G)]
        (_, q2), (_, erase2), (k1, _), (G1, G2) = halves
        ref = G2[..., :1, :]
        row = (G2 - ref).exp()
        column = k1 * (ref - G1).exp()
        T21, P21 = (torch.cat((erase2 * row, q2 * row), -2) @ column.mT).split(size, -2)
        A1, A2 = A.unflatten(-3, (-1, 2)).unbind(-3)
        P1, P2 = P.unflatten(-3, (-1, 2)).unbind(-3)
        A = lower_blocks(A1, A2, -A2 @ (T21 @ A1))
        P = lower_blocks(P1, P2, P21)
        size *= 2
    return A.squeeze(-3), P.squeeze(-3)


def intra_blocks(q, erase, k, G, size=16):
    """A and P from sub-chunks of 16: pairs inside a sub-chunk, matrix products below, one triangular solve."""
    C = q.shape[-2]
    q_b, erase_b, k_b, G_b = (x.unflatten(-2, (-1, size)) for x in (q, erase, k, G))
    future = torch.ones(size, size, dtype=torch.bool).triu(1)[..., None]
    pairs = (G_b.unsqueeze(-2) - G_b.unsqueeze(-3)).masked_fill(future, -math.inf).exp() * k_b.unsqueeze(-3)
    T_diagonal, P_diagonal = (pairs @ torch.stack((erase_b, q_b), -1)).unbind(-1)

    row_blocks_T, row_blocks_P = [], []
    for i, (T_i, P_i) in enumerate(zip(T_diagonal.tril(-1).unbind(-3), P_diagonal.unbind(-3))):
        start = i * size
        if start:
            ref = G[..., start : start + 1, :]
            row = (G[..., start : start + size, :] - ref).exp()
            column = k[..., :start, :] * (ref - G[..., :start, :]).exp()
            rows = torch.cat((erase_b.select(-3, i) * row, q_b.select(-3, i) * row), -2)
            T_left, P_left = (rows @ column.mT).split(size, -2)
            T_i, P_i = torch.cat((T_left, T_i), -1), torch.cat((P_left, P_i), -1)
        row_blocks_T.append(F.pad(T_i, (0, C - start - size)))
        row_blocks_P.append(F.pad(P_i, (0, C - start - size)))
    T = torch.cat(row_blocks_T, -2)
    eye = torch.eye(C, dtype=T.dtype).expand_as(T)
    A = torch.linalg.solve_triangular(T, eye, upper=False, unitriangular=True)
    return A, torch.cat(row_blocks_P, -2)


INTRA = {"halving": intra_halving, "blocks16": intra_blocks}


# Layers. `forward` takes a whole sequence, `step` one token [B, d] and a state that it updates in place.


def linear(inputs: int, outputs: int, bias: bool = False) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_uniform_(layer.weight, gain=2**-2.5)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class RMSNorm(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, 1e-5)


class SwiGLU(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.w1, self.w2, self.w3 = linear(dim, hidden), linear(dim, hidden), linear(hidden, dim)

    def forward(self, x):
        return self.w3(F.silu(self.w1(x)) * self.w2(x))


def rope_tables(max_len: int, head_dim: int, base: float = 1e4):
    inverse = base ** (-torch.arange(0, head_dim, 2) / head_dim)
    angles = torch.arange(max_len)[:, None] * inverse  # [max_len, head_dim / 2]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half-split RoPE: channel i turns with channel i + D / 2."""
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


class Attention(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        dim = config.dim
        self.heads, self.head_dim, self.max_len = config.attention_heads, dim // config.attention_heads, config.max_len
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (linear(dim, dim) for _ in range(4))
        cos, sin = rope_tables(config.max_len, self.head_dim)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, x):
        B, T, _ = x.shape
        q, k, v = (p(x).view(B, T, self.heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        cos, sin = self.cos[:T], self.sin[:T]
        o = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        return self.o_proj(o.transpose(1, 2).reshape(B, T, -1))

    def init_state(self, batch: int):
        return torch.zeros(2, batch, self.heads, self.max_len, self.head_dim)

    def step(self, x, cache, position: int):
        B, _ = x.shape
        q, k, v = (p(x).view(B, self.heads, 1, -1) for p in (self.q_proj, self.k_proj, self.v_proj))
        here = slice(position, position + 1)  # slices, not indices: torch.compile keeps them symbolic
        cos, sin = self.cos[here], self.sin[here]
        cache[0, :, :, here] = rotate(k, cos, sin)
        cache[1, :, :, here] = v
        keys, values = cache[:, :, :, : position + 1].unbind()
        o = F.scaled_dot_product_attention(rotate(q, cos, sin), keys, values)
        return self.o_proj(o.view(B, -1))


class GatedDeltaNet2(nn.Module):
    """The GDN-2 layer with the official parameter names; K = V = head_dim unless value_dim is given."""

    def __init__(self, dim, heads, head_dim, value_heads=None, value_dim=None, conv=4, intra="halving"):
        super().__init__()
        self.heads, self.value_heads = heads, value_heads or heads
        self.K, self.V, self.intra = head_dim, value_dim or head_dim, intra
        keys, values = heads * self.K, self.value_heads * self.V
        self.q_proj, self.k_proj, self.v_proj = linear(dim, keys), linear(dim, keys), linear(dim, values)
        self.b_proj, self.w_proj = linear(dim, keys), linear(dim, values)
        self.q_conv1d, self.k_conv1d, self.v_conv1d = (
            nn.Conv1d(n, n, conv, groups=n, padding=conv - 1, bias=False) for n in (keys, keys, values)
        )
        self.f_proj = nn.Sequential(linear(dim, self.V), linear(self.V, keys))
        self.g_proj = nn.Sequential(linear(dim, self.V), linear(self.V, values, bias=True))
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        dt = torch.empty(keys).uniform_(math.log(1e-3), math.log(0.1)).exp().clamp(min=1e-4)
        self.dt_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))
        self.o_norm = RMSNorm(self.V)
        self.o_proj = linear(values, dim)

    def log_decay(self, x):
        f = (self.f_proj(x) + self.dt_bias).unflatten(-1, (self.heads, self.K))
        return -self.A_log.exp()[:, None] * F.softplus(f)

    def gated_output(self, o, x):
        gate = F.silu(self.g_proj(x)).unflatten(-1, (self.value_heads, self.V))
        return self.o_proj((self.o_norm(o) * gate).flatten(-2))

    def forward(self, x):
        def conv(module, y):  # causal: drop what the right padding adds
            return F.silu(module(y.mT)[..., : y.shape[1]].mT)

        q = conv(self.q_conv1d, self.q_proj(x)).unflatten(-1, (self.heads, self.K))
        k = conv(self.k_conv1d, self.k_proj(x)).unflatten(-1, (self.heads, self.K))
        v = conv(self.v_conv1d, self.v_proj(x)).unflatten(-1, (self.value_heads, self.V))
        b = self.b_proj(x).sigmoid().unflatten(-1, (self.heads, self.K))
        w = self.w_proj(x).sigmoid().unflatten(-1, (self.value_heads, self.V))
        o, _ = gdn2_chunk(q, k, v, self.log_decay(x), b, w, intra=self.intra)
        return self.gated_output(o, x)

    def init_state(self, batch: int):
        """S [B, HV, K, V], the last conv inputs of q|k|v with room for one more [B, channels, 4], the conv filters."""
        filters = torch.cat([c.weight.squeeze(1) for c in (self.q_conv1d, self.k_conv1d, self.v_conv1d)])
        return torch.zeros(batch, self.value_heads, self.K, self.V), torch.zeros(batch, *filters.shape), filters

    def step(self, x, state, position: int):
        del position
        S, window, filters = state
        B, keys = x.shape[0], self.heads * self.K
        new = torch.cat((self.q_proj(x), self.k_proj(x), self.v_proj(x)), -1)
        window.copy_(torch.cat((window[..., 1:], new[..., None]), -1))
        q, k, v = F.silu((window * filters).sum(-1)).split((keys, keys, self.value_heads * self.V), -1)
        q = l2_normalise(q.view(B, self.heads, 1, self.K)) * self.K**-0.5
        k = l2_normalise(k.view(B, self.heads, 1, self.K))
        b = self.b_proj(x).sigmoid().view(B, self.heads, 1, self.K)
        decay = self.log_decay(x).exp()[..., None]
        repeats = self.value_heads // self.heads
        if repeats > 1:
            q, k, b, decay = (y.repeat_interleave(repeats, 1) for y in (q, k, b, decay))
        write = (self.w_proj(x).sigmoid() * v).view(B, self.value_heads, 1, self.V)

        S.mul_(decay)
        S.add_(k.mT * (write - (b * k) @ S))
        return self.gated_output((q @ S).squeeze(2), x)


class Block(nn.Module):
    def __init__(self, config: Config, mixer: str):
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(config.dim), RMSNorm(config.dim)
        if mixer == "attention":
            self.mixer = Attention(config)
        else:
            self.mixer = GatedDeltaNet2(config.dim, config.gdn2_heads, config.gdn2_head_dim, intra=config.intra)
        self.mlp = SwiGLU(config.dim, config.hidden)

    def forward(self, x):
        x = x + self.mixer(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def step(self, x, state, position: int):
        x = x + self.mixer.step(self.norm1(x), state, position)
        return x + self.mlp(self.norm2(x))


class LanguageModel(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.embedding = nn.Embedding(config.vocab, config.dim)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(config, mixer) for mixer in config.mixers())
        self.norm = RMSNorm(config.dim)
        self.head = linear(config.dim, config.vocab)

    def forward(self, tokens, targets):
        """Mean cross-entropy of targets [B, T] given tokens [B, T]."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def init_state(self, batch: int):
        return [block.mixer.init_state(batch) for block in self.blocks]

    def step(self, token, states, position: int):
        """Logits [B, vocab] after token [B]; `states` move on in place."""
        x = self.embedding(token)
        for block, state in zip(self.blocks, states):
            x = block.step(x, state, position)
        return self.head(self.norm(x))
