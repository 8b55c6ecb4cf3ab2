//! Speed of the sequential scans: `cargo bench -p weft-mixers --bench recurrent`; the peer of every line is
//! `benches/peers/recurrent.py`.
//!
//! Each recurrence alone, without the projections around it: forward, and forward with backward. "plain" is the
//! same recurrence token by token in tensor operations with automatic differentiation.

use std::time::Instant;

use weft_mixers::m2rnn::{self, Clip, m2rnn};
use weft_mixers::rnn::Activation;
use weft_mixers::rnn::elman::Elman;
use weft_mixers::rnn::gru::{Gru, Reset};
use weft_mixers::rnn::lstm::{Gates, Lstm};
use weft_mixers::shared::recurrent::{Cell, How, Operands, recurrence, scan};
use weft_tensor::{DType, Device, Result, Rng, Tensor, grad, in_pool, no_grad};

/// Milliseconds of the fastest of `runs` calls.
fn fastest(runs: usize, mut f: impl FnMut() -> Result<()>) -> Result<f64> {
    f()?;
    let mut best = f64::INFINITY;
    for _ in 0..runs {
        let start = Instant::now();
        f()?;
        best = best.min(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok(best)
}

fn leaf(seed: u64, shape: &[usize], std: f64) -> Result<Tensor> {
    Rng::new(seed)
        .normal(shape, 0.0, std, DType::F32, &Device::Cpu)?
        .requires_grad()
}

/// One line: a recurrence in both forms.
fn line(
    name: &str,
    leaves: &[&Tensor],
    scan: &dyn Fn() -> Result<Tensor>,
    plain: &dyn Fn() -> Result<Tensor>,
) -> Result<()> {
    let mut times = vec![];
    for (runs, run) in [(10, scan), (3, plain)] {
        times.push(fastest(runs, || no_grad(run).map(drop))?);
        times.push(fastest(runs, || {
            grad(&[&run()?.sum_all()?], None, leaves, false).map(drop)
        })?);
    }
    let [ahead, both, plain_ahead, plain_both] = times[..] else {
        return Ok(());
    };
    println!(
        "{name:32} forward {ahead:8.2} ms, plain {plain_ahead:8.2}   with backward {both:8.2} ms, plain {plain_both:8.2}"
    );
    Ok(())
}

fn vector<C: Cell>(name: &str, cell: &C, [b, t]: [usize; 2]) -> Result<()> {
    let s = cell.sizes();
    let weights = [Some(s.first), s.second].into_iter().flatten().enumerate();
    let weights = weights
        .map(|(i, [n_in, n_out])| leaf(i as u64, &[1, n_out, n_in], 0.5 / (n_in as f64).sqrt()));
    let x = Operands {
        x: leaf(5, &[b, t, 1, s.input], 1.0)?,
        weights: weights.collect::<Result<_>>()?,
        params: (s.params > 0)
            .then(|| leaf(6, &[1, s.params], 0.1))
            .transpose()?,
        state: leaf(7, &[b, 1, s.state], 0.1)?,
    };
    let leaves: Vec<&Tensor> = std::iter::once(&x.x)
        .chain(&x.weights)
        .chain(&x.params)
        .chain([&x.state])
        .collect();
    let how = How::default();
    let name = format!("{name} B{b} T{t} H{}", s.output);
    line(&name, &leaves, &|| Ok(scan(cell, &x, &how)?.0), &|| {
        Ok(recurrence(cell, &x, &how)?.0)
    })
}

fn matrix([b, t, n, k, v]: [usize; 5]) -> Result<()> {
    let x = m2rnn::Operands {
        q: leaf(1, &[b, t, 1, k], 1.0)?,
        k: leaf(2, &[b, t, 1, k], 1.0)?,
        v: leaf(3, &[b, t, n, v], 1.0)?,
        f: leaf(4, &[b, t, n], 1.0)?
            .sigmoid()?
            .detach()
            .requires_grad()?,
        w: leaf(5, &[n, v, v], 0.5 / (v as f64).sqrt())?,
        state: leaf(6, &[b, n, k, v], 0.1)?,
        linear: false,
    };
    let leaves = [&x.q, &x.k, &x.v, &x.f, &x.w, &x.state];
    let clip = Clip::Carry(1.0);
    let name = format!("m2rnn B{b} T{t} N{n} K{k} V{v}");
    line(&name, &leaves, &|| Ok(m2rnn(&x, clip)?.0), &|| {
        Ok(m2rnn::recurrence(&x, clip)?.0)
    })
}

fn run() -> Result<()> {
    println!("{} threads", rayon::current_num_threads());
    for [b, t, n] in [[8, 256, 256], [1, 256, 256], [32, 256, 64]] {
        vector(
            "elman",
            &Elman {
                units: n,
                activation: Activation::Tanh,
                leak: 1.0,
            },
            [b, t],
        )?;
        vector(
            "gru",
            &Gru {
                units: n,
                reset: Reset::After,
            },
            [b, t],
        )?;
        let lstm = Lstm {
            units: n,
            gates: Gates::Both,
            peepholes: false,
            input_squash: Activation::Tanh,
            output_squash: Activation::Tanh,
        };
        vector("lstm", &lstm, [b, t])?;
    }
    matrix([8, 256, 16, 64, 16])?;
    matrix([1, 512, 84, 64, 16])
}

fn main() -> Result<()> {
    in_pool(run)
}
