//! Speed of decayed linear attention: `cargo bench -p weft-mixers --bench decayed`. Its peer is
//! `benches/peers/decayed_cpu.py`, with the same cases and the same statistic: medians.
//!
//! `curve` as argument measures tokens per second against the length at a fixed number of tokens.

use std::time::Instant;

use weft_mixers::shared::decayed::{CHUNK, Decay, Dims, Inputs, backward, forward, step};

/// Milliseconds.
fn median(mut f: impl FnMut()) -> f64 {
    f();
    f();
    let mut times = vec![];
    let begun = Instant::now();
    while times.len() < 10 || begun.elapsed().as_secs_f64() < 2.0 {
        let start = Instant::now();
        f();
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn numbers(n: usize, lo: f32, hi: f32) -> Vec<f32> {
    let mut seed = n as u32;
    (0..n)
        .map(|_| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            lo + (hi - lo) * (seed >> 8) as f32 / (1 << 24) as f32
        })
        .collect()
}

struct Problem {
    dims: Dims,
    by_channel: bool,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    g: Vec<f32>,
    d_o: Vec<f32>,
    state: Vec<f32>,
}

impl Problem {
    fn new(
        [batch, tokens, heads, value_heads, key_dim, value_dim]: [usize; 6],
        by_channel: bool,
    ) -> Problem {
        let dims = Dims {
            batch,
            tokens,
            heads,
            value_heads,
            key_dim,
            value_dim,
        };
        let decays = if by_channel {
            dims.keys_len()
        } else {
            batch * tokens * value_heads
        };
        Problem {
            dims,
            by_channel,
            q: numbers(dims.keys_len(), -1.0, 1.0),
            k: numbers(dims.keys_len(), -1.0, 0.9),
            v: numbers(dims.values_len(), -1.0, 1.0),
            g: numbers(decays, -0.1, 0.0),
            d_o: numbers(dims.values_len(), -1.0, 1.0),
            state: vec![0.0; dims.state_len()],
        }
    }

    fn inputs(&self) -> Inputs<'_, f32> {
        Inputs {
            q: &self.q,
            k: &self.k,
            v: &self.v,
            decay: match self.by_channel {
                true => Decay::Channels(&self.g),
                false => Decay::Heads(&self.g),
            },
            scale: 1.0,
        }
    }

    /// Milliseconds of a forward that keeps nothing, and of forward and backward together.
    fn times(&self, chunk: usize) -> [f64; 2] {
        let (dims, x) = (self.dims, self.inputs());
        let ahead = median(|| drop(forward(dims, &x, &self.state, chunk, false)));
        let both = median(|| {
            if let Some(saved) = forward(dims, &x, &self.state, chunk, true).saved {
                drop(backward(dims, &x, &saved, &self.d_o, None, true));
            }
        });
        [ahead, both]
    }
}

/// The peer's cases: batch, tokens, key heads, value heads, K, V.
const CASES: [(&str, [usize; 6], bool); 7] = [
    ("head", [8, 256, 4, 4, 64, 64], false),
    ("head", [8, 256, 4, 4, 128, 128], false),
    ("head", [1, 2048, 8, 8, 64, 64], false),
    ("grouped", [8, 256, 1, 8, 128, 64], false),
    ("channel", [8, 256, 4, 4, 64, 64], true),
    ("channel", [8, 256, 4, 4, 128, 128], true),
    ("channel", [1, 2048, 8, 8, 64, 64], true),
];

fn compare() {
    for (name, sizes, by_channel) in CASES {
        let problem = Problem::new(sizes, by_channel);
        let [b, t, h, hv, k, v] = sizes;
        for chunk in [32, CHUNK, 128] {
            let [ahead, both] = problem.times(chunk);
            println!(
                "{name:8} B{b} T{t} H{h} HV{hv} K{k} V{v} C{chunk:<4} forward_ms {ahead:.2}  both_ms {both:.2}"
            );
        }
    }
    for by_channel in [false, true] {
        let problem = Problem::new([8, 1, 4, 4, 128, 128], by_channel);
        let (dims, x) = (problem.dims, problem.inputs());
        let mut state = problem.state.clone();
        let mut o = vec![0.0; dims.values_len()];
        let time = median(|| (0..100).for_each(|_| step(dims, &x, &mut state, &mut o)));
        let rate = 8.0 * dims.state_len() as f64 * 100.0 / time * 1e-6;
        println!(
            "step B8 H4 K128 V128 by channel {by_channel}: {:.2} us, {rate:.1} GB/s of state",
            time * 10.0
        );
    }
}

fn curve() {
    let total = 1 << 15;
    for tokens in (10..=15).map(|n| 1 << n) {
        let problem = Problem::new([total / tokens, tokens, 4, 4, 64, 64], false);
        let [_, both] = problem.times(CHUNK);
        println!(
            "T {tokens:6}: {:.0} k tokens/s forward and backward",
            total as f64 / both
        );
    }
}

fn main() {
    println!("{} threads", rayon::current_num_threads());
    match std::env::args().any(|a| a == "curve") {
        true => curve(),
        false => compare(),
    }
}
