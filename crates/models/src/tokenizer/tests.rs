//! Round trips, equality of the fast paths with the plain tokenizer, streams, and hostile files.

use std::path::Path;
use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;

const PROSE: &str = "The shuttle carries the weft through the warp; the weaver's hands don't stop.\n\
    Warp and weft, warp and weft: über 1000 threads — 織物 — crossing\n\n\n    and crossing again.\n";

static BPE: LazyLock<Tokenizer> = LazyLock::new(|| {
    Tokenizer::train_bpe(
        &[PROSE.repeat(20)],
        300,
        &[END_OF_TEXT, "<|pad|>"],
        &mut |_| (),
    )
    .unwrap()
});
static BYTES: LazyLock<Tokenizer> =
    LazyLock::new(|| Tokenizer::byte_level(&[END_OF_TEXT, "<|longer|>", "<|long"]).unwrap());

/// A SentencePiece-style BPE with byte fallback, as Llama-like models have it: not byte level.
fn sentencepiece() -> Tokenizer {
    let mut vocab = serde_json::Map::new();
    for token in ["<unk>", "<s>", "</s>"] {
        vocab.insert(token.into(), vocab.len().into());
    }
    for byte in 0..=255u8 {
        vocab.insert(format!("<0x{byte:02X}>"), vocab.len().into());
    }
    for token in ["▁", "t", "h", "e", "c", "a", "▁t", "he", "▁the"] {
        vocab.insert(token.into(), vocab.len().into());
    }
    let special = |id: u32, content: &str| {
        serde_json::json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false})
    };
    let json = serde_json::json!({
        "version": "1.0",
        "truncation": {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": [["▁", "t"], ["h", "e"], ["▁t", "he"]]}
    });
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
    Tokenizer::load(folder.path()).unwrap()
}

fn load_text(text: &str) -> Result<Tokenizer, TokenizerError> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokenizer.json");
    std::fs::write(&file, text).unwrap();
    Tokenizer::load(&file)
}

fn streamed(tokenizer: &Tokenizer, ids: &[u32]) -> (Vec<String>, String) {
    let mut stream = tokenizer.stream(Specials::Keep);
    let pieces: Vec<String> = ids
        .iter()
        .filter_map(|&id| stream.push(id).unwrap())
        .collect();
    let mut whole = pieces.concat();
    whole.push_str(&stream.finish().unwrap().unwrap_or_default());
    (pieces, whole)
}

#[test]
fn byte_level_ids_are_the_bytes() {
    let every: Vec<u8> = (0..=255).collect();
    let ids: Vec<u32> = (0..=255).collect();
    assert_eq!(BYTES.decode_bytes(&ids, Specials::Keep).unwrap(), every);
    assert_eq!(BYTES.encode("é<").unwrap(), [0xC3, 0xA9, b'<' as u32]);
    assert_eq!(BYTES.vocab_size(), 259);
    assert_eq!((BYTES.bos(), BYTES.eos()), (None, Some(256)));
    assert!(BYTES.is_byte_level() && !BPE.is_byte_level());
}

#[test]
fn prompts_know_special_tokens_and_plain_text_does_not() {
    let text = "a<|endoftext|><|longer|>b";
    let plain = BYTES.encode(text).unwrap();
    assert_eq!(plain.len(), text.len());
    assert_eq!(BYTES.encode_prompt(text).unwrap(), [97, 256, 257, 98]);
    let plain = BPE.encode(text).unwrap();
    assert!(!plain.iter().any(|&id| BPE.is_special(id)));
    assert_eq!(BPE.decode(&plain, Specials::Skip).unwrap(), text);
    let prompt = BPE.encode_prompt(text).unwrap();
    assert!(prompt.contains(&BPE.eos().unwrap()));
    assert_eq!(BPE.decode(&prompt, Specials::Skip).unwrap(), "a<|longer|>b");
    assert_eq!(BPE.decode(&prompt, Specials::Keep).unwrap(), text);
}

#[test]
fn bpe_learns_words_and_has_the_size_asked_for() {
    assert_eq!(BPE.vocab_size(), 300);
    assert_eq!(
        BPE.specials(),
        [(298, END_OF_TEXT.to_owned()), (299, "<|pad|>".to_owned())]
    );
    assert!(
        BPE.encode(" weft").unwrap().len() == 1,
        "{:?}",
        BPE.encode(" weft")
    );
    let again = Tokenizer::train_bpe(
        &[PROSE.repeat(20)],
        300,
        &[END_OF_TEXT, "<|pad|>"],
        &mut |_| (),
    )
    .unwrap();
    assert_eq!(
        again.0.hf.to_string(false).unwrap(),
        BPE.0.hf.to_string(false).unwrap()
    );
}

#[test]
fn training_reports_progress_and_refuses_impossible_requests() {
    let texts = [PROSE.repeat(2000), "short".to_owned()];
    let mut reports = Vec::new();
    Tokenizer::train_bpe(&texts, 280, &[], &mut |read| reports.push(read)).unwrap();
    assert!(reports.len() > 3 && reports.is_sorted());
    assert_eq!(reports.last(), Some(&(texts[0].len() + 5)));
    let small = Tokenizer::train_bpe(&texts, 256, &[END_OF_TEXT], &mut |_| ()).unwrap_err();
    assert!(
        small.to_string().contains("257 tokens are needed"),
        "{small}"
    );
    for specials in [["<a>", "<a>"], ["<a>", ""], ["<a>", "e"]] {
        let error = Tokenizer::byte_level(&specials).unwrap_err();
        assert!(matches!(error, TokenizerError::Special { .. }), "{error}");
    }
    let nothing = Tokenizer::train_bpe(&[""], 1000, &[], &mut |_| ()).unwrap();
    assert_eq!(nothing.vocab_size(), 256);
}

#[test]
fn pieces_join_to_the_text_and_leave_tokens_alone() {
    let mut text = PROSE.repeat(4000);
    text.push_str(&"no line break ".repeat(20_000));
    let pieces: Vec<&str> = train::pieces(&text).collect();
    assert!(pieces.len() > 3);
    assert_eq!(pieces.concat(), text);
    let whole = BPE.0.hf.encode_fast(text.as_str(), false).unwrap();
    assert_eq!(BPE.encode(&text).unwrap(), whole.get_ids());
}

#[test]
fn saved_tokenizers_load_as_themselves() {
    for tokenizer in [&*BYTES, &*BPE] {
        let folder = tempfile::tempdir().unwrap();
        tokenizer.save(folder.path()).unwrap();
        let loaded = Tokenizer::load(folder.path()).unwrap();
        assert_eq!(
            loaded.encode(PROSE).unwrap(),
            tokenizer.encode(PROSE).unwrap()
        );
        let prompt = "x<|endoftext|>";
        assert_eq!(
            loaded.encode_prompt(prompt).unwrap(),
            tokenizer.encode_prompt(prompt).unwrap()
        );
        assert_eq!(loaded.specials(), tokenizer.specials());
        assert_eq!(loaded.eos(), tokenizer.eos());
        assert_eq!(loaded.is_byte_level(), tokenizer.is_byte_level());
        let plain = tokenizers::Tokenizer::from_file(folder.path().join("tokenizer.json")).unwrap();
        assert_eq!(
            plain.encode_fast(PROSE, false).unwrap().get_ids(),
            tokenizer.encode(PROSE).unwrap()
        );
        assert_eq!(
            plain
                .decode(&tokenizer.encode(PROSE).unwrap(), false)
                .unwrap(),
            PROSE
        );
    }
}

#[test]
fn tokenizer_config_names_bos_and_eos() {
    let folder = tempfile::tempdir().unwrap();
    BYTES.save(folder.path()).unwrap();
    let config = r#"{"bos_token": {"content": "<|long"}, "eos_token": "<|longer|>"}"#;
    std::fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
    let loaded = Tokenizer::load(folder.path()).unwrap();
    assert_eq!((loaded.bos(), loaded.eos()), (Some(258), Some(257)));
    std::fs::write(folder.path().join("tokenizer_config.json"), "{").unwrap();
    let error = Tokenizer::load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("tokenizer_config.json"), "{error}");
}

#[test]
fn foreign_tokenizers_work_and_their_truncation_is_dropped() {
    let tokenizer = sentencepiece();
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), Some(2)));
    let ids = tokenizer.encode("the cat ate the 織").unwrap();
    assert!(ids.len() > 8, "{ids:?}");
    assert_eq!(
        tokenizer.decode(&ids, Specials::Skip).unwrap(),
        "the cat ate the 織"
    );
    assert_eq!(
        tokenizer.encode_prompt("the").unwrap(),
        [1, tokenizer.id("▁the").unwrap()]
    );
}

#[test]
fn streams_show_whole_characters_only() {
    let ids = BYTES.encode("aé織🧵").unwrap();
    let (pieces, whole) = streamed(&BYTES, &ids);
    assert_eq!(pieces, ["a", "é", "織", "🧵"]);
    assert_eq!(whole, "aé織🧵");
    let mut stream = BYTES.stream(Specials::Skip);
    assert_eq!(stream.push(0xC3).unwrap(), None);
    assert_eq!(
        stream.push(256).unwrap(),
        None,
        "a skipped token shows nothing"
    );
    assert_eq!(stream.push(0xC3).unwrap().as_deref(), Some("\u{FFFD}"));
    assert!(stream.push(9999).is_err());
    assert_eq!(stream.push(0xA9).unwrap().as_deref(), Some("é"));
    assert_eq!(stream.push(0xE7).unwrap(), None);
    assert_eq!(stream.finish().unwrap().as_deref(), Some("\u{FFFD}"));
    assert_eq!(stream.finish().unwrap(), None);

    let tokenizer = sentencepiece();
    let ids = tokenizer.encode("the cat the 織x").unwrap();
    let (pieces, whole) = streamed(&tokenizer, &ids);
    assert_eq!(whole, "the cat the 織x");
    assert!(
        pieces.contains(&"織".to_owned()) && pieces.contains(&" the".to_owned()),
        "{pieces:?}"
    );
}

#[test]
fn broken_bytes_never_stall_a_foreign_stream() {
    let tokenizer = sentencepiece();
    let broken = vec![tokenizer.id("<0xFF>").unwrap(); 40];
    let (pieces, whole) = streamed(&tokenizer, &broken);
    assert_eq!(whole, tokenizer.decode(&broken, Specials::Keep).unwrap());
    assert!(pieces.len() >= 9, "{pieces:?}");
}

#[test]
fn ids_outside_the_vocabulary_are_named() {
    for tokenizer in [BYTES.clone(), BPE.clone(), sentencepiece()] {
        let id = tokenizer.vocab_size() as u32;
        let error = tokenizer
            .decode(&[0, id], Specials::Skip)
            .unwrap_err()
            .to_string();
        assert!(error.contains(&format!("token {id} is outside")), "{error}");
    }
}

#[test]
fn hostile_files_give_one_sentence_with_their_name() {
    let high = |id: u64| {
        format!(
            r#"{{"version":"1.0","added_tokens":[],"model":{{"type":"BPE","vocab":{{"a":{id}}},"merges":[]}}}}"#
        )
    };
    let deep = "[".repeat(200_000);
    let cases = [
        "",
        "{}",
        "null",
        "{\"model\": 3}",
        &deep,
        &high(u64::from(u32::MAX)),
        &high(u64::MAX),
        r#"{"version":"1.0","model":{"type":"BPE","vocab":{"a":0},"merges":[["a","b"]]}}"#,
        r#"{"version":"1.0","normalizer":{"type":"Precompiled","precompiled_charsmap":"AAAA"},"model":{"type":"BPE"}}"#,
        r#"{"version":"1.0","model":{"type":"Unigram","unk_id":7,"vocab":[["a",0.0]]}}"#,
    ];
    for text in cases {
        let error = load_text(text).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json"), "{error}");
        assert!(error.len() < 500 && !error.contains('\n'), "{error}");
    }
    let error = Tokenizer::load(Path::new("no/such/folder"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("no/such/folder"), "{error}");
}

#[test]
fn files_beyond_the_size_limit_are_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokenizer.json");
    std::fs::File::create(&file)
        .unwrap()
        .set_len(file::MAX_FILE_BYTES + 1)
        .unwrap();
    let error = Tokenizer::load(&file).unwrap_err().to_string();
    assert!(error.contains("larger than 128 MiB"), "{error}");
}

#[test]
fn truncated_and_altered_files_never_panic() {
    let folder = tempfile::tempdir().unwrap();
    BPE.save(folder.path()).unwrap();
    let text = std::fs::read_to_string(folder.path().join("tokenizer.json")).unwrap();
    let text: String = serde_json::from_str::<serde_json::Value>(&text)
        .unwrap()
        .to_string();
    for end in (0..text.len())
        .filter(|&end| text.is_char_boundary(end))
        .step_by(7)
    {
        assert!(load_text(&text[..end]).is_err(), "cut at {end}");
    }
    for (i, c) in text.char_indices().step_by(3).filter(|(_, c)| c.is_ascii()) {
        for other in ["0", "\"", "}", "999999"] {
            let altered = format!("{}{other}{}", &text[..i], &text[i + c.len_utf8()..]);
            if let Ok(tokenizer) = load_text(&altered) {
                let ids = tokenizer.encode("the weft").unwrap_or_default();
                let _ = tokenizer.decode(&ids, Specials::Keep);
            }
        }
    }
}

proptest! {
    #[test]
    fn any_text_round_trips(text in "\\PC{0,40}|[ \\n\\ta-f]{0,60}") {
        for tokenizer in [&*BYTES, &*BPE] {
            let ids = tokenizer.encode(&text).unwrap();
            prop_assert_eq!(&tokenizer.decode(&ids, Specials::Skip).unwrap(), &text);
            prop_assert_eq!(&streamed(tokenizer, &ids).1, &text);
        }
    }

    #[test]
    fn streams_equal_decoding_for_any_ids(ids in prop::collection::vec(0u32..259, 0..40)) {
        let bytes = BYTES.decode_bytes(&ids, Specials::Keep).unwrap();
        prop_assert_eq!(streamed(&BYTES, &ids).1, String::from_utf8_lossy(&bytes).into_owned());
        prop_assert_eq!(streamed(&BPE, &ids).1, BPE.decode(&ids, Specials::Keep).unwrap());
    }

    #[test]
    fn pieces_never_lose_text(text in "[a\\n é]{0,300}") {
        let text = text.repeat(700);
        prop_assert_eq!(train::pieces(&text).collect::<String>(), text);
    }
}
