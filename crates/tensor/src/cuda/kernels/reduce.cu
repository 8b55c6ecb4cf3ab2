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

// The winner and where it stood. Values win over nothing, NaN over values, then the earlier position.
struct Best {
    T v;
    i64 at;
};
template <class F, bool POSITION> struct Extreme {
    typedef Best A;
    typedef T In;
    typedef T Out;
    __device__ static A start() {
        A a;
        a.at = -1;
        return a;
    }
    // argmax skips a NaN unless it stands first; max lets it through.
    __device__ static bool wins(A a, A b) {
        if (b.at < 0) return false;
        if (a.at < 0) return true;
        M x = up(a.v), y = up(b.v);
        bool nan_a = x != x, nan_b = y != y;
        if (nan_a || nan_b) {
            if (POSITION) return nan_a && nan_b ? b.at < a.at : nan_a ? a.at != 0 : b.at == 0;
            return !nan_a || (nan_b && b.at < a.at);
        }
        return F::better(y, x) || (x == y && b.at < a.at);
    }
    __device__ static A both(A a, A b) { return wins(a, b) ? b : a; }
    __device__ static A take(A a, In v, u64 i) {
        A b;
        b.v = v;
        b.at = (i64)i;
        return both(a, b);
    }
};
struct More {
    __device__ static bool better(M a, M b) { return a > b; }
};
struct Less {
    __device__ static bool better(M a, M b) { return a < b; }
};
template <class F> struct Value : Extreme<F, false> {
    __device__ static T end(Best a) { return a.v; }
};
template <class F> struct Position : Extreme<F, true> {
    typedef i64 Out;
    __device__ static i64 end(Best a) { return a.at; }
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

// inner > 1: a block of 32 columns x 8 rows per piece of the axis; y [outer, parts, inner].
template <class O>
__device__ inline void columns(typename O::Out* y, const typename O::In* x, u64 outer, u64 n, u64 inner, u64 parts) {
    __shared__ typename O::A shared[8][32];
    u64 strips = (inner + 31) / 32, length = (n + parts - 1) / parts;
    for (u64 t = blockIdx.x; t < outer * parts * strips; t += gridDim.x) {
        u64 column = t % strips * 32 + threadIdx.x, part = t / strips % parts, o = t / strips / parts;
        typename O::A a = O::start();
        u64 last = (part + 1) * length < n ? (part + 1) * length : n;
        if (column < inner) {
            const typename O::In* p = x + o * n * inner + column;
#pragma unroll 4
            for (u64 i = part * length + threadIdx.y; i < last; i += 8) a = O::take(a, p[i * inner], i);
        }
        shared[threadIdx.y][threadIdx.x] = a;
        __syncthreads();
        if (threadIdx.y == 0 && column < inner) {
            for (int k = 1; k < 8; k++) a = O::both(a, shared[k][threadIdx.x]);
            y[(o * parts + part) * inner + column] = O::end(a);
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
        columns<name##_type>(y, x, outer, n, inner, parts);                                             \
    }

#if SUMS
REDUCE(sum, T, T, Sum<T, T>)
REDUCE(sum_first, M, T, Sum<T, M>)
REDUCE(sum_second, T, M, Sum<M, T>)
#else
REDUCE(max, T, T, Value<More>)
REDUCE(min, T, T, Value<Less>)
REDUCE(argmax, i64, T, Position<More>)
REDUCE(argmin, i64, T, Position<Less>)
#endif
