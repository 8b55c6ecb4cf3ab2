//! The chunk form and the step against the recurrence written out on slices, values and gradients.

use super::*;

/// A small deterministic source of numbers in (0, 1).
struct Noise(u64);

impl Noise {
    fn unit(&mut self) -> f64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    fn fill(&mut self, n: usize, mut f: impl FnMut(f64) -> f64) -> Vec<f64> {
        (0..n).map(|_| f(self.unit())).collect()
    }
}

/// Which head and how many values a gate has: (HV instead of H, channels instead of 1).
#[derive(Clone, Copy, Debug)]
struct Grain {
    decay: Option<(bool, bool)>,
    erase: (bool, bool),
    write: bool,
}

const DELTANET: Grain = Grain {
    decay: None,
    erase: (true, false),
    write: false,
};
const GDN: Grain = Grain {
    decay: Some((true, false)),
    erase: (true, false),
    write: false,
};
const KDA: Grain = Grain {
    decay: Some((false, true)),
    erase: (true, false),
    write: false,
};
const KDA_PER_VALUE_HEAD: Grain = Grain {
    decay: Some((true, true)),
    erase: (true, false),
    write: false,
};
const GDN2: Grain = Grain {
    decay: Some((false, true)),
    erase: (false, true),
    write: true,
};
const ERASE_ONLY: Grain = Grain {
    decay: Some((true, false)),
    erase: (false, true),
    write: false,
};
const GRAINS: [Grain; 6] = [DELTANET, GDN, KDA, KDA_PER_VALUE_HEAD, GDN2, ERASE_ONLY];

/// Inputs of one call with everything owned.
#[derive(Clone)]
struct Problem {
    dims: Dims,
    grain: Grain,
    /// qkv, decay, erase, write, state
    data: [Vec<f64>; 5],
    with_state: bool,
}

impl Problem {
    fn new(dims: Dims, grain: Grain, with_state: bool, decay: impl Fn(f64) -> f64) -> Problem {
        let mut noise = Noise(dims.tokens as u64 + 17);
        let rows = dims.batch * dims.tokens;
        let gate = |(per_value_head, channels): (bool, bool), n: usize| {
            let heads = if per_value_head {
                dims.value_heads
            } else {
                dims.heads
            };
            rows * heads * if channels { n } else { 1 }
        };
        let signed = |x: f64| 2.0 * x - 1.0;
        let data = [
            noise.fill(dims.qkv_len(), signed),
            noise.fill(grain.decay.map_or(0, |g| gate(g, dims.key_dim)), decay),
            noise.fill(gate(grain.erase, dims.key_dim), |x| 2.0 * x),
            noise.fill(gate((true, grain.write), dims.value_dim), |x| x),
            noise.fill(dims.state_len(), signed),
        ];
        Problem {
            dims,
            grain,
            data,
            with_state,
        }
    }

    fn run<R: Real, T>(&self, f: impl FnOnce(&Inputs<R>) -> T) -> T {
        // What a kernel does not write is NaN.
        weft_tensor::memory::poison(true);
        let data = self
            .data
            .clone()
            .map(|d| d.iter().map(|x| R::from_f64(*x)).collect::<Vec<R>>());
        let heads = |per_value_head| {
            if per_value_head {
                self.dims.value_heads
            } else {
                self.dims.heads
            }
        };
        let width = |channels, n| if channels { n } else { 1 };
        let [qkv, decay, erase, write, state] = &data;
        f(&Inputs {
            qkv,
            decay: self
                .grain
                .decay
                .map(|(h, c)| Gate::new(decay, heads(h), width(c, self.dims.key_dim))),
            erase: Gate::new(
                erase,
                heads(self.grain.erase.0),
                width(self.grain.erase.1, self.dims.key_dim),
            ),
            write: Gate::new(
                write,
                self.dims.value_heads,
                width(self.grain.write, self.dims.value_dim),
            ),
            state: self.with_state.then_some(state),
        })
    }
}

/// The definition, one token and one value head after the other: (o, state).
fn recurrence(dims: &Dims, x: &Inputs<f64>) -> (Vec<f64>, Vec<f64>) {
    let (n, m) = (dims.key_dim, dims.value_dim);
    let mut state = x
        .state
        .map_or_else(|| vec![0.0; dims.state_len()], <[f64]>::to_vec);
    let mut o = vec![0.0; dims.output_len()];
    let unit = |row: &[f64]| {
        let norm = (row.iter().map(|x| x * x).sum::<f64>() + L2_EPS).sqrt();
        row.iter().map(|x| x / norm).collect::<Vec<f64>>()
    };
    for position in 0..dims.batch * dims.tokens {
        for hv in 0..dims.value_heads {
            let h = hv / dims.repeat();
            let s = &mut state[(position / dims.tokens * dims.value_heads + hv) * n * m..][..n * m];
            let out = (position * dims.value_heads + hv) * m;
            let v = x.values(dims, position, hv, 0..m);
            let (q, k) = (
                unit(x.query(dims, position, h)),
                unit(x.key(dims, position, h)),
            );
            let gate = |g: &Gate<f64>, c: usize| {
                let row = g.row(position, if g.heads == dims.heads { h } else { hv });
                row[if row.len() == 1 { 0 } else { c }]
            };
            for c in 0..n {
                let decay = x.decay.as_ref().map_or(1.0, |g| gate(g, c).exp());
                s[c * m..][..m].iter_mut().for_each(|s| *s *= decay);
            }
            for j in 0..m {
                let read: f64 = (0..n)
                    .map(|c| gate(&x.erase, c) * k[c] * s[c * m + j])
                    .sum();
                let change = gate(&x.write, j) * v[j] - read;
                for c in 0..n {
                    s[c * m + j] += k[c] * change;
                    o[out + j] += q[c] * s[c * m + j] / (n as f64).sqrt();
                }
            }
        }
    }
    (o, state)
}

fn error<R: Real>(got: &[R], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let size = want.iter().fold(1e-30f64, |m, x| m.max(x.abs()));
    let worst = got.iter().zip(want).map(|(g, w)| (g.to_f64() - w).abs());
    worst.fold(
        0.0,
        |m, e| if e.is_nan() { f64::INFINITY } else { m.max(e) },
    ) / size
}

fn dims(tokens: usize, repeat: usize) -> Dims {
    Dims {
        batch: 2,
        tokens,
        heads: 2,
        value_heads: 2 * repeat,
        key_dim: 20,
        value_dim: 12,
    }
}

fn check<R: Real>(p: &Problem, chunk: usize, tolerance: f64) {
    let (o, state) = p.run(|x| recurrence(&p.dims, x));
    let got = p.run::<R, _>(|x| forward(p.dims, x, chunk, false));
    let label = format!("{:?} {:?} chunk {chunk}", p.dims, p.grain);
    assert!(
        error(&got.o, &o) < tolerance,
        "{label}: o {:.2e}",
        error(&got.o, &o)
    );
    assert!(
        error(&got.state, &state) < tolerance,
        "{label}: state {:.2e}",
        error(&got.state, &state)
    );
}

/// From vanishing to none, most around -0.1.
fn mild(x: f64) -> f64 {
    -0.1 * x / (1.001 - x)
}

#[test]
fn chunks_equal_the_recurrence_in_f64() {
    for tokens in [1, 2, 15, 16, 17, 63, 64, 65, 127, 200] {
        for grain in GRAINS {
            for (repeat, with_state) in [(1, false), (2, true)] {
                let p = Problem::new(dims(tokens, repeat), grain, with_state, mild);
                for chunk in [1, 16, 32, 64] {
                    check::<f64>(&p, chunk, 1e-10);
                }
            }
        }
    }
}

#[test]
fn chunks_equal_the_recurrence_in_f32() {
    for tokens in [17, 64, 200] {
        for grain in GRAINS {
            let p = Problem::new(dims(tokens, 2), grain, true, mild);
            for chunk in [1, 16, 64] {
                check::<f32>(&p, chunk, 2e-5);
            }
        }
    }
}

/// Channels that are wiped beside channels that keep everything.
#[test]
fn extreme_decays() {
    let wild = |x: f64| match x {
        x if x < 0.3 => -50.0,
        x if x < 0.4 => -1e4,
        x if x < 0.7 => 0.0,
        _ => -1e-3,
    };
    for grain in [GDN, KDA, GDN2] {
        let p = Problem::new(dims(200, 2), grain, true, wild);
        check::<f64>(&p, 64, 1e-10);
        check::<f32>(&p, 64, 2e-5);
    }
}

#[test]
fn a_step_is_a_recurrence_of_one_token() {
    for grain in GRAINS {
        // The second shape is large enough to be split over threads.
        let large = Dims {
            batch: 4,
            tokens: 1,
            heads: 2,
            value_heads: 4,
            key_dim: 70,
            value_dim: 130,
        };
        for dims in [dims(1, 2), large] {
            let p = Problem::new(dims, grain, true, mild);
            let (o, state) = p.run(|x| recurrence(&p.dims, x));
            let (got_o, got_state) = p.run::<f64, _>(|x| {
                let mut state = p.data[4].clone();
                let mut o = vec![f64::NAN; dims.output_len()];
                step(dims, x, &mut state, &mut o);
                (o, state)
            });
            assert!(error(&got_o, &o) < 1e-12, "{grain:?}");
            assert!(error(&got_state, &state) < 1e-12, "{grain:?}");
        }
    }
}

/// sum(o w_o) + sum(state w_S), with weights that depend on the size only.
fn loss_weights(dims: &Dims) -> (Vec<f64>, Vec<f64>) {
    let mut noise = Noise(5);
    (
        noise.fill(dims.output_len(), |x| x - 0.5),
        noise.fill(dims.state_len(), |x| x - 0.5),
    )
}

fn loss(p: &Problem) -> f64 {
    let (w_o, w_s) = loss_weights(&p.dims);
    let (o, s) = p.run(|x| recurrence(&p.dims, x));
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(&o, &w_o) + dot(&s, &w_s)
}

fn gradients<R: Real>(p: &Problem, chunk: usize) -> [Vec<R>; 5] {
    let (w_o, w_s) = loss_weights(&p.dims);
    let cast = |w: Vec<f64>| w.into_iter().map(R::from_f64).collect::<Vec<R>>();
    let (w_o, w_s) = (cast(w_o), cast(w_s));
    p.run(|x| {
        let saved = forward(p.dims, x, chunk, true).saved.unwrap();
        let g = backward(p.dims, x, &saved, &w_o, Some(&w_s));
        [g.qkv, g.decay, g.erase, g.write, g.state].map(|g| g.to_vec())
    })
}

#[test]
fn gradients_equal_differences_of_the_recurrence() {
    for grain in GRAINS {
        let small = Dims {
            batch: 1,
            tokens: 21,
            heads: 1,
            value_heads: 2,
            key_dim: 5,
            value_dim: 3,
        };
        let p = Problem::new(small, grain, true, mild);
        let grads = gradients::<f64>(&p, 64);
        let h = 1e-5;
        for (input, grad) in grads.iter().enumerate() {
            assert_eq!(grad.len(), p.data[input].len());
            for i in 0..grad.len() {
                let at = |step: f64| {
                    let mut moved = p.clone();
                    moved.data[input][i] += step;
                    loss(&moved)
                };
                // The error of a central difference is about h^2 times the third derivative.
                let difference = (at(h) - at(-h)) / (2.0 * h);
                assert!(
                    (difference - grad[i]).abs() < 1e-7,
                    "{grain:?} input {input} [{i}]: {} against {difference}",
                    grad[i]
                );
            }
        }
    }
}

/// One chunk holds the whole sequence, or many do; f64 against f32.
#[test]
fn gradients_do_not_depend_on_the_chunk_length() {
    for grain in GRAINS {
        for (tokens, repeat) in [(1, 1), (16, 2), (65, 2), (150, 1)] {
            let p = Problem::new(dims(tokens, repeat), grain, true, mild);
            let want = gradients::<f64>(&p, tokens);
            for chunk in [1, 16, 64] {
                for (g, w) in gradients::<f64>(&p, chunk).iter().zip(&want) {
                    assert!(
                        error(g, w) < 1e-10,
                        "{grain:?} T {tokens} chunk {chunk}: {:.2e}",
                        error(g, w)
                    );
                }
            }
            for (g, w) in gradients::<f32>(&p, 64).iter().zip(&want) {
                // Gradients sum over more terms than values: five times the tolerance of a value.
                assert!(
                    error(g, w) < 1e-4,
                    "{grain:?} T {tokens} in f32: {:.2e}",
                    error(g, w)
                );
            }
        }
    }
}

/// Few heads are divided by panels and chunks, many by heads: the same bits, whatever the number of threads.
#[test]
fn the_division_of_work_does_not_change_the_bits() {
    for grain in GRAINS {
        let p = Problem::new(
            Dims {
                batch: 1,
                heads: 1,
                value_heads: 2,
                ..dims(150, 2)
            },
            grain,
            true,
            mild,
        );
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| {
                (
                    p.run::<f64, _>(|x| forward(p.dims, x, 64, false).o.to_vec()),
                    gradients::<f64>(&p, 64),
                )
            })
        };
        assert!(run(1) == run(8), "{grain:?}");
    }
}
