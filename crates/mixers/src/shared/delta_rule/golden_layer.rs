//! Golden vectors of whole layers, for the tests of the mixers.

use std::collections::BTreeMap;

use serde_json::Value;
use weft_tensor::{DType, Tensor, grad};

use crate::error::{Error, Result};
use crate::golden::{Case, assert_close};
use crate::laws::test_device;
use crate::mixer::Call;
use crate::params::{Params, Scope};
use crate::registry::{Entry, Options};

/// A case's parameters under the names of the checkpoint layout; `rename` maps (name in the file, tensor) to
/// them.
type Rename<'a> = &'a dyn Fn(&str, &Tensor) -> Result<Vec<(String, Tensor)>>;

/// The names in the file are those of the layout.
pub fn same_names(name: &str, x: &Tensor) -> Result<Vec<(String, Tensor)>> {
    Ok(vec![(name.to_string(), x.clone())])
}

fn renamed(case: &Case, prefix: &str, rename: Rename) -> Result<BTreeMap<String, Tensor>> {
    let mut all = BTreeMap::new();
    for (name, x) in case.with_prefix(prefix) {
        all.extend(rename(name, x)?);
    }
    Ok(all)
}

/// Output, final state and all gradients of sum(y w_y), in f64 and f32, against `want` (the name of the output).
pub fn check(
    entry: &Entry,
    case: &Case,
    settings: Value,
    rename: Rename,
    want: &str,
) -> Result<()> {
    let mut values = renamed(case, "param.", rename)?;
    let gradients = renamed(case, "grad.", rename)?;
    // What is a parameter here but an input in the file stands there under its own name.
    for name in gradients.keys().filter(|n| *n != "x") {
        if let Some(x) = case.optional(name) {
            values.insert(name.clone(), x.clone());
        }
    }
    let options = Options::new(case.number("hidden")? as usize, settings);
    let device = test_device();
    for dtype in [DType::F64, DType::F32] {
        let source = |name: &str, _: &[usize]| match values.get(name) {
            Some(x) => Ok(x.to_dtype(dtype)?.to_device(&device)?),
            None => Err(Error::config(
                &case.label,
                format!("has no parameter {name:?}"),
            )),
        };
        let mut params = Params::new();
        let mixer = (entry.build)(
            &options,
            &mut Scope::from_source(&mut params, &source, &device),
        )?;
        assert_eq!(
            params.len(),
            values.len(),
            "{}: parameters that the layer does not have",
            case.label
        );

        let x = case
            .tensor("x")?
            .to_dtype(dtype)?
            .to_device(&device)?
            .detach()
            .requires_grad()?;
        let mut state = mixer.init_state(x.dim(0)?, dtype)?;
        let y = mixer.forward(&x, &mut state, &Call::default())?;
        let label = |name: &str| format!("{} {dtype}: {name}", case.label);
        // The file holds f32 roundings of an f64 run.
        let tolerance = case.number("tolerance")?;
        assert_close(&label(want), &y, case.tensor(want)?, tolerance);
        if let Some(last) = case.optional("final_state") {
            assert_close(&label("final_state"), state.get("state")?, last, tolerance);
        }
        if want != "y" {
            continue;
        }
        let weights = case.tensor("w_y")?.to_dtype(dtype)?.to_device(&device)?;
        let loss = y.mul(&weights)?.sum_all()?;
        let (mut names, mut leaves) = (vec!["x"], vec![x]);
        names.extend(params.iter().map(|p| p.name()));
        leaves.extend(params.iter().map(|p| p.get()));
        let grads = grad(&[&loss], None, &leaves.iter().collect::<Vec<_>>(), false)?;
        for (name, g) in names.into_iter().zip(grads) {
            let Some(want) = gradients.get(name) else {
                return Err(Error::config(
                    &case.label,
                    format!("has no gradient {name:?}"),
                ));
            };
            let g =
                g.ok_or_else(|| Error::config(&case.label, format!("{name} got no gradient")))?;
            // Sums over all tokens of terms that nearly cancel: f32 keeps fewer digits of them.
            let tolerance = if dtype == DType::F64 {
                tolerance
            } else {
                10.0 * tolerance
            };
            assert_close(&label(&format!("grad.{name}")), &g, want, tolerance);
        }
    }
    Ok(())
}
