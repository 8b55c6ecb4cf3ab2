//! Scans along time over any associative operation:
//!
//! ```text
//! y_t = y_{t-1} * x_t        y_{-1} the initial state; where a reset stands, y_t = x_t
//! ```
//!
//! An element is one or more tensors [B, T, ..], a [`Monoid`] says what `*` does with them. Because it is
//! associative, T elements need log2 T rounds of tensor operations, on any device and with gradients of any order:
//! [`scan`]. [`fold`] goes token by token: the truth. The gated recurrence h_t = exp(g_t) h_{t-1} + x_t also has a
//! kernel: [`gated`].

mod gated;
#[cfg(test)]
mod tests;

use weft_tensor::{Result, Tensor};

pub use gated::{Gated, gated};

/// An associative operation on elements of some tensors each.
pub trait Monoid {
    /// `older * newer`, element by element; the tensors are [B, n, ..].
    fn combine(&self, older: &[Tensor], newer: &[Tensor]) -> Result<Vec<Tensor>>;
}

/// Where a scan starts and where it forgets.
#[derive(Clone, Copy, Default)]
pub struct Options<'a> {
    /// The element before the first: tensors [B, ..].
    pub initial: Option<&'a [Tensor]>,
    /// u8 [B, T]: 1 where everything before is forgotten.
    pub resets: Option<&'a Tensor>,
    /// From the last token to the first; `initial` then stands behind the last.
    pub reverse: bool,
}

/// All y_t [B, T, ..] in log2 T rounds, in each of which the reach of every element doubles.
pub fn scan<M: Monoid>(m: &M, x: &[Tensor], options: &Options) -> Result<Vec<Tensor>> {
    let x = turned(x, options.reverse)?;
    let mut resets = options.resets.cloned();
    if let (Some(r), true) = (&resets, options.reverse) {
        resets = Some(r.flip(1)?);
    }
    let mut y = x;
    let tokens = y.first().map_or(Ok(0), |x| x.dim(1))?;
    let mut reach = 1;
    while reach < tokens {
        let rest = tokens - reach;
        let part = |all: &[Tensor], from| -> Result<Vec<Tensor>> {
            all.iter().map(|x| x.narrow(1, from, rest)).collect()
        };
        let (older, newer) = (part(&y, 0)?, part(&y, reach)?);
        let mut joined = m.combine(&older, &newer)?;
        if let Some(r) = &resets {
            joined = choose(&r.narrow(1, reach, rest)?, &newer, &joined)?;
            let (before, own) = (r.narrow(1, 0, rest)?, r.narrow(1, reach, rest)?);
            resets = Some(Tensor::cat(
                &[&r.narrow(1, 0, reach)?, &either(&before, &own)?],
                1,
            )?);
        }
        y = y
            .iter()
            .zip(&joined)
            .map(|(y, joined)| Tensor::cat(&[&y.narrow(1, 0, reach)?, joined], 1))
            .collect::<Result<_>>()?;
        reach *= 2;
    }
    if let Some(initial) = options.initial {
        let before = y
            .iter()
            .zip(initial)
            .map(|(y, s)| s.unsqueeze(1)?.broadcast_to(y.shape()))
            .collect::<Result<Vec<_>>>()?;
        let joined = m.combine(&before, &y)?;
        // By now a token's flag says whether it or any before it is a reset.
        y = match &resets {
            Some(r) => choose(r, &y, &joined)?,
            None => joined,
        };
    }
    turned(&y, options.reverse)
}

/// The same, token by token.
pub fn fold<M: Monoid>(m: &M, x: &[Tensor], options: &Options) -> Result<Vec<Tensor>> {
    let tokens = x.first().map_or(Ok(0), |x| x.dim(1))?;
    let mut outputs: Vec<Vec<Tensor>> = vec![vec![]; x.len()];
    let mut running = match options.initial {
        Some(initial) => Some(
            initial
                .iter()
                .map(|s| s.unsqueeze(1))
                .collect::<Result<Vec<_>>>()?,
        ),
        None => None,
    };
    for n in 0..tokens {
        let t = if options.reverse { tokens - 1 - n } else { n };
        let own = x
            .iter()
            .map(|x| x.narrow(1, t, 1))
            .collect::<Result<Vec<_>>>()?;
        let mut y = match &running {
            Some(running) => m.combine(running, &own)?,
            None => own.clone(),
        };
        if let Some(r) = options.resets {
            y = choose(&r.narrow(1, t, 1)?, &own, &y)?;
        }
        outputs
            .iter_mut()
            .zip(&y)
            .for_each(|(all, y)| all.push(y.clone()));
        running = Some(y);
    }
    let whole = |mut all: Vec<Tensor>| {
        if options.reverse {
            all.reverse();
        }
        Tensor::cat(&all.iter().collect::<Vec<_>>(), 1)
    };
    outputs.into_iter().map(whole).collect()
}

/// Flags that are set in one or the other.
fn either(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    a.where_cond(a, b)
}

fn turned(x: &[Tensor], reverse: bool) -> Result<Vec<Tensor>> {
    let turn = |x: &Tensor| if reverse { x.flip(1) } else { Ok(x.clone()) };
    x.iter().map(turn).collect()
}

/// `a` where the flags [B, n] are set, `b` elsewhere; tensors [B, n, ..].
fn choose(flags: &Tensor, a: &[Tensor], b: &[Tensor]) -> Result<Vec<Tensor>> {
    let one = |(a, b): (&Tensor, &Tensor)| {
        let mut flags = flags.clone();
        while flags.rank() < a.rank() {
            flags = flags.unsqueeze(-1)?;
        }
        flags.where_cond(a, b)
    };
    a.iter().zip(b).map(one).collect()
}
