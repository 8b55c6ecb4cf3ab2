//! `weft kernels`: what can be tested without a GPU, and what needs NVRTC where that is installed.

mod common;

use common::{json, one_sentence, run, stderr, stdout, weft};

#[test]
fn every_source_is_listed_with_its_variants() {
    let list = json(&["kernels", "list", "--json"]);
    let list = list.as_array().unwrap();
    let names: Vec<&str> = list.iter().map(|s| s["source"].as_str().unwrap()).collect();
    for name in ["copy", "reduce", "norm"] {
        assert!(names.contains(&name), "{names:?}");
    }
    let mut distinct = names.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), names.len(), "two sources of one name");
    assert!(
        list.iter()
            .all(|s| !s["variants"].as_array().unwrap().is_empty())
    );
}

#[test]
fn without_nvrtc_the_sentence_says_how_to_get_it() {
    let empty = tempfile::tempdir().unwrap();
    let args = ["kernels", "check"];
    let output = weft(&args)
        .env("WEFT_NVRTC", empty.path())
        .output()
        .unwrap();
    let text = one_sentence(&output, &args);
    assert!(
        text.contains("WEFT_NVRTC") && text.contains("pip install nvidia-cuda-nvrtc"),
        "{text}"
    );
}

#[test]
fn what_is_no_architecture_is_refused() {
    for (arch, part) in [
        ("sm_90a,volta", "volta is no architecture"),
        ("sm_70", "8.0 or newer"),
    ] {
        let args = ["kernels", "check", "--arch", arch];
        let text = one_sentence(&run(&args), &args);
        assert!(text.contains(part), "{text}");
    }
    let args = ["kernels", "build", "--arch", "hopper"];
    let text = one_sentence(&run(&args), &args);
    assert!(
        text.contains("such as") || text.contains("like sm_90"),
        "{text}"
    );
}

#[test]
fn every_kernel_compiles_where_nvrtc_is_installed() {
    let args = ["kernels", "check", "--arch", "sm_90a", "--json"];
    let output = run(&args);
    if !output.status.success() && stderr(&output).contains("pip install nvidia-cuda-nvrtc") {
        eprintln!("skipped: {}", stderr(&output));
        return;
    }
    assert!(output.status.success(), "{}", stderr(&output));
    let result: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(result["archs"][0]["arch"], "sm_90a");
    assert!(result["archs"][0]["modules"].as_u64().unwrap() > 100);
}
