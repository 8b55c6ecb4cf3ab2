//! The two ceilings of a GPU, and how near the primitives come: `cargo run --release --example gpu_bench`.
//! Copy bandwidth counts bytes read plus bytes written. Each line is the median of many runs, timed by events,
//! over inputs larger than the L2 cache. Run the parity tests first: a wrong kernel has no speed.

use weft_tensor::{DType, Device, Result, Rng, Tensor, cuda, grad};

fn products(c: &cuda::Context, d: &Device) -> Result<()> {
    let mut rng = Rng::new(1);
    for (dtype, n) in [
        (DType::BF16, 8192),
        (DType::BF16, 4096),
        (DType::BF16, 2048),
        (DType::F32, 4096),
        (DType::F64, 4096),
    ] {
        // A small random block, repeated: drawing 2^26 numbers on the host takes longer than all the rest.
        let block = |rng: &mut Rng| {
            rng.normal(&[1024, 1024], 0.0, 1.0, dtype, d)?
                .repeat(&[n / 1024, n / 1024])
        };
        let (a, b) = (block(&mut rng)?, block(&mut rng)?);
        let flops = 2.0 * (n as f64).powi(3);
        for (name, x, y) in [
            ("A B", a.clone(), b.clone()),
            ("A B^T", a.clone(), b.transpose(0, 1)?),
            ("A^T B", a.transpose(0, 1)?, b.clone()),
        ] {
            let ms = c.median_ms(|| x.matmul(&y).map(drop))?;
            println!(
                "matmul {dtype:<5} {n}^3 {name:<6} {ms:8.3} ms {:8.1} TFLOP/s",
                flops / ms / 1e9
            );
        }
    }
    Ok(())
}

/// A primitive over prepared inputs.
type Run<'a> = Box<dyn Fn() -> Result<()> + 'a>;

fn primitives(c: &cuda::Context, d: &Device, dtype: DType, copy: f64) -> Result<()> {
    let (rows, n) = (32_768, 4096);
    let size = dtype.size() as f64;
    let whole = (rows * n) as f64 * size;
    let block = Rng::new(2).normal(&[256, n], 0.0, 1.0, dtype, d)?;
    let x = block.repeat(&[rows / 256, 1])?;
    let y = x.mul_scalar(0.5)?;
    let z = x.mul_scalar(0.25)?;
    let w = Tensor::ones(&[n], dtype, d);
    let targets = Rng::new(3).integers(&[rows], 0, n as i64, d)?;
    let ids = Rng::new(4).integers(&[rows], 0, 50_000, d)?;
    let zero_table = Tensor::zeros(&[1, 1], dtype, d).broadcast_to(&[50_000, n])?;
    let table = Tensor::ones(&[50_000, n], dtype, d);
    let heads = x.reshape(&[8, 4096, 32, 128])?;
    let conv_x = x.reshape(&[8, 4096, n])?;
    let conv_w = Tensor::ones(&[n, 4], dtype, d);
    let small = x.narrow(0, 0, 4096)?.contiguous()?;
    let backward = |y: &Tensor, inputs: &[&Tensor], g: &Tensor| {
        grad(&[y], Some(std::slice::from_ref(g)), inputs, false).map(drop)
    };
    let (lx, ly, lw) = (x.requires_grad()?, y.requires_grad()?, w.requires_grad()?);
    let normed = lx.rms_norm(&lw, 1e-5)?;
    let gated = lx.silu_mul(&ly)?;
    let loss = lx.cross_entropy(&targets)?;
    let ones = Tensor::ones(&[rows], dtype, d);
    let (lc, lcw) = (conv_x.requires_grad()?, conv_w.requires_grad()?);
    let conved = lc.conv1d_silu(&lcw)?;
    let conv_g = conv_x.narrow(1, 3, 4093)?.contiguous()?;
    let step = |f: Result<Tensor>| f.map(drop);
    let list: Vec<(&str, f64, Run)> = vec![
        ("copy", 2.0, Box::new(|| step(x.affine(1.0, 0.0)))),
        ("exp", 2.0, Box::new(|| step(x.exp()))),
        ("silu", 2.0, Box::new(|| step(x.silu()))),
        ("add", 3.0, Box::new(|| step(x.add(&y)))),
        ("mul by a row", 2.0, Box::new(|| step(x.mul(&w)))),
        (
            "cast f32 <-> bf16",
            1.0 + if dtype == DType::F32 { 0.5 } else { 2.0 },
            Box::new(|| {
                step(x.to_dtype(if dtype == DType::F32 {
                    DType::BF16
                } else {
                    DType::F32
                }))
            }),
        ),
        (
            "transpose",
            2.0,
            Box::new(|| step(x.transpose(0, 1)?.contiguous())),
        ),
        (
            "permute heads",
            2.0,
            Box::new(|| step(heads.transpose(1, 2)?.contiguous())),
        ),
        ("cat", 4.0, Box::new(|| step(Tensor::cat(&[&x, &y], 1)))),
        ("sum of rows", 1.0, Box::new(|| step(x.sum(&[1], false)))),
        ("sum of columns", 1.0, Box::new(|| step(x.sum(&[0], false)))),
        ("sum of all", 1.0, Box::new(|| step(x.sum_all()))),
        ("max of rows", 1.0, Box::new(|| step(x.max(1, false)))),
        ("argmax of rows", 1.0, Box::new(|| step(x.argmax(1, false)))),
        ("softmax", 2.0, Box::new(|| step(x.softmax(1)))),
        ("cumsum of rows", 2.0, Box::new(|| step(x.cumsum(1)))),
        ("cumsum of columns", 2.0, Box::new(|| step(x.cumsum(0)))),
        (
            "argsort of 4096 rows",
            1.0 / 8.0 * (1.0 + 8.0 / size),
            Box::new(|| step(small.argsort(1, false))),
        ),
        ("embedding", 2.0, Box::new(|| step(table.embedding(&ids)))),
        (
            "embedding gradient",
            1.0 + 1.53,
            Box::new(|| step(zero_table.index_add(0, &ids, &x))),
        ),
        ("rms_norm", 2.0, Box::new(|| step(x.rms_norm(&w, 1e-5)))),
        (
            "rms_norm back",
            3.0,
            Box::new(|| backward(&normed, &[&lx, &lw], &y)),
        ),
        ("silu_mul", 3.0, Box::new(|| step(x.silu_mul(&y)))),
        (
            "silu_mul back",
            5.0,
            Box::new(|| backward(&gated, &[&lx, &ly], &z)),
        ),
        (
            "cross_entropy",
            1.0,
            Box::new(|| step(x.cross_entropy(&targets))),
        ),
        (
            "cross_entropy back",
            2.0,
            Box::new(|| backward(&loss, &[&lx], &ones)),
        ),
        (
            "conv1d_silu",
            2.0,
            Box::new(|| step(conv_x.conv1d_silu(&conv_w))),
        ),
        (
            "conv1d_silu back",
            3.0,
            Box::new(|| backward(&conved, &[&lc, &lcw], &conv_g)),
        ),
    ];
    for (name, passes, run) in &list {
        let ms = c.median_ms(run)?;
        let rate = passes * whole / ms / 1e6;
        println!(
            "{dtype:<5} {name:<22} {ms:8.3} ms {rate:8.0} GB/s {:5.0}% of copy",
            100.0 * rate / copy
        );
    }
    Ok(())
}

/// Host time of one launch when the GPU is never waited for.
fn launches(c: &cuda::Context, d: &Device) -> Result<()> {
    let x = Tensor::ones(&[1024], DType::F32, d);
    let mut host = vec![];
    for _ in 0..9 {
        let start = std::time::Instant::now();
        for _ in 0..1000 {
            x.add(&x)?;
        }
        host.push(start.elapsed().as_secs_f64() * 1e3);
        c.synchronize("bench")?;
    }
    host.sort_by(f64::total_cmp);
    println!("one small add: {:.2} us of host time", host[4]);
    Ok(())
}

fn main() -> Result<()> {
    let d = match Device::cuda(0) {
        Ok(d) => d,
        Err(reason) => {
            println!("{reason}");
            return Ok(());
        }
    };
    let c = cuda::context(0)?;
    println!(
        "{} (sm_{}), {} multiprocessors, {} MiB",
        c.name,
        c.arch,
        c.multiprocessors,
        c.total_memory >> 20
    );
    let n = 1usize << 30;
    let x = Tensor::ones(&[n], DType::F32, &d);
    let ms = c.median_ms(|| x.add_scalar(0.0).map(drop))?;
    let copy = 2.0 * 4.0 * n as f64 / ms / 1e6;
    println!("copy of 4 GiB {ms:8.3} ms {copy:8.0} GB/s");
    drop(x);
    launches(c, &d)?;
    products(c, &d)?;
    for dtype in [DType::BF16, DType::F32] {
        primitives(c, &d, dtype, copy)?;
    }
    let u = cuda::memory::usage(0)?;
    println!("{u:?}");
    Ok(())
}
