//! Speed of the delta rule's kernels: `cargo bench -p weft-mixers --bench delta_rule`.
//!
//! Counts the products of the published chunk form (2 operations to a multiply-add, triangles as whole squares,
//! no inverse), so that GFLOP/s compare between implementations: per chunk and head C C (3 K + 2 V) + 3 C K V
//! multiply-adds forward; C C (8 K + 5 V + 2 C) + 7 C K V backward, with what it recomputes. These kernels do
//! fewer, so the rate can pass the machine's.

use std::time::Instant;

use weft_mixers::shared::delta_rule::{CHUNK, Dims, Gate, Inputs, backward, forward, step};

fn fastest(mut f: impl FnMut()) -> f64 {
    f();
    let times = (0..15).map(|_| {
        let start = Instant::now();
        f();
        start.elapsed().as_secs_f64()
    });
    times.fold(f64::INFINITY, f64::min)
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

fn main() {
    println!("{} threads", rayon::current_num_threads());
    for (batch, tokens, heads, width) in [(8, 256, 4, 64), (8, 256, 4, 128), (1, 2048, 1, 64)] {
        let dims = Dims {
            batch,
            tokens,
            heads,
            value_heads: heads,
            key_dim: width,
            value_dim: width,
        };
        let qkv = numbers(dims.qkv_len(), -1.0, 0.9);
        let d_o = numbers(dims.output_len(), -1.0, 1.0);
        let g = numbers(dims.output_len(), -0.1, 0.0);
        let gate = numbers(dims.output_len(), 0.0, 1.0);
        let rows = batch * tokens * heads;
        let per_head = |gate| Gate::scalar(gate, &dims);
        let inputs = |name| Inputs {
            qkv: &qkv,
            decay: Some(if name == "gdn" {
                per_head(&g[..rows])
            } else {
                Gate::new(&g, heads, width)
            }),
            erase: if name == "gdn2" {
                Gate::new(&gate, heads, width)
            } else {
                per_head(&gate[..rows])
            },
            write: if name == "gdn2" {
                Gate::new(&gate, heads, width)
            } else {
                per_head(&gate[..rows])
            },
            state: None,
        };
        for name in ["gdn2", "kda", "gdn"] {
            let x = inputs(name);
            for chunk in [16, 32, CHUNK, 128] {
                let (c, n) = (chunk as f64, width as f64);
                let chunks = (rows as f64 / c).ceil();
                let operations = 2.0 * chunks * (5.0 * c * c * n + 3.0 * c * n * n);
                let operations_back =
                    2.0 * chunks * (c * c * (13.0 * n + 2.0 * c) + 7.0 * c * n * n);
                let saved = forward(dims, &x, chunk, true).saved;
                let ahead = fastest(|| drop(forward(dims, &x, chunk, true)));
                let back = saved.map_or(0.0, |s| {
                    fastest(|| drop(backward(dims, &x, &s, &d_o, None)))
                });
                println!(
                    "{name:5} B{batch} T{tokens} H{heads} K=V={width} C{chunk:<4} forward {:7.2} ms {:6.1} GFLOP/s   backward {:7.2} ms {:6.1} GFLOP/s",
                    ahead * 1e3,
                    operations / ahead * 1e-9,
                    back * 1e3,
                    operations_back / back * 1e-9,
                );
            }
        }
        let one = Dims { tokens: 1, ..dims };
        let mut state = vec![0.0; one.state_len()];
        let mut o = vec![0.0; one.output_len()];
        let x = Inputs {
            qkv: &qkv[..one.qkv_len()],
            decay: Some(Gate::new(&g[..one.output_len()], heads, width)),
            erase: Gate::new(&gate[..one.output_len()], heads, width),
            write: Gate::new(&gate[..one.output_len()], heads, width),
            state: None,
        };
        let time = fastest(|| (0..100).for_each(|_| step(one, &x, &mut state, &mut o))) / 100.0;
        let bytes = 8.0 * one.state_len() as f64;
        println!(
            "gdn2  B{batch} H{heads} K=V={width} step {:.2} us, {:.1} GB/s of state",
            time * 1e6,
            bytes / time * 1e-9
        );
    }
}
