//! One binary for every x86-64 and AArch64 machine: a loop is compiled for several instruction sets and
//! the best one is taken at run time. `pulp` does the detection; what is inlined into the closure is
//! compiled with AVX-512 or AVX2+FMA where the CPU has them.

/// Run `f` with the widest vector instructions that this CPU has: `vectorize(#[inline(always)] || ...)`.
/// The closure itself and everything hot that it calls must be `#[inline(always)]`: what is not inlined
/// stays at the baseline instruction set, where a fused multiply-add is a slow library call.
#[inline(always)]
pub fn vectorize<R>(f: impl FnOnce() -> R) -> R {
    struct Call<F>(F);
    impl<R, F: FnOnce() -> R> pulp::NullaryFnOnce for Call<F> {
        type Output = R;
        #[inline(always)]
        fn call(self) -> R {
            (self.0)()
        }
    }
    pulp::Arch::new().dispatch(Call(f))
}
