//! The laws: what every mixer must obey, checked on any mixer through its [`Entry`] alone. Registering a mixer
//! puts it under all of them (`tests/laws.rs`).
//!
//! States are compared by what follows from them: the same tokens after two equal states must give the same
//! outputs. (A cache may hold unspecified values behind its valid part.)

mod gradients;
mod subject;

pub use subject::{Outcome, Subject};

use weft_tensor::{Device, Tensor};

use crate::error::Result;
use crate::mixer::{Call, Form};
use crate::state::State;
use subject::broken;

/// Sequence lengths around the borders of chunks, tiles and windows.
pub const LENGTHS: [usize; 10] = [1, 2, 15, 16, 17, 63, 64, 65, 127, 1000];

/// Where the suite and the golden layers run: `WEFT_TEST_DEVICE` (cpu or cuda), else the CPU.
///
/// # Panics
/// If that device is not there: a suite that was to run on it must not pass without it.
pub fn test_device() -> Device {
    match std::env::var("WEFT_TEST_DEVICE").as_deref() {
        Ok("cuda") => Device::cuda(0).unwrap_or_else(|e| panic!("WEFT_TEST_DEVICE=cuda: {e}")),
        Ok("cpu") | Err(_) => Device::Cpu,
        Ok(other) => panic!("WEFT_TEST_DEVICE={other}: give cpu or cuda"),
    }
}

/// A law by name.
pub type Law = (&'static str, fn(&Subject) -> Outcome);

/// All laws.
pub const LAWS: &[Law] = &[
    ("refuses what does not fit", refuses),
    ("state size equals the formula", state_size),
    ("causality", causality),
    ("all forms agree at every length", forms_agree),
    ("split invariance", split_invariance),
    ("batch invariance and row permutation", rows_are_independent),
    ("padding holding NaN has no influence", padding_is_invisible),
    ("snapshot, restore and fork", snapshots),
    ("save and load", save_and_load),
    ("extreme gates", extremes),
    (
        "gradients equal the reference's",
        gradients::equal_reference,
    ),
    (
        "the reference's gradients equal finite differences",
        gradients::reference_equals_differences,
    ),
];

fn refuses(s: &Subject) -> Outcome {
    let x = s.input(1, 2, 4);
    let mut other = State::new("another mixer", 2);
    if s.mixer.forward(&x, &mut other, &Call::default()).is_ok() {
        return broken("took the state of another mixer");
    }
    let mut state = s.state(3)?;
    if s.mixer.forward(&x, &mut state, &Call::default()).is_ok() {
        return broken("took a state of 3 rows for an input of 2");
    }
    let mut state = s.state(2)?;
    for bad in [x.narrow(1, 0, 0)?, x.narrow(2, 0, 1)?, x.select(0, 0)?] {
        if s.mixer.forward(&bad, &mut state, &Call::default()).is_ok() {
            return broken(format!("took an input of shape {:?}", bad.shape()));
        }
    }
    if state.positions() != [0, 0] {
        return broken("a refused call moved the state on");
    }
    Ok(())
}

fn state_size(s: &Subject) -> Outcome {
    let mut state = s.state(2)?;
    let mut seen = 0;
    for more in [0, 1, 63, 5, 200] {
        if more > 0 {
            s.run(&s.input(7, 2, more), &mut state)?;
        }
        seen += more;
        let (bytes, formula) = (state.bytes(), 2 * s.mixer.state_bytes(seen, s.dtype));
        if bytes != formula {
            return broken(format!(
                "after {seen} tokens: {bytes} bytes, the formula says {formula}"
            ));
        }
        if state.positions() != [seen, seen] {
            return broken(format!(
                "after {seen} tokens the positions are {:?}",
                state.positions()
            ));
        }
    }
    Ok(())
}

fn causality(s: &Subject) -> Outcome {
    for (t, cut) in [(40, 17), (130, 64), (130, 97)] {
        let x = s.input(1, 2, t);
        let future = s.input(2, 2, t - cut).mul_scalar(10.0)?;
        let changed = Tensor::cat(&[&x.narrow(1, 0, cut)?, &future], 1)?;
        let a = s.run(&x, &mut s.state(2)?)?.narrow(1, 0, cut)?;
        let b = s.run(&changed, &mut s.state(2)?)?.narrow(1, 0, cut)?;
        s.same(&format!("the first {cut} of {t} tokens"), &a, &b)?;
    }
    Ok(())
}

fn forms_agree(s: &Subject) -> Outcome {
    for t in LENGTHS {
        let x = s.input(t as u64, 1, t);
        let start = s.warm_state(1, 5)?;
        let mut state = start.clone();
        let want = s.run_as(Form::Reference, &x, &mut state)?;
        let follow = s.follow(&state)?;
        let check = |name: &str, y: Tensor, state: &State| -> Outcome {
            s.same(&format!("outputs of {name} at T = {t}"), &y, &want)?;
            s.same(
                &format!("what follows {name} at T = {t}"),
                &s.follow(state)?,
                &follow,
            )
        };
        for &form in s.mixer.forms() {
            let mut state = start.clone();
            let y = match form {
                Form::Reference => continue,
                Form::Step => s.token_by_token(&x, &mut state)?,
                Form::Chunk => s.run_as(form, &x, &mut state)?,
            };
            check(&form.to_string(), y, &state)?;
        }
        let mut state = start.clone();
        let y = s.run(&x, &mut state)?;
        check("the default form", y, &state)?;
    }
    Ok(())
}

fn split_invariance(s: &Subject) -> Outcome {
    let t = 150;
    let x = s.input(3, 2, t);
    let mut state = s.state(2)?;
    let whole = s.run(&x, &mut state)?;
    let follow = s.follow(&state)?;
    for cuts in [
        &[1][..],
        &[64],
        &[149],
        &[3, 67, 68],
        &[16, 32, 100, 101, 140],
    ] {
        let mut state = s.state(2)?;
        let mut parts = vec![];
        let mut from = 0;
        for &to in cuts.iter().chain([&t]) {
            parts.push(s.run(&x.narrow(1, from, to - from)?, &mut state)?);
            from = to;
        }
        let y = Tensor::cat(&parts.iter().collect::<Vec<_>>(), 1)?;
        s.same(&format!("outputs cut at {cuts:?}"), &y, &whole)?;
        s.same(
            &format!("what follows cuts at {cuts:?}"),
            &s.follow(&state)?,
            &follow,
        )?;
    }
    Ok(())
}

fn rows_are_independent(s: &Subject) -> Outcome {
    let x = s.input(4, 3, 37);
    let mut state = s.state(3)?;
    let together = s.run(&x, &mut state)?;
    for row in 0..3 {
        let mut alone = s.state(1)?;
        let y = s.run(&x.narrow(0, row, 1)?, &mut alone)?;
        s.same(
            &format!("row {row} alone"),
            &y,
            &together.narrow(0, row, 1)?,
        )?;
        s.same(
            &format!("what follows row {row}"),
            &s.follow(&alone)?,
            &s.follow(&state.select(&[row])?)?,
        )?;
    }
    let order = Tensor::from_slice(&[2i64, 0, 1], &[3], &s.device)?;
    let mut permuted = s.state(3)?;
    let y = s.run(&x.index_select(0, &order)?, &mut permuted)?;
    s.same("permuted rows", &y, &together.index_select(0, &order)?)?;
    s.same(
        "what follows permuted rows",
        &s.follow(&permuted)?,
        &s.follow(&state.select(&[2, 0, 1])?)?,
    )
}

fn padding_is_invisible(s: &Subject) -> Outcome {
    let t = 70;
    let x = s.input(5, 4, t);
    let spans = [(0, 70), (0, 33), (21, 70), (64, 66)];
    let mut dirty = x.clone();
    for (row, &(from, to)) in spans.iter().enumerate() {
        let inside = Tensor::arange(0, t as i64, weft_tensor::DType::I64, &s.device)?;
        let bound = |v: usize| Tensor::scalar(v as i64, &s.device);
        let mask = inside
            .ge(&bound(from)?)?
            .mul(&inside.lt(&bound(to)?)?)?
            .reshape(&[1, t, 1])?;
        let nan = Tensor::full(&[], f64::NAN, s.dtype, &s.device);
        let clean = mask.where_cond(&dirty.narrow(0, row, 1)?, &nan)?;
        dirty = Tensor::cat(
            &[
                &dirty.narrow(0, 0, row)?,
                &clean,
                &dirty.narrow(0, row + 1, 3 - row)?,
            ],
            0,
        )?;
    }
    // Rows of different pasts, so that a shift by padding cannot go unnoticed.
    let start = s.warm_state(4, 9)?;
    let mut state = start.clone();
    let y = s.quiet(|| s.mixer.forward_padded(&dirty, &mut state, &spans))?;
    let follow = s.follow(&state)?;
    for (row, &(from, to)) in spans.iter().enumerate() {
        let mut alone = start.select(&[row])?;
        let want = s.run(
            &x.narrow(0, row, 1)?.narrow(1, from, to - from)?,
            &mut alone,
        )?;
        let got = y.narrow(0, row, 1)?;
        s.same(
            &format!("valid tokens of row {row}"),
            &got.narrow(1, from, to - from)?,
            &want,
        )?;
        s.same(
            &format!("what follows row {row}"),
            &follow.narrow(0, row, 1)?,
            &s.follow(&alone)?,
        )?;
        for (a, n) in [(0, from), (to, t - to)] {
            let outside = got.narrow(1, a, n)?;
            if outside.to_f64_vec()?.iter().any(|&v| v != 0.0) {
                return broken(format!("outputs at the padding of row {row} are not 0"));
            }
        }
        if state.positions()[row] != 9 + to - from {
            return broken(format!(
                "row {row} is at position {}",
                state.positions()[row]
            ));
        }
    }
    Ok(())
}

fn snapshots(s: &Subject) -> Outcome {
    let mut state = s.warm_state(2, 30)?;
    let snapshot = state.clone();
    let x = s.input(6, 2, 20);
    let first = s.run(&x, &mut state)?;
    s.token_by_token(&s.input(8, 2, 3), &mut state)?;
    let mut restored = snapshot.clone();
    let again = s.run(&x, &mut restored)?;
    s.identical("a second run from the same snapshot", &again, &first)?;

    let mut forks = snapshot.fork(3);
    let want = s.token_by_token(&s.input(9, 2, 4), &mut forks[0])?;
    s.token_by_token(&s.input(10, 2, 4), &mut forks[1])?;
    let mut untouched = forks.remove(2);
    let got = s.token_by_token(&s.input(9, 2, 4), &mut untouched)?;
    s.identical("a fork after its siblings went other ways", &got, &want)
}

fn save_and_load(s: &Subject) -> Outcome {
    let state = s.warm_state(2, 30)?;
    let path = std::env::temp_dir().join(format!(
        "weft-law-{}-{}.state",
        std::process::id(),
        s.label()
    ));
    state.save(&path, "owner")?;
    let loaded = State::load(&path, "owner", &s.device);
    let stranger = State::load(&path, "someone else", &s.device);
    let _ = std::fs::remove_file(&path);
    let loaded = loaded?;
    if stranger.is_ok() {
        return broken("a state of another owner was loaded");
    }
    if loaded.positions() != state.positions() {
        return broken("positions changed on the way through a file");
    }
    s.identical(
        "what follows a loaded state",
        &s.follow(&loaded)?,
        &s.follow(&state)?,
    )
}

fn extremes(s: &Subject) -> Outcome {
    let wild = s.with_scaled_parameters(30.0)?;
    let cases: [(&str, Result<Tensor>); 4] = [
        ("inputs x 100", Ok(s.input(11, 1, 70).mul_scalar(100.0)?)),
        ("inputs of 0", Ok(s.input(11, 1, 70).mul_scalar(0.0)?)),
        (
            "one token repeated",
            Ok(s.input(11, 1, 1).repeat(&[1, 70, 1])?),
        ),
        ("inputs x 1e-6", Ok(s.input(11, 1, 70).mul_scalar(1e-6)?)),
    ];
    for (name, x) in cases {
        let x = x?;
        let mut state = wild.state(1)?;
        let y = wild.run(&x, &mut state)?;
        if !y.all_finite()? || !wild.follow(&state)?.all_finite()? {
            return broken(format!("{name}: outputs are not finite"));
        }
        // In f32 a saturated gate leaves too few digits to compare; the f64 run does.
        if s.dtype == weft_tensor::DType::F64 {
            let want = wild.run_as(Form::Reference, &x, &mut wild.state(1)?)?;
            wild.same(name, &y, &want)?;
        }
    }
    Ok(())
}
