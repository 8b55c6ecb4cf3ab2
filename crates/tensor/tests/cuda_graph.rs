//! Recorded work on the GPU: it runs again on what its inputs hold then, its memory is its own, and what cannot be
//! recorded is refused.
//!
//! Skipped where there is no GPU; with WEFT_REQUIRE_GPU=1 that is a failure.

use weft_tensor::cuda::{Graph, Input, for_tests as gpu, memory};
use weft_tensor::{DType, Result, Tensor};

#[test]
fn replays_read_inputs_anew_and_keep_their_memory() {
    let Some(d) = gpu() else { return };
    let fill = |v: f64| Tensor::full(&[1000], v, DType::F32, &d);
    let (mut x, mut sum) = (Input::new(&fill(0.0)).unwrap(), fill(0.0));
    let mut step = || -> Result<Tensor> {
        let y = x.tensor().mul_scalar(2.0)?.add_scalar(1.0)?.square()?;
        sum.assign(&sum.add(&y)?)?;
        Ok(y)
    };
    // Once before, so that the kernels are there.
    step().unwrap();
    let (graph, y) = Graph::record(0, step).unwrap();
    sum.assign(&fill(0.0)).unwrap();
    let mut total = 0.0;
    for i in 0..5 {
        x.set(&fill(f64::from(i))).unwrap();
        graph.replay().unwrap();
        // Tensors made and dropped in between must not get the graph's memory.
        let noise: Vec<Tensor> = (0..20).map(|_| fill(-1.0)).collect();
        let want = (2.0 * f64::from(i) + 1.0).powi(2);
        total += want;
        assert_eq!(y.to_f64_vec().unwrap(), [want; 1000]);
        assert_eq!(sum.to_f64_vec().unwrap(), [total; 1000]);
        assert!(
            noise
                .iter()
                .all(|t| t.to_f64_vec().unwrap() == [-1.0; 1000])
        );
    }
    assert!(graph.bytes() > 0);
    let live = memory::usage(0).unwrap().live;
    drop((graph, y));
    assert!(memory::usage(0).unwrap().live < live);
}

#[test]
fn what_the_host_does_cannot_be_recorded() {
    let Some(d) = gpu() else { return };
    let x = Tensor::ones(&[4], DType::F32, &d);
    x.add_scalar(1.0).unwrap().to_f64_vec().unwrap();
    let upload = Graph::record(0, || Tensor::from_slice(&[1f32; 4], &[4], &d));
    let read = Graph::record(0, || x.to_f64_vec());
    let nested = Graph::record(0, || Graph::record(0, || x.square()).map(|_| ()));
    for text in [
        upload.err().map(|e| e.to_string()),
        read.err().map(|e| e.to_string()),
        nested.err().map(|e| e.to_string()),
    ] {
        assert!(text.is_some_and(|t| t.contains("record")));
    }
    // Elements that the recorded work would not see.
    let mut input = Input::new(&x).unwrap();
    let held = input.tensor().clone();
    let text = input.set(&x).unwrap_err().to_string();
    assert!(text.contains("held"), "{text}");
    drop(held);
    // The stream is as it was.
    assert_eq!(x.add_scalar(1.0).unwrap().to_f64_vec().unwrap(), [2.0; 4]);
}
