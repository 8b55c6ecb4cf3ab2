// Elementwise functions of one operand, computed in M (f32 for bf16).

typedef Computing<T>::type M;

template <class F> __device__ inline void map(T* y, const T* x, const Walk<1>& w, u64 n, F f) {
    for (u64 g = thread_index(); g * V < n; g += thread_count()) {
        u64 at[1];
        T v[V];
        offsets(w, g, at);
        int limit = w.axes == 1 ? remaining(n, g, V) : V;
        load<V>(x + at[0], w, 0, limit, v);
#pragma unroll
        for (int i = 0; i < V; i++) v[i] = down<T>(f(up(v[i])));
        store<V>(y + g * V, limit, v);
    }
}

#define UNARY(name, expression)                                                                            \
    extern "C" __global__ void name(T* y, const T* a, const __grid_constant__ Walk<1> w, u64 n, double p0, double p1) { \
        const M p = (M)p0, q = (M)p1;                                                                      \
        map(y, a, w, n, [=](M x) -> M { return expression; });                                             \
    }

UNARY(u_affine, x* p + q)

#if KIND == 2
UNARY(u_abs, m_abs(x))
UNARY(u_sign, x > 0 ? (M)1 : x < 0 ? (M)-1 : x)
UNARY(u_floor, (M)floor((double)x))
UNARY(u_round, (M)rint((double)x))
UNARY(u_exp, m_exp(x))
UNARY(u_ln, m_log(x))
UNARY(u_sin, (M)sin(x))
UNARY(u_cos, (M)cos(x))
UNARY(u_sqrt, m_sqrt(x))
UNARY(u_rsqrt, (M)1 / m_sqrt(x))
UNARY(u_recip, (M)1 / x)
UNARY(u_square, x* x)
UNARY(u_powf, (M)pow((double)x, p0))
UNARY(u_sigmoid, Fast<T>::sigmoid(x))
UNARY(u_tanh, m_tanh(x))
UNARY(u_silu, x* Fast<T>::sigmoid(x))
UNARY(u_relu, x > 0 ? x : (M)0)
UNARY(u_softplus, (x > 0 ? x : (M)0) + m_log1p(m_exp(-m_abs(x))))
UNARY(u_erf, (M)erf(x))
UNARY(u_clamp, x < p ? p : x > q ? q : x)
#endif
