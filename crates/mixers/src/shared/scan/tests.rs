//! Rounds of doubling reach and the kernel against the fold; the golden recurrence of HGRN.

use weft_tensor::{DType, Device, Rng, Tensor, grad};

use super::*;
use crate::golden::{assert_close, cases};

const DEVICE: Device = Device::Cpu;

fn uniform(seed: u64, shape: &[usize], lo: f64, hi: f64) -> Tensor {
    Rng::new(seed)
        .uniform(shape, lo, hi, DType::F64, &DEVICE)
        .unwrap()
}

/// The running maximum of scores and sums weighted by their exponentials: the monoid of softmax attention, whose
/// elements (score, weight, value) do not commute with a cut in the wrong place.
struct Softmax;

impl Monoid for Softmax {
    fn combine(&self, older: &[Tensor], newer: &[Tensor]) -> Result<Vec<Tensor>> {
        let top = older[0].maximum(&newer[0])?;
        let (a, b) = (older[0].sub(&top)?.exp()?, newer[0].sub(&top)?.exp()?);
        let join = |i: usize| older[i].mul(&a)?.add(&newer[i].mul(&b)?);
        Ok(vec![top, join(1)?, join(2)?])
    }
}

fn flags(batch: usize, tokens: usize) -> Tensor {
    let flags = (0..batch * tokens)
        .map(|i| u8::from(i * 7 % 5 == 1))
        .collect();
    Tensor::from_vec(flags, &[batch, tokens], &DEVICE).unwrap()
}

#[test]
fn rounds_equal_the_fold() {
    for tokens in [1, 2, 3, 7, 8, 33] {
        let shape = [2, tokens, 3];
        let r = flags(2, tokens);
        let pairs = [uniform(1, &shape, -2.0, 0.0), uniform(2, &shape, -1.0, 1.0)];
        let triples = [
            uniform(3, &shape, -3.0, 3.0),
            Tensor::ones(&shape, DType::F64, &DEVICE),
            uniform(4, &shape, -1.0, 1.0),
        ];
        let starts = [5, 6, 7].map(|seed| uniform(seed, &[2, 3], -1.0, 1.0));
        for initial in [false, true] {
            for resets in [None, Some(&r)] {
                for reverse in [false, true] {
                    let check = |got: Vec<Tensor>, want: Vec<Tensor>| {
                        assert_eq!(got.len(), want.len());
                        for (got, want) in got.iter().zip(&want) {
                            let label =
                                format!("{tokens} {initial} {} {reverse}", resets.is_some());
                            assert_close(&label, got, want, 1e-12);
                        }
                    };
                    let options = |n| Options {
                        initial: initial.then_some(&starts[..n]),
                        resets,
                        reverse,
                    };
                    let o = options(2);
                    check(
                        scan(&Gated, &pairs, &o).unwrap(),
                        fold(&Gated, &pairs, &o).unwrap(),
                    );
                    let o = options(3);
                    check(
                        scan(&Softmax, &triples, &o).unwrap(),
                        fold(&Softmax, &triples, &o).unwrap(),
                    );
                }
            }
        }
    }
}

/// h and the gradients of g, x and the initial state.
fn with_gradients(x: &[Tensor; 3], f: &dyn Fn(&[Tensor; 3]) -> Result<Tensor>) -> Vec<Tensor> {
    let leaves = x.each_ref().map(|x| x.requires_grad().unwrap());
    let h = f(&leaves).unwrap();
    let w = uniform(9, h.shape(), -1.0, 1.0);
    let loss = h.mul(&w).unwrap().sum_all().unwrap();
    let g = grad(&[&loss], None, &leaves.each_ref(), false).unwrap();
    [h].into_iter().chain(g.into_iter().flatten()).collect()
}

#[test]
fn the_kernel_equals_the_fold_with_its_gradients() {
    weft_tensor::memory::poison(true);
    for (tokens, channels) in [(1, 1), (5, 3), (33, 130), (64, 300)] {
        let shape = [2, tokens, channels];
        let r = flags(2, tokens);
        for lo in [-1.0, -60.0] {
            let x = [
                uniform(1, &shape, lo, 0.0),
                uniform(2, &shape, -1.0, 1.0),
                uniform(3, &[2, channels], -1.0, 1.0),
            ];
            for resets in [None, Some(&r)] {
                for reverse in [false, true] {
                    let plain = |scan: super::gated::Scan| {
                        move |[g, x, s]: &[Tensor; 3]| {
                            let initial = [s.zeros_like(), s.clone()];
                            let options = Options {
                                initial: Some(&initial),
                                resets,
                                reverse,
                            };
                            Ok(scan(&Gated, &[g.clone(), x.clone()], &options)?.swap_remove(1))
                        }
                    };
                    let want = with_gradients(&x, &plain(fold));
                    let kernel = |[g, x, s]: &[Tensor; 3]| gated(g, x, s, resets, reverse);
                    for got in [
                        with_gradients(&x, &kernel),
                        with_gradients(&x, &plain(scan)),
                    ] {
                        assert_eq!((got.len(), want.len()), (4, 4));
                        for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                            let label =
                                format!("{shape:?} {lo} {reverse} {}: {i}", resets.is_some());
                            assert_close(&label, got, want, 1e-12);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn golden_hybrid_systematic_hgrn_op() {
    let mut run = 0;
    for case in cases("hybrid-systematic").unwrap() {
        if case.kind() != "op:hgrn" {
            continue;
        }
        let get = |name: &str| case.tensor(name).unwrap();
        let leaves = ["g", "x", "S0"].map(|n| get(n).requires_grad().unwrap());
        let [g, x, s] = &leaves;
        let h = gated(g, x, s, None, false).unwrap();
        let last = h.select(1, h.dim(1).unwrap() - 1).unwrap();
        let tolerance = case.number("tolerance").unwrap();
        assert_close(&case.label, &h, get("o"), tolerance);
        assert_close(&case.label, &last, get("final_state"), tolerance);
        let weigh = |x: &Tensor, w| x.mul(get(w)).unwrap().sum_all().unwrap();
        let loss = weigh(&h, "w_o").add(&weigh(&last, "w_S")).unwrap();
        let grads = grad(&[&loss], None, &leaves.each_ref(), false).unwrap();
        for (name, g) in ["g", "x", "S0"].iter().zip(grads) {
            let label = format!("{}: grad.{name}", case.label);
            assert_close(&label, &g.unwrap(), get(&format!("grad.{name}")), tolerance);
        }
        run += 1;
    }
    assert!(run > 0, "no HGRN operation was run");
}

/// A gate of 0 (g = -infinity) lets nothing through from before.
#[test]
fn closed_gates_give_the_inputs() {
    let shape = [2, 9, 3];
    let x = uniform(1, &shape, -1.0, 1.0);
    let g = Tensor::full(&shape, f64::NEG_INFINITY, DType::F64, &DEVICE);
    let h = gated(&g, &x, &uniform(2, &[2, 3], -1.0, 1.0), None, false).unwrap();
    assert_close("h", &h, &x, 0.0);
}
