//! Which model is this? A short text that differs where configs or weights differ: state files carry it.

use crate::error::Result;
use crate::lm::LanguageModel;

/// Elements of each parameter that enter the fingerprint, evenly spaced: training changes them all, and the cost stays
/// the same for any size.
const SAMPLES: usize = 256;

impl LanguageModel {
    /// `weft-<layers>x<width>-<hash>`, the hash over the config and samples of every parameter.
    ///
    /// # Errors
    /// When the parameters cannot be read from their device.
    pub fn fingerprint(&self) -> Result<String> {
        let config = self.stored_config();
        let mut hash = fnv1a(FNV_START, config.to_json()?.as_bytes());
        for p in self.params().iter() {
            hash = fnv1a(hash, p.name().as_bytes());
            let value = p.get().detach();
            let flat = value.reshape(&[value.count()])?;
            let taken = flat.count().min(SAMPLES);
            let step = flat.count() / taken.max(1);
            for v in flat.slice_axis(0, 0, taken, step.max(1))?.to_f64_vec()? {
                hash = fnv1a(hash, &v.to_bits().to_le_bytes());
            }
        }
        let (layers, width) = (config.num_hidden_layers, config.hidden_size);
        Ok(format!("weft-{layers}x{width}-{hash:016x}"))
    }
}

const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a, 64 bit.
fn fnv1a(start: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(start, |h, b| {
        (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3)
    })
}
