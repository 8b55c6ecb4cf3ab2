//! Softmax attention as an infinite sum of linear recurrences, cut off at an order P: exact, and for small d only.
//!
//! ```text
//! exp(s) = sum_p s^p / p!        (q . k)^p = (q^(x)p) . (k^(x)p)        (x)p: p-fold Kronecker power, d^p numbers
//! H^p_t = H^p_{t-1} + k_t^(x)p v_t^T        Z^p_t = Z^p_{t-1} + k_t^(x)p
//! num_t = sum_p c_p H^p_t^T q_t^(x)p        den_t = sum_p c_p Z^p_t . q_t^(x)p        c_p = 1 / (p! d^(p/2))
//! ```

use weft_tensor::Tensor;

use crate::error::{Error, Result};

/// Numbers of one order's state at most.
const LARGEST: usize = 1 << 22;

/// The terms of every order.
pub struct Terms {
    /// [T, P + 1, d_v], c_p included.
    pub numerators: Tensor,
    /// [T, P + 1, 1]
    pub denominators: Tensor,
}

impl Terms {
    /// Softmax attention up to an order, [T, d_v]. Of odd orders the denominator may be 0 or negative: use even ones, or
    /// the norm of the numerator.
    pub fn softmax(&self, order: usize) -> Result<Tensor> {
        Ok(self
            .numerator(order)?
            .div(&up_to(&self.denominators, order)?)?)
    }

    /// The numerator up to an order, [T, d_v].
    pub fn numerator(&self, order: usize) -> Result<Tensor> {
        up_to(&self.numerators, order)
    }
}

fn up_to(terms: &Tensor, order: usize) -> Result<Tensor> {
    Ok(terms.narrow(1, 0, order + 1)?.sum(&[1], false)?)
}

/// Runs the recurrences of the orders 0 .. `order` over q, k [T, d] and v [T, d_v]. Errors if a state would be larger
/// than 4 million numbers.
pub fn kronecker(q: &Tensor, k: &Tensor, v: &Tensor, order: usize) -> Result<Terms> {
    let ([tokens, d], [t, dk], [tv, dv]) = (q.dims()?, k.dims()?, v.dims()?);
    let size = d
        .checked_pow(order as u32)
        .and_then(|n| n.checked_mul(dv + 1));
    if (t, tv, dk) != (tokens, tokens, d) || size.is_none_or(|n| n > LARGEST) {
        let detail = format!(
            "q {:?}, k {:?}, v {:?} at order {order}: expected [T, d], [T, d], [T, d_v] and d^order (d_v + 1) <= {LARGEST}",
            q.shape(),
            k.shape(),
            v.shape()
        );
        return Err(Error::config("kronecker", detail));
    }
    let power = |x: &Tensor| x.reshape(&[x.count(), 1]);
    let zeros = |rows, columns| Tensor::zeros(&[rows, columns], q.dtype(), &q.device());
    let mut states: Vec<(Tensor, Tensor)> = (0..=order)
        .map(|p| (zeros(d.pow(p as u32), dv), zeros(d.pow(p as u32), 1)))
        .collect();
    let (mut numerators, mut denominators) = (vec![], vec![]);
    for t in 0..tokens {
        let [q_t, k_t, v_t] = [q, k, v].map(|x| x.narrow(0, t, 1));
        let (q_t, k_t, v_t) = (q_t?, k_t?, v_t?);
        let one = Tensor::ones(&[1, 1], q.dtype(), &q.device());
        let (mut qp, mut kp, mut c) = (one.clone(), one, 1.0);
        for (p, (h, z)) in states.iter_mut().enumerate() {
            if p > 0 {
                // The next Kronecker power is the outer product with the vector, flattened.
                (qp, kp) = (power(&qp.mul(&q_t)?)?, power(&kp.mul(&k_t)?)?);
                c /= p as f64 * (d as f64).sqrt();
            }
            *h = h.add(&kp.mul(&v_t)?)?;
            *z = z.add(&kp)?;
            let turned = qp.transpose(0, 1)?.mul_scalar(c)?;
            numerators.push(turned.matmul(h)?);
            denominators.push(turned.matmul(z)?);
        }
    }
    let join = |parts: &[Tensor], width| {
        Tensor::cat(&parts.iter().collect::<Vec<_>>(), 0)?.reshape(&[tokens, order + 1, width])
    };
    Ok(Terms {
        numerators: join(&numerators, dv)?,
        denominators: join(&denominators, 1)?,
    })
}
