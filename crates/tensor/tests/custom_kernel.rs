//! A kernel that another crate brings: its source, its launch, and the operation around it with a gradient.

mod common;

use common::CPU;
use weft_tensor::cuda::for_tests as gpu;
use weft_tensor::cuda::{Grid, Launch, Source, Variant, kernels};
use weft_tensor::{Context, DType, Device, Function, Result, Rng, Tensor, apply};

static SCALED: Source = Source {
    name: "test_scaled",
    text: r#"
extern "C" __global__ void scaled(T* y, const T* x, u64 n, float a) {
    for (u64 i = thread_index(); i < n; i += thread_count()) y[i] = down<T>((FACTOR * a) * up(x[i]));
}
extern "C" __global__ void scale(T* x, u64 n, float a) {
    for (u64 i = thread_index(); i < n; i += thread_count()) x[i] = down<T>(a * up(x[i]));
}
struct List {
    u64 count;
    const T* at[3];
};
extern "C" __global__ void total(T* y, const __grid_constant__ List list, u64 n) {
    for (u64 i = thread_index(); i < n; i += thread_count()) {
        float sum = 0;
        for (u64 k = 0; k < list.count; k++) sum += up(list.at[k][i]);
        y[i] = down<T>(sum);
    }
}
"#,
    variants: |s| vec![variant(s, DType::F32), variant(s, DType::BF16)],
};

fn variant(s: &'static Source, dtype: DType) -> Variant {
    Variant::new(s, dtype).constant("FACTOR", 2)
}

/// 2 a x.
fn scaled(x: &Tensor, a: f32) -> Result<Tensor> {
    let y = match x.device() {
        Device::Cpu => x.detach().mul_scalar(2.0 * f64::from(a))?,
        _ => {
            let x = x.detach().contiguous()?;
            let mut launch = Launch::new("scaled", variant(&SCALED, x.dtype()), x.device())?;
            let y = launch.output(x.shape(), x.dtype())?;
            launch.input(&x, x.dtype())?;
            launch.u64(x.count() as u64);
            launch.f32(a);
            // SAFETY: the parameters of `scaled`; it stays below n.
            unsafe { launch.run("scaled", Grid::threads(x.count() as u64)) }?;
            y
        }
    };
    let [y] = apply(Scaled(a), &[x], [y]);
    Ok(y)
}

struct Scaled(f32);
impl Function for Scaled {
    fn name(&self) -> &'static str {
        "scaled"
    }
    fn backward(&self, _: &Context, grads: &[Option<Tensor>]) -> Result<Vec<Option<Tensor>>> {
        grads
            .iter()
            .map(|g| g.as_ref().map(|g| scaled(g, self.0)).transpose())
            .collect()
    }
}

fn values(t: &Tensor) -> Vec<f64> {
    t.to_f64_vec().unwrap()
}

#[test]
fn it_needs_a_gpu_and_says_so() {
    let e = Launch::new("scaled", variant(&SCALED, DType::F32), CPU);
    let e = e.err().unwrap().to_string();
    assert_eq!(e, "scaled: its kernel runs on a GPU, not on cpu");
}

#[test]
fn it_compiles_like_every_other() {
    match kernels::version() {
        Ok(_) => {
            let found = kernels::check(&[&SCALED], &["sm_80".into()], &|| ()).unwrap();
            assert_eq!(found[0].modules, 2);
            let e = kernels::check(&[&SCALED], &["sm_999".into()], &|| ()).unwrap_err();
            assert!(e.to_string().contains("does not know sm_999"), "{e}");
        }
        Err(reason) => eprintln!("skipped: {reason}"),
    }
    let e = kernels::check(&[&SCALED], &["9.0".into()], &|| ()).unwrap_err();
    assert!(e.to_string().contains("give names like sm_80"), "{e}");
}

#[test]
fn it_computes_and_differentiates_like_the_cpu() {
    let Some(gpu) = gpu() else { return };
    let mut rng = Rng::new(1);
    for dtype in [DType::F32, DType::BF16] {
        // More work than the grid has threads for in one pass is covered by the primitives' own tests.
        let x = rng.normal(&[33, 65], 0.0, 1.0, dtype, &CPU).unwrap();
        let run = |d: &Device| {
            let x = x.to_device(d).unwrap().requires_grad().unwrap();
            let y = scaled(&x, 0.5).unwrap();
            let loss = y.square().unwrap().sum_all().unwrap();
            let g = loss.backward().unwrap().get(&x).unwrap();
            (values(&y), values(&g))
        };
        assert_eq!(run(&gpu), run(&CPU));
    }
}

#[test]
fn what_does_not_fit_is_refused_with_the_operation_s_name() {
    let Some(gpu) = gpu() else { return };
    let x = Tensor::ones(&[4, 6], DType::F32, &gpu);
    let refused = |x: &Tensor, dtype: DType| {
        let mut launch = Launch::new("scaled", variant(&SCALED, dtype), gpu).unwrap();
        let text = launch.input(x, dtype).unwrap_err().to_string();
        assert!(text.starts_with("scaled: "), "{text}");
        text
    };
    assert!(refused(&x, DType::BF16).contains("expected bf16"));
    assert!(refused(&x.transpose(0, 1).unwrap(), DType::F32).contains("not contiguous"));
    assert!(refused(&x.to_device(&CPU).unwrap(), DType::F32).contains("lives on cpu"));
    let mut launch = Launch::new("scaled", variant(&SCALED, DType::F32), gpu).unwrap();
    let mut tracked = x.requires_grad().unwrap();
    let text = launch.in_place(&mut tracked, DType::F32).unwrap_err();
    assert!(text.to_string().contains("history"), "{text}");
    let launch = Launch::new("scaled", variant(&SCALED, DType::F32), gpu).unwrap();
    // SAFETY: there is no such kernel.
    let text = unsafe { launch.run("absent", Grid::blocks(1, 32)) }.unwrap_err();
    assert!(
        text.to_string().starts_with("scaled: kernel absent"),
        "{text}"
    );
    let mut launch = Launch::new("scaled", variant(&SCALED, DType::F32), gpu).unwrap();
    launch.words(&[0; 600]);
    // SAFETY: refused before anything is sent.
    let text = unsafe { launch.run("scaled", Grid::blocks(1, 32)) }.unwrap_err();
    assert!(text.to_string().contains("4800 bytes"), "{text}");
}

#[test]
fn changes_in_place_are_seen_by_nobody_else_and_lists_reach_the_kernel() {
    let Some(gpu) = gpu() else { return };
    let mut x = Tensor::ones(&[5], DType::F32, &gpu);
    let before = x.clone();
    let double = |x: &mut Tensor| {
        let n = x.count() as u64;
        let mut launch = Launch::new("scale", variant(&SCALED, DType::F32), gpu).unwrap();
        launch.in_place(x, DType::F32).unwrap();
        launch.u64(n);
        launch.f32(2.0);
        // SAFETY: the parameters of `scale`; it stays below n.
        unsafe { launch.run("scale", Grid::threads(n)) }.unwrap();
    };
    double(&mut x);
    double(&mut x);
    assert_eq!((values(&x), values(&before)), (vec![4.0; 5], vec![1.0; 5]));

    let three = [&x, &before, &x];
    let mut launch = Launch::new("total", variant(&SCALED, DType::F32), gpu).unwrap();
    let y = launch.output(&[5], DType::F32).unwrap();
    let address = |t: &&'_ Tensor| launch.address(t, DType::F32).unwrap();
    let list: Vec<u64> = [3].into_iter().chain(three.iter().map(address)).collect();
    launch.words(&list);
    launch.u64(5);
    // SAFETY: the parameters of `total`; every tensor has 5 elements.
    unsafe { launch.run("total", Grid::threads(5)) }.unwrap();
    assert_eq!(values(&y), vec![9.0; 5]);
}
