//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864): pair i of a head is turned by the angle
//! position * base^(-2i / n), so that products of queries and keys depend on the distance between them.
//!
//! The first n channels of a head are rotated, the rest pass. Two layouts of the pairs are in use:
//! half-split (i, i + n/2), as in Llama checkpoints of Hugging Face, and adjacent (2i, 2i + 1), as in the paper.
//!
//! Sines cost more than the rotation itself, so they are computed once in [`BLOCK`] tokens: with p = a + r, r the
//! remainder of p by [`BLOCK`], turning by p is turning by a and then by r. The turns by all r are kept; those by a
//! are not, so that memory does not grow with the positions. A position's angles depend on the position alone.

use weft_tensor::cpu::parallel::{GRAIN, for_pieces};
use weft_tensor::cpu::simd::vectorize;
use weft_tensor::{Buffer, Context, DType, Device, Function, Real, Stored, Tensor, apply};

use super::rope_gpu::{self, Angles, Frequencies};
use crate::error::Result;

/// Tokens that share the sines of their block's start.
const BLOCK: usize = 16;

/// Which channels form a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// (i, i + n/2)
    Half,
    /// (2i, 2i + 1)
    Adjacent,
}

/// The rotation of a layer's heads.
pub struct Rotary {
    /// base^(-2i / n) [n/2]
    frequencies: Vec<f64>,
    uploaded: Frequencies,
    /// The turns by 0 .. [`BLOCK`] positions.
    near: Vec<Turn>,
    layout: Layout,
}

/// Cosines and sines of the angles of all pairs at one position [n/2].
struct Turn {
    cos: Vec<f64>,
    sin: Vec<f64>,
}

impl Turn {
    fn to(position: usize, frequencies: &[f64]) -> Turn {
        let angles = frequencies.iter().map(|f| position as f64 * f);
        let (sin, cos) = angles.map(f64::sin_cos).unzip();
        Turn { cos, sin }
    }

    /// This turn and then another one.
    #[inline(always)]
    fn and(&self, then: &Turn, cos: &mut [f64], sin: &mut [f64]) {
        let n = cos.len();
        let (sin, c, s) = (&mut sin[..n], &self.cos[..n], &self.sin[..n]);
        let (then_c, then_s) = (&then.cos[..n], &then.sin[..n]);
        for i in 0..n {
            cos[i] = c[i] * then_c[i] - s[i] * then_s[i];
            sin[i] = s[i] * then_c[i] + c[i] * then_s[i];
        }
    }
}

impl Rotary {
    /// Of the first `rotated` channels (an even number) of each head.
    pub fn new(rotated: usize, base: f64, layout: Layout) -> Rotary {
        let frequency = |i: usize| base.powf(-2.0 * i as f64 / rotated as f64);
        let frequencies: Vec<f64> = (0..rotated / 2).map(frequency).collect();
        Rotary {
            near: (0..BLOCK).map(|r| Turn::to(r, &frequencies)).collect(),
            uploaded: Frequencies::default(),
            frequencies,
            layout,
        }
    }

    /// The angles of tokens `starts[b] ..` of each sequence, for tensors of the dtype and the device of `like`. On a
    /// GPU `clock` [B] i64 takes the place of `starts` if it is given.
    pub fn table(
        &self,
        starts: &[usize],
        clock: Option<&Tensor>,
        tokens: usize,
        like: &Tensor,
    ) -> Result<Table> {
        let same = starts.windows(2).all(|w| w[0] == w[1]);
        let device = like.device();
        let layout = self.layout;
        if device != Device::Cpu {
            let starts = match (clock, same) {
                (Some(clock), _) => Err(clock.clone()),
                (None, true) => Ok(starts.first().copied().unwrap_or(0)),
                (None, false) => {
                    let starts: Vec<i64> = starts.iter().map(|&s| s as i64).collect();
                    Err(Tensor::from_slice(&starts, &[starts.len()], &device)?)
                }
            };
            let frequencies = self.uploaded.on(device, &self.frequencies)?;
            let angles = Turns::Gpu(Angles {
                frequencies,
                starts,
            });
            return Ok(Table { angles, layout });
        }
        let rows = if same {
            starts.len().min(1)
        } else {
            starts.len()
        };
        let dtype = match like.dtype() {
            DType::F64 => DType::F64,
            _ => DType::F32,
        };
        let [cos, sin] = self.on_host(&starts[..rows], tokens)?;
        let (cos, sin) = (cos.to_dtype(dtype)?, sin.to_dtype(dtype)?);
        let angles = Turns::Host { cos, sin };
        Ok(Table { angles, layout })
    }

    fn on_host(&self, starts: &[usize], tokens: usize) -> weft_tensor::Result<[Tensor; 2]> {
        let n = self.frequencies.len();
        let shape = [starts.len(), tokens, 1, n];
        let size = shape.iter().product();
        let mut cos = Buffer::<f64>::unwritten(size);
        let mut sin = Buffer::<f64>::unwritten(size);
        let positions = starts.iter().flat_map(|&s| s..s + tokens);
        let angles = cos
            .chunks_exact_mut(n.max(1))
            .zip(sin.chunks_exact_mut(n.max(1)));
        let block = |p: usize| p - p % BLOCK;
        let far_turn = |start: usize| (start, Turn::to(start, &self.frequencies));
        let mut far = far_turn(block(starts.first().copied().unwrap_or(0)));
        vectorize(
            #[inline(always)]
            || {
                for (p, (cos, sin)) in positions.zip(angles) {
                    if block(p) != far.0 {
                        far = far_turn(block(p));
                    }
                    far.1.and(&self.near[p % BLOCK], cos, sin);
                }
            },
        );
        Ok([
            Tensor::from_buffer(cos, &shape)?,
            Tensor::from_buffer(sin, &shape)?,
        ])
    }
}

/// The angles of one call.
#[derive(Clone)]
pub struct Table {
    angles: Turns,
    layout: Layout,
}

#[derive(Clone)]
enum Turns {
    /// Cosines and sines [rows, T, 1, n/2], one row if all sequences start at one position.
    Host { cos: Tensor, sin: Tensor },
    /// What the kernel makes them of.
    Gpu(Angles),
}

impl Table {
    /// x [B, T, H, D] with its first channels rotated; bf16 is rotated in f32.
    pub fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.turn(x, false)?)
    }

    /// Rotate, or with `back` by the opposite angles: each is the other's way back.
    fn turn(&self, x: &Tensor, back: bool) -> weft_tensor::Result<Tensor> {
        let y = match &self.angles {
            Turns::Gpu(angles) => {
                check(x, [1, x.dims::<4>()?[1], 1, angles.frequencies.count()])?;
                rope_gpu::rotate(&x.detach(), angles, self.layout, back)?
            }
            Turns::Host { cos, sin } => {
                let [_, angles] = check(x, cos.dims()?)?;
                let x = x.detach();
                match x.dtype() {
                    DType::F64 => self.kernel::<f64>([&x, cos, sin], angles, back)?,
                    DType::F32 => self.kernel::<f32>([&x, cos, sin], angles, back)?,
                    other => self
                        .kernel::<f32>([&x.to_dtype(DType::F32)?, cos, sin], angles, back)?
                        .to_dtype(other)?,
                }
            }
        };
        let function = Rotation {
            table: self.clone(),
            back,
        };
        let [y] = apply(function, &[x], [y]);
        Ok(y)
    }

    /// On the CPU: x [B, T, H, D], cosines and sines [rows, T, 1, n/2].
    fn kernel<R: Real + Stored>(
        &self,
        [x, cos, sin]: [&Tensor; 3],
        [rows, _, _, n]: [usize; 4],
        back: bool,
    ) -> weft_tensor::Result<Tensor> {
        let x = x.contiguous()?;
        let [_, t, h, d] = x.dims()?;
        let (source, cos, sin) = (x.slice::<R>()?, cos.slice::<R>()?, sin.slice::<R>()?);
        let sign = if back { -R::ONE } else { R::ONE };
        let mut out = Buffer::<R>::unwritten(source.len());
        let width = h * d;
        if width == 0 {
            return Tensor::from_buffer(out, x.shape());
        }
        for_pieces(&mut out, (GRAIN / width).max(1) * width, |at, out| {
            vectorize(
                #[inline(always)]
                || {
                    let tokens = out
                        .chunks_exact_mut(width)
                        .zip(source[at..].chunks_exact(width));
                    for (i, (y, x)) in tokens.enumerate() {
                        let token = at / width + i;
                        let row = if rows == 1 { token % t } else { token };
                        let (cos, sin) = (&cos[row * n..][..n], &sin[row * n..][..n]);
                        for (y, x) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
                            turn_head(self.layout, (cos, sin), sign, x, y);
                        }
                    }
                },
            )
        });
        Tensor::from_buffer(out, x.shape())
    }
}

/// The shapes of x and of the angles, if they fit.
fn check(x: &Tensor, angles: [usize; 4]) -> weft_tensor::Result<[[usize; 4]; 2]> {
    let x = x.dims::<4>()?;
    let ([b, t, _, d], [rows, tokens, _, n]) = (x, angles);
    if t != tokens || 2 * n > d || (rows != 1 && rows != b) {
        return Err(weft_tensor::Error::Shape {
            op: "rope",
            detail: format!(
                "input {x:?}, angles {angles:?}: expected [B, T, H, D] and [B or 1, T, 1, up to D/2]"
            ),
        });
    }
    Ok([x, angles])
}

/// One head at one token: y = x turned by the angles, their sines times `sign`.
#[inline(always)]
fn turn_head<R: Real>(layout: Layout, (cos, sin): (&[R], &[R]), sign: R, x: &[R], y: &mut [R]) {
    let n = cos.len();
    let sin = &sin[..n];
    let (x, x_rest) = x.split_at(2 * n);
    let (y, y_rest) = y.split_at_mut(2 * n);
    match layout {
        Layout::Half => {
            let (p, q) = x.split_at(n);
            let (first, second) = y.split_at_mut(n);
            for i in 0..n {
                let (c, s) = (cos[i], sin[i] * sign);
                first[i] = p[i] * c - q[i] * s;
                second[i] = p[i] * s + q[i] * c;
            }
        }
        Layout::Adjacent => {
            let (x, y) = (
                &x.as_chunks::<2>().0[..n],
                &mut y.as_chunks_mut::<2>().0[..n],
            );
            for i in 0..n {
                let ([p, q], (c, s)) = (x[i], (cos[i], sin[i] * sign));
                y[i] = [p * c - q * s, p * s + q * c];
            }
        }
    }
    y_rest.copy_from_slice(x_rest);
}

struct Rotation {
    table: Table,
    back: bool,
}

impl Function for Rotation {
    fn name(&self) -> &'static str {
        "rope"
    }
    fn backward(
        &self,
        _: &Context,
        grads: &[Option<Tensor>],
    ) -> weft_tensor::Result<Vec<Option<Tensor>>> {
        let turned = grads[0].as_ref().map(|g| self.table.turn(g, !self.back));
        Ok(vec![turned.transpose()?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::assert_close;
    use weft_tensor::{Rng, grad};

    fn turns(table: &Table) -> [&Tensor; 2] {
        match &table.angles {
            Turns::Host { cos, sin } => [cos, sin],
            Turns::Gpu(_) => panic!("a table of the CPU"),
        }
    }

    /// The rotation in tensor operations.
    fn plain(table: &Table, x: &Tensor) -> weft_tensor::Result<Tensor> {
        let [cos, sin] = turns(table);
        let [[b, t, h, d], [_, _, _, n]] = check(x, cos.dims()?)?;
        let (turned, rest) = (x.narrow(-1, 0, 2 * n)?, x.narrow(-1, 2 * n, d - 2 * n)?);
        // The two members of all pairs side by side: [B, T, H, 2, n] or [B, T, H, n, 2].
        let (shape, axis) = match table.layout {
            Layout::Half => ([b, t, h, 2, n], -2),
            Layout::Adjacent => ([b, t, h, n, 2], -1),
        };
        let pairs = turned.reshape(&shape)?;
        let (p, q) = (pairs.select(axis, 0)?, pairs.select(axis, 1)?);
        let first = p.mul(cos)?.sub(&q.mul(sin)?)?;
        let second = p.mul(sin)?.add(&q.mul(cos)?)?;
        let turned = Tensor::stack(&[&first, &second], axis)?.reshape(&[b, t, h, 2 * n])?;
        Tensor::cat(&[&turned, &rest], -1)
    }

    fn random(shape: &[usize], seed: u64) -> Tensor {
        Rng::new(seed)
            .normal(shape, 0.0, 1.0, DType::F64, &Device::Cpu)
            .unwrap()
    }

    #[test]
    fn pairs_turn_by_position_times_frequency() {
        // Positions 14 .. 35 lie in three blocks.
        let (start, tokens) = (14, 22);
        let x = random(&[1, tokens, 1, 6], 1);
        for (layout, pairs) in [
            (Layout::Half, [(0, 2), (1, 3)]),
            (Layout::Adjacent, [(0, 1), (2, 3)]),
        ] {
            let table = Rotary::new(4, 100.0, layout).table(&[start], None, tokens, &x);
            let y = table.unwrap().rotate(&x).unwrap();
            let (x, y) = (x.to_vec::<f64>().unwrap(), y.to_vec::<f64>().unwrap());
            for t in 0..tokens {
                for (i, (p, q)) in pairs.into_iter().enumerate() {
                    let (s, c) = ((start + t) as f64 * 100f64.powf(-(i as f64) / 2.0)).sin_cos();
                    assert!((y[t * 6 + p] - (x[t * 6 + p] * c - x[t * 6 + q] * s)).abs() < 1e-14);
                    assert!((y[t * 6 + q] - (x[t * 6 + p] * s + x[t * 6 + q] * c)).abs() < 1e-14);
                }
                assert_eq!(y[t * 6 + 4..t * 6 + 6], x[t * 6 + 4..t * 6 + 6]);
            }
        }
    }

    #[test]
    fn angles_depend_on_the_position_alone_and_stay_exact_far_out() {
        let rotary = Rotary::new(8, 10_000.0, Layout::Half);
        let like = random(&[1], 1);
        let far = 1 << 20;
        let together = rotary.table(&[far], None, 40, &like).unwrap();
        for from in [0, 1, 15, 16, 17, 39] {
            let alone = rotary.table(&[3, far + from], None, 1, &like).unwrap();
            for (all, one) in turns(&together).into_iter().zip(turns(&alone)) {
                let want = all.select(1, from).unwrap();
                let got = one.narrow(0, 1, 1).unwrap().select(1, 0).unwrap();
                assert_eq!(got.to_vec::<f64>().unwrap(), want.to_vec::<f64>().unwrap());
            }
        }
        // The product of position and frequency is rounded at 2^20 2^-53, here and there.
        let cos = turns(&together)[0].to_vec::<f64>().unwrap();
        for (t, i) in (0..40).flat_map(|t| (0..4).map(move |i| (t, i))) {
            let angle = (far + t) as f64 * 10_000f64.powf(-(i as f64) / 4.0);
            assert!((cos[4 * t + i] - angle.cos()).abs() < 1e-9);
        }
    }

    /// Shapes [B, T, H, D] and rotated channels: partial, odd remainders, nothing rotated, several pieces.
    const SIZES: [([usize; 4], usize); 6] = [
        ([2, 3, 2, 4], 4),
        ([2, 5, 3, 37], 36),
        ([1, 17, 1, 10], 6),
        ([2, 2, 1, 4], 0),
        ([2, 70, 8, 64], 64),
        ([0, 3, 2, 4], 4),
    ];

    fn with_gradient(f: impl Fn(&Tensor) -> Tensor, x: &Tensor, w: &Tensor) -> [Tensor; 2] {
        let x = x.detach().requires_grad().unwrap();
        let y = f(&x);
        let loss = y.mul(w).unwrap().sum_all().unwrap();
        let g = grad(&[&loss], None, &[&x], false).unwrap().remove(0);
        [y.detach(), g.unwrap()]
    }

    #[test]
    fn kernel_equals_the_composition_with_its_gradient() {
        for (shape, rotated) in SIZES {
            for layout in [Layout::Half, Layout::Adjacent] {
                for starts in [[7; 2], [7, 1000]] {
                    for (dtype, tolerance) in [(DType::F64, 1e-14), (DType::F32, 1e-6)] {
                        let x = random(&shape, 1).to_dtype(dtype).unwrap();
                        let w = random(&shape, 2).to_dtype(dtype).unwrap();
                        let rotary = Rotary::new(rotated, 100.0, layout);
                        let table = rotary
                            .table(&starts[..shape[0]], None, shape[1], &x)
                            .unwrap();
                        let got = with_gradient(|x| table.rotate(x).unwrap(), &x, &w);
                        let want = with_gradient(|x| plain(&table, x).unwrap(), &x, &w);
                        let label = format!("{shape:?} {rotated} {layout:?} {starts:?} {dtype}");
                        assert_close(&label, &got[0], &want[0], tolerance);
                        assert_close(&format!("{label}: dx"), &got[1], &want[1], tolerance);
                    }
                }
            }
        }
    }

    #[test]
    fn bf16_turns_in_f32() {
        let x = random(&[1, 20, 2, 8], 1).to_dtype(DType::BF16).unwrap();
        let wide = x.to_dtype(DType::F32).unwrap();
        let rotary = Rotary::new(8, 100.0, Layout::Half);
        let turn = |x: &Tensor| rotary.table(&[5], None, 20, x).unwrap().rotate(x).unwrap();
        let want = turn(&wide).to_dtype(DType::BF16).unwrap();
        assert_eq!(turn(&x).to_f64_vec().unwrap(), want.to_f64_vec().unwrap());
    }

    #[test]
    fn the_way_back_is_the_opposite_rotation() {
        let x = random(&[2, 3, 2, 4], 1);
        let w = random(&[2, 3, 2, 4], 2);
        let table = Rotary::new(4, 100.0, Layout::Half).table(&[5, 9], None, 3, &x);
        let table = table.unwrap();
        let [_, g] = with_gradient(|x| table.rotate(x).unwrap(), &x, &w);
        // <R x, w> = <x, R^T w>, and R^T R = 1.
        assert_close("R R^T", &table.rotate(&g).unwrap(), &w, 1e-14);
    }

    #[test]
    fn a_gpu_gives_the_same_values_and_gradients() {
        let Some(device) = weft_tensor::cuda::for_tests() else {
            return;
        };
        for (shape, rotated) in SIZES {
            for layout in [Layout::Half, Layout::Adjacent] {
                let (x, w) = (random(&shape, 1), random(&shape, 2));
                let run = |device: &Device| {
                    let [x, w] = [&x, &w].map(|t| t.to_device(device).unwrap());
                    let rotary = Rotary::new(rotated, 100.0, layout);
                    let table = rotary
                        .table(&[7, 1000][..shape[0]], None, shape[1], &x)
                        .unwrap();
                    with_gradient(|x| table.rotate(x).unwrap(), &x, &w)
                };
                for (got, want) in run(&device).iter().zip(&run(&Device::Cpu)) {
                    let got = got.to_device(&Device::Cpu).unwrap();
                    // Frequencies come from another exponential: a few units in the last place, times 1000 positions.
                    assert_close(&format!("{shape:?} {layout:?}"), &got, want, 1e-12);
                }
            }
        }
    }
}
