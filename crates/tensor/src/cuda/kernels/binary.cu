// Elementwise functions of two operands, and comparisons (a mask of 0 and 1).
// KIND is 0 (u8), 1 (i64) or 2 (floats).

typedef Computing<T>::type M;

template <class U, class F>
__device__ inline void zip(U* y, const T* a, const T* b, const Walk<2>& w, u64 n, F f) {
    for (u64 g = thread_index(); g * V < n; g += thread_count()) {
        u64 at[2];
        T va[V], vb[V];
        U out[V];
        offsets(w, g, at);
        int limit = w.axes == 1 ? remaining(n, g, V) : V;
        load<V>(a + at[0], w, 0, limit, va);
        load<V>(b + at[1], w, 1, limit, vb);
#pragma unroll
        for (int i = 0; i < V; i++) out[i] = f(up(va[i]), up(vb[i]));
        store<V>(y + g * V, limit, out);
    }
}

#define BINARY(name, expression)                                                                                     \
    extern "C" __global__ void name(T* y, const T* a, const T* b, const __grid_constant__ Walk<2> w, u64 n) {        \
        zip<T>(y, a, b, w, n, [](M x, M z) -> T { return down<T>(expression); });                                    \
    }
#define COMPARE(name, operation)                                                                                     \
    extern "C" __global__ void name(u8* y, const T* a, const T* b, const __grid_constant__ Walk<2> w, u64 n) {       \
        zip<u8>(y, a, b, w, n, [](M x, M z) -> u8 { return x operation z; });                                        \
    }

// The winner; a NaN in either operand comes through.
BINARY(b_maximum, x >= z || x != x ? x : z)
BINARY(b_minimum, x <= z || x != x ? x : z)
COMPARE(c_eq, ==)
COMPARE(c_ne, !=)
COMPARE(c_lt, <)
COMPARE(c_le, <=)

#if KIND == 0
BINARY(b_mul, x < z ? x : z)
#else
BINARY(b_add, x + z)
BINARY(b_sub, x - z)
BINARY(b_mul, x * z)
#endif
#if KIND == 2
BINARY(b_div, x / z)
BINARY(b_pow, (M)pow((double)x, (double)z))
#endif
