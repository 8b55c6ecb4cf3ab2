//! The optimiser's step over square matrices. AdamW moves parameter, gradient and two moments: 28 bytes per parameter,
//! and 4 more for the norm of the gradients. Muon orthogonalises a momentum, in five Newton-Schulz steps of three
//! products each.

use weft_mixers::{Init, Params, Scope};
use weft_tensor::{DType, Device, Tensor};

use super::case::{Case, Work};
use super::input;
use crate::error::Result;
use crate::optim::{Grads, Optimizer};
use crate::recipe;

/// Newton-Schulz steps times products in each.
const PRODUCTS: f64 = 15.0;

/// The rule of training rows too; a small rate, so that nothing runs away.
pub(super) fn adamw() -> recipe::AdamW {
    recipe::AdamW {
        lr: 1e-4,
        betas: [0.9, 0.95],
        eps: 1e-8,
        weight_decay: 0.1,
    }
}

/// Steps of `count` matrices [n, n] along the same gradients, shortened to a norm if `clip`.
fn steps(
    rule: &recipe::Optimizer,
    [count, n]: [usize; 2],
    clip: bool,
    device: &Device,
) -> Result<Work> {
    let mut params = Params::new();
    let mut scope = Scope::random(&mut params, 1, DType::F32, device);
    for i in 0..count {
        scope.weight(&format!("w{i}.weight"), &[n, n], Init::Const(0.02))?;
    }
    let grad = |i| input::activations(i as u64, &[n, n], DType::F32, device);
    let grads = (0..count).map(|i| grad(i).map(Some));
    let grads = Grads::from_vec(grads.collect::<Result<_>>()?);
    let mut optimizer = Optimizer::new(&params, rule)?;
    let loss = Tensor::ones(&[], DType::F32, device);
    Ok(Box::new(move || {
        if clip {
            optimizer.clipped_step(&grads, &loss, 1.0, 1, 1.0)?;
        } else {
            optimizer.step(&grads, 1.0, 1.0)?;
        }
        Ok(params.iter().map(|p| p.get()).collect())
    }))
}

/// 134 million parameters on a GPU, 16 million on a CPU: more than caches hold. Fewer for Muon.
pub(super) fn cases(device: &Device) -> Vec<Case> {
    let (large, small) = match device {
        Device::Cuda(_) => ([128, 1024], [32, 1024]),
        _ => ([16, 1024], [4, 256]),
    };
    let muon = recipe::Muon {
        adamw: adamw(),
        muon_lr: 1e-4,
        muon_momentum: 0.95,
    };
    let adamw = recipe::Optimizer::AdamW(adamw());
    let muon = recipe::Optimizer::Muon(muon);
    let rows = [
        ("adamw", adamw.clone(), large, false, 28.0, 0.0),
        ("adamw, norm and clip", adamw, large, true, 32.0, 0.0),
        ("muon", muon, small, false, 20.0, PRODUCTS),
    ];
    let case = |(name, rule, [count, n], clip, bytes, products): (_, _, [usize; 2], _, _, _)| {
        let name: &str = name;
        let parameters = (count * n * n) as f64;
        Case {
            name: name.into(),
            shape: format!("{count} x [{n}, {n}]"),
            dtype: DType::F32,
            bytes: bytes * parameters,
            flops: products * 2.0 * n as f64 * parameters,
            prepare: Box::new(move |device| steps(&rule, [count, n], clip, device)),
        }
    };
    rows.map(case).into()
}
