// Reductions of the middle axis of a contiguous [outer, n, inner]. Pieces of the axis are cut by the shape
// alone and combined in a fixed order, so the same input gives the same bits on every GPU.
// SUMS 1 makes the sums, 0 the extremes.

typedef Computing<T>::type M;

// A sum reads R and writes S: T to M for the first of two passes, M to T for the second.
template <class R, class S> struct Sum {
    typedef M A;
    typedef R In;
    typedef S Out;
    __device__ static A start() { return (M)0; }
    __device__ static A take(A a, In v, u64) { return a + (M)up(v); }
    __device__ static A both(A a, A b) { return a + b; }
    __device__ static Out end(A a) { return down<S>(a); }
};

// The ends of a type's range, where a search for the largest or smallest starts.
template <class A> struct Range;
template <> struct Range<float> {
    __device__ static float low() { return negative_infinity<float>(); }
    __device__ static float high() { return -negative_infinity<float>(); }
};
template <> struct Range<double> {
    __device__ static double low() { return negative_infinity<double>(); }
    __device__ static double high() { return -negative_infinity<double>(); }
};
template <> struct Range<i64> {
    __device__ static i64 low() { return (i64)(1ull << 63); }
    __device__ static i64 high() { return (i64)~(1ull << 63); }
};
template <> struct Range<u8> {
    __device__ static u8 low() { return 0; }
    __device__ static u8 high() { return 255; }
};
struct More {
    __device__ static bool better(M a, M b) { return a > b; }
    __device__ static M worst() { return Range<M>::low(); }
    __device__ static M best() { return Range<M>::high(); }
};
struct Less {
    __device__ static bool better(M a, M b) { return a < b; }
    __device__ static M worst() { return Range<M>::high(); }
    __device__ static M best() { return Range<M>::low(); }
};

// The largest or smallest value; a NaN comes through.
template <class F> struct Value {
    typedef M A;
    typedef T In;
    typedef T Out;
    __device__ static A start() { return F::worst(); }
    __device__ static A both(A a, A b) { return F::better(b, a) || b != b ? b : a; }
    __device__ static A take(A a, In v, u64) { return both(a, up(v)); }
    __device__ static Out end(A a) { return down<T>(a); }
};

// Where the first best value stands. A NaN is passed over unless it stands first: then it is the best.
struct Place {
    M v;
    i64 at;
};
template <class F> struct Position {
    typedef Place A;
    typedef T In;
    typedef i64 Out;
    __device__ static A start() {
        A a;
        a.v = F::worst();
        a.at = -1;
        return a;
    }
    __device__ static A both(A a, A b) {
        bool wins = a.at < 0 || (b.at >= 0 && (F::better(b.v, a.v) || (b.v == a.v && b.at < a.at)));
        return wins ? b : a;
    }
    // Positions grow from call to call.
    __device__ static A take(A a, In in, u64 i) {
        M v = up(in);
        bool nan = v != v;
        if (nan) v = F::best();
        if ((F::better(v, a.v) || a.at < 0) && (!nan || i == 0)) {
            a.v = v;
            a.at = (i64)i;
        }
        return a;
    }
    __device__ static Out end(A a) { return a.at; }
};

// inner = 1: W threads per piece of a row, 16-byte loads where the rows are aligned.
template <int W, class O>
__device__ inline void rows(typename O::Out* y, const typename O::In* x, u64 outer, u64 n, u64 parts, u32 aligned) {
    typedef typename O::In In;
    constexpr int V = 16 / sizeof(In);
    u64 length = (n + parts - 1) / parts;
    if (aligned) length = (length + V - 1) / V * V;
    u32 lane = threadIdx.x % W;
    u64 groups = (u64)gridDim.x * (blockDim.x / W);
    // All threads of a warp stay in the loop together: the last round may have idle groups.
    u64 total = outer * parts, rounds = (total + groups - 1) / groups;
    for (u64 round = 0; round < rounds; round++) {
        u64 r = round * groups + (u64)blockIdx.x * (blockDim.x / W) + threadIdx.x / W;
        typename O::A a = O::start();
        u64 first = r % parts * length, last = first + length < n ? first + length : n;
        if (r < total) {
            const In* row = x + r / parts * n;
            if (aligned) {
                for (u64 i = first + lane * V; i < last; i += W * V) {
                    Vec<In, V> t = *(const Vec<In, V>*)(row + i);
#pragma unroll
                    for (int k = 0; k < V; k++) a = O::take(a, t.v[k], i + k);
                }
            } else {
                for (u64 i = first + lane; i < last; i += W) a = O::take(a, row[i], i);
            }
        }
        a = combine<W>(a, [](typename O::A p, typename O::A q) { return O::both(p, q); });
        if (lane == 0 && r < total) y[r] = O::end(a);
    }
}

// inner > 1: a block of 32 x 8 threads per piece of the axis, C neighbouring columns a thread;
// y [outer, parts, inner].
template <int C, class O>
__device__ inline void columns(typename O::Out* y, const typename O::In* x, u64 outer, u64 n, u64 inner, u64 parts) {
    typedef Vec<typename O::In, C> Pack;
    __shared__ typename O::A shared[8][C][32];
    u64 strips = (inner + 32 * C - 1) / (32 * C), length = (n + parts - 1) / parts;
    for (u64 t = blockIdx.x; t < outer * parts * strips; t += gridDim.x) {
        u64 column = (t % strips * 32 + threadIdx.x) * C, part = t / strips % parts, o = t / strips / parts;
        typename O::A a[C];
#pragma unroll
        for (int c = 0; c < C; c++) a[c] = O::start();
        u64 last = (part + 1) * length < n ? (part + 1) * length : n;
        if (column < inner) {
            const typename O::In* p = x + o * n * inner + column;
#pragma unroll 4
            for (u64 i = part * length + threadIdx.y; i < last; i += 8) {
                Pack v = *(const Pack*)(p + i * inner);
#pragma unroll
                for (int c = 0; c < C; c++) a[c] = O::take(a[c], v.v[c], i);
            }
        }
#pragma unroll
        for (int c = 0; c < C; c++) shared[threadIdx.y][c][threadIdx.x] = a[c];
        __syncthreads();
        if (threadIdx.y == 0 && column < inner) {
#pragma unroll
            for (int c = 0; c < C; c++) {
                for (int k = 1; k < 8; k++) a[c] = O::both(a[c], shared[k][c][threadIdx.x]);
                y[(o * parts + part) * inner + column + c] = O::end(a[c]);
            }
        }
        __syncthreads();
    }
}

#define ROWS(name, W, O, Y, X)                                                                          \
    extern "C" __global__ void name##W(Y* y, const X* x, u64 outer, u64 n, u64 parts, u32 aligned) {    \
        rows<W, O>(y, x, outer, n, parts, aligned);                                                     \
    }
#define REDUCE(name, Y, X, ...)                                                                         \
    typedef __VA_ARGS__ name##_type;                                                                    \
    ROWS(name##_rows, 8, name##_type, Y, X)                                                             \
    ROWS(name##_rows, 32, name##_type, Y, X)                                                            \
    ROWS(name##_rows, 256, name##_type, Y, X)                                                           \
    extern "C" __global__ void name##_columns(Y* y, const X* x, u64 outer, u64 n, u64 inner, u64 parts) { \
        columns<1, name##_type>(y, x, outer, n, inner, parts);                                          \
    }
// Several columns a thread: 8 bytes of bf16, 16 of the others.
#define WIDE_COLUMNS(name, Y, X)                                                                        \
    extern "C" __global__ void name##_wide(Y* y, const X* x, u64 outer, u64 n, u64 inner, u64 parts) {  \
        constexpr int C = sizeof(X) == 8 ? 2 : 4;                                                       \
        columns<C, name##_type>(y, x, outer, n, inner, parts);                                          \
    }

#if SUMS
REDUCE(sum, T, T, Sum<T, T>)
REDUCE(sum_first, M, T, Sum<T, M>)
REDUCE(sum_second, T, M, Sum<M, T>)
WIDE_COLUMNS(sum, T, T)
WIDE_COLUMNS(sum_first, M, T)
WIDE_COLUMNS(sum_second, T, M)
#else
REDUCE(max, T, T, Value<More>)
REDUCE(min, T, T, Value<Less>)
REDUCE(argmax, i64, T, Position<More>)
REDUCE(argmin, i64, T, Position<Less>)
#endif
