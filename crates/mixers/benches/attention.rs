//! Speed of the attention kernels and of the rotary positions: `cargo bench -p weft-mixers --bench attention`.
//!
//! Counts the products of the visible half of the scores (2 operations to a multiply-add): 2 B Hq T S D forward,
//! 5 B Hq T S D backward with the recomputed scores. A decoding step and a rotation are counted in bytes: those of
//! the cache that is read, and those of x and y.

use std::time::Instant;

use weft_mixers::shared::flash::{Dims, Gradients, Keys, Mask, backward, forward};
use weft_mixers::shared::rope::{Layout, Rotary};
use weft_tensor::{Device, Tensor, grad, in_pool};

/// The median of repeated runs, in seconds.
fn median(mut f: impl FnMut()) -> f64 {
    f();
    let mut times: Vec<f64> = (0..31)
        .map(|_| {
            let start = Instant::now();
            f();
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
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
fn attention(dims: Dims, window: Option<i64>) {
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
    let ahead = median(|| forward(&dims, &mask, scale, (&q, &k, &v), &mut out, &mut lse));
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
    let back = median(|| {
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

/// Rotation of x [B, T, H, D] and of its gradient; the angles are asked for in every call, as a layer does.
fn rope([batch, tokens, heads, dim]: [usize; 4], layout: Layout) {
    let shape = [batch, tokens, heads, dim];
    let count = shape.iter().product();
    let leaf = |seed| {
        let x = Tensor::from_vec(numbers(count, seed), &shape, &Device::Cpu);
        x.and_then(|x| x.requires_grad()).expect("a leaf")
    };
    let (x, g) = (leaf(1), leaf(2).detach());
    let starts = vec![1000; batch];
    let rotary = Rotary::new(dim, 1e4, layout);
    let table = || rotary.table(&starts, None, tokens, &x).expect("angles");
    let ahead = median(|| {
        table().rotate(&x).expect("a rotation");
    });
    let y = table().rotate(&x).expect("a rotation");
    let back = median(|| {
        grad(&[&y], Some(std::slice::from_ref(&g)), &[&x], false).expect("a gradient");
    });
    let rate = |time: f64| 8e-9 * count as f64 / time;
    println!(
        "rope {layout:?} B{batch} T{tokens} H{heads} D{dim}: forward {:8.1} us {:5.1} GB/s   backward {:8.1} us {:5.1} GB/s",
        ahead * 1e6,
        rate(ahead),
        back * 1e6,
        rate(back),
    );
}

/// On a thread of the pool, as the commands run.
fn main() {
    in_pool(run);
}

fn run() {
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
        attention(dims(batch, tokens, tokens, heads, kv_heads, dim), None);
    }
    attention(dims(1, 4096, 4096, 8, 8, 64), Some(256));
    for (batch, keys, heads, kv_heads) in [
        (1, 100, 8, 8),
        (1, 1000, 8, 8),
        (1, 10_000, 8, 8),
        (1, 10_000, 8, 2),
        (8, 1000, 8, 2),
    ] {
        attention(dims(batch, 1, keys, heads, kv_heads, 64), None);
    }
    for layout in [Layout::Half, Layout::Adjacent] {
        rope([8, 256, 4, 64], layout);
        rope([1, 1, 8, 64], layout);
    }
}
