//! What the operations compute, against plain loops and by their properties.

use proptest::prelude::*;
use weft_tensor::{DType, Device, Rng, Tensor, bf16, grad};

const CPU: Device = Device::Cpu;

fn f64s(v: &[f64], shape: &[usize]) -> Tensor {
    Tensor::from_slice(v, shape, &CPU).unwrap()
}

fn ints(v: &[i64], shape: &[usize]) -> Tensor {
    Tensor::from_slice(v, shape, &CPU).unwrap()
}

fn list(t: &Tensor) -> Vec<f64> {
    t.to_f64_vec().unwrap()
}

#[test]
fn views_share_and_copies_are_row_major() {
    let x = Tensor::arange(0, 24, DType::F32, &CPU)
        .unwrap()
        .reshape(&[2, 3, 4])
        .unwrap();
    let t = x.permute(&[2, 0, 1]).unwrap();
    assert_eq!(t.shape(), [4, 2, 3]);
    assert!(!t.is_contiguous());
    assert_eq!(
        list(&t.select(0, 1).unwrap()),
        [1.0, 5.0, 9.0, 13.0, 17.0, 21.0]
    );
    let n = x.narrow(1, 1, 2).unwrap().slice_axis(2, 1, 2, 2).unwrap();
    assert_eq!(list(&n), [5.0, 7.0, 9.0, 11.0, 17.0, 19.0, 21.0, 23.0]);
    assert_eq!(
        list(&n.flip(-1).unwrap().narrow(0, 0, 1).unwrap()),
        [7.0, 5.0, 11.0, 9.0]
    );
    assert_eq!(x.reshape(&[4, 6]).unwrap().shape(), [4, 6]);
    assert_eq!(
        list(&f64s(&[1.0, 2.0], &[2]).repeat_interleave(0, 2).unwrap()),
        [1.0, 1.0, 2.0, 2.0]
    );
    assert_eq!(
        list(&f64s(&[1.0, 2.0], &[2]).repeat(&[2]).unwrap()),
        [1.0, 2.0, 1.0, 2.0]
    );
}

#[test]
fn empty_tensors_are_values_too() {
    let e = Tensor::zeros(&[2, 0, 3], DType::F32, &CPU);
    let x = Tensor::ones(&[2, 1, 3], DType::F32, &CPU);
    assert_eq!(Tensor::cat(&[&e, &x], 1).unwrap().shape(), [2, 1, 3]);
    assert_eq!(list(&e.sum(&[1], false).unwrap()), [0.0; 6]);
    assert_eq!(e.add(&e).unwrap().count(), 0);
    assert_eq!(
        e.transpose(0, 2).unwrap().contiguous().unwrap().shape(),
        [3, 0, 2]
    );
    assert!(e.max(1, false).unwrap_err().to_string().contains("empty"));
}

#[test]
fn dtypes_convert_and_integers_compute() {
    let x = f64s(&[1.5, -2.5, 3.999], &[3]);
    assert_eq!(
        x.to_dtype(DType::I64).unwrap().to_vec::<i64>().unwrap(),
        [1, -2, 3]
    );
    let b =
        Tensor::from_slice(&[1.0f32, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0], &[3], &CPU).unwrap();
    // Ties go to the even neighbour: 1 + 1/256 lies between 1 and 1 + 1/128.
    let rounded: Vec<f32> = b
        .to_dtype(DType::BF16)
        .unwrap()
        .to_vec::<bf16>()
        .unwrap()
        .iter()
        .map(|v| v.to_f32())
        .collect();
    assert_eq!(rounded, [1.0, 1.0, 1.0 + 1.0 / 64.0]);
    assert!(
        Tensor::full(&[1], f64::NAN, DType::F32, &CPU)
            .to_dtype(DType::BF16)
            .unwrap()
            .to_vec::<bf16>()
            .unwrap()[0]
            .is_nan()
    );
    let i = ints(&[3, 4], &[2]).mul(&ints(&[5, -1], &[2])).unwrap();
    assert_eq!(i.to_vec::<i64>().unwrap(), [15, -4]);
    assert_eq!(
        ints(&[3, 4], &[2])
            .sum_all()
            .unwrap()
            .item::<i64>()
            .unwrap(),
        7
    );
    assert_eq!(
        ints(&[1, 2, 3], &[3])
            .cumsum(0)
            .unwrap()
            .to_vec::<i64>()
            .unwrap(),
        [1, 3, 6]
    );
    assert_eq!(
        list(&ints(&[2, 0], &[2]).one_hot(3, DType::F32).unwrap()),
        [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    );
}

#[test]
fn f64_is_rounded_to_bf16_once() {
    let round = |v: f64| {
        let t = f64s(&[v], &[1]).to_dtype(DType::BF16).unwrap();
        t.to_vec::<bf16>().unwrap()[0].to_f64()
    };
    let (half, ulp) = (2f64.powi(-8), 2f64.powi(-7));
    // Just above and just below the tie between 1 and 1 + ulp: closer than an f32 can tell.
    assert_eq!(round(1.0 + half + 2f64.powi(-40)), 1.0 + ulp);
    assert_eq!(round(1.0 + half), 1.0);
    assert_eq!(round(1.0 + ulp + half - 2f64.powi(-40)), 1.0 + ulp);
    assert_eq!(round(-1.0 - half - 2f64.powi(-40)), -1.0 - ulp);
    assert_eq!(round(1e300), f64::INFINITY);
    assert_eq!(round(-1e-300), 0.0);
}

#[test]
fn bf16_cross_entropy_gradients_are_probabilities() {
    // log(sum(exp)) is 20.304, its nearest bf16 20.25: rounding it would make each probability 5.5 percent too large.
    let x: Vec<f64> = (0..68).map(|i| 15.9 + 0.0625 * f64::from(i % 7)).collect();
    let x = f64s(&x, &[1, 68])
        .to_dtype(DType::BF16)
        .unwrap()
        .requires_grad()
        .unwrap();
    let loss = x
        .cross_entropy(&ints(&[3], &[1]))
        .unwrap()
        .sum_all()
        .unwrap();
    let g = list(&loss.backward().unwrap().get(&x).unwrap());
    assert!(
        g.iter().sum::<f64>().abs() < 5e-3,
        "gradients of a row add up to 0: {}",
        g.iter().sum::<f64>()
    );
}

#[test]
fn bf16_products_accumulate_in_f32() {
    // 1 + 512 * 2^-9: each addend alone would be lost in a bf16 sum.
    let mut a = vec![bf16::from_f32(1.0 / 512.0); 513];
    a[0] = bf16::ONE;
    let a = Tensor::from_vec(a, &[1, 513], &CPU).unwrap();
    let b = Tensor::ones(&[513, 1], DType::BF16, &CPU);
    assert_eq!(list(&a.matmul(&b).unwrap()), [2.0]);
    assert_eq!(list(&a.sum(&[1], false).unwrap()), [2.0]);
}

#[test]
fn sorting_is_stable_and_nan_comes_last() {
    let x = f64s(&[2.0, f64::NAN, 1.0, 2.0, 1.0], &[5]);
    assert_eq!(
        x.argsort(0, false).unwrap().to_vec::<i64>().unwrap(),
        [2, 4, 0, 3, 1]
    );
    assert_eq!(
        x.argsort(0, true).unwrap().to_vec::<i64>().unwrap(),
        [0, 3, 2, 4, 1]
    );
    let (v, i) = f64s(&[1.0, 3.0, 2.0, 9.0, 8.0, 7.0], &[2, 3])
        .topk(2, -1)
        .unwrap();
    assert_eq!(list(&v), [3.0, 2.0, 9.0, 8.0]);
    assert_eq!(i.to_vec::<i64>().unwrap(), [1, 2, 0, 1]);
}

#[test]
fn softmax_and_logsumexp_survive_extremes() {
    let x = f64s(
        &[
            1000.0,
            1000.0,
            -1000.0,
            f64::NEG_INFINITY,
            f64::NEG_INFINITY,
            f64::NEG_INFINITY,
        ],
        &[2, 3],
    );
    assert_eq!(
        list(&x.softmax(-1).unwrap()),
        [0.5, 0.5, 0.0, 0.0, 0.0, 0.0]
    );
    let l = list(&x.logsumexp(-1, false).unwrap());
    assert!((l[0] - (1000.0 + 2f64.ln())).abs() < 1e-12);
    assert_eq!(l[1], f64::NEG_INFINITY);
}

#[test]
fn where_cond_keeps_nan_out() {
    let mask = Tensor::from_slice(&[1u8, 0], &[2], &CPU).unwrap();
    let a = f64s(&[1.0, f64::NAN], &[2]).requires_grad().unwrap();
    let y = mask.where_cond(&a, &f64s(&[0.0, 5.0], &[2])).unwrap();
    assert_eq!(list(&y), [1.0, 5.0]);
    assert_eq!(
        list(&y.sum_all().unwrap().backward().unwrap().get(&a).unwrap()),
        [1.0, 0.0]
    );
}

#[test]
fn maximum_and_max_show_a_nan() {
    let nan = f64s(&[f64::NAN, 1.0], &[2]);
    let x = f64s(&[0.0, 2.0], &[2]);
    for y in [nan.maximum(&x).unwrap(), x.maximum(&nan).unwrap()] {
        assert!(list(&y)[0].is_nan() && list(&y)[1] == 2.0);
    }
    assert!(list(&f64s(&[1.0, f64::NAN, 2.0], &[3]).max(0, false).unwrap())[0].is_nan());
    assert!(!nan.all_finite().unwrap() && x.all_finite().unwrap());
    assert!(!f64s(&[f64::INFINITY], &[1]).all_finite().unwrap());
}

#[test]
fn random_numbers_follow_the_seed_and_resume() {
    let draw = |rng: &mut Rng| list(&rng.normal(&[1000], 1.0, 2.0, DType::F64, &CPU).unwrap());
    let mut rng = Rng::new(7);
    let a = draw(&mut rng);
    let saved: Rng = serde_json::from_str(&serde_json::to_string(&rng).unwrap()).unwrap();
    assert_eq!(draw(&mut rng), draw(&mut saved.clone()));
    assert_eq!(a, draw(&mut Rng::new(7)));
    assert_ne!(a, draw(&mut Rng::new(8)));
    assert_ne!(Rng::stream(7, 1).next_u64(), Rng::stream(7, 2).next_u64());
    let mean = a.iter().sum::<f64>() / 1000.0;
    let var = a.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 1000.0;
    assert!(
        (mean - 1.0).abs() < 0.3 && (var - 4.0).abs() < 0.8,
        "mean {mean}, variance {var}"
    );
}

#[test]
fn writing_in_place_disturbs_nobody() {
    let mut x = Tensor::zeros(&[3], DType::F32, &CPU);
    let other = x.clone();
    x.write::<f32, _>(|v| v[1] = 5.0).unwrap();
    assert_eq!(list(&x), [0.0, 5.0, 0.0]);
    assert_eq!(list(&other), [0.0; 3]);
    // Alone now: the next write changes the same memory.
    let before = x.slice::<f32>().unwrap().as_ptr();
    x.write::<f32, _>(|v| v[2] = 1.0).unwrap();
    assert_eq!(before, x.slice::<f32>().unwrap().as_ptr());
    assert!(x.requires_grad().unwrap().write::<f32, _>(|_| ()).is_err());
    assert!(x.write::<f64, _>(|_| ()).is_err());
}

#[test]
fn errors_name_the_operation_and_the_shapes() {
    let (a, b) = (
        Tensor::zeros(&[2, 3], DType::F32, &CPU),
        Tensor::zeros(&[4, 5], DType::F32, &CPU),
    );
    for (e, parts) in [
        (a.matmul(&b), ["matmul", "[2, 3]", "[4, 5]"]),
        (a.add(&b), ["add", "[2, 3]", "[4, 5]"]),
        (a.reshape(&[7]), ["reshape", "[2, 3]", "[7]"]),
        (a.narrow(1, 2, 2), ["slice_axis", "axis 1", "[2, 3]"]),
        (a.linear(&b, None), ["linear", "[2, 3]", "[4, 5]"]),
        (a.transpose(0, 2), ["transpose", "axis 2", "2 axes"]),
        (Tensor::cat(&[&a, &b], 0), ["cat", "[2, 3]", "[4, 5]"]),
        (
            a.embedding(&ints(&[0, 9], &[2])),
            ["index_select", "index 9", "0..2"],
        ),
        (
            a.gather(1, &ints(&[0, -1], &[2, 1])),
            ["gather", "index -1", "0..3"],
        ),
        (
            a.add(&a.to_dtype(DType::F64).unwrap()),
            ["add", "f64", "f32"],
        ),
        (
            a.cross_entropy(&ints(&[0, 3], &[2])),
            ["cross_entropy", "index 3", "0..3"],
        ),
    ] {
        let e = e.unwrap_err().to_string();
        assert!(parts.iter().all(|p| e.contains(p)), "{e}");
    }
}

fn tensor(shape: Vec<usize>, seed: u64) -> Tensor {
    Rng::new(seed)
        .normal(&shape, 0.0, 1.0, DType::F64, &CPU)
        .unwrap()
}

proptest! {
    #[test]
    fn matmul_equals_three_loops(b in 1usize..4, m in 1usize..20, k in 1usize..20, n in 1usize..20, flip: bool) {
        let x = tensor(vec![b, m, k], 1);
        let y = if flip { tensor(vec![b, n, k], 2).transpose(1, 2).unwrap() } else { tensor(vec![b, k, n], 2) };
        let (xv, yv, z) = (list(&x), list(&y), list(&x.matmul(&y).unwrap()));
        for i in 0..b { for r in 0..m { for c in 0..n {
            let want: f64 = (0..k).map(|j| xv[(i * m + r) * k + j] * yv[(i * k + j) * n + c]).sum();
            prop_assert!((z[(i * m + r) * n + c] - want).abs() < 1e-12);
        }}}
    }

    #[test]
    fn reductions_equal_loops(shape in prop::collection::vec(1usize..9, 1..4), axis in 0usize..4) {
        let x = tensor(shape.clone(), 3);
        let a = axis % shape.len();
        let (v, s) = (list(&x), list(&x.sum(&[a as isize], false).unwrap()));
        let m = list(&x.max(a as isize, false).unwrap());
        let at = x.argmax(a as isize, false).unwrap().to_vec::<i64>().unwrap();
        let run = list(&x.cummax(a as isize).unwrap());
        let inner: usize = shape[a + 1..].iter().product();
        for i in 0..s.len() {
            let column: Vec<f64> = (0..shape[a]).map(|j| v[(i / inner * shape[a] + j) * inner + i % inner]).collect();
            prop_assert!((column.iter().sum::<f64>() - s[i]).abs() < 1e-12);
            prop_assert_eq!(column.iter().copied().fold(f64::NEG_INFINITY, f64::max), m[i]);
            prop_assert_eq!(column[at[i] as usize], m[i]);
            let last = (i / inner * shape[a] + shape[a] - 1) * inner + i % inner;
            prop_assert_eq!(run[last], m[i]);
        }
    }

    #[test]
    fn broadcasting_equals_copies(a in 1usize..5, b in 1usize..5, c in 1usize..40, which in 0usize..4) {
        let full = [a, b, c];
        let mut small = full.to_vec();
        match which { 0 => small = vec![c], 1 => small[1] = 1, 2 => small[2] = 1, _ => small = vec![1] }
        let (x, y) = (tensor(full.to_vec(), 4), tensor(small, 5));
        let copied = y.broadcast_to(&full).unwrap().contiguous().unwrap();
        prop_assert_eq!(list(&x.mul(&y).unwrap()), list(&x.mul(&copied).unwrap()));
        prop_assert_eq!(list(&y.sub(&x).unwrap()), list(&copied.sub(&x).unwrap()));
    }

    #[test]
    fn scatter_add_and_gather_are_adjoint(n in 1usize..6, m in 1usize..6, k in 1usize..6) {
        let (x, y) = (tensor(vec![n, m], 6), tensor(vec![n, k], 7));
        let index = Rng::new(8).integers(&[n, k], 0, m as i64, &CPU).unwrap();
        let left = x.gather(1, &index).unwrap().mul(&y).unwrap().sum_all().unwrap().item::<f64>().unwrap();
        let scattered = Tensor::zeros(&[n, m], DType::F64, &CPU).scatter_add(1, &index, &y).unwrap();
        let right = scattered.mul(&x).unwrap().sum_all().unwrap().item::<f64>().unwrap();
        prop_assert!((left - right).abs() < 1e-12);
    }

    #[test]
    fn triangular_solve_solves(n in 1usize..12, m in 1usize..5, upper: bool) {
        let full = tensor(vec![2, n, n], 9).mul_scalar(0.3).unwrap();
        let l = if upper { full.triu(0) } else { full.tril(0) }.unwrap();
        let l = l.add(&Tensor::eye(n, DType::F64, &CPU).unwrap().mul_scalar(2.0).unwrap()).unwrap();
        let b = tensor(vec![2, n, m], 10);
        let y = l.tri_solve(&b, upper, false).unwrap();
        let again = l.matmul(&y).unwrap();
        for (p, q) in list(&again).iter().zip(list(&b)) {
            prop_assert!((p - q).abs() < 1e-9);
        }
    }
}

#[test]
fn linear_of_few_rows_equals_the_product_with_the_widened_weight() {
    let mut rng = Rng::new(7);
    // Rows on both sides of the border, widths around the kernel's blocks, both dtypes of weights.
    let sizes = [
        (1, 1, 1),
        (1, 64, 5),
        (1, 200, 300),
        (3, 130, 17),
        (48, 63, 4),
        (49, 65, 6),
    ];
    let dtypes = [DType::F32, DType::BF16];
    for ((rows, k, n), stored) in sizes.into_iter().flat_map(|s| dtypes.map(|d| (s, d))) {
        let leaf = |rng: &mut Rng, shape: &[usize], dtype| {
            let x = rng.normal(shape, 0.0, 1.0, dtype, &CPU).unwrap();
            x.requires_grad().unwrap()
        };
        let x = leaf(&mut rng, &[1, rows, k], DType::F32);
        let w = leaf(&mut rng, &[n, k], stored);
        let narrow = x.linear(&w, None).unwrap();
        let wide = w.to_dtype(DType::F64).unwrap().transpose(0, 1).unwrap();
        let wide = x.to_dtype(DType::F64).unwrap().matmul(&wide).unwrap();
        assert_eq!(narrow.shape(), [1, rows, n]);
        let scale = (k as f64).sqrt();
        let near = |a: &Tensor, b: &Tensor, tolerance: f64| {
            let (a, b) = (list(a), list(b));
            let far = a.iter().zip(&b).map(|(a, b)| (a - b).abs());
            let far = far.fold(0.0, f64::max);
            assert!(far <= tolerance, "{far} with {rows} rows of {k} to {n}");
        };
        near(&narrow, &wide, 1e-6 * scale);
        let g = rng
            .normal(&[1, rows, n], 0.0, 1.0, DType::F32, &CPU)
            .unwrap();
        let both = |y: &Tensor| {
            let loss = y
                .mul(&g.to_dtype(y.dtype()).unwrap())
                .unwrap()
                .sum_all()
                .unwrap();
            grad(&[&loss], None, &[&x, &w], false).unwrap()
        };
        let (got, want) = (both(&narrow), both(&wide));
        near(
            got[0].as_ref().unwrap(),
            want[0].as_ref().unwrap(),
            1e-5 * (n as f64).sqrt(),
        );
        // The weight's gradient is stored as the weight is, bf16 with 8 bits.
        let rounding = if stored == DType::BF16 { 0.04 } else { 1e-5 };
        near(
            got[1].as_ref().unwrap(),
            want[1].as_ref().unwrap(),
            rounding * (rows as f64).sqrt(),
        );
        assert_eq!(got[1].as_ref().unwrap().dtype(), stored);
    }
    let x = Tensor::zeros(&[1, 4], DType::F32, &CPU);
    let view = Tensor::zeros(&[4, 2], DType::BF16, &CPU)
        .transpose(0, 1)
        .unwrap();
    assert_eq!(x.linear(&view, None).unwrap().shape(), [1, 2]);
    let ids = Tensor::zeros(&[2, 4], DType::I64, &CPU);
    assert!(x.linear(&ids, None).is_err());
}
