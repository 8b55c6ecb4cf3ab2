//! Forget gates with a lower bound that grows with depth (Qin et al. 2023, arXiv 2311.04823): low layers may forget
//! at once, high ones must remember.
//!
//! ```text
//! lb_l  = cumsum over layers of softmax over layers of the table, at layer l, minus its first row      [D]
//! exp g = lb + (1 - lb) sigmoid(f)            1 - exp g = (1 - lb) sigmoid(-f)
//! ```
//!
//! The table `lower_bounds` [layers, D] belongs to the model; layer 0 has no bound.

use serde::Deserialize;
use weft_tensor::Tensor;

use crate::error::Result;
use crate::params::{Init, Param, Scope};
use crate::registry::Options;
use crate::state::state_dtype;

/// Decay factors below this count as this, so that their logarithm and its gradient stay finite in f32.
const SMALLEST: f64 = 1e-37;

/// Where a layer's bound comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    /// No bound.
    None,
    /// The model's table; without effect in layer 0 and in a layer that stands alone.
    Shared,
    /// The layer's own parameter `lower_bound` [D], between 0 and 1: a trained model's table folded into its layers.
    Own,
}

/// A layer's forget gate.
pub enum ForgetGate {
    /// g = logsigmoid(f).
    Free,
    /// With the model's table [layers, D], in this layer.
    Shared(Param, usize),
    /// With a bound [D].
    Own(Param),
}

impl ForgetGate {
    /// The gate of a layer of `width` channels.
    pub fn new(
        scope: &mut Scope,
        bound: Bound,
        options: &Options,
        width: usize,
    ) -> Result<ForgetGate> {
        Ok(match bound {
            Bound::Shared if (1..options.layers).contains(&options.layer) => {
                let shape = [options.layers, width];
                let table = scope.shared("lower_bounds", &shape, Init::Const(0.0))?;
                ForgetGate::Shared(table, options.layer)
            }
            Bound::Own => {
                // What an untrained table gives.
                let start = options.layer as f64 / options.layers.max(1) as f64;
                ForgetGate::Own(scope.vector("lower_bound", &[width], Init::Const(start))?)
            }
            Bound::None | Bound::Shared => ForgetGate::Free,
        })
    }

    /// The bound [D], if there is one.
    fn bound(&self) -> Result<Option<Tensor>> {
        Ok(match self {
            ForgetGate::Free => None,
            ForgetGate::Own(bound) => Some(bound.get().clamp(0.0, 1.0)?),
            ForgetGate::Shared(table, layer) => {
                let shares = table.get().softmax(0)?;
                Some(shares.narrow(0, 1, *layer)?.sum(&[0], false)?)
            }
        })
    }

    /// Log decays g and 1 - exp g of logits f [B, T, D], both in the dtype of states.
    pub fn forward(&self, f: &Tensor) -> Result<(Tensor, Tensor)> {
        let dtype = state_dtype(f.dtype());
        let f = f.to_dtype(dtype)?;
        let open = f.neg()?.sigmoid()?;
        let Some(bound) = self.bound()? else {
            return Ok((f.log_sigmoid()?, open));
        };
        let bound = bound.to_dtype(dtype)?;
        let rest = bound.affine(-1.0, 1.0)?;
        let factor = f.sigmoid()?.mul(&rest)?.add(&bound)?;
        Ok((factor.clamp(SMALLEST, 1.0)?.ln()?, open.mul(&rest)?))
    }
}

#[cfg(test)]
mod tests {
    use weft_tensor::{DType, Device};

    use super::*;
    use crate::params::Params;

    #[test]
    fn bounds_of_a_model_grow_from_0_and_stay_below_1() {
        let mut params = Params::new();
        let mut scope = Scope::random(&mut params, 1, DType::F64, &Device::Cpu);
        let layers = 4;
        let gates: Vec<ForgetGate> = (0..layers)
            .map(|l| {
                let options = Options::default().at(l, layers);
                ForgetGate::new(&mut scope.sub("mixer"), Bound::Shared, &options, 2).unwrap()
            })
            .collect();
        assert_eq!(params.len(), 1, "the table is one parameter");
        let table = params.get("lower_bounds").unwrap();
        let values = vec![0.3, -2.0, 1.0, 0.5, -0.7, 0.1, 2.0, -1.0];
        table
            .set(&Tensor::from_vec(values, &[layers, 2], &Device::Cpu).unwrap())
            .unwrap();
        assert!(gates[0].bound().unwrap().is_none());
        let mut before = vec![0.0; 2];
        for gate in &gates[1..] {
            let bound = gate.bound().unwrap().unwrap().to_vec::<f64>().unwrap();
            assert!(
                bound.iter().zip(&before).all(|(b, a)| b > a && *b < 1.0),
                "{bound:?}"
            );
            before = bound;
        }
    }

    #[test]
    fn a_closed_gate_has_finite_logarithms_and_gradients() {
        for bound in [Bound::None, Bound::Own] {
            let mut params = Params::new();
            let mut scope = Scope::random(&mut params, 1, DType::F32, &Device::Cpu);
            let gate = ForgetGate::new(&mut scope, bound, &Options::default(), 1).unwrap();
            let f = Tensor::full(&[1, 1, 1], -500.0, DType::F32, &Device::Cpu);
            let f = f.requires_grad().unwrap();
            let (g, open) = gate.forward(&f).unwrap();
            let loss = g.add(&open).unwrap().sum_all().unwrap();
            let slope = loss.backward().unwrap().get(&f).unwrap();
            assert!(
                loss.all_finite().unwrap() && slope.all_finite().unwrap(),
                "{bound:?}"
            );
        }
    }
}
