//! Errors as one sentence.

use clap::error::{ContextKind, ContextValue};

/// The error and its causes, joined by colons; a cause that is already told is not told again.
pub fn of_error(error: &anyhow::Error) -> String {
    let told = error
        .chain()
        .map(|cause| cause.to_string())
        .reduce(|told, cause| match told.contains(&cause) {
            true => told,
            false => format!("{told}: {cause}"),
        });
    one_line(&told.unwrap_or_default())
}

/// What clap says about a command line, with its suggestion and the command whose help says more.
pub fn of_usage(error: &clap::Error, command: &str) -> String {
    let rendered = error.render().to_string();
    let first = rendered.split("\n\n").next().unwrap_or(&rendered);
    let mut sentence = one_line(first.trim_start_matches("error: "));
    if let Some(name) = suggestion(error) {
        sentence += &format!(", did you mean '{name}'?");
    }
    format!("{sentence} (see '{command} --help')")
}

fn suggestion(error: &clap::Error) -> Option<String> {
    let kinds = [
        ContextKind::SuggestedSubcommand,
        ContextKind::SuggestedArg,
        ContextKind::SuggestedValue,
    ];
    kinds.into_iter().find_map(|kind| match error.get(kind)? {
        ContextValue::String(name) => Some(name.clone()),
        ContextValue::Strings(names) => names.first().cloned(),
        _ => None,
    })
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    #[test]
    fn a_cause_is_told_once() {
        let inner = std::io::Error::other("disk\n  full");
        let error = Err::<(), _>(inner)
            .context("cannot write a.json: disk\n  full")
            .context("saving")
            .unwrap_err();
        assert_eq!(
            super::of_error(&error),
            "saving: cannot write a.json: disk full"
        );
    }
}
