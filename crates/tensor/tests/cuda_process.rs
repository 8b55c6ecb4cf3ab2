//! What belongs to a GPU as a whole: its allocator's counters and the index errors that the next wait reports.
//! One test in a process of its own, so that nothing else counts or waits in between.

mod common;

use weft_tensor::cuda::for_tests as gpu;
use weft_tensor::cuda::memory::{reset_peak, trim, usage};
use weft_tensor::{DType, Device, Error, Result, Rng, Tensor};

fn step(x: &Tensor, w: &Tensor) -> Vec<f32> {
    let w = w.requires_grad().unwrap();
    let y = x.matmul(&w).unwrap().silu().unwrap().softmax(-1).unwrap();
    let loss = y.square().unwrap().sum_all().unwrap();
    let g = loss.backward().unwrap().get(&w).unwrap();
    g.to_vec::<f32>().unwrap()
}

fn a_steady_state_asks_nothing_of_the_driver(d: &Device) {
    let mut rng = Rng::new(1);
    let x = rng.normal(&[300, 512], 0.0, 1.0, DType::F32, d).unwrap();
    let w = rng.normal(&[512, 300], 0.0, 0.1, DType::F32, d).unwrap();
    step(&x, &w);
    let before = usage(0).unwrap();
    reset_peak(0).unwrap();
    for _ in 0..10 {
        step(&x, &w);
    }
    let after = usage(0).unwrap();
    assert_eq!(after.driver_allocations, before.driver_allocations);
    assert_eq!((after.live, after.idle), (before.live, before.idle));
    assert!(after.peak > after.live);
}

fn out_of_memory_is_an_error_and_the_process_goes_on(d: &Device) {
    let total = weft_tensor::cuda::context(0).unwrap().total_memory;
    let x = Tensor::zeros(&[1 << 20], DType::F32, d);
    // Idle blocks that must make way.
    drop(Tensor::zeros(&[total / 2], DType::U8, d));
    assert!(usage(0).unwrap().idle >= total / 2);
    let most = Tensor::full(&[total / 10 * 7], 1.0, DType::U8, d);
    assert_eq!(
        most.narrow(0, total / 10 * 7 - 1, 1)
            .unwrap()
            .item::<u8>()
            .unwrap(),
        1
    );
    let failed = Tensor::zeros(&[total / 2], DType::U8, d);
    let text = failed.to_dtype(DType::F32).unwrap_err().to_string();
    assert!(
        text.contains("out of memory") && text.contains("MiB"),
        "{text}"
    );
    let text = most.to_dtype(DType::F64).unwrap_err().to_string();
    assert!(text.starts_with("to_dtype: out of memory"), "{text}");
    drop((failed, most));
    trim(0).unwrap();
    assert_eq!(
        x.add_scalar(1.0)
            .unwrap()
            .sum_all()
            .unwrap()
            .item::<f32>()
            .unwrap(),
        (1 << 20) as f32
    );
}

fn a_bad_index_is_an_error_at_the_next_wait(d: &Device) {
    let x = Tensor::ones(&[4, 3], DType::F32, d);
    for bad in [-1i64, 4, i64::MAX] {
        let at = Tensor::from_vec(vec![0, bad, 1], &[3], d).unwrap();
        let ones = |shape: &[usize]| Tensor::ones(shape, DType::F32, d);
        let wide = || at.unsqueeze(0)?.broadcast_to(&[3, 3]);
        type Run<'a> = &'a dyn Fn() -> Result<Tensor>;
        let operations: [(&str, Run); 4] = [
            ("index_select", &|| x.index_select(0, &at)),
            ("scatter_add", &|| x.index_add(0, &at, &ones(&[3, 3]))),
            ("gather", &|| x.transpose(0, 1)?.gather(1, &wide()?)),
            ("cross_entropy", &|| ones(&[3, 4]).cross_entropy(&at)),
        ];
        for (name, run) in operations {
            match run().unwrap().to_vec::<f32>() {
                Err(Error::Index {
                    op, index, size, ..
                }) => assert_eq!((op, index, size), (name, bad, 4)),
                // -1 is the target that is ignored.
                Ok(_) if name == "cross_entropy" && bad == -1 => {}
                other => panic!("{name} {bad}: {other:?}"),
            }
            assert_eq!(x.sum_all().unwrap().item::<f32>().unwrap(), 12.0);
        }
    }
}

#[test]
fn the_allocator_recovers_and_bad_indices_are_reported() {
    let Some(d) = gpu() else { return };
    a_bad_index_is_an_error_at_the_next_wait(&d);
    a_steady_state_asks_nothing_of_the_driver(&d);
    out_of_memory_is_an_error_and_the_process_goes_on(&d);
}
