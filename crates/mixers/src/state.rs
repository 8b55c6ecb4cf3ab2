//! A mixer's memory as a value: named tensors with the batch as their first axis, and how many tokens each
//! row has seen. Cloning shares the tensors; whoever writes first gets a copy, so a snapshot is a clone and
//! forks cannot disturb each other.

use std::collections::BTreeMap;
use std::path::Path;

use weft_tensor::{DType, Device, Tensor};

use crate::error::{Error, Result};
use crate::state_file;

/// The state of one mixer for a batch of sequences.
#[derive(Clone, Debug)]
pub struct State {
    mixer: String,
    tensors: BTreeMap<String, Tensor>,
    positions: Vec<usize>,
    clock: Option<Tensor>,
}

impl State {
    /// A state without tensors, at position 0 in every row.
    pub fn new(mixer: &str, batch: usize) -> State {
        State {
            mixer: mixer.into(),
            tensors: BTreeMap::new(),
            positions: vec![0; batch],
            clock: None,
        }
    }

    pub(crate) fn from_parts(
        mixer: String,
        tensors: BTreeMap<String, Tensor>,
        positions: Vec<usize>,
    ) -> State {
        State {
            mixer,
            tensors,
            positions,
            clock: None,
        }
    }

    /// The mixer it belongs to.
    pub fn mixer(&self) -> &str {
        &self.mixer
    }

    /// Number of sequences.
    pub fn batch(&self) -> usize {
        self.positions.len()
    }

    /// Tokens seen so far by each sequence.
    pub fn positions(&self) -> &[usize] {
        &self.positions
    }

    /// The positions [B] i64 on the GPU, where a mixer must read them there: a recorded step runs again and again at
    /// positions that the host did not know when it was recorded. Tensors then keep their sizes.
    pub fn clock(&self) -> Option<&Tensor> {
        self.clock.as_ref()
    }

    /// Let mixers read the positions from a tensor [B] i64, or from the host again.
    pub fn set_clock(&mut self, clock: Option<Tensor>) {
        self.clock = clock;
    }

    /// Count tokens as seen: one number per row.
    pub fn advance(&mut self, tokens: &[usize]) {
        self.positions
            .iter_mut()
            .zip(tokens)
            .for_each(|(p, n)| *p += n);
    }

    /// The named tensors, in the order of their names.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(n, t)| (n.as_str(), t))
    }

    /// A tensor by name.
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        self.tensors
            .get(name)
            .ok_or_else(|| Error::state(&self.mixer, format!("has no tensor {name:?}")))
    }

    /// Take a tensor out, to change it in place and [`State::put`] it back: so that it has one owner only.
    pub fn take(&mut self, name: &str) -> Result<Tensor> {
        self.tensors
            .remove(name)
            .ok_or_else(|| Error::state(&self.mixer, format!("has no tensor {name:?}")))
    }

    /// Put a tensor in, replacing one of that name; under a clock its elements replace those of the old one, where they
    /// are. Its first axis must be the batch.
    pub fn put(&mut self, name: &str, tensor: Tensor) -> Result<()> {
        if tensor.shape().first() != Some(&self.batch()) {
            let detail = format!(
                "tensor {name:?} of shape {:?} in a batch of {}",
                tensor.shape(),
                self.batch()
            );
            return Err(Error::state(&self.mixer, detail));
        }
        match (self.tensors.get_mut(name), &self.clock) {
            (Some(old), Some(_)) => old.assign(&tensor)?,
            _ => {
                self.tensors.insert(name.into(), tensor);
            }
        }
        Ok(())
    }

    /// Bytes of its tensors.
    pub fn bytes(&self) -> usize {
        self.tensors.values().map(Tensor::bytes).sum()
    }

    /// `n` independent copies; nothing is copied before somebody writes.
    pub fn fork(&self, n: usize) -> Vec<State> {
        vec![self.clone(); n]
    }

    /// The given rows, in this order; a row may be taken several times.
    pub fn select(&self, rows: &[usize]) -> Result<State> {
        if let Some(bad) = rows.iter().find(|&&r| r >= self.batch()) {
            return Err(Error::state(
                &self.mixer,
                format!("row {bad} does not exist in a batch of {}", self.batch()),
            ));
        }
        let index: Vec<i64> = rows.iter().map(|&r| r as i64).collect();
        self.map(rows.iter().map(|&r| self.positions[r]).collect(), |t| {
            Ok(t.index_select(0, &Tensor::from_slice(&index, &[index.len()], &t.device())?)?)
        })
    }

    /// Several states of one mixer as one batch. Their tensors must agree outside the batch axis.
    pub fn join(states: &[&State]) -> Result<State> {
        let Some(first) = states.first() else {
            return Err(Error::state("?", "join: no states given"));
        };
        let mut tensors = BTreeMap::new();
        for name in first.tensors.keys() {
            let parts = states
                .iter()
                .map(|s| s.get(name))
                .collect::<Result<Vec<_>>>()?;
            tensors.insert(name.clone(), Tensor::cat(&parts, 0)?);
        }
        let positions = states
            .iter()
            .flat_map(|s| s.positions.iter().copied())
            .collect();
        Ok(State {
            mixer: first.mixer.clone(),
            tensors,
            positions,
            clock: None,
        })
    }

    /// The same state without gradient history.
    pub fn detach(&self) -> State {
        let tensors = self
            .tensors
            .iter()
            .map(|(n, t)| (n.clone(), t.detach()))
            .collect();
        State {
            mixer: self.mixer.clone(),
            tensors,
            positions: self.positions.clone(),
            clock: None,
        }
    }

    fn map(&self, positions: Vec<usize>, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<State> {
        let tensors = self
            .tensors
            .iter()
            .map(|(n, t)| Ok((n.clone(), f(t)?)))
            .collect::<Result<_>>()?;
        Ok(State {
            mixer: self.mixer.clone(),
            tensors,
            positions,
            clock: None,
        })
    }

    /// Check that this state is `mixer`'s and has `batch` rows: the first line of every forward.
    pub fn expect(&self, mixer: &str, batch: usize) -> Result<()> {
        if self.mixer != mixer {
            return Err(Error::state(
                mixer,
                format!("this is a state of {}", self.mixer),
            ));
        }
        if self.batch() != batch {
            return Err(Error::state(
                mixer,
                format!("it has {} rows, the input {batch}", self.batch()),
            ));
        }
        Ok(())
    }

    /// [`State::expect`], and that tensors of these names have these shapes.
    pub fn expect_shapes<'a>(
        &self,
        mixer: &str,
        batch: usize,
        shapes: impl IntoIterator<Item = (&'a str, Vec<usize>)>,
    ) -> Result<()> {
        self.expect(mixer, batch)?;
        for (name, shape) in shapes {
            let found = self.get(name)?.shape();
            if found != shape {
                let detail =
                    format!("its {name:?} has shape {found:?}, this layer needs {shape:?}");
                return Err(Error::state(mixer, detail));
            }
        }
        Ok(())
    }

    /// Write to a file (see [`State::load`]); `owner` says what it belongs to, e.g. a fingerprint of the config.
    pub fn save(&self, path: &Path, owner: &str) -> Result<()> {
        state_file::save(path, owner, &[self])
    }

    /// Read a state that [`State::save`] wrote for the same `owner`; anything else is refused with a reason.
    pub fn load(path: &Path, owner: &str, device: &Device) -> Result<State> {
        let mut states = state_file::load(path, owner, device)?;
        match states.len() {
            1 => Ok(states.remove(0)),
            n => Err(Error::file(path, format!("holds {n} states, expected one"))),
        }
    }
}

/// The dtype of recurrent states and gates for activations of a dtype: f64 stays, all else is f32.
pub fn state_dtype(activations: DType) -> DType {
    if activations == DType::F64 {
        DType::F64
    } else {
        DType::F32
    }
}
