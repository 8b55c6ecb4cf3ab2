//! Few rows times a weight that lies in memory, not in the cache: through gemm, and as `Tensor::linear` does it up to
//! `cpu::linear::FEW_ROWS`. `cargo bench -p weft-tensor --bench linear`

use std::time::Instant;

use weft_tensor::{DType, Device, Result, Rng, Tensor, in_pool, no_grad};

/// Elements of all weights of a shape together: 256 MB in f32, eight times a large cache.
const ELEMENTS: usize = 1 << 26;

/// Microseconds of one product, the best of five passes over the weights.
fn best(weights: &[Tensor], mut f: impl FnMut(&Tensor) -> Result<Tensor>) -> Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let begin = Instant::now();
        for w in weights {
            f(w)?;
        }
        best = best.min(begin.elapsed().as_secs_f64() * 1e6 / weights.len() as f64);
    }
    Ok(best)
}

fn rows() -> Result<()> {
    let mut rng = Rng::new(1);
    println!("weight       rows   gemm f32   linear f32   gemm bf16   linear bf16, us");
    for [n, k] in [[512, 512], [1376, 512], [2048, 2048]] {
        let draw = |_| rng.uniform(&[n, k], -1.0, 1.0, DType::F32, &Device::Cpu);
        let wide: Vec<Tensor> = (0..ELEMENTS / (n * k)).map(draw).collect::<Result<_>>()?;
        let narrow = wide.iter().map(|w| w.to_dtype(DType::BF16));
        let narrow: Vec<Tensor> = narrow.collect::<Result<_>>()?;
        for rows in [1, 2, 4, 8, 16, 32, 48] {
            let x = rng.uniform(&[rows, k], -1.0, 1.0, DType::F32, &Device::Cpu)?;
            let gemm = |w: &Tensor| x.matmul(&w.to_dtype(DType::F32)?.transpose(0, 1)?);
            let linear = |w: &Tensor| x.linear(w, None);
            let times = [
                best(&wide, gemm)?,
                best(&wide, linear)?,
                best(&narrow, gemm)?,
                best(&narrow, linear)?,
            ];
            let [a, b, c, d] = times;
            println!("{n:4} x {k:4} {rows:6} {a:10.1} {b:12.1} {c:11.1} {d:13.1}");
        }
    }
    Ok(())
}

fn main() -> Result<()> {
    in_pool(|| no_grad(rows))
}
