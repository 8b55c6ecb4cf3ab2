//! The way back, segment by segment from the last: run ahead again from the state that was kept, then backwards.
//! With G_t the gradient of o_t and D that of H_t as later tokens see it:
//!
//! ```text
//! dq_t = H_t G_t        Y = q_t G_t^T + clamp(D)  (rule carry)   or   clamp(q_t G_t^T + D)  (rule total)
//! df_t = sum(Y . (H_{t-1} - Z_t))
//! X = (1 - f_t) Y . (1 - Z_t^2)        dk_t = X v_t        dv_t = X^T k_t        dW += H_{t-1}^T X
//! D <- f_t Y + X W^T
//! ```

use rayon::prelude::*;
use weft_tensor::cpu::gemm::{Strides, gemm};
use weft_tensor::{Buffer, Real, cpu::simd::vectorize};

use super::forward::{ROWS, Scratch, four, lanes_of, read, row};
use super::{Dims, Inputs, SEGMENT, Unit};
use crate::shared::recurrent::product::{LANES, Lane, four_rows, one_row, sum_lane};
use crate::shared::rows::rows_by_unit;

/// Gradients of everything that the recurrence reads, laid out like it.
pub(super) struct Gradients<R: Real> {
    pub q: Buffer<R>,
    pub k: Buffer<R>,
    pub v: Buffer<R>,
    pub f: Buffer<R>,
    pub w: Buffer<R>,
    pub state: Buffer<R>,
}

/// Bounds of the gradient of the state: before and after a token's own contribution; infinite if there is none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds<R> {
    pub carry: R,
    pub total: R,
}

/// Gradients from those of the outputs [B, T, N, V] and of the last state; `starts` are from the way ahead.
pub(super) fn backward<R: Real>(
    d: Dims,
    x: &Inputs<R>,
    starts: &[Vec<Buffer<R>>],
    (d_o, d_state): (&[R], Option<&[R]>),
    bounds: Bounds<R>,
) -> Gradients<R> {
    let (units, rows) = (d.units(), d.batch * d.tokens);
    let zeros = |n| Buffer::filled(n, R::ZERO);
    let mut g = Gradients {
        q: zeros(rows * d.q_heads * d.key_dim),
        k: zeros(rows * d.k_heads * d.key_dim),
        v: Buffer::unwritten(rows * d.heads * d.value_dim),
        f: Buffer::unwritten(rows * d.heads),
        w: zeros(d.heads * d.value_dim * d.value_dim),
        state: zeros(d.batch * d.heads * d.matrix()),
    };
    if let Some(d_state) = d_state {
        g.state.copy_from_slice(d_state);
    }
    let mut values = rows_by_unit(&mut g.v, d.tokens, d.heads, d.value_dim).into_iter();
    let mut states = g.state.chunks_exact_mut(d.matrix());
    let work: Vec<_> = units
        .iter()
        .zip(starts)
        .map(|(u, starts)| {
            let values: Vec<_> = values.by_ref().take(u.heads).collect();
            let states: Vec<_> = states.by_ref().take(u.heads).collect();
            (u, starts, values, states)
        })
        .collect();
    let parts: Vec<Part<R>> = work
        .into_par_iter()
        .map(|(u, starts, values, states)| {
            let mut part = Part::new(&d, u);
            let heads = u.range().zip(starts).zip(values).zip(states);
            for (((head, starts), mut d_v), d_state) in heads {
                let walk = Walk {
                    d: &d,
                    x,
                    u,
                    head,
                    d_o,
                    bounds,
                };
                walk.run(starts, &mut d_v, d_state, &mut part);
            }
            part
        })
        .collect();
    for (u, part) in units.iter().zip(&parts) {
        part.add_to(&d, u, &mut g);
    }
    g
}

/// A unit's share of the gradients that are sums over units, and df.
struct Part<R: Real> {
    /// [T, K]
    q: Buffer<R>,
    k: Buffer<R>,
    /// [heads, T]
    f: Buffer<R>,
    /// [heads, V, V]
    w: Buffer<R>,
}

impl<R: Real> Part<R> {
    fn new(d: &Dims, u: &Unit) -> Self {
        let zeros = |n| Buffer::filled(n, R::ZERO);
        Part {
            q: zeros(d.tokens * d.key_dim),
            k: zeros(d.tokens * d.key_dim),
            f: zeros(u.heads * d.tokens),
            w: zeros(u.heads * d.value_dim * d.value_dim),
        }
    }

    fn add_to(&self, d: &Dims, u: &Unit, g: &mut Gradients<R>) {
        let shared = [
            (&mut g.q, &self.q, d.q_heads),
            (&mut g.k, &self.k, d.k_heads),
        ];
        for (sum, part, heads) in shared {
            let head = u.first * heads / d.heads;
            for (t, part) in part.chunks_exact(d.key_dim).enumerate() {
                let at = ((u.batch * d.tokens + t) * heads + head) * d.key_dim;
                add(&mut sum[at..][..d.key_dim], part);
            }
        }
        for (head, part) in u.range().zip(self.f.chunks_exact(d.tokens)) {
            for (t, f) in part.iter().enumerate() {
                g.f[(u.batch * d.tokens + t) * d.heads + head] = *f;
            }
        }
        let at = u.first * d.value_dim * d.value_dim;
        add(&mut g.w[at..][..self.w.len()], &self.w);
    }
}

fn add<R: Real>(sum: &mut [R], part: &[R]) {
    sum.iter_mut().zip(part).for_each(|(s, p)| *s += *p);
}

/// What the walk over one head needs to know.
struct Walk<'a, R> {
    d: &'a Dims,
    x: &'a Inputs<'a, R>,
    u: &'a Unit,
    head: usize,
    d_o: &'a [R],
    bounds: Bounds<R>,
}

impl<R: Real> Walk<'_, R> {
    fn run(&self, starts: &[R], d_v: &mut [&mut [R]], d_state: &mut [R], part: &mut Part<R>) {
        let (d, panels) = (self.d, self.d.panels());
        let (width, local) = (d.key_dim * panels * LANES, self.head - self.u.first);
        let segment = SEGMENT.min(d.tokens);
        // The states before each token of a segment, and behind the last; Z of each token, then X.
        let mut states = Buffer::unwritten((segment + 1) * width);
        let mut z = Buffer::unwritten(segment * width);
        let mut ahead = Scratch::new(d, self.x, self.head);
        let size = d.value_dim * d.value_dim;
        let w = &self.x.w[self.head * size..][..size];
        let turned: Vec<R> = (0..size)
            .map(|i| w[i % d.value_dim * d.value_dim + i / d.value_dim])
            .collect();
        let turned = lanes_of(&turned, d.value_dim);
        let mut carry = lanes_of(d_state, d.value_dim);
        let [mut d_o, mut v] = [(); 2].map(|()| Buffer::filled(panels * LANES, R::ZERO));
        for (s, start) in starts.chunks_exact(width).enumerate().rev() {
            let from = s * SEGMENT;
            let tokens = SEGMENT.min(d.tokens - from);
            states[..width].copy_from_slice(start);
            for i in 0..tokens {
                states.copy_within(i * width..(i + 1) * width, (i + 1) * width);
                let h = states[(i + 1) * width..][..width].as_chunks_mut().0;
                let z = z[i * width..][..width].as_chunks_mut().0;
                ahead.token(d, self.x, (self.u, self.head, from + i), h, z);
            }
            for i in (0..tokens).rev() {
                let t = from + i;
                let at = self.x.position(d, self.u, (t, self.head));
                v[..d.value_dim].copy_from_slice(self.x.value(d, at));
                d_o[..d.value_dim].copy_from_slice(&self.d_o[at * d.value_dim..][..d.value_dim]);
                let mut back = Token {
                    panels,
                    values: d.value_dim,
                    turned: turned.as_chunks().0,
                    q: self.x.query(d, self.u, t),
                    k: self.x.key(d, self.u, t),
                    v: v.as_chunks().0,
                    f: self.x.f[at],
                    d_o: d_o.as_chunks().0,
                    linear: self.x.linear,
                    bounds: self.bounds,
                    d_q: &mut part.q[t * d.key_dim..][..d.key_dim],
                    d_k: &mut part.k[t * d.key_dim..][..d.key_dim],
                    d_f: [R::ZERO; LANES],
                };
                let before = states[i * width..][..width].as_chunks().0;
                let after = states[(i + 1) * width..][..width].as_chunks().0;
                let z = z[i * width..][..width].as_chunks_mut().0;
                let carry = carry.as_chunks_mut().0;
                vectorize(
                    #[inline(always)]
                    || back.run((before, after), z, carry),
                );
                part.f[local * d.tokens + t] = sum_lane(&back.d_f);
                // dv = X^T k
                read(back.k, z, panels, d_v[t]);
            }
            gemm(
                (d.value_dim, d.value_dim, tokens * d.key_dim),
                R::ONE,
                (&states, Strides::transposed(panels * LANES)),
                (&z, Strides::rows(panels * LANES)),
                R::ONE,
                (
                    &mut part.w[local * size..][..size],
                    Strides::rows(d.value_dim),
                ),
                false,
            );
        }
        for (to, from) in d_state
            .chunks_exact_mut(d.value_dim)
            .zip(carry.chunks_exact(panels * LANES))
        {
            to.copy_from_slice(&from[..d.value_dim]);
        }
    }
}

/// One token of one head, back.
struct Token<'a, R> {
    panels: usize,
    values: usize,
    /// W^T [V, panels]
    turned: &'a [Lane<R>],
    q: &'a [R],
    k: &'a [R],
    v: &'a [Lane<R>],
    f: R,
    d_o: &'a [Lane<R>],
    linear: bool,
    bounds: Bounds<R>,
    d_q: &'a mut [R],
    d_k: &'a mut [R],
    d_f: Lane<R>,
}

impl<R: Real> Token<'_, R> {
    /// X replaces Z, the carry becomes that of the token before.
    #[inline(always)]
    fn run(
        &mut self,
        (before, after): (&[Lane<R>], &[Lane<R>]),
        z: &mut [Lane<R>],
        carry: &mut [Lane<R>],
    ) {
        let (n, rows) = (self.panels, self.q.len());
        for i in 0..rows {
            self.row(i, (before, after), z, carry);
        }
        let whole = rows / ROWS * ROWS;
        for p in 0..n {
            let w = (&self.turned[p..], n);
            for i in (0..whole).step_by(ROWS) {
                let at = |r: usize| (i + r) * n + p;
                let start = [carry[at(0)], carry[at(1)], carry[at(2)], carry[at(3)]];
                let [a, b, c, d] = four_rows(four(z, i, n, self.values), w, start);
                carry[at(0)] = a;
                carry[at(1)] = b;
                carry[at(2)] = c;
                carry[at(3)] = d;
            }
            for i in whole..rows {
                carry[i * n + p] = one_row(row(z, i, n, self.values), w, carry[i * n + p]);
            }
        }
    }

    /// Everything of row i but the product with W^T.
    #[inline(always)]
    fn row(
        &mut self,
        i: usize,
        (before, after): (&[Lane<R>], &[Lane<R>]),
        z: &mut [Lane<R>],
        carry: &mut [Lane<R>],
    ) {
        let (n, q, f, new) = (self.panels, self.q[i], self.f, R::ONE - self.f);
        let Bounds { carry: c, total } = self.bounds;
        let curved = if self.linear { R::ZERO } else { R::ONE };
        let [mut of_q, mut of_k] = [[R::ZERO; LANES]; 2];
        let mut of_f = self.d_f;
        for p in 0..n {
            let at = i * n + p;
            let (h, h_new, z, carry) = (&before[at], &after[at], &mut z[at], &mut carry[at]);
            let (g, v) = (&self.d_o[p], &self.v[p]);
            for l in 0..LANES {
                let y = q.mul_add(g[l], carry[l].max(-c).min(c));
                let y = y.max(-total).min(total);
                let x = new * y * (R::ONE - curved * z[l] * z[l]);
                of_q[l] = h_new[l].mul_add(g[l], of_q[l]);
                of_f[l] = y.mul_add(h[l] - z[l], of_f[l]);
                of_k[l] = x.mul_add(v[l], of_k[l]);
                z[l] = x;
                carry[l] = f * y;
            }
        }
        self.d_f = of_f;
        self.d_q[i] += sum_lane(&of_q);
        self.d_k[i] += sum_lane(&of_k);
    }
}
