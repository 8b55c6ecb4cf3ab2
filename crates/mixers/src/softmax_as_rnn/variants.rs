//! The variants by the names of the authors' code: what makes the weights, what divides the sum, gates and norm.

use crate::error::{Error, Result};

/// How a score becomes the weight of a value. s = q . k / sqrt(d), after rotary positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// exp(s), divided by its sum from the start (so that nothing overflows): for softmax, and where a norm cancels
    /// any factor of a row.
    Softmax,
    /// exp(min(s, 5)).
    Exp,
    /// The polynomial 1 + s + .. + s^P / P!.
    Taylor,
    /// relu(q) . relu(k) / sqrt(d), at most 5.
    ReluCapped,
    /// phi(q) . phi(k): a recurrence of constant size.
    Linear(Feature),
}

/// The feature map of a linear attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// elu(x) + 1
    Elu,
    /// relu(x)
    Relu,
    /// relu(x) d^-1/4
    ReluScaled,
    /// x / |x|
    Unit,
}

/// What the weighted sum of values is divided by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Denominator {
    /// Nothing.
    None,
    /// n_t, the number of tokens that are seen.
    Count,
    /// Each value by itself: v_j by n_j^sigmoid(m), m learned for each head.
    LearnedCount,
    /// The sum of the weights plus `plus`, at least `least`; `detached`: no gradient flows through it.
    #[allow(missing_docs)]
    Sum {
        plus: f64,
        least: f64,
        detached: bool,
    },
}

/// The norm of a head's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norm {
    /// None.
    None,
    /// x / |x|
    L2,
    /// RMSNorm with a weight.
    Rms,
    /// LayerNorm with weight and bias.
    Layer,
}

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    /// As in the authors' code.
    pub name: &'static str,
    /// Weights.
    pub kernel: Kernel,
    /// Denominator.
    pub denominator: Denominator,
    /// A gate on the values.
    pub in_gate: bool,
    /// A gate on the outputs in front of the norm, and behind it.
    pub out_gates: [bool; 2],
    /// Norm.
    pub norm: Norm,
}

const SUM: Denominator = Denominator::Sum {
    plus: 0.0,
    least: 0.0,
    detached: false,
};
const AT_LEAST_1: Denominator = Denominator::Sum {
    plus: 0.0,
    least: 1.0,
    detached: false,
};

const fn line(
    name: &'static str,
    kernel: Kernel,
    denominator: Denominator,
    gates: &str,
    norm: Norm,
) -> Variant {
    let g = gates.as_bytes();
    Variant {
        name,
        kernel,
        denominator,
        in_gate: g[0] == b'i',
        out_gates: [g[1] == b'o', g[2] == b'p'],
        norm,
    }
}

/// All variants. Gates: `i` on the values, `o` on the outputs, `p` behind the norm.
pub const VARIANTS: &[Variant] = {
    use Denominator::{Count, LearnedCount, None as Undivided, Sum};
    use Feature::{Elu, Relu, ReluScaled, Unit};
    use Kernel::{Exp, Linear, ReluCapped, Softmax, Taylor};
    use Norm::{L2, Layer, None, Rms};
    &[
        line("softmax", Softmax, Undivided, "---", None),
        line("softmax_clamp_denom", Exp, AT_LEAST_1, "---", None),
        line(
            "softmax_detach_denom",
            Exp,
            Sum {
                plus: 0.0,
                least: 1.0,
                detached: true,
            },
            "---",
            None,
        ),
        line(
            "softmax_detach_denom_gate",
            Exp,
            Sum {
                plus: 1e-4,
                least: 0.0,
                detached: true,
            },
            "-o-",
            None,
        ),
        line("softmax_divs", Exp, Count, "---", None),
        line("softmax_gate", Exp, Undivided, "-o-", None),
        line("softmax_divS_gate", Exp, Count, "-o-", None),
        line("softmax_divS_norm", Exp, Count, "---", Rms),
        line("gated_softmax", Exp, Count, "io-", Layer),
        line("gated_softmax_no_norm", Exp, Count, "io-", None),
        line("gated_softmax_no_in_gate", Exp, Count, "-o-", Layer),
        line("gated_softmax_no_out_gate", Exp, Count, "i--", Layer),
        line("gated_softmax_no_in_gate_no_norm", Exp, Count, "-o-", None),
        line("gated_softmax_no_out_gate_no_norm", Exp, Count, "i--", None),
        line("gated_softmax_no_gate", Exp, Count, "---", Layer),
        line("gated_softmax_no_gate_no_norm", Exp, Count, "---", None),
        line("gated_softmax_no_gate_rmsnorm", Exp, Count, "---", Rms),
        line(
            "gated_softmax_no_gate_rmsnorm_nodivS",
            Exp,
            Undivided,
            "---",
            Rms,
        ),
        line(
            "gated_softmax_no_gate_L2norm_nodivS",
            Exp,
            Undivided,
            "---",
            L2,
        ),
        line(
            "gated_softmax_no_gate_L2norm_nodivS_noclamp",
            Softmax,
            Undivided,
            "---",
            L2,
        ),
        line(
            "gated_softmax_out_gate_L2norm_nodivS_noclamp",
            Softmax,
            Undivided,
            "-o-",
            L2,
        ),
        line(
            "gated_softmax_post_out_gate_L2norm_nodivS_noclamp",
            Softmax,
            Undivided,
            "-op",
            L2,
        ),
        line(
            "gated_ReLU_no_gate_L2norm_nodivS_noclamp",
            Linear(ReluScaled),
            Undivided,
            "---",
            L2,
        ),
        line(
            "gated_relu_no_in_gate_no_norm",
            ReluCapped,
            Count,
            "-o-",
            None,
        ),
        line("softmax_taylor", Taylor, SUM, "---", None),
        line("softmax_taylor_L2norm", Taylor, Undivided, "---", L2),
        // Features that all underflow have a sum of 0: the output is then 0, not NaN.
        line(
            "linear_elu",
            Linear(Elu),
            Sum {
                plus: 0.0,
                least: 1e-30,
                detached: false,
            },
            "---",
            None,
        ),
        line(
            "linear_relu",
            Linear(Relu),
            Sum {
                plus: 1e-8,
                least: 0.0,
                detached: false,
            },
            "---",
            None,
        ),
        line("linear_cosine", Linear(Unit), LearnedCount, "---", None),
    ]
};

/// A variant by name; an unknown one is refused with the nearest known name.
pub fn find(mixer: &str, name: &str) -> Result<Variant> {
    if let Some(v) = VARIANTS.iter().find(|v| v.name == name) {
        return Ok(*v);
    }
    let nearest = VARIANTS
        .iter()
        .min_by_key(|v| strsim::damerau_levenshtein(v.name, name));
    let hint = nearest.map_or(String::new(), |v| format!(", did you mean {:?}?", v.name));
    Err(Error::config(mixer, format!("no variant {name:?}{hint}")))
}
