//! Stop strings in text that arrives in pieces: a piece may end in the middle of one, so text is held back for as long
//! as it could still become one.

/// Lets text through up to the first stop string.
#[derive(Clone, Debug)]
pub struct StopFilter {
    stops: Vec<String>,
    held: String,
}

/// What became of a piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// The text that may be shown now.
    pub text: String,
    /// The stop string that was found behind it.
    pub stop: Option<String>,
}

impl StopFilter {
    /// A filter for some stop strings; empty ones are ignored.
    pub fn new(stops: &[String]) -> StopFilter {
        StopFilter {
            stops: stops.iter().filter(|s| !s.is_empty()).cloned().collect(),
            held: String::new(),
        }
    }

    /// Take the next piece. Of several stop strings, the one that is complete first counts (of those that end at the
    /// same place, the longest), so it does not matter how the text is cut into pieces.
    pub fn push(&mut self, piece: &str) -> Passed {
        self.held.push_str(piece);
        let found = self
            .stops
            .iter()
            .filter_map(|s| self.held.find(s).map(|at| (at + s.len(), at, s)))
            .min();
        if let Some((_, at, stop)) = found {
            let passed = Passed {
                text: self.held[..at].to_string(),
                stop: Some(stop.clone()),
            };
            self.held.clear();
            return passed;
        }
        let keep = self.stops.iter().map(|s| overlap(&self.held, s)).max();
        let free = self.held.len() - keep.unwrap_or(0);
        Passed {
            text: self.held.drain(..free).collect(),
            stop: None,
        }
    }

    /// The text still held back, when nothing more comes.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Bytes at the end of `text` that are a beginning of `stop`, the most possible.
fn overlap(text: &str, stop: &str) -> usize {
    let most = text.len().min(stop.len() - 1);
    (1..=most)
        .rev()
        .find(|&n| stop.is_char_boundary(n) && text.ends_with(&stop[..n]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, Option<String>) {
        let stops: Vec<String> = stops.iter().map(ToString::to_string).collect();
        let mut filter = StopFilter::new(&stops);
        let mut shown = String::new();
        for piece in pieces {
            let passed = filter.push(piece);
            shown += &passed.text;
            if passed.stop.is_some() {
                return (shown, passed.stop);
            }
        }
        (shown + &filter.finish(), None)
    }

    #[test]
    fn a_stop_string_is_found_across_pieces_and_false_starts_are_released() {
        assert_eq!(
            run(&["\n\nQ:"], &["yes\n", "\n", "Q", ": no"]),
            ("yes".into(), Some("\n\nQ:".into()))
        );
        assert_eq!(run(&["abc"], &["xab", "ab", "d"]), ("xababd".into(), None));
        assert_eq!(run(&["abc"], &["xa", "b"]), ("xab".into(), None));
        assert_eq!(
            run(&["aab"], &["aa", "ab"]),
            ("a".into(), Some("aab".into()))
        );
        assert_eq!(run(&["é!"], &["caf", "é", "?"]), ("café?".into(), None));
        assert_eq!(run(&[""], &["abc"]), ("abc".into(), None));
    }

    #[test]
    fn what_cannot_become_a_stop_string_is_shown_at_once() {
        let mut filter = StopFilter::new(&["END".into()]);
        assert_eq!(filter.push("the E").text, "the ");
        assert_eq!(filter.push("N").text, "");
        assert_eq!(filter.push("d").text, "ENd");
    }

    proptest! {
        #[test]
        fn the_cut_into_pieces_does_not_matter(
            pieces in prop::collection::vec("[ab]{0,4}", 0..12),
            stops in prop::collection::vec("[ab]{1,5}", 0..4),
        ) {
            let whole: String = pieces.concat();
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let singles: Vec<String> = whole.chars().map(String::from).collect();
            let singles: Vec<&str> = singles.iter().map(String::as_str).collect();
            let got = run(&stops, &pieces);
            prop_assert_eq!(&got, &run(&stops, &singles));
            prop_assert_eq!(&got, &run(&stops, &[&whole]));
            if got.1.is_none() {
                prop_assert_eq!(got.0, whole);
            } else {
                prop_assert!(!stops.iter().any(|s| got.0.contains(s)));
            }
        }
    }
}
