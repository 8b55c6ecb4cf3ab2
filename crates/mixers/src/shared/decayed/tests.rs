//! The chunk forms and the step against the recurrence: values and gradients at every border, limits, second order.

use weft_tensor::{DType, Device, Rng, Tensor, grad};

use super::*;
use crate::golden::assert_close;

fn uniform(seed: u64, shape: &[usize], lo: f64, hi: f64) -> Tensor {
    Rng::new(seed)
        .uniform(shape, lo, hi, DType::F64, &Device::Cpu)
        .unwrap()
}

/// Inputs of `tokens` tokens with log decays in (lo, 0), per channel or per value head.
fn problem(dims: &Dims, by_channel: bool, lo: f64) -> Operands {
    // What a kernel does not write is NaN.
    weft_tensor::memory::poison(true);
    let Dims {
        batch,
        tokens,
        heads,
        value_heads,
        key_dim,
        value_dim,
    } = *dims;
    let keys = [batch, tokens, heads, key_dim];
    let decay = if by_channel {
        &keys[..]
    } else {
        &[batch, tokens, value_heads]
    };
    Operands {
        q: uniform(1, &keys, -1.0, 1.0),
        k: uniform(2, &keys, -1.0, 1.0),
        v: uniform(3, &[batch, tokens, value_heads, value_dim], -1.0, 1.0),
        decay: uniform(4, decay, lo, 0.0),
        scale: 0.7,
        state: uniform(5, &[batch, value_heads, key_dim, value_dim], -1.0, 1.0),
    }
}

const SMALL: Dims = Dims {
    batch: 2,
    tokens: 70,
    heads: 2,
    value_heads: 4,
    key_dim: 5,
    value_dim: 3,
};

type Run<'a> = &'a dyn Fn(&Operands) -> weft_tensor::Result<(Tensor, Tensor)>;

/// o, the final state, and the gradients of all operands.
fn with_gradients(x: &Operands, run: Run) -> Vec<Tensor> {
    let list = [&x.q, &x.k, &x.v, &x.decay, &x.state].map(|x| x.requires_grad().unwrap());
    let (o, s) = run(&Operands::from_list(&list, x.scale).unwrap()).unwrap();
    let weigh = |x: &Tensor, seed| {
        let w = uniform(seed, x.shape(), -1.0, 1.0)
            .to_dtype(x.dtype())
            .unwrap();
        x.mul(&w).unwrap().sum_all().unwrap()
    };
    let loss = weigh(&o, 9).add(&weigh(&s, 10)).unwrap();
    let g = grad(&[&loss], None, &list.each_ref(), false).unwrap();
    [o, s].into_iter().chain(g.into_iter().flatten()).collect()
}

fn same(label: &str, x: &Operands, run: Run, tolerance: f64) {
    let (got, want) = (with_gradients(x, run), with_gradients(x, &recurrence));
    assert_eq!((got.len(), want.len()), (7, 7), "{label}");
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        assert_close(&format!("{label}, {i}"), got, want, tolerance);
    }
}

#[test]
fn chunks_equal_the_recurrence_at_every_border() {
    for (tokens, chunk) in [
        (1, 64),
        (2, 1),
        (15, 16),
        (16, 16),
        (17, 16),
        (64, 64),
        (70, 32),
        (129, 64),
        (150, 40),
    ] {
        for (key_dim, value_dim, value_heads) in [(5, 3, 4), (16, 33, 2), (70, 16, 2)] {
            for (by_channel, lo) in [(false, -1.0), (true, -1.0), (false, -60.0), (true, -60.0)] {
                let dims = Dims {
                    tokens,
                    key_dim,
                    value_dim,
                    value_heads,
                    ..SMALL
                };
                let label = format!("{dims:?} chunk {chunk} by channel {by_channel} from {lo}");
                same(
                    &label,
                    &problem(&dims, by_channel, lo),
                    &|x| decayed(x, chunk),
                    1e-10,
                );
            }
        }
    }
}

/// One sequence of one head: states by panels, blocks by chunks.
#[test]
fn few_heads_give_the_same() {
    let dims = Dims {
        batch: 1,
        heads: 1,
        value_heads: 1,
        value_dim: 40,
        ..SMALL
    };
    for by_channel in [false, true] {
        same(
            "one head",
            &problem(&dims, by_channel, -1.0),
            &|x| decayed(x, 16),
            1e-10,
        );
    }
}

/// More chunks than are held at a time without gradients.
#[test]
fn long_texts_run_in_segments() {
    let dims = Dims {
        tokens: 16 * (2 * SEGMENT + 3) + 5,
        ..SMALL
    };
    for by_channel in [false, true] {
        let x = problem(&dims, by_channel, -0.1);
        let ((o, s), (want_o, want_s)) = (decayed(&x, 16).unwrap(), recurrence(&x).unwrap());
        assert_close("o", &o, &want_o, 1e-10);
        assert_close("state", &s, &want_s, 1e-10);
    }
}

#[test]
fn the_composition_equals_the_recurrence() {
    for (tokens, chunk, lo) in [
        (1, 64, -1.0),
        (17, 64, -1.0),
        (70, 32, -1.0),
        (150, 64, -50.0),
    ] {
        for by_channel in [false, true] {
            let x = problem(&Dims { tokens, ..SMALL }, by_channel, lo);
            same("composed", &x, &|x| super::op::compose(x, chunk), 1e-9);
        }
    }
}

#[test]
fn single_precision_keeps_its_digits() {
    let dims = Dims {
        tokens: 300,
        key_dim: 16,
        ..SMALL
    };
    for by_channel in [false, true] {
        let x = problem(&dims, by_channel, -0.2);
        let narrow = |x: &Operands| {
            let half = |x: &Tensor| x.to_dtype(DType::F32);
            decayed(
                &Operands {
                    q: half(&x.q)?,
                    k: half(&x.k)?,
                    v: half(&x.v)?,
                    decay: half(&x.decay)?,
                    scale: x.scale,
                    state: half(&x.state)?,
                },
                CHUNK,
            )
        };
        same("f32", &x, &narrow, 1e-5);
    }
}

#[test]
fn equal_channels_are_a_decay_per_head() {
    let dims = Dims {
        value_heads: 2,
        ..SMALL
    };
    let heads = problem(&dims, false, -1.0);
    let decay = heads
        .decay
        .unsqueeze(-1)
        .unwrap()
        .broadcast_to(heads.q.shape())
        .unwrap();
    let channels = Operands {
        decay,
        ..heads.clone()
    };
    let ((o, s), (want_o, want_s)) = (
        decayed(&channels, 32).unwrap(),
        decayed(&heads, 32).unwrap(),
    );
    assert_close("o", &o, &want_o, 1e-12);
    assert_close("state", &s, &want_s, 1e-12);
}

/// Heads are linear in q . k: slices of channels add up (what a kernel with a limit on head widths relies on).
#[test]
fn slices_of_key_channels_add_up() {
    let x = problem(&SMALL, false, -1.0);
    let slice = |from, len| {
        let part = |x: &Tensor| x.narrow(-1, from, len).unwrap();
        let state = x.state.narrow(2, from, len).unwrap();
        let x = Operands {
            q: part(&x.q),
            k: part(&x.k),
            state,
            ..x.clone()
        };
        decayed(&x, 32).unwrap().0
    };
    let o = slice(0, 2).add(&slice(2, 3)).unwrap();
    assert_close("o", &o, &decayed(&x, 32).unwrap().0, 1e-12);
}

#[test]
fn gradients_of_gradients() {
    let x = problem(&Dims { tokens: 9, ..SMALL }, true, -1.0);
    let twice = |run: Run| {
        let list = [&x.q, &x.k, &x.v, &x.decay, &x.state].map(|x| x.requires_grad().unwrap());
        let (o, _) = run(&Operands::from_list(&list, x.scale).unwrap()).unwrap();
        let loss = o.square().unwrap().sum_all().unwrap();
        let g = grad(&[&loss], None, &[&list[0], &list[3]], true).unwrap();
        let norm = |g: &Option<Tensor>| g.as_ref().unwrap().square().unwrap().sum_all().unwrap();
        let loss = norm(&g[0]).add(&norm(&g[1])).unwrap();
        grad(&[&loss], None, &[&list[1], &list[3]], false).unwrap()
    };
    let (got, want) = (twice(&|x| decayed(x, 4)), twice(&recurrence));
    for (got, want) in got.iter().zip(&want) {
        assert_close(
            "second order",
            got.as_ref().unwrap(),
            want.as_ref().unwrap(),
            1e-10,
        );
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let x = problem(&SMALL, false, -1.0);
    let wrong = Operands {
        decay: x.decay.narrow(2, 0, 3).unwrap(),
        ..x
    };
    let e = decayed(&wrong, 16).err().unwrap().to_string();
    assert!(e.contains("decay [2, 70, 3]"), "{e}");
}
