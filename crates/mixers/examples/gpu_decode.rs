//! The decode step of the delta rule on a GPU beside an elementwise pass over the same bytes: `cargo run --release --example
//! gpu_decode`. The state [B, H, K, V] in f32 is read and written once.

use weft_mixers::shared::delta_rule::{Operands, delta_rule_step};
use weft_tensor::{DType, Device, Result, Rng, Tensor, cuda, no_grad};

const HEADS: usize = 32;

fn main() -> Result<()> {
    let gpu = Device::cuda(0)?;
    let c = cuda::context(0)?;
    let mut rng = Rng::new(1);
    println!("batch     K = V   us/step   GB/s   of that pass");
    for (batch, width) in [(1, 128), (32, 128), (256, 64), (256, 128), (128, 256)] {
        let mut draw = |shape: &[usize], dtype| {
            // One row of the batch, repeated: the numbers are drawn on the host.
            let row: Vec<usize> = [1].iter().chain(&shape[1..]).copied().collect();
            let x = rng.uniform(&row, -1.0, 0.0, DType::F32, &gpu)?;
            let mut times = vec![1; shape.len()];
            times[0] = shape[0];
            x.to_dtype(dtype)?.repeat(&times)
        };
        let mut x = Operands {
            qkv: draw(&[batch, 1, 3 * HEADS * width], DType::BF16)?,
            decay: Some(draw(&[batch, 1, HEADS, width], DType::F32)?),
            erase: draw(&[batch, 1, HEADS, width], DType::F32)?.neg()?,
            write: draw(&[batch, 1, HEADS, width], DType::F32)?.neg()?,
            state: draw(&[batch, HEADS, width, width], DType::F32)?,
        };
        let bytes = 2.0 * x.state.bytes() as f64;
        let source = x.state.add_scalar(1.0)?;
        let copy = c.median_ms(|| source.add_scalar(1.0).map(drop))?;
        let step = c.median_ms(|| {
            let nothing = Tensor::zeros(&[0], DType::F32, &Device::Cpu);
            let state = std::mem::replace(&mut x.state, nothing);
            let (_, state) = no_grad(|| delta_rule_step(Operands { state, ..x.clone() }))?;
            x.state = state;
            Ok(())
        })?;
        println!(
            "{batch:5} {width:9} {:9.1} {:6.0} {:9.0}%",
            1e3 * step,
            bytes / step / 1e6,
            100.0 * copy / step
        );
    }
    Ok(())
}
