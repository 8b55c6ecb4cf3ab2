// Softmax, its logarithm, log-sum-exp and cross-entropy over contiguous rows of n. One pass finds the maximum
// and the sum of exponentials together; the second reads the row again, mostly from cache.

typedef Computing<T>::type M;

// The maximum of some values and the sum of e^(v - maximum).
struct Pair {
    M m, s;
};

// N more values: one comparison of maxima, then exponentials that do not wait for each other.
template <int N> __device__ inline void take(Pair& a, const M (&v)[N]) {
    M m = a.m;
#pragma unroll
    for (int k = 0; k < N; k++) m = v[k] > m ? v[k] : m;
    if (m == negative_infinity<M>()) {
        // Nothing but -infinity so far, or NaN, which must not be lost.
#pragma unroll
        for (int k = 0; k < N; k++)
            if (v[k] != v[k]) a.s = v[k];
        return;
    }
    if (m > a.m) {
        a.s *= Fast<T>::exp(a.m - m);
        a.m = m;
    }
#pragma unroll
    for (int k = 0; k < N; k++) a.s += Fast<T>::exp(v[k] - m);
}

// y = f(i, value) over a row by W threads, 16 bytes at a time where `aligned`.
template <int W, class F>
__device__ inline void map_row(T* y, const T* row, u64 n, u32 lane, u32 aligned, F f) {
    if (aligned) {
        for (u64 i = lane * V; i < n; i += W * V) {
            Vec<T, V> t = *(const Vec<T, V>*)(row + i);
#pragma unroll
            for (int k = 0; k < V; k++) t.v[k] = down<T>(f(i + k, up(t.v[k])));
            *(Vec<T, V>*)(y + i) = t;
        }
    } else {
        for (u64 i = lane; i < n; i += W) y[i] = down<T>(f(i, up(row[i])));
    }
}

template <int W> __device__ inline Pair statistics(const T* row, u64 n, u32 lane, u32 aligned, bool active) {
    Pair a;
    a.m = negative_infinity<M>();
    a.s = 0;
    if (active && aligned) {
        for (u64 i = lane * V; i < n; i += W * V) {
            Vec<T, V> t = *(const Vec<T, V>*)(row + i);
            M v[V];
#pragma unroll
            for (int k = 0; k < V; k++) v[k] = up(t.v[k]);
            take(a, v);
        }
    } else if (active) {
        for (u64 i = lane; i < n; i += W) {
            M v[1] = {up(row[i])};
            take(a, v);
        }
    }
    // First the row's maximum, so that each thread rescales its sum once.
    Pair whole;
    whole.m = combine<W>(a.m, [](M p, M q) { return p > q ? p : q; });
    if (a.m < whole.m) a.s *= m_exp(a.m - whole.m);
    whole.s = combine<W>(a.s, [](M p, M q) { return p + q; });
    return whole;
}

#define ROW_LOOP(W)                                                                     \
    u32 lane = threadIdx.x % W;                                                         \
    u64 groups = (u64)gridDim.x * (blockDim.x / W), rounds = (rows + groups - 1) / groups; \
    for (u64 round = 0; round < rounds; round++) {                                      \
        u64 r = round * groups + (u64)blockIdx.x * (blockDim.x / W) + threadIdx.x / W;  \
        bool active = r < rows;

template <int W> __device__ inline void softmax(T* y, const T* x, u64 rows, u64 n, u32 log, u32 aligned) {
    ROW_LOOP(W)
        Pair a = statistics<W>(x + r * n, n, lane, aligned, active);
        if (!active) continue;
        if (log) {
            M shift = a.m + m_log(a.s);
            map_row<W>(y + r * n, x + r * n, n, lane, aligned, [=](u64, M v) { return v - shift; });
        } else {
            M scale = a.s == 0 ? (M)0 : (M)1 / a.s, m = a.s == 0 ? (M)0 : a.m;
            map_row<W>(y + r * n, x + r * n, n, lane, aligned, [=](u64, M v) { return Fast<T>::exp(v - m) * scale; });
        }
    }
}

template <int W> __device__ inline void logsumexp(T* y, const T* x, u64 rows, u64 n, u32 aligned) {
    ROW_LOOP(W)
        Pair a = statistics<W>(x + r * n, n, lane, aligned, active);
        if (active && lane == 0) y[r] = down<T>(a.s == 0 ? a.m : a.m + m_log(a.s));
    }
}

// loss = lse - x[target], 0 for a target of -1, in the computing type. The rows are those from `first` on.
template <int W>
__device__ inline void cross_entropy(M* loss, M* lse, const T* x, const i64* targets, u64 first, u64 rows, u64 n,
                                     u32 aligned, Fault* fault) {
    ROW_LOOP(W)
        Pair a = statistics<W>(x + r * n, n, lane, aligned, active);
        if (active && lane == 0) {
            M l = a.s == 0 ? a.m : a.m + m_log(a.s);
            i64 target = targets[r];
            lse[r] = l;
            bool counts = target != -1 && inside(target, n, first + r, 3, 1, fault);
            loss[r] = counts ? l - up(x[r * n + target]) : (M)0;
        }
    }
}

// dx = (e^(x - lse) - [target]) g; dx may be x.
template <int W>
__device__ inline void cross_entropy_back(T* dx, const T* x, const M* lse, const M* g, const i64* targets, u64 rows,
                                          u64 n, u32 aligned) {
    ROW_LOOP(W)
        if (!active) continue;
        i64 target = targets[r];
        M l = lse[r], scale = target < 0 ? (M)0 : g[r];
        bool counts = target >= 0;
        map_row<W>(dx + r * n, x + r * n, n, lane, aligned, [=](u64 i, M v) {
            M e = Fast<T>::exp(v - l);
            return counts ? ((i64)i == target ? e - (M)1 : e) * scale : (M)0;
        });
    }
}

#define WIDTHS(W)                                                                                              \
    extern "C" __global__ void softmax##W(T* y, const T* x, u64 rows, u64 n, u32 log, u32 aligned) {           \
        softmax<W>(y, x, rows, n, log, aligned);                                                               \
    }                                                                                                          \
    extern "C" __global__ void logsumexp##W(T* y, const T* x, u64 rows, u64 n, u32 aligned) {                  \
        logsumexp<W>(y, x, rows, n, aligned);                                                                  \
    }                                                                                                          \
    extern "C" __global__ void cross_entropy##W(M* loss, M* lse, const T* x, const i64* targets, u64 first,    \
                                                u64 rows, u64 n, u32 aligned, Fault* fault) {                  \
        cross_entropy<W>(loss, lse, x, targets, first, rows, n, aligned, fault);                               \
    }                                                                                                          \
    extern "C" __global__ void cross_entropy_back##W(T* dx, const T* x, const M* lse, const M* g,              \
                                                     const i64* targets, u64 rows, u64 n, u32 aligned) {       \
        cross_entropy_back<W>(dx, x, lse, g, targets, rows, n, aligned);                                       \
    }
WIDTHS(32)
WIDTHS(256)
