//! A mixer under test: built from its registry entry in one dtype, with the small tools that the laws need.

use weft_tensor::{DType, Device, Rng, Tensor, no_grad};

use crate::error::{Error, Result};
use crate::golden::relative_error;
use crate::mixer::{Call, Form, Mixer};
use crate::params::{Params, Scope};
use crate::registry::{Entry, Options};
use crate::state::State;

/// Ok, or which law was broken and by how much.
pub type Outcome = Result<()>;

/// The law was broken.
pub fn broken(detail: impl Into<String>) -> Outcome {
    Err(Error::config("broken law", detail))
}

/// A mixer, its parameters and the precision it is judged by.
pub struct Subject {
    /// The registry entry.
    pub entry: &'static Entry,
    /// The settings it was built with.
    pub options: Options,
    /// Parameters and inputs are of this dtype.
    pub dtype: DType,
    /// Where it runs.
    pub device: Device,
    /// The mixer.
    pub mixer: Box<dyn Mixer>,
    /// Its parameters.
    pub params: Params,
}

impl Subject {
    /// Build a mixer with parameters that are the same numbers in every dtype.
    pub fn new(
        entry: &'static Entry,
        options: &Options,
        dtype: DType,
        device: &Device,
    ) -> Result<Subject> {
        let mut params = Params::new();
        let mixer = (entry.build)(options, &mut Scope::random(&mut params, 1, dtype, device))?;
        // Gains of 1 and biases of 0 would hide mistakes.
        for (i, p) in params.iter().enumerate() {
            let noise = Rng::stream(2, i as u64).normal(p.shape(), 0.0, 0.1, DType::F64, device)?;
            p.set(&(&p.get().detach() + &noise.to_dtype(dtype)?)?)?;
        }
        Ok(Subject {
            entry,
            options: options.clone(),
            dtype,
            device: *device,
            mixer,
            params,
        })
    }

    /// The same mixer with every parameter multiplied: gates and decays at their ends.
    pub fn with_scaled_parameters(&self, factor: f64) -> Result<Subject> {
        let s = Subject::new(self.entry, &self.options, self.dtype, &self.device)?;
        for p in s.params.iter() {
            p.set(&p.get().detach().mul_scalar(factor)?)?;
        }
        Ok(s)
    }

    /// A name for files and messages.
    pub fn label(&self) -> String {
        format!("{}-{}", self.entry.name, self.dtype)
    }

    /// The largest relative error allowed between two ways to compute the same.
    pub fn tolerance(&self) -> f64 {
        if self.dtype == DType::F64 { 1e-9 } else { 2e-5 }
    }

    /// Random tokens [batch, tokens, D].
    ///
    /// # Panics
    /// Never: the shapes are the suite's own.
    pub fn input(&self, seed: u64, batch: usize, tokens: usize) -> Tensor {
        let shape = [batch, tokens, self.options.d_model];
        let x = Rng::new(seed).normal(&shape, 0.0, 1.0, DType::F64, &self.device);
        x.and_then(|x| x.to_dtype(self.dtype))
            .unwrap_or_else(|_| Tensor::zeros(&shape, self.dtype, &self.device))
    }

    /// A fresh state.
    pub fn state(&self, batch: usize) -> Result<State> {
        self.mixer.init_state(batch, self.dtype)
    }

    /// A state that has seen some tokens.
    pub fn warm_state(&self, batch: usize, tokens: usize) -> Result<State> {
        let mut state = self.state(batch)?;
        self.run(&self.input(100, batch, tokens), &mut state)?;
        Ok(state)
    }

    /// Run something without recording gradients.
    pub fn quiet<R>(&self, f: impl FnOnce() -> R) -> R {
        no_grad(f)
    }

    /// Forward in the form that the mixer chooses.
    pub fn run(&self, x: &Tensor, state: &mut State) -> Result<Tensor> {
        no_grad(|| self.mixer.forward(x, state, &Call::default()))
    }

    /// Forward in a given form.
    pub fn run_as(&self, form: Form, x: &Tensor, state: &mut State) -> Result<Tensor> {
        no_grad(|| self.mixer.forward(x, state, &Call::with_form(form)))
    }

    /// Forward one token at a time in the step form.
    pub fn token_by_token(&self, x: &Tensor, state: &mut State) -> Result<Tensor> {
        let parts = (0..x.dim(1)?)
            .map(|t| self.run_as(Form::Step, &x.narrow(1, t, 1)?, state))
            .collect::<Result<Vec<_>>>()?;
        Ok(Tensor::cat(&parts.iter().collect::<Vec<_>>(), 1)?)
    }

    /// The outputs of some fixed tokens after a state: what the state means.
    pub fn follow(&self, state: &State) -> Result<Tensor> {
        // The same tokens in every row, so that rows can be compared across batches.
        let one = self.input(101, 1, 6);
        let x = one
            .broadcast_to(&[state.batch(), 6, self.options.d_model])?
            .contiguous()?;
        self.run(&x, &mut state.clone())
    }

    /// Two tensors must agree within the tolerance of the dtype.
    pub fn same(&self, what: &str, got: &Tensor, want: &Tensor) -> Outcome {
        let e = relative_error(got, want)?;
        if e <= self.tolerance() {
            Ok(())
        } else {
            broken(format!("{what}: relative error {e:.2e}"))
        }
    }

    /// Two tensors must have the same bits.
    pub fn identical(&self, what: &str, got: &Tensor, want: &Tensor) -> Outcome {
        let same = got.shape() == want.shape() && got.to_f64_vec()? == want.to_f64_vec()?;
        if same {
            Ok(())
        } else {
            broken(format!("{what}: not the same bits"))
        }
    }
}
