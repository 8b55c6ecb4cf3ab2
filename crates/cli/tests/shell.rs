//! The shell around the commands: help, suggestions, completions, manual pages, closed pipes, one-sentence errors.

use std::process::{Command, Output};

fn weft(args: &[&str]) -> Output {
    weft_command(args).output().unwrap()
}

fn weft_command(args: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("weft"));
    command.args(args).env_remove("WEFT_LOG");
    command
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The documentation shows the real output: `TRYCMD=overwrite cargo test -p weft-cli` brings it up to date.
#[test]
fn documentation_is_true() {
    trycmd::TestCases::new().case("../../docs/cli.md");
}

#[test]
fn mistakes_are_one_sentence_with_a_suggestion() {
    for (args, sentence) in [
        (
            &["complettions"][..],
            "error: unrecognized subcommand 'complettions', did you mean 'completions'? (see 'weft --help')\n",
        ),
        (
            &["man", "--jsn"],
            "error: unexpected argument '--jsn' found (see 'weft man --help')\n",
        ),
        (
            &["completions"],
            "error: the following required arguments were not provided: <SHELL> (see 'weft completions --help')\n",
        ),
        (
            &["completions", "zssh"],
            "error: invalid value 'zssh' for '<SHELL>' [possible values: bash, elvish, fish, powershell, zsh], did you mean 'zsh'? (see 'weft completions --help')\n",
        ),
    ] {
        let output = weft(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert_eq!(stderr(&output), sentence);
        assert_eq!(stdout(&output), "");
    }
}

#[test]
fn without_a_command_the_help_is_shown_as_a_mistake() {
    let output = weft(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("Usage: weft <COMMAND>"));
}

#[test]
fn completions_know_the_commands_of_every_shell() {
    for (shell, sign) in [
        ("bash", "complete -F"),
        ("zsh", "#compdef weft"),
        ("fish", "complete -c weft"),
        ("powershell", "Register-ArgumentCompleter"),
    ] {
        let output = weft(&["completions", shell]);
        assert!(output.status.success());
        assert!(
            stdout(&output).contains(sign) && stdout(&output).contains("completions"),
            "{shell}"
        );
    }
}

#[test]
fn manual_pages_are_written_for_every_command() {
    assert!(stdout(&weft(&["man"])).contains(".TH weft 1"));
    let dir = tempfile::tempdir().unwrap();
    let man1 = dir.path().join("share/man1");
    assert!(weft(&["man", man1.to_str().unwrap()]).status.success());
    for page in ["weft.1", "weft-man.1", "weft-completions.1"] {
        assert!(man1.join(page).is_file(), "{page}");
    }
}

#[test]
fn a_failure_is_one_sentence_and_exit_code_1() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let output = weft(&["man", file.path().join("below").to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).starts_with("error: cannot write manual pages into /"));
    assert_eq!(stderr(&output).lines().count(), 1);
}

#[test]
fn a_wrong_log_filter_is_refused() {
    let output = weft_command(&["man"])
        .env("WEFT_LOG", "weft=loud")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).starts_with("error: WEFT_LOG is 'weft=loud', use a level"),
        "{}",
        stderr(&output)
    );
}

/// `weft completions zsh | head -1`: the reader leaves, nothing is wrong.
#[test]
fn a_closed_pipe_is_no_error() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = weft_command(&["completions", "zsh"])
        .stdout(writer)
        .output()
        .unwrap();
    assert_eq!(
        (output.status.code(), stderr(&output).as_str()),
        (Some(0), "")
    );
}
