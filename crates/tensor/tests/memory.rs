//! Memory use. A process of its own: the counters are global, so nothing else may run beside it.

use weft_tensor::{DType, Device, Tensor, checkpoint, memory};

fn checkpointing_saves_memory() {
    let x = Tensor::ones(&[256, 64], DType::F64, &Device::Cpu)
        .requires_grad()
        .unwrap();
    let peak = |save: bool| {
        memory::reset_peak();
        let before = memory::usage().live;
        let mut y = x.clone();
        for _ in 0..16 {
            let f = |t: &[Tensor]| Ok([t[0].exp()?.sigmoid()?.tanh()?.square()?.sqrt()?]);
            [y] = if save {
                checkpoint(&[&y], f).unwrap()
            } else {
                f(&[y]).unwrap()
            };
        }
        y.sum_all().unwrap().backward().unwrap();
        memory::usage().peak - before
    };
    let (plain, saved) = (peak(false), peak(true));
    assert!(saved * 2 < plain, "{saved} bytes against {plain}");
}

fn freed_blocks_are_used_again() {
    let make = || Tensor::zeros(&[1 << 20], DType::F32, &Device::Cpu);
    drop(make());
    let before = memory::usage();
    drop(make());
    assert_eq!(memory::usage().idle, before.idle);
    memory::trim();
    assert_eq!(memory::usage().idle, 0);
}

#[test]
fn memory_is_reused_and_checkpointing_saves_it() {
    checkpointing_saves_memory();
    freed_blocks_are_used_again();
}
