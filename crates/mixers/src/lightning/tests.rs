//! The slopes, and the whole decoder of TransNormerLLM made of this mixer, SRMS and SGLU, against the authors' numbers.

use serde_json::json;
use weft_tensor::{DType, Tensor, grad};

use super::*;
use crate::golden::{Case, assert_close, cases};
use crate::laws::test_device;
use crate::params::{Param, Params};

fn case(name: &str) -> Vec<Case> {
    let all = cases("lightning-attention").unwrap().into_iter();
    let found: Vec<Case> = all
        .filter(|c| c.label.ends_with(&format!(":{name}")))
        .collect();
    assert!(!found.is_empty(), "no case {name}");
    found
}

#[test]
fn golden_lightning_attention_slopes() {
    for case in case("slopes") {
        let tables = case.with_prefix("");
        assert!(!tables.is_empty(), "{}: no table", case.label);
        for (heads, want) in tables {
            let count = heads.parse().unwrap();
            let got = Tensor::from_vec(slopes::slopes(count), &[count], &want.device()).unwrap();
            let tolerance = case.number("tol").unwrap();
            assert_close(&format!("{}: {heads}", case.label), &got, want, tolerance);
        }
    }
}

#[test]
fn slopes_fall_from_the_first_layer_to_the_last() {
    assert_eq!(slopes::layer_factor(0, 1), 1.0 + 1e-5);
    assert_eq!(slopes::layer_factor(0, 0), 1.0 + 1e-5);
    assert!((slopes::layer_factor(1, 3) - 0.50001).abs() < 1e-12);
    assert!((slopes::layer_factor(2, 3) - 1e-5).abs() < 1e-12);
}

/// The decoder: x += mixer(SRMS x), x += l3(l1(n) * l2(n)) with n = SRMS x, logits by the embedding.
struct Decoder {
    table: Param,
    layers: Vec<(Box<dyn Mixer>, [Linear; 3])>,
    eps: f64,
    scale: f64,
}

impl Decoder {
    fn new(case: &Case, scope: &mut Scope) -> Result<Decoder> {
        let size = |key| Ok::<_, crate::Error>(case.number(key)? as usize);
        let (v, d, layers, glu) = (size("V")?, size("D")?, size("L")?, size("glu_dim")?);
        let mut scope = scope.sub("transnormer");
        let table = scope.weight("wte.weight", &[v, d], Init::Const(0.0))?;
        let mut build = |l: usize| -> Result<_> {
            let mut scope = scope.sub(&format!("h.{l}"));
            let settings = json!({"num_heads": size("H")?});
            let options = Options::new(d, settings).at(l, layers);
            let mixer = (ENTRY.build)(&options, &mut scope.sub("token_mixer"))?;
            let mut scope = scope.sub("channel_mixer");
            let mut linear = |name, i, o| scope.linear(name, i, o, false, Init::Const(0.0));
            let mlp = [
                linear("l1", d, glu)?,
                linear("l2", d, glu)?,
                linear("l3", glu, d)?,
            ];
            Ok((mixer, mlp))
        };
        Ok(Decoder {
            table,
            layers: (0..layers).map(&mut build).collect::<Result<_>>()?,
            eps: case.number("srms_eps")?,
            scale: case.number("embed_scale")?,
        })
    }

    fn forward(&self, ids: &Tensor, dtype: DType) -> Result<Tensor> {
        let table = self.table.cast(dtype)?;
        let mut x = table.embedding(ids)?.mul_scalar(self.scale)?;
        for (mixer, [l1, l2, l3]) in &self.layers {
            let mut state = mixer.init_state(x.dim(0)?, dtype)?;
            let mixed = mixer.forward(&simple_rms(&x, self.eps)?, &mut state, &Call::default())?;
            x = x.add(&mixed)?;
            let n = simple_rms(&x, self.eps)?;
            x = x.add(&l3.forward(&l1.forward(&n)?.mul(&l2.forward(&n)?)?)?)?;
        }
        Ok(simple_rms(&x, self.eps)?.linear(&table, None)?)
    }
}

#[test]
fn golden_lightning_attention_decoder() {
    let device = test_device();
    for case in case("tnl") {
        for dtype in [DType::F64, DType::F32] {
            let source = |name: &str, _: &[usize]| {
                Ok(case
                    .tensor(&format!("p/{name}"))?
                    .to_dtype(dtype)?
                    .to_device(&device)?)
            };
            let mut params = Params::new();
            let mut scope = Scope::from_source(&mut params, &source, &device);
            let decoder = Decoder::new(&case, &mut scope).unwrap();
            assert_eq!(params.len(), case.with_prefix("p/").len(), "{}", case.label);
            let ids = case.tensor("idx").unwrap().to_device(&device).unwrap();
            let targets = case.tensor("targets").unwrap().to_device(&device).unwrap();
            let logits = decoder.forward(&ids, dtype).unwrap();
            let label = |name: &str| format!("{} {dtype}: {name}", case.label);
            let tolerance = case.number("tol").unwrap();
            assert_close(
                &label("logits"),
                &logits,
                case.tensor("logits").unwrap(),
                tolerance,
            );
            let rows = logits.flatten(0, 1).unwrap();
            let targets = targets.reshape(&[rows.dim(0).unwrap()]).unwrap();
            let loss = rows.cross_entropy(&targets).unwrap().mean_all().unwrap();
            let want = case.tensor("loss").unwrap();
            assert_close(
                &label("loss"),
                &loss.reshape(&[1]).unwrap(),
                want,
                tolerance,
            );
            let leaves: Vec<Tensor> = params.iter().map(Param::get).collect();
            let grads = grad(&[&loss], None, &leaves.iter().collect::<Vec<_>>(), false).unwrap();
            for (p, g) in params.iter().zip(grads) {
                let name = format!("grad.{}", p.name());
                // f32 sums over tokens keep fewer digits than the terms have.
                let tolerance = if dtype == DType::F64 {
                    tolerance
                } else {
                    10.0 * tolerance
                };
                assert_close(
                    &label(&name),
                    &g.unwrap(),
                    case.tensor(&name).unwrap(),
                    tolerance,
                );
            }
        }
    }
}

/// Products of turned queries and keys depend on distances alone.
#[test]
fn lrpe_is_relative() {
    let mut params = Params::new();
    let device = weft_tensor::Device::Cpu;
    let lrpe = Lrpe::new(
        &mut Scope::random(&mut params, 1, DType::F64, &device),
        2,
        3,
    )
    .unwrap();
    let draw =
        |seed| weft_tensor::Rng::new(seed).normal(&[1, 5, 2, 3], 0.0, 1.0, DType::F64, &device);
    let (q, k) = (draw(1).unwrap(), draw(2).unwrap());
    let scores = |start: usize| {
        let table = lrpe.table(&[start], 5, &q).unwrap();
        let rows = |x: &Tensor| lrpe::turn(x, &table).unwrap().transpose(1, 2).unwrap();
        rows(&q)
            .matmul(&rows(&k).transpose(-1, -2).unwrap())
            .unwrap()
    };
    assert_close("shifted by 1000", &scores(1000), &scores(0), 1e-12);
    let differs = crate::golden::relative_error(
        &scores(0),
        &q.transpose(1, 2)
            .unwrap()
            .matmul(&k.transpose(1, 2).unwrap().transpose(-1, -2).unwrap())
            .unwrap(),
    )
    .unwrap();
    assert!(differs > 0.1, "the angles do nothing");
}
