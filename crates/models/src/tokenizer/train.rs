//! Making tokenizers: the byte-level one, and BPE learned from text.
//!
//! BPE starts from the 256 bytes and repeatedly joins the most frequent pair of neighbouring tokens within a word
//! (Sennrich et al. 2016; byte level after GPT-2, whose word rule is used: a word keeps the space before it).

use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer as Hf, TokenizerImpl};

use super::{PIECE_BYTES, TokenizerError, bytes::spell, rules};

pub(super) fn byte_level(specials: &[&str]) -> Result<Hf, TokenizerError> {
    let vocab = (0..=255u8).map(|b| (spell(b).to_string(), u32::from(b)));
    let model = BPE::builder().vocab_and_merges(
        vocab.collect::<tokenizers::models::bpe::Vocab>(),
        Vec::new(),
    );
    let mut hf = Hf::new(model.build().map_err(rules("be built"))?);
    hf.with_pre_tokenizer(Some(ByteLevel::new(false, true, false)));
    hf.with_decoder(Some(ByteLevel::new(false, true, false)));
    add_specials(&mut hf, specials)?;
    Ok(hf)
}

pub(super) fn bpe<S: AsRef<str>>(
    texts: &[S],
    vocab_size: usize,
    specials: &[&str],
    progress: &mut (dyn FnMut(usize) + Send),
) -> Result<Hf, TokenizerError> {
    let least = 256 + specials.len();
    if vocab_size < least {
        return Err(TokenizerError::TooSmall { vocab_size, least });
    }
    let mut trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(vocab_size - specials.len())
        .min_frequency(2)
        .initial_alphabet((0..=255).map(spell).collect())
        .build();
    let words = ByteLevel::new(false, true, true);
    let mut learner: TokenizerImpl<
        BPE,
        tokenizers::NormalizerWrapper,
        ByteLevel,
        ByteLevel,
        ByteLevel,
    > = TokenizerImpl::new(BPE::default());
    learner.with_pre_tokenizer(Some(words));
    let mut read = 0;
    let pieces: Vec<&str> = texts
        .iter()
        .flat_map(|text| pieces(text.as_ref()))
        .collect();
    let reported = pieces.into_iter().inspect(|piece| {
        read += piece.len();
        progress(read);
    });
    learner
        .train(&mut trainer, reported)
        .map_err(rules("learn from this text"))?;

    let mut hf = Hf::new(learner.get_model().clone());
    hf.with_pre_tokenizer(Some(words));
    hf.with_decoder(Some(words));
    add_specials(&mut hf, specials)?;
    Ok(hf)
}

fn add_specials(hf: &mut Hf, specials: &[&str]) -> Result<(), TokenizerError> {
    for &token in specials {
        let refuse = |reason| TokenizerError::Special {
            token: token.to_owned(),
            reason,
        };
        if token.is_empty() {
            return Err(refuse("it is empty"));
        }
        if hf.token_to_id(token).is_some() {
            return Err(refuse("the vocabulary already has it"));
        }
        hf.add_special_tokens([AddedToken::from(token, true).normalized(false)])
            .map_err(rules("take the special tokens"))?;
    }
    Ok(())
}

/// Cuts a text into pieces of at least [`PIECE_BYTES`] (the last may be shorter), only where no word of the byte-level
/// rule crosses: after a line break between two characters that are not white space. A text without such a place
/// stays whole.
pub(super) fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (piece, after) = rest.split_at(cut(rest));
        rest = after;
        Some(piece)
    })
}

fn cut(text: &str) -> usize {
    let bytes = text.as_bytes();
    let ink = |b: u8| b.is_ascii_graphic();
    (PIECE_BYTES..bytes.len())
        .find(|&i| bytes[i - 1] == b'\n' && ink(bytes[i - 2]) && ink(bytes[i]))
        .unwrap_or(bytes.len())
}
