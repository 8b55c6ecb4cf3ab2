use weft_tensor::{DType, Device, Tensor};

use super::case::{Case, gradients, one};
use super::*;
use crate::error::Error;

const CEILINGS: Ceilings = Ceilings {
    copy: 100e9,
    product_f32: 1e12,
    product_bf16: 2e12,
};

fn clock() -> Clock {
    Clock::new(Device::Cpu, 0.01)
}

fn case(bytes: f64, flops: f64, dtype: DType) -> Case {
    Case {
        name: "double".into(),
        shape: "3".into(),
        dtype,
        bytes,
        flops,
        prepare: Box::new(|device| {
            let x = Tensor::ones(&[3], DType::F32, device);
            one(move || x.mul_scalar(2.0))
        }),
    }
}

#[test]
fn the_nearer_ceiling_is_the_one_that_counts() {
    // A millisecond: 0.5 of the copy; 0.25 of the products in bf16, which are 0.5 of those in f32.
    for (bytes, flops, dtype, share, ceiling) in [
        (50e6, 0.0, DType::F32, 0.5, Ceiling::Copy),
        (50e6, 0.5e9, DType::BF16, 0.5, Ceiling::Copy),
        (20e6, 0.5e9, DType::BF16, 0.25, Ceiling::Product),
        (20e6, 0.5e9, DType::F32, 0.5, Ceiling::Product),
    ] {
        let row = case(bytes, flops, dtype).row(1.0, &CEILINGS);
        assert!((row.share - share).abs() < 1e-12, "{row:?}");
        assert_eq!(row.ceiling, ceiling, "{row:?}");
        assert_eq!(row.bytes_per_second, 1e3 * bytes);
    }
}

#[test]
fn a_wrong_kernel_is_not_timed() {
    let wrong = Case {
        prepare: Box::new(|device| {
            let x = Tensor::zeros(&[3], DType::F32, device);
            one(move || x.recip())
        }),
        ..case(1.0, 0.0, DType::F32)
    };
    let error = wrong.measure(&Device::Cpu, &clock(), &CEILINGS);
    let text = error.unwrap_err().to_string();
    assert!(
        text.contains("not finite") && text.contains("double 3"),
        "{text}"
    );
    let right = case(1.0, 0.0, DType::F32);
    let row = right.measure(&Device::Cpu, &clock(), &CEILINGS).unwrap();
    assert!(row.ms > 0.0 && row.ms < 100.0, "{row:?}");
}

#[test]
fn the_clock_tells_a_longer_call_from_a_shorter_one() {
    let pause = |ms| {
        let call = || {
            std::thread::sleep(std::time::Duration::from_millis(ms));
            Ok(())
        };
        clock().ms(call).unwrap()
    };
    let (short, long) = (pause(2), pause(20));
    assert!(
        short >= 2.0 && long >= 20.0 && long > 2.0 * short,
        "{short} {long}"
    );
    let failed = clock().ms(|| Err(Error::Data("no".into())));
    assert_eq!(failed.unwrap_err().to_string(), "no");
}

#[test]
fn gradients_are_taken_again_and_again() {
    let x = Tensor::full(&[2], 3.0, DType::F64, &Device::Cpu);
    let x = x.requires_grad().unwrap();
    let y = x.square().unwrap();
    let mut work = gradients(vec![y.clone()], vec![y.detach().ones_like()], vec![x]);
    for _ in 0..2 {
        assert_eq!(work().unwrap()[0].to_f64_vec().unwrap(), [6.0, 6.0]);
    }
}

/// Every kernel that is listed for a CPU runs, once each; the names and shapes tell all apart on either device.
#[test]
fn every_kernel_runs_and_has_a_name_of_its_own() {
    for case in kernels(&Device::Cpu) {
        let work = (case.prepare)(&Device::Cpu);
        let outputs = work.and_then(|mut work| work());
        assert!(!outputs.unwrap().is_empty(), "{} {}", case.name, case.shape);
    }
    for device in [Device::Cpu, Device::Cuda(0)] {
        let name = |c: &Case| format!("{} {} {}", c.name, c.shape, c.dtype);
        let mut names: Vec<String> = kernels(&device).iter().map(name).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count, "{names:?}");
    }
}

/// `scripts/device/table.py` finds rows by name and shape.
#[test]
fn the_rows_that_the_device_script_compares_exist() {
    let script = include_str!("../../../../scripts/device/table.py");
    let cases = kernels(&Device::Cuda(0));
    for (name, shape) in [
        ("matmul A B", "8192 x 8192 x 8192"),
        ("attention", "B4 T4096 H16 D128"),
        ("attention back", "B4 T4096 H16 D128"),
        ("gdn", "B1 T8192 H16/32 K=V=128"),
        ("gdn", "B1 T32768 H16/32 K=V=128"),
        ("kda back", "B1 T8192 H32 K=V=128"),
        ("gdn2 step", "B256 H32 K=V=128"),
    ] {
        assert!(
            script.contains(name) && script.contains(shape),
            "{name} {shape}"
        );
        let case = cases
            .iter()
            .find(|c| (c.name.as_str(), c.shape.as_str()) == (name, shape));
        assert_eq!(case.map(|c| c.dtype), Some(DType::BF16), "{name} {shape}");
    }
}

#[test]
fn the_models_are_those_of_the_documentation() {
    let [transformer, hybrid] = [&train(&Device::Cuda(0))[0], &train(&Device::Cuda(0))[1]];
    let config = transformer.model.config().unwrap();
    assert_eq!(
        (config.intermediate_size, config.layer_types.len()),
        (2048, 12)
    );
    assert_eq!(config.mixers["attention"]["num_heads"], 12);
    let config = hybrid.model.config().unwrap();
    assert_eq!(config.mixers["gdn2"]["head_dim"], 128);
    assert_eq!(
        config.layer_types[..4],
        ["gdn2", "gdn2", "gdn2", "attention"]
    );
    let config = decode(&Device::Cpu)[0].model.config().unwrap();
    assert_eq!((config.hidden_size, config.intermediate_size), (512, 1376));
}

fn tiny() -> Size {
    Size {
        layers: "gdn2 + attention".into(),
        depth: 2,
        d_model: 64,
        vocab: 100,
    }
}

#[test]
fn a_training_row_counts_what_it_says() {
    let training = Training {
        model: tiny(),
        batch: 2,
        tokens: 16,
        compute: DType::F32,
        recompute: false,
        profile: false,
    };
    let row = training.measure(&Device::Cpu, &clock(), &CEILINGS).unwrap();
    assert!((row.tokens_per_second - 32e3 / row.ms).abs() < 1e-6 * row.tokens_per_second);
    // Each parameter but the embedding's takes part in a multiply-add per token.
    let dense = row.parameters - 100 * 64;
    assert!(row.flops > 6.0 * 32.0 * 0.9 * dense as f64, "{row:?}");
    assert!(row.loss.is_finite() && row.mfu.is_none() && row.driver_allocations.is_none());
}

#[test]
fn a_decoding_row_reads_weights_and_state() {
    let decoding = |position| Decoding {
        model: tiny(),
        batch: 3,
        position,
        weights: DType::BF16,
    };
    let mut last = LastModel::default();
    let mut measure = |position| {
        let row = decoding(position).measure(&Device::Cpu, &mut last, &clock(), &CEILINGS);
        row.unwrap()
    };
    let (early, late) = (measure(5), measure(3000));
    assert!(late.state_bytes > early.state_bytes, "attention remembers");
    let weights = early.bytes - early.state_bytes as f64;
    let dense = early.parameters as f64 - 100.0 * 64.0;
    assert!(weights > 2.0 * dense && weights < 2.5 * dense, "{early:?}");
    assert!((early.tokens_per_second - 3e3 / early.ms).abs() < 1e-6 * early.tokens_per_second);
}

#[test]
fn sizes_that_fit_nothing_are_refused_in_a_sentence() {
    for (size, part) in [
        (
            Size {
                layers: "gdn2 +".into(),
                ..tiny()
            },
            "layer pattern",
        ),
        (
            Size {
                layers: "gdn9".into(),
                ..tiny()
            },
            "gdn9",
        ),
        (Size { depth: 0, ..tiny() }, "0 layers"),
        (
            Size {
                d_model: 0,
                ..tiny()
            },
            "hidden_size is 0",
        ),
    ] {
        let error = size.build(&Device::Cpu).map(drop).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}
