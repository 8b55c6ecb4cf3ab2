//! The identity whose gradient is clamped: what keeps the gradient of a state from growing over many tokens.

use weft_tensor::{Context, Function, Result, Tensor, apply};

struct Clip(f64);

impl Function for Clip {
    fn name(&self) -> &'static str {
        "clip_gradient"
    }

    fn backward(&self, _: &Context, grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        let clamp = |g: &Tensor| g.clamp(-self.0, self.0);
        Ok(vec![grads[0].as_ref().map(clamp).transpose()?])
    }
}

/// x, with its gradient clamped element by element to [-limit, limit]; `None`: x.
pub fn clip_gradient(x: &Tensor, limit: Option<f64>) -> Tensor {
    match limit {
        // The output must be a tensor of its own: its edge is the clamp.
        Some(c) => {
            let [y] = apply(Clip(c), &[x], [x.detach()]);
            y
        }
        None => x.clone(),
    }
}
