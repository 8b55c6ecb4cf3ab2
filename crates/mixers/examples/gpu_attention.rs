//! Softmax attention on a GPU: `cargo run --release -p weft-mixers --example gpu_attention`. TFLOP/s of the causal forward
//! and backward pass in bf16, counting what the mask leaves (4 B H T^2 D / 2 forward, 2.5 times that backward), and GB/s
//! of one query over a full cache.

use weft_mixers::shared::flash::op::{KeyPositions, Visibility, attend};
use weft_tensor::{DType, Device, Result, Rng, Tensor, cuda, grad, no_grad};

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let gpu = Device::cuda(0)?;
    let c = cuda::context(0)?;
    println!("{}", c.name);
    let rng = &mut Rng::new(1);
    println!("   B     T  Hq Hkv   D   forward ms TFLOP/s   backward ms TFLOP/s");
    for (b, t, heads, kv_heads, d) in [
        (16, 1024, 12, 12, 64),
        (4, 4096, 16, 16, 64),
        (4, 4096, 16, 16, 128),
        (4, 4096, 16, 4, 128),
        (1, 16384, 16, 16, 128),
        (2, 4096, 8, 8, 256),
    ] {
        let mut leaf = |heads| draw(rng, &[b, t, heads, d], DType::BF16, &gpu)?.requires_grad();
        let (q, k, v) = (leaf(heads)?, leaf(kv_heads)?, leaf(kv_heads)?);
        let seed = leaf(heads)?.detach();
        let sees = causal(b, 0);
        let scale = (d as f64).powf(-0.5);
        let forward = || attend(&q, &k, &v, &sees, scale).map_err(weft_tensor_error);
        let there = median_ms(c, || forward().map(drop))?;
        let (o, _) = forward()?;
        let back = median_ms(c, || {
            grad(
                &[&o],
                Some(std::slice::from_ref(&seed)),
                &[&q, &k, &v],
                false,
            )
            .map(drop)
        })?;
        let tflop = 2.0 * (b * heads * t * t * d) as f64 / 1e12;
        println!(
            "{b:4} {t:5} {heads:3} {kv_heads:3} {d:3} {there:12.3} {:7.0} {back:13.3} {:7.0}",
            tflop / there * 1e3,
            2.5 * tflop / back * 1e3
        );
    }
    println!("   B      S  Hq Hkv   D dtype       us    GB/s");
    for (b, s, heads, kv_heads, d, dtype) in [
        (1, 131072, 32, 8, 128, DType::BF16),
        (8, 32768, 32, 8, 128, DType::BF16),
        (64, 8192, 32, 4, 128, DType::BF16),
        (32, 8192, 16, 16, 64, DType::BF16),
        (8, 32768, 16, 2, 256, DType::BF16),
        (8, 16384, 32, 8, 128, DType::F32),
    ] {
        let q = draw(rng, &[b, 1, heads, d], dtype, &gpu)?;
        let mut cache = || draw(rng, &[b, s, kv_heads, d], dtype, &gpu);
        let (k, v) = (cache()?, cache()?);
        let sees = causal(b, s as i64 - 1);
        let step = || no_grad(|| attend(&q, &k, &v, &sees, 0.1)).map_err(weft_tensor_error);
        let ms = median_ms(c, || step().map(drop))?;
        println!(
            "{b:4} {s:6} {heads:3} {kv_heads:3} {d:3} {dtype:5} {:8.1} {:7.0}",
            1e3 * ms,
            (k.bytes() + v.bytes()) as f64 / ms / 1e6
        );
    }
    Ok(())
}

/// Median milliseconds of `f` on the GPU over 21 runs, after three that pay for compilation and memory.
fn median_ms(c: &cuda::Context, mut f: impl FnMut() -> Result<()>) -> Result<f64> {
    (0..3).try_for_each(|_| f())?;
    let mut all = vec![];
    for _ in 0..21 {
        let start = c.record()?;
        f()?;
        all.push(f64::from(start.until(&c.record()?)?));
    }
    all.sort_by(f64::total_cmp);
    Ok(all[all.len() / 2])
}

fn weft_tensor_error(e: weft_mixers::Error) -> weft_tensor::Error {
    weft_tensor::Error::Custom(e.to_string())
}

/// Normal numbers: those of one sequence, repeated, as they are drawn on the host.
fn draw(rng: &mut Rng, shape: &[usize], dtype: DType, gpu: &Device) -> Result<Tensor> {
    let one: Vec<usize> = [1].iter().chain(&shape[1..]).copied().collect();
    let mut times = vec![1; shape.len()];
    times[0] = shape[0];
    let x = rng.normal(&one, 0.0, 1.0, DType::F32, gpu)?;
    x.to_dtype(dtype)?.repeat(&times)
}

fn causal(batch: usize, start: i64) -> Visibility {
    Visibility {
        query_start: vec![start; batch],
        keys: KeyPositions::Range(vec![0; batch]),
        window: None,
        sinks: 0,
    }
}
