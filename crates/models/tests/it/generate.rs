use std::ops::ControlFlow;

use weft_models::tokenizer::{END_OF_TEXT, Tokenizer};
use weft_models::{Finish, Generation, LanguageModel, Sampling, Session, Settings};
use weft_tensor::{DType, Device, Tensor};

use crate::{config, model, run, tokenizer};

fn settings(max_tokens: usize, seed: u64) -> Settings {
    Settings {
        max_tokens,
        sampling: Sampling {
            seed,
            ..Sampling::default()
        },
        ignore_eos: true,
        ..Settings::default()
    }
}

fn generate(session: &mut Session, settings: &Settings) -> Generation {
    session
        .generate(settings, &mut |_| ControlFlow::Continue(()))
        .unwrap()
}

fn from_scratch(m: &LanguageModel, t: &Tokenizer, prompt: &str, settings: &Settings) -> Generation {
    let mut session = Session::new(m, t).unwrap();
    session.prompt(prompt).unwrap();
    generate(&mut session, settings)
}

#[test]
fn the_stream_is_the_text_and_the_seed_decides() {
    let (m, t) = (model(DType::F32, 1), tokenizer());
    let mut session = Session::new(&m, &t).unwrap();
    session.prompt("Once upon").unwrap();
    let mut streamed = String::new();
    let got = session
        .generate(&settings(60, 5), &mut |piece| {
            streamed.push_str(piece);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(streamed, got.text);
    assert_eq!(got.finish, Finish::Length);
    assert_eq!((got.ids.len(), got.logprobs.len()), (60, 60));
    assert_eq!(got.prompt_tokens, 9);
    assert!(got.seconds_to_first_token > 0.0 && got.tokens_per_second > 0.0);
    let bytes: Vec<u8> = got
        .ids
        .iter()
        .filter_map(|&id| u8::try_from(id).ok())
        .collect();
    assert_eq!(got.text, String::from_utf8_lossy(&bytes));
    assert_eq!(session.ids()[9..], got.ids);
    assert_eq!(
        from_scratch(&m, &t, "Once upon", &settings(60, 5)).ids,
        got.ids
    );
    assert_ne!(
        from_scratch(&m, &t, "Once upon", &settings(60, 6)).ids,
        got.ids
    );
}

#[test]
fn logprobs_are_the_models_own() {
    let (m, t) = (model(DType::F64, 2), tokenizer());
    let mut s = settings(12, 3);
    s.sampling.temperature = 0.5;
    s.sampling.top_k = 3;
    let got = from_scratch(&m, &t, "abc", &s);
    let mut all: Vec<i64> = "abc".bytes().map(i64::from).collect();
    all.extend(got.ids.iter().map(|&id| i64::from(id)));
    let ids = Tensor::from_slice(&all, &[1, all.len()], &Device::Cpu).unwrap();
    let p = run(&m, &ids, &mut m.init_state(1).unwrap())
        .log_softmax(-1)
        .unwrap();
    let p = p.to_vec::<f64>().unwrap();
    for (i, (&id, logprob)) in got.ids.iter().zip(&got.logprobs).enumerate() {
        // The sampler reads logits in f32.
        assert!((p[(i + 2) * 257 + id as usize] - logprob).abs() < 1e-5);
    }
}

#[test]
fn a_session_forked_four_ways_continues_as_from_scratch() {
    let (m, t) = (model(DType::F64, 3), tokenizer());
    let prompt = "The same beginning, ";
    let endings = ["", "red", "green", "a longer ending with more bytes"];
    let mut session = Session::new(&m, &t).unwrap();
    session.prompt(prompt).unwrap();
    let forks = session.fork(4).unwrap();
    for (i, (mut fork, ending)) in forks.into_iter().zip(endings).enumerate() {
        assert_eq!(fork.state().positions(), [prompt.len()]);
        fork.prompt(ending).unwrap();
        let got = generate(&mut fork, &settings(25, i as u64));
        let want = from_scratch(
            &m,
            &t,
            &format!("{prompt}{ending}"),
            &settings(25, i as u64),
        );
        assert_eq!((got.text, got.ids), (want.text, want.ids));
        // A session goes on where it stands: twice 25 tokens behind one prompt.
        let more = generate(&mut fork, &settings(25, 9));
        assert_eq!(more.prompt_tokens, prompt.len() + ending.len() + 25);
    }
    assert_eq!(session.state().positions(), [prompt.len()]);
}

#[test]
fn a_saved_state_continues_as_from_scratch() {
    let (m, t) = (model(DType::F64, 3), tokenizer());
    let mut session = Session::new(&m, &t).unwrap();
    session.prompt("Saved and ").unwrap();
    session.prefill().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.state");
    session.state().save(&path, &m).unwrap();
    let state = weft_models::ModelState::load(&path, &m, &Device::Cpu).unwrap();
    let mut restored = Session::from_state(&m, &t, state).unwrap();
    let e = restored.generate(&settings(1, 1), &mut |_| ControlFlow::Continue(()));
    assert!(e.unwrap_err().to_string().contains("give a prompt"));
    restored.prompt("restored").unwrap();
    let got = generate(&mut restored, &settings(20, 4));
    assert_eq!(
        got.ids,
        from_scratch(&m, &t, "Saved and restored", &settings(20, 4)).ids
    );
    assert!(Session::from_state(&m, &t, m.init_state(2).unwrap()).is_err());
}

#[test]
fn generation_stops_where_it_should() {
    let (m, t) = (model(DType::F32, 4), tokenizer());
    // Greedy decoding of this model repeats itself less: sample, then stop at what the sample contains.
    let free = from_scratch(&m, &t, "x", &settings(80, 1));
    let text: Vec<char> = free.text.chars().collect();
    let stop: String = text[10..13].iter().collect();
    let at = free.text.find(&stop).unwrap();
    let mut s = settings(80, 1);
    s.stop = vec!["never in the text".into(), stop.clone()];
    let mut pieces = String::new();
    let mut session = Session::new(&m, &t).unwrap();
    session.prompt("x").unwrap();
    let stopped = session
        .generate(&s, &mut |p| {
            pieces.push_str(p);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(stopped.finish, Finish::Stop(stop));
    assert_eq!(stopped.text, free.text[..at]);
    assert_eq!(pieces, stopped.text);
    assert_eq!(stopped.ids, free.ids[..stopped.ids.len()]);

    let mut session = Session::new(&m, &t).unwrap();
    session.prompt("x").unwrap();
    let cancelled = session
        .generate(&settings(80, 1), &mut |_| ControlFlow::Break(()))
        .unwrap();
    assert_eq!(cancelled.finish, Finish::Cancelled);
    assert!(cancelled.ids.len() < 80);
}

#[test]
fn the_end_of_the_document_ends_the_text() {
    let t = tokenizer();
    let mut c = config(DType::F32);
    c.tie_word_embeddings = false;
    let m = LanguageModel::new(&c, 1, &Device::Cpu).unwrap();
    // A head that sees nothing but its norm's gain of one direction: all logits 0 but the eos.
    let head = m.params().get("lm_head.weight").unwrap();
    head.update::<f32, _>(|w| w.fill(0.0)).unwrap();
    let greedy = |ignore_eos| Settings {
        sampling: Sampling::greedy(),
        max_tokens: 5,
        ignore_eos,
        ..Settings::default()
    };
    let got = from_scratch(&m, &t, "x", &greedy(false));
    assert_eq!((got.ids, got.finish), (vec![0; 5], Finish::Length));
    assert!(got.logprobs.iter().all(|l| (l + 257f64.ln()).abs() < 1e-5));

    let mut state = m.init_state(1).unwrap();
    let ids = Tensor::from_vec(vec![i64::from(b'x')], &[1, 1], &Device::Cpu).unwrap();
    head.update::<f32, _>(|w| w[256 * 16..].fill(1.0)).unwrap();
    let logit = run(&m, &ids, &mut state).to_vec::<f32>().unwrap()[256];
    head.update::<f32, _>(|w| w[256 * 16..].fill(logit.signum()))
        .unwrap();
    let got = from_scratch(&m, &t, "x", &greedy(false));
    assert_eq!((got.ids, got.finish), (vec![256], Finish::Eos));
    assert_eq!(got.text, "");
    assert_eq!(from_scratch(&m, &t, "x", &greedy(true)).ids.len(), 5);
}

#[test]
fn an_empty_prompt_needs_a_token_for_the_beginning() {
    let (m, t) = (model(DType::F32, 1), tokenizer());
    let mut session = Session::new(&m, &t).unwrap();
    let e = session.prompt("").unwrap_err().to_string();
    assert!(e.contains("the prompt is empty"), "{e}");
    assert!(
        session
            .generate(&settings(1, 1), &mut |_| ControlFlow::Continue(()))
            .is_err()
    );
    let with_bos = Tokenizer::byte_level(&["<s>"]).unwrap();
    let mut session = Session::new(&m, &with_bos).unwrap();
    session.prompt("").unwrap();
    assert_eq!(session.ids(), [256]);
    assert_eq!(generate(&mut session, &settings(3, 1)).ids.len(), 3);
}

#[test]
fn wrong_requests_are_refused() {
    let (m, t) = (model(DType::F32, 1), tokenizer());
    let mut session = Session::new(&m, &t).unwrap();
    let e = session.feed(&[1, 2, 300]).unwrap_err().to_string();
    assert_eq!(
        e,
        "token 300 at position 2 of row 0 is outside the vocabulary of 257 tokens"
    );
    assert!(session.ids().is_empty());
    session.prompt("x").unwrap();
    let mut wrong = settings(0, 1);
    assert!(
        session
            .generate(&wrong, &mut |_| ControlFlow::Continue(()))
            .is_err()
    );
    wrong.max_tokens = 1;
    wrong.sampling.top_p = 2.0;
    let e = session.generate(&wrong, &mut |_| ControlFlow::Continue(()));
    assert_eq!(
        e.unwrap_err().to_string(),
        "top_p: is 2: use a number in (0, 1]"
    );
    let larger = Tokenizer::byte_level(&[END_OF_TEXT, "<|pad|>"]).unwrap();
    let e = Session::new(&m, &larger).err().unwrap().to_string();
    assert!(e.contains("258 tokens, the model 257"), "{e}");
}

#[test]
fn ids_beyond_the_tokenizer_are_never_chosen() {
    let mut c = config(DType::F32);
    c.vocab_size = 1000;
    let m = LanguageModel::new(&c, 1, &Device::Cpu).unwrap();
    let got = from_scratch(&m, &tokenizer(), "x", &settings(200, 1));
    assert!(got.ids.iter().all(|&id| id < 257));
}
