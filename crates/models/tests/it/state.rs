use weft_mixers::Call;
use weft_models::ModelState;
use weft_tensor::{DType, Device, Rng, Tensor, no_grad};

use crate::{close, config, ids, model, run};

/// Relative error of f64 sums taken in another order.
const F64: f64 = 1e-9;

#[test]
fn the_whole_sequence_equals_token_by_token_and_any_split() {
    let m = model(DType::F64, 1);
    let ids = ids(2, 40, 2);
    let mut state = m.init_state(2).unwrap();
    let whole = run(&m, &ids, &mut state);
    assert_eq!(whole.shape(), [2, 40, 257]);
    for sizes in [vec![1; 40], vec![17, 23], vec![1, 38, 1], vec![32, 8]] {
        let mut split = m.init_state(2).unwrap();
        let mut at = 0;
        for n in sizes {
            let part = run(&m, &ids.narrow(1, at, n).unwrap(), &mut split);
            close(&part, &whole.narrow(1, at, n).unwrap(), F64);
            at += n;
            assert_eq!(split.positions(), [at, at]);
        }
        for (a, b) in split.layers().iter().zip(state.layers()) {
            for ((name, x), (_, y)) in a.tensors().zip(b.tensors()) {
                assert_eq!(x.shape(), y.shape(), "{name}");
            }
        }
    }
}

#[test]
fn a_prompt_processed_once_and_forked_continues_as_from_scratch() {
    let m = model(DType::F64, 3);
    let prompt = ids(1, 33, 4);
    let mut state = m.init_state(1).unwrap();
    run(&m, &prompt, &mut state);
    let snapshot = state.clone();
    let before = bits(&snapshot);
    for (i, mut fork) in state.fork(4).into_iter().enumerate() {
        let rest = ids(1, 9, 100 + i as u64);
        let mut scratch = m.init_state(1).unwrap();
        let all = Tensor::cat(&[&prompt, &rest], 1).unwrap();
        let want = run(&m, &all, &mut scratch).narrow(1, 33, 9).unwrap();
        for t in 0..9 {
            let got = run(&m, &rest.narrow(1, t, 1).unwrap(), &mut fork);
            close(&got, &want.narrow(1, t, 1).unwrap(), F64);
        }
        assert_eq!(fork.positions(), [42]);
    }
    // No fork has written into what the others share.
    assert_eq!(bits(&snapshot), before);
    let next = ids(1, 1, 9);
    let (mut a, mut b) = (state.clone(), snapshot);
    assert_eq!(
        run(&m, &next, &mut a).to_vec::<f64>().unwrap(),
        run(&m, &next, &mut b).to_vec::<f64>().unwrap()
    );
}

fn bits(state: &ModelState) -> Vec<u64> {
    let tensors = state.layers().iter().flat_map(|l| l.tensors());
    tensors
        .flat_map(|(_, t)| t.to_f64_vec().unwrap())
        .map(f64::to_bits)
        .collect()
}

#[test]
fn rows_of_different_lengths_do_not_disturb_each_other() {
    let m = model(DType::F64, 5);
    let lengths = [7, 12, 1];
    let mut padded = ids(3, 12, 6).to_vec::<i64>().unwrap();
    for (r, &n) in lengths.iter().enumerate() {
        padded[r * 12 + n..(r + 1) * 12].fill(i64::MIN);
    }
    let ids = Tensor::from_vec(padded, &[3, 12], &Device::Cpu).unwrap();
    let call = Call {
        lengths: Some(&lengths),
        ..Call::default()
    };
    let mut batch = m.init_state(3).unwrap();
    let last = no_grad(|| m.forward_last(&ids, &mut batch, &call)).unwrap();
    assert_eq!(batch.positions(), lengths);
    let more = crate::ids(3, 4, 7);
    let after = run(&m, &more, &mut batch.clone());
    for (r, &n) in lengths.iter().enumerate() {
        let row = ids.narrow(0, r, 1).unwrap().narrow(1, 0, n).unwrap();
        let mut single = m.init_state(1).unwrap();
        let alone = run(&m, &row, &mut single).select(1, n - 1).unwrap();
        close(&last.narrow(0, r, 1).unwrap(), &alone, F64);
        let more = more.narrow(0, r, 1).unwrap();
        let alone = run(&m, &more, &mut single);
        close(&after.narrow(0, r, 1).unwrap(), &alone, F64);
    }
    // Rows taken out of the batch, in another order, go on by themselves.
    let mut picked = batch.select(&[2, 0]).unwrap();
    assert_eq!(picked.positions(), [1, 7]);
    let order = Tensor::from_vec(vec![2i64, 0], &[2], &Device::Cpu).unwrap();
    let got = run(&m, &more.index_select(0, &order).unwrap(), &mut picked);
    close(&got, &after.index_select(0, &order).unwrap(), F64);
    assert!(batch.select(&[3]).is_err());
}

#[test]
fn a_state_file_brings_back_the_bits_and_belongs_to_one_model() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("prompt.state");
    let m = model(DType::F32, 7);
    let mut state = m.init_state(2).unwrap();
    run(&m, &ids(2, 20, 8), &mut state);
    state.save(&path, &m).unwrap();
    let mut loaded = ModelState::load(&path, &m, &Device::Cpu).unwrap();
    assert_eq!(loaded.positions(), [20, 20]);
    assert_eq!(bits(&loaded), bits(&state));
    assert_eq!(loaded.bytes(), state.bytes());
    let next = ids(2, 3, 9);
    assert_eq!(
        run(&m, &next, &mut loaded).to_vec::<f32>().unwrap(),
        run(&m, &next, &mut state).to_vec::<f32>().unwrap()
    );

    let same_shape = model(DType::F32, 8);
    let mut other = config(DType::F32);
    other.layer_types = vec!["gdn2".into(); 3];
    let other = weft_models::LanguageModel::new(&other, 7, &Device::Cpu).unwrap();
    for stranger in [&same_shape, &other] {
        let e = ModelState::load(&path, stranger, &Device::Cpu)
            .unwrap_err()
            .to_string();
        assert!(
            e.contains("prompt.state") && e.contains("give the model"),
            "{e}"
        );
    }

    let bytes = std::fs::read(&path).unwrap();
    for cut in [0, 7, 60, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..cut]).unwrap();
        let e = ModelState::load(&path, &m, &Device::Cpu).unwrap_err();
        assert!(e.to_string().contains("prompt.state"), "{e}");
    }
    std::fs::remove_file(&path).unwrap();
    let e = ModelState::load(&path, &m, &Device::Cpu).unwrap_err();
    assert!(e.to_string().contains("prompt.state"), "{e}");
}

#[test]
fn a_state_of_another_model_or_batch_is_refused_and_unchanged() {
    let m = model(DType::F32, 1);
    let mut other = config(DType::F32);
    other.layer_types.truncate(2);
    other.num_hidden_layers = 2;
    let other = weft_models::LanguageModel::new(&other, 1, &Device::Cpu).unwrap();
    let mut state = m.init_state(2).unwrap();
    run(&m, &ids(2, 5, 1), &mut state);
    let before = bits(&state);
    let call = Call::default();
    let e = m.forward(&ids(3, 1, 1), &mut state, &call).unwrap_err();
    assert!(e.to_string().contains("2 rows"), "{e}");
    let e = other.forward(&ids(2, 1, 1), &mut state, &call).unwrap_err();
    assert!(e.to_string().contains("3 layers"), "{e}");
    assert_eq!(bits(&state), before);
    assert_eq!(state.positions(), [5, 5]);
}

#[test]
fn a_damaged_state_file_is_refused_or_runs_but_never_panics() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("damaged.state");
    let m = model(DType::F32, 7);
    let mut state = m.init_state(2).unwrap();
    run(&m, &ids(2, 11, 8), &mut state);
    state.save(&path, &m).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap());
    let mut rng = Rng::new(3);
    let mut refused = 0;
    for _ in 0..600 {
        let mut bytes = whole.clone();
        // Mostly digits, so that sizes and positions change and the file stays readable.
        let at = rng.below(header) as usize;
        bytes[at] = match bytes[at].is_ascii_digit() {
            true => b'0' + rng.below(10) as u8,
            false => rng.below(128) as u8,
        };
        std::fs::write(&path, &bytes).unwrap();
        match ModelState::load(&path, &m, &Device::Cpu) {
            Err(e) => {
                refused += 1;
                assert!(e.to_string().contains("damaged.state"), "{e}");
            }
            Ok(mut state) => {
                let call = Call::default();
                let ids = ids(state.batch(), 2, 1);
                let _ = no_grad(|| m.forward(&ids, &mut state, &call));
            }
        }
    }
    assert!(refused > 300, "{refused}");
}

#[test]
fn positions_that_lie_are_refused_or_run_but_never_panic() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lying.state");
    let m = model(DType::F32, 7);
    let mut state = m.init_state(2).unwrap();
    run(&m, &ids(2, 11, 8), &mut state);
    state.save(&path, &m).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let n = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let header = std::str::from_utf8(&whole[8..8 + n]).unwrap();
    assert_eq!(header.matches("[11,11]").count(), 3);
    let far = u64::MAX.to_string();
    for (lie, refused) in [
        ("[12,11]", false),
        ("[0,0]", false),
        ("[100000,5]", false),
        ("[11]", true),
        ("[11,11,11]", true),
        ("[]", true),
        ("[-1,11]", true),
        (&format!("[{far},{far}]"), true),
    ] {
        let header = header.replace("[11,11]", lie);
        let length = (header.len() as u64).to_le_bytes();
        std::fs::write(
            &path,
            [&length, header.as_bytes(), &whole[8 + n..]].concat(),
        )
        .unwrap();
        let loaded = ModelState::load(&path, &m, &Device::Cpu);
        assert_eq!(loaded.is_err(), refused, "{lie}");
        if let Ok(mut state) = loaded {
            let _ = no_grad(|| m.forward(&ids(2, 2, 1), &mut state, &Call::default()));
        }
    }
}
