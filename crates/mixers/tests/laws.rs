//! Every registered mixer, in every sample configuration, in f64 and f32, under all laws. New buffers are
//! filled with NaN throughout, so that reading an element that no kernel wrote breaks a law.

use std::sync::Once;

use weft_mixers::laws::{LAWS, Subject, test_device};
use weft_mixers::registry::MIXERS;
use weft_mixers::{Params, Scope};
use weft_tensor::{DType, Device, Tensor, memory};

#[test]
fn every_registered_mixer_obeys_the_laws() {
    static POISON: Once = Once::new();
    POISON.call_once(|| memory::poison(true));
    let device = test_device();
    assert!(!MIXERS.is_empty(), "no mixer is registered");
    let mut broken = vec![];
    for entry in MIXERS {
        let samples = (entry.samples)();
        assert!(!samples.is_empty(), "{} has no sample settings", entry.name);
        for options in &samples {
            for dtype in [DType::F64, DType::F32] {
                // A whole suite takes a while: a hint of where it is.
                eprintln!("{} {dtype} on {device}", entry.name);
                let subject = Subject::new(entry, options, dtype, &device).unwrap();
                for (name, law) in LAWS {
                    if let Err(e) = law(&subject) {
                        let settings = serde_json::to_string(&options.table).unwrap();
                        broken.push(format!("{} {settings} {dtype}: {name}: {e}", entry.name));
                    }
                }
            }
        }
    }
    assert!(broken.is_empty(), "broken laws:\n{}", broken.join("\n"));
}

#[test]
fn names_are_unique_and_pages_exist() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for (i, entry) in MIXERS.iter().enumerate() {
        assert!(
            MIXERS[..i].iter().all(|e| e.name != entry.name),
            "{} is registered twice",
            entry.name
        );
        assert!(
            root.join(entry.page).is_file(),
            "{}: no page {}",
            entry.name,
            entry.page
        );
    }
}

#[test]
fn absurd_sizes_are_refused_before_anything_is_allocated() {
    let huge = u64::MAX;
    for entry in MIXERS {
        for key in [
            "num_heads",
            "head_dim",
            "window",
            "sinks",
            "num_v_heads",
            "head_v_dim",
            "conv_size",
            "expand_ratio",
            "expand_k",
            "expand_v",
            "gate_low_rank_dim",
            "state_size",
            "n_groups",
            "rank",
        ] {
            for value in [huge, huge / 2, 1 << 40] {
                let mut options = (entry.samples)()[0].clone();
                // Not every mixer knows every key: an unknown one is refused as well.
                options.table.insert(key.into(), value.into());
                let mut params = Params::new();
                let nothing = |_: &str, _: &[usize]| -> weft_mixers::Result<Tensor> {
                    panic!("a parameter was asked for")
                };
                let mut scope = Scope::from_source(&mut params, &nothing, &Device::Cpu);
                assert!(
                    (entry.build)(&options, &mut scope).is_err(),
                    "{} took {key} = {value}",
                    entry.name
                );
            }
        }
    }
}
