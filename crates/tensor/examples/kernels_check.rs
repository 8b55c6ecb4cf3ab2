//! Compile every CUDA kernel without a GPU: `cargo run --release --example kernels_check sm_80 sm_90a sm_100`.
//! Needs NVRTC on the loader's path or in WEFT_NVRTC; exits with 1 if one does not compile.

use std::process::ExitCode;
use std::time::Instant;

use weft_tensor::cuda::kernels::{check, version};

fn main() -> ExitCode {
    let archs: Vec<String> = std::env::args().skip(1).collect();
    for arch in &archs {
        let start = Instant::now();
        match check(&[arch]) {
            Ok(found) => {
                let f = &found[0];
                println!(
                    "{arch}: {} modules, {} KiB, {:.1} s",
                    f.modules,
                    f.bytes >> 10,
                    start.elapsed().as_secs_f64()
                );
            }
            Err(e) => {
                eprintln!("{e}");
                return ExitCode::FAILURE;
            }
        }
    }
    match version() {
        Ok((major, minor)) => println!("NVRTC {major}.{minor}"),
        Err(reason) => println!("{reason}"),
    }
    ExitCode::SUCCESS
}
