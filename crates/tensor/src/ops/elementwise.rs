//! Elementwise functions, and arithmetic with broadcasting.

use crate::autograd::{record, record_with_output};
use crate::cpu::{BinaryOp, UnaryOp};
use crate::error::Result;
use crate::layout::broadcast;
use crate::storage::Storage;
use crate::tensor::{Tensor, same_dtype};

/// sqrt(2 / pi), in the tanh form of GELU.
const GELU_SCALE: f64 = 0.797_884_560_802_865_4;
const GELU_CUBIC: f64 = 0.044_715;
/// 2 / sqrt(pi), the slope of erf at 0.
const ERF_SLOPE: f64 = std::f64::consts::FRAC_2_SQRT_PI;

impl Tensor {
    fn unary(&self, op: UnaryOp) -> Result<Tensor> {
        Ok(Tensor::new(
            Storage::unary(op, self.operand())?,
            self.shape(),
        ))
    }

    /// -x
    pub fn neg(&self) -> Result<Tensor> {
        self.mul_scalar(-1.0)
    }

    /// |x|; the gradient at 0 is 0.
    pub fn abs(&self) -> Result<Tensor> {
        let x = self.clone();
        Ok(record(
            "abs",
            [self],
            self.unary(UnaryOp::Abs)?,
            move |g, _| Ok([Some(g.mul(&x.sign()?)?)]),
        ))
    }

    /// -1, 0 or 1; no gradient.
    pub fn sign(&self) -> Result<Tensor> {
        self.unary(UnaryOp::Sign)
    }

    /// The largest integer not above x; no gradient.
    pub fn floor(&self) -> Result<Tensor> {
        self.unary(UnaryOp::Floor)
    }

    /// The nearest integer, halves to even; no gradient.
    pub fn round(&self) -> Result<Tensor> {
        self.unary(UnaryOp::Round)
    }

    /// e^x
    pub fn exp(&self) -> Result<Tensor> {
        Ok(record_with_output(
            "exp",
            [self],
            self.unary(UnaryOp::Exp)?,
            |g, ctx| Ok([Some(g.mul(&ctx.output(0)?)?)]),
        ))
    }

    /// Natural logarithm.
    pub fn ln(&self) -> Result<Tensor> {
        let x = self.clone();
        Ok(record(
            "ln",
            [self],
            self.unary(UnaryOp::Ln)?,
            move |g, _| Ok([Some(g.div(&x)?)]),
        ))
    }

    /// Sine of radians.
    pub fn sin(&self) -> Result<Tensor> {
        let x = self.clone();
        Ok(record(
            "sin",
            [self],
            self.unary(UnaryOp::Sin)?,
            move |g, _| Ok([Some(g.mul(&x.cos()?)?)]),
        ))
    }

    /// Cosine of radians.
    pub fn cos(&self) -> Result<Tensor> {
        let x = self.clone();
        Ok(record(
            "cos",
            [self],
            self.unary(UnaryOp::Cos)?,
            move |g, _| Ok([Some(g.mul(&x.sin()?)?.neg()?)]),
        ))
    }

    /// Square root.
    pub fn sqrt(&self) -> Result<Tensor> {
        Ok(record_with_output(
            "sqrt",
            [self],
            self.unary(UnaryOp::Sqrt)?,
            |g, ctx| Ok([Some(g.div(&ctx.output(0)?)?.mul_scalar(0.5)?)]),
        ))
    }

    /// 1 / sqrt(x)
    pub fn rsqrt(&self) -> Result<Tensor> {
        Ok(record_with_output(
            "rsqrt",
            [self],
            self.unary(UnaryOp::Rsqrt)?,
            |g, ctx| {
                let y = ctx.output(0)?;
                Ok([Some(g.mul(&y.square()?.mul(&y)?)?.mul_scalar(-0.5)?)])
            },
        ))
    }

    /// 1 / x
    pub fn recip(&self) -> Result<Tensor> {
        Ok(record_with_output(
            "recip",
            [self],
            self.unary(UnaryOp::Recip)?,
            |g, ctx| Ok([Some(g.mul(&ctx.output(0)?.square()?)?.neg()?)]),
        ))
    }

    /// x^2
    pub fn square(&self) -> Result<Tensor> {
        let x = self.clone();
        Ok(record(
            "square",
            [self],
            self.unary(UnaryOp::Square)?,
            move |g, _| Ok([Some(g.mul(&x)?.mul_scalar(2.0)?)]),
        ))
    }

    /// x^p for a constant p; x must be positive unless p is an integer.
    pub fn powf(&self, p: f64) -> Result<Tensor> {
        let x = self.clone();
        Ok(record(
            "powf",
            [self],
            self.unary(UnaryOp::Powf(p))?,
            move |g, _| {
                if p == 0.0 {
                    return Ok([Some(g.zeros_like())]);
                }
                Ok([Some(g.mul(&x.powf(p - 1.0)?)?.mul_scalar(p)?)])
            },
        ))
    }

    /// 1 / (1 + e^-x)
    pub fn sigmoid(&self) -> Result<Tensor> {
        Ok(record_with_output(
            "sigmoid",
            [self],
            self.unary(UnaryOp::Sigmoid)?,
            |g, ctx| {
                let y = ctx.output(0)?;
                Ok([Some(g.mul(&y.sub(&y.square()?)?)?)])
            },
        ))
    }

    /// Hyperbolic tangent.
    pub fn tanh(&self) -> Result<Tensor> {
        Ok(record_with_output(
            "tanh",
            [self],
            self.unary(UnaryOp::Tanh)?,
            |g, ctx| {
                let y = ctx.output(0)?;
                Ok([Some(g.sub(&g.mul(&y.square()?)?)?)])
            },
        ))
    }

    /// x sigmoid(x), also called swish.
    pub fn silu(&self) -> Result<Tensor> {
        let x = self.clone();
        Ok(record(
            "silu",
            [self],
            self.unary(UnaryOp::Silu)?,
            move |g, _| {
                let s = x.sigmoid()?;
                let slope = s.add(&x.mul(&s.sub(&s.square()?)?)?)?;
                Ok([Some(g.mul(&slope)?)])
            },
        ))
    }

    /// max(x, 0); the gradient at 0 is 0.
    pub fn relu(&self) -> Result<Tensor> {
        let x = self.clone();
        Ok(record(
            "relu",
            [self],
            self.unary(UnaryOp::Relu)?,
            move |g, _| {
                let mask = x.detach().gt(&x.zeros_like())?;
                Ok([Some(mask.where_cond(g, &g.zeros_like())?)])
            },
        ))
    }

    /// ln(1 + e^x)
    pub fn softplus(&self) -> Result<Tensor> {
        let x = self.clone();
        Ok(record(
            "softplus",
            [self],
            self.unary(UnaryOp::Softplus)?,
            move |g, _| Ok([Some(g.mul(&x.sigmoid()?)?)]),
        ))
    }

    /// ln(sigmoid(x)) = -softplus(-x)
    pub fn log_sigmoid(&self) -> Result<Tensor> {
        self.neg()?.softplus()?.neg()
    }

    /// The error function.
    pub fn erf(&self) -> Result<Tensor> {
        let x = self.clone();
        Ok(record(
            "erf",
            [self],
            self.unary(UnaryOp::Erf)?,
            move |g, _| {
                Ok([Some(
                    g.mul(&x.square()?.neg()?.exp()?)?.mul_scalar(ERF_SLOPE)?,
                )])
            },
        ))
    }

    /// GELU, exact: x (1 + erf(x / sqrt 2)) / 2 (Hendrycks & Gimpel 2016).
    pub fn gelu(&self) -> Result<Tensor> {
        let cdf = self
            .mul_scalar(std::f64::consts::FRAC_1_SQRT_2)?
            .erf()?
            .affine(0.5, 0.5)?;
        self.mul(&cdf)
    }

    /// GELU in its tanh form, `gelu_pytorch_tanh` of model configs.
    pub fn gelu_tanh(&self) -> Result<Tensor> {
        let inner = self
            .add(&self.square()?.mul(self)?.mul_scalar(GELU_CUBIC)?)?
            .mul_scalar(GELU_SCALE)?;
        self.mul(&inner.tanh()?.affine(0.5, 0.5)?)
    }

    /// x limited to [lo, hi]; the gradient is 0 outside.
    pub fn clamp(&self, lo: f64, hi: f64) -> Result<Tensor> {
        let x = self.clone();
        Ok(record(
            "clamp",
            [self],
            self.unary(UnaryOp::Clamp(lo, hi))?,
            move |g, _| {
                let bound = |v| Tensor::full(&[], v, x.dtype(), &x.device());
                let inside = x
                    .detach()
                    .ge(&bound(lo))?
                    .mul(&x.detach().le(&bound(hi))?)?;
                Ok([Some(inside.where_cond(g, &g.zeros_like())?)])
            },
        ))
    }

    /// x * scale + shift, for constants.
    pub fn affine(&self, scale: f64, shift: f64) -> Result<Tensor> {
        let y = Tensor::new(Storage::affine(self.operand(), scale, shift)?, self.shape());
        Ok(record("affine", [self], y, move |g, _| {
            Ok([Some(g.mul_scalar(scale)?)])
        }))
    }

    /// x + c, for a constant c.
    pub fn add_scalar(&self, c: f64) -> Result<Tensor> {
        self.affine(1.0, c)
    }

    /// x * c, for a constant c.
    pub fn mul_scalar(&self, c: f64) -> Result<Tensor> {
        self.affine(c, 0.0)
    }

    fn binary(&self, name: &'static str, op: BinaryOp, rhs: &Tensor) -> Result<Tensor> {
        same_dtype(name, self, rhs)?;
        let shape = broadcast(name, self.shape(), rhs.shape())?;
        let la = self.layout().broadcast_to(name, &shape)?;
        let lb = rhs.layout().broadcast_to(name, &shape)?;
        let y = Storage::binary(op, (self.operand().0, &la), (rhs.operand().0, &lb))?;
        Ok(Tensor::new(y, &shape))
    }

    /// a + b, broadcasting.
    pub fn add(&self, rhs: &Tensor) -> Result<Tensor> {
        let (sa, sb) = (self.shape().to_vec(), rhs.shape().to_vec());
        Ok(record(
            "add",
            [self, rhs],
            self.binary("add", BinaryOp::Add, rhs)?,
            move |g, ctx| {
                Ok([
                    ctx.needs(0).then(|| g.sum_to(&sa)).transpose()?,
                    ctx.needs(1).then(|| g.sum_to(&sb)).transpose()?,
                ])
            },
        ))
    }

    /// a - b, broadcasting.
    pub fn sub(&self, rhs: &Tensor) -> Result<Tensor> {
        let (sa, sb) = (self.shape().to_vec(), rhs.shape().to_vec());
        Ok(record(
            "sub",
            [self, rhs],
            self.binary("sub", BinaryOp::Sub, rhs)?,
            move |g, ctx| {
                Ok([
                    ctx.needs(0).then(|| g.sum_to(&sa)).transpose()?,
                    ctx.needs(1).then(|| g.sum_to(&sb)?.neg()).transpose()?,
                ])
            },
        ))
    }

    /// a * b, broadcasting.
    pub fn mul(&self, rhs: &Tensor) -> Result<Tensor> {
        let (a, b) = (self.clone(), rhs.clone());
        Ok(record(
            "mul",
            [self, rhs],
            self.binary("mul", BinaryOp::Mul, rhs)?,
            move |g, ctx| {
                Ok([
                    ctx.needs(0)
                        .then(|| g.mul(&b)?.sum_to(a.shape()))
                        .transpose()?,
                    ctx.needs(1)
                        .then(|| g.mul(&a)?.sum_to(b.shape()))
                        .transpose()?,
                ])
            },
        ))
    }

    /// a / b, broadcasting.
    pub fn div(&self, rhs: &Tensor) -> Result<Tensor> {
        let (a, b) = (self.clone(), rhs.clone());
        Ok(record(
            "div",
            [self, rhs],
            self.binary("div", BinaryOp::Div, rhs)?,
            move |g, ctx| {
                Ok([
                    ctx.needs(0)
                        .then(|| g.div(&b)?.sum_to(a.shape()))
                        .transpose()?,
                    ctx.needs(1)
                        .then(|| g.mul(&a)?.div(&b.square()?)?.neg()?.sum_to(b.shape()))
                        .transpose()?,
                ])
            },
        ))
    }

    /// a^b, broadcasting; a must be positive where a gradient is asked for.
    pub fn pow(&self, rhs: &Tensor) -> Result<Tensor> {
        let (a, b) = (self.clone(), rhs.clone());
        Ok(record(
            "pow",
            [self, rhs],
            self.binary("pow", BinaryOp::Pow, rhs)?,
            move |g, ctx| {
                Ok([
                    ctx.needs(0)
                        .then(|| {
                            g.mul(&b.mul(&a.pow(&b.add_scalar(-1.0)?)?)?)?
                                .sum_to(a.shape())
                        })
                        .transpose()?,
                    ctx.needs(1)
                        .then(|| g.mul(&a.pow(&b)?.mul(&a.ln()?)?)?.sum_to(b.shape()))
                        .transpose()?,
                ])
            },
        ))
    }

    /// The larger of two, broadcasting; where they are equal the gradient goes to the left one.
    pub fn maximum(&self, rhs: &Tensor) -> Result<Tensor> {
        let y = self.binary("maximum", BinaryOp::Maximum, rhs)?;
        self.choose("maximum", rhs, y, Tensor::ge)
    }

    /// The smaller of two, broadcasting; where they are equal the gradient goes to the left one.
    pub fn minimum(&self, rhs: &Tensor) -> Result<Tensor> {
        let y = self.binary("minimum", BinaryOp::Minimum, rhs)?;
        self.choose("minimum", rhs, y, Tensor::le)
    }

    fn choose(
        &self,
        name: &'static str,
        rhs: &Tensor,
        y: Tensor,
        left: fn(&Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (a, b) = (self.clone(), rhs.clone());
        Ok(record(name, [self, rhs], y, move |g, _| {
            let (mask, zero) = (left(&a, &b)?, g.zeros_like());
            let ga = mask.where_cond(g, &zero)?.sum_to(a.shape())?;
            let gb = mask.where_cond(&zero, g)?.sum_to(b.shape())?;
            Ok([Some(ga), Some(gb)])
        }))
    }
}
