//! Random numbers with an explicit seed. ChaCha8 gives the same numbers on every machine; the state can be
//! saved and restored, so a resumed run continues the same sequence.

use rand::{Rng as _, RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::dtype::DType;
use crate::error::Result;
use crate::storage::Device;
use crate::tensor::Tensor;

/// A seeded source of random numbers.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Rng(ChaCha8Rng);

impl Rng {
    /// A source for a seed.
    pub fn new(seed: u64) -> Rng {
        Rng(ChaCha8Rng::seed_from_u64(seed))
    }

    /// An independent source for a part of the work: same seed and stream, same numbers.
    pub fn stream(seed: u64, stream: u64) -> Rng {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        Rng(rng)
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f64 {
        self.0.random::<f64>()
    }

    /// Uniform integer in 0..n; n must not be 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0.random_range(0..n.max(1))
    }

    /// Two independent standard normal numbers (Box and Muller 1958).
    fn normal_pair(&mut self) -> (f64, f64) {
        let r = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        let (s, c) = (std::f64::consts::TAU * self.unit()).sin_cos();
        (r * c, r * s)
    }

    /// A tensor of independent normal numbers.
    pub fn normal(
        &mut self,
        shape: &[usize],
        mean: f64,
        std: f64,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let n: usize = shape.iter().product();
        let mut data = Vec::with_capacity(n + 1);
        while data.len() < n {
            let (a, b) = self.normal_pair();
            data.extend([mean + std * a, mean + std * b]);
        }
        data.truncate(n);
        Tensor::from_vec(data, shape, device)?.to_dtype(dtype)
    }

    /// A tensor of independent numbers, uniform in [lo, hi).
    pub fn uniform(
        &mut self,
        shape: &[usize],
        lo: f64,
        hi: f64,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let n: usize = shape.iter().product();
        let data = (0..n).map(|_| lo + (hi - lo) * self.unit()).collect();
        Tensor::from_vec::<f64>(data, shape, device)?.to_dtype(dtype)
    }

    /// A tensor of i64, uniform in lo..hi.
    pub fn integers(
        &mut self,
        shape: &[usize],
        lo: i64,
        hi: i64,
        device: &Device,
    ) -> Result<Tensor> {
        let n: usize = shape.iter().product();
        let span = hi.saturating_sub(lo).max(1) as u64;
        Tensor::from_vec(
            (0..n).map(|_| lo + self.below(span) as i64).collect(),
            shape,
            device,
        )
    }

    /// A random order of 0..n (Fisher and Yates).
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i as u64 + 1) as usize);
        }
        order
    }
}
