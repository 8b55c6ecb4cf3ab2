//! Settings from the command line over a recipe's file.

use super::tests::SMALL;
use super::*;

fn with(settings: &[&str]) -> Result<Recipe> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r.toml");
    std::fs::write(&path, SMALL).unwrap();
    Recipe::load_with(&path, settings)
}

#[test]
fn settings_win_over_the_file_and_need_no_quotes() {
    let recipe = with(&[
        "train.seed=3",
        "model.layers = 2*gdn2 + swa",
        "model.mixer.swa.window=16",
        "train.seed = 4",
        "out=\"some where\"",
    ])
    .unwrap();
    assert_eq!((recipe.train.seed, recipe.model.depth), (4, 3));
    assert_eq!(recipe.model.layers.to_string(), "2*gdn2 + swa");
    assert_eq!(recipe.model.mixer["swa"]["window"], 16);
    assert_eq!(recipe.out, std::path::Path::new("some where"));
}

#[test]
fn wrong_settings_are_told_by_their_text() {
    let error = |setting: &str| with(&[setting]).unwrap_err().to_string();
    for (setting, parts) in [
        ("train.sead=3", ["--set train.sead=3: ", "`train.seed`"]),
        (
            "train.seed=many",
            ["--set train.seed=many: ", "whole number"],
        ),
        ("train.seed", ["--set train.seed: ", "key=value"]),
        ("=3", ["--set =3: ", "not valid TOML"]),
        ("", ["--set : ", "key=value"]),
    ] {
        let error = error(setting);
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
}
