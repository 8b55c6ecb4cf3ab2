// Triangular solves L y = b: a thread per column of b, substitution row by row; y [batch, n, m].

typedef Computing<T>::type M;

extern "C" __global__ void tri_solve(T* y, const T* l, const T* b, u64 batch, u64 n, u64 m, u32 upper, u32 unit) {
    for (u64 t = thread_index(); t < batch * m; t += thread_count()) {
        const T* L = l + t / m * n * n;
        u64 column = t / m * n * m + t % m;
        for (u64 step = 0; step < n; step++) {
            u64 r = upper ? n - 1 - step : step;
            M a = up(b[column + r * m]);
            u64 first = upper ? r + 1 : 0, last = upper ? n : r;
#pragma unroll 4
            for (u64 s = first; s < last; s++) a -= up(L[r * n + s]) * up(y[column + s * m]);
            if (!unit) a *= (M)1 / up(L[r * n + r]);
            y[column + r * m] = down<T>(a);
        }
    }
}
