//! Speed of the attention kernels: `cargo bench -p weft-mixers --bench attention`.
//!
//! Counts the products of the visible half of the scores (2 operations to a multiply-add): 2 B Hq T S D forward,
//! 5 B Hq T S D backward with the recomputed scores. A decoding step is counted in bytes of cache read.

use std::time::Instant;

use weft_mixers::shared::flash::{Dims, Gradients, Keys, Mask, backward, forward};

fn fastest(mut f: impl FnMut()) -> f64 {
    f();
    let times = (0..15).map(|_| {
        let start = Instant::now();
        f();
        start.elapsed().as_secs_f64()
    });
    times.fold(f64::INFINITY, f64::min)
}

fn numbers(n: usize, seed: u32) -> Vec<f32> {
    let mut seed = seed;
    (0..n)
        .map(|_| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// Causal attention of `queries` tokens at the end of `keys`.
fn measure(dims: Dims, window: Option<i64>) {
    let Dims {
        batch,
        queries,
        keys,
        heads,
        kv_heads,
        dim,
        value_dim,
    } = dims;
    let q = numbers(batch * queries * heads * dim, 1);
    let k = numbers(batch * keys * kv_heads * dim, 2);
    let v = numbers(batch * keys * kv_heads * value_dim, 3);
    let dout = numbers(batch * queries * heads * value_dim, 4);
    let (zero, start) = (vec![0; batch], vec![(keys - queries) as i64; batch]);
    let mask = Mask {
        query_start: &start,
        keys: Keys::Range(&zero),
        window,
        sinks: 0,
    };
    let scale = 1.0 / (dim as f32).sqrt();
    let (mut out, mut lse) = (vec![0.0; dout.len()], vec![0.0; batch * heads * queries]);
    let ahead = fastest(|| forward(&dims, &mask, scale, (&q, &k, &v), &mut out, &mut lse));
    let label = format!("B{batch} T{queries} S{keys} H{heads}/{kv_heads} D{dim}");
    if queries == 1 {
        let bytes = (4 * (k.len() + v.len())) as f64;
        println!(
            "{label:28} step {:9.1} us {:6.1} GB/s",
            ahead * 1e6,
            bytes / ahead * 1e-9
        );
        return;
    }
    let (mut dq, mut dk, mut dv) = (q.clone(), k.clone(), v.clone());
    let grads = Gradients {
        out: &out,
        lse: &lse,
        dout: &dout,
        dlse: None,
    };
    let back = fastest(|| {
        let results = (&mut dq[..], &mut dk[..], &mut dv[..]);
        backward(&dims, &mask, scale, (&q, &k, &v), grads, results);
    });
    let products = (batch * heads * queries * keys * dim) as f64 * 2e-9;
    let rate = |n: f64, time: f64| match window {
        Some(window) => format!("window {window}"),
        None => format!("{:6.1} GFLOP/s", n * products / time),
    };
    println!(
        "{label:28} forward {:7.3} ms {}   backward {:7.3} ms {}",
        ahead * 1e3,
        rate(1.0, ahead),
        back * 1e3,
        rate(2.5, back),
    );
}

fn main() {
    println!("{} threads", rayon::current_num_threads());
    let dims = |batch, queries, keys, heads, kv_heads, dim| Dims {
        batch,
        queries,
        keys,
        heads,
        kv_heads,
        dim,
        value_dim: dim,
    };
    for (batch, tokens, heads, kv_heads, dim) in [
        (8, 256, 4, 4, 64),
        (8, 16, 4, 4, 64),
        (4, 1024, 8, 2, 64),
        (1, 2048, 8, 8, 128),
    ] {
        measure(dims(batch, tokens, tokens, heads, kv_heads, dim), None);
    }
    measure(dims(1, 4096, 4096, 8, 8, 64), Some(256));
    for (batch, keys, heads, kv_heads) in [
        (1, 512, 8, 8),
        (1, 4096, 8, 8),
        (1, 4096, 8, 2),
        (1, 32768, 8, 8),
        (8, 1024, 8, 2),
    ] {
        measure(dims(batch, 1, keys, heads, kv_heads, 64), None);
    }
}
