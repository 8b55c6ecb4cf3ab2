//! How fast each head of each layer forgets.

/// The slopes of ALiBi (Press et al. 2022): 2^(-8(h+1)/H) for a power of two; otherwise those of the largest power of
/// two below, then every second one of twice that many.
pub fn slopes(heads: usize) -> Vec<f64> {
    let geometric = |n: usize| (1..=n).map(move |i| (-8.0 * i as f64 / n as f64).exp2());
    if heads.is_power_of_two() {
        return geometric(heads).collect();
    }
    let whole = heads.next_power_of_two() / 2;
    let between = geometric(2 * whole).step_by(2).take(heads - whole);
    geometric(whole).chain(between).collect()
}

/// The factor on the slopes of layer `layer` of `layers`: the first layer forgets fastest, the last one hardly.
pub fn layer_factor(layer: usize, layers: usize) -> f64 {
    let last = layers.saturating_sub(1).max(1);
    1.0 - (layer as f64 / last as f64).min(1.0) + 1e-5
}
