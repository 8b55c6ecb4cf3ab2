// Running sums and maxima along the middle axis of [outer, n, inner]. A long axis is cut into parts: their
// totals first, then each part again with what came before it. KIND is 0 (u8: no sum), 1 (i64), 2 (floats).

typedef Computing<T>::type M;

struct Total {
    typedef M A;
    __device__ static A start() { return (M)0; }
    __device__ static A read(T v, u64) { return (M)up(v); }
    __device__ static A both(A a, A b) { return a + b; }
    __device__ static void write(T* y, i64*, u64 p, A a) { y[p] = down<T>(a); }
};
struct Best {
    T v;
    i64 at;
};
struct Largest {
    typedef Best A;
    __device__ static A start() {
        Best a;
        a.at = -1;
        return a;
    }
    __device__ static A read(T v, u64 i) {
        Best a;
        a.v = v;
        a.at = (i64)i;
        return a;
    }
    // The earlier one stays on a tie.
    __device__ static A both(A a, A b) { return b.at < 0 ? a : a.at < 0 ? b : up(b.v) <= up(a.v) ? a : b; }
    __device__ static void write(T* y, i64* at, u64 p, A a) {
        y[p] = a.v;
        at[p] = a.at;
    }
};

// inner = 1: a block of 256 threads per part, 4 elements a thread and round.
template <class O>
__device__ inline void rows(T* y, i64* at, const T* x, typename O::A* totals, u64 outer, u64 n, u64 parts, u32 write) {
    typedef typename O::A A;
    __shared__ A warps[8];
    u64 length = (n + parts - 1) / parts;
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (u64 t = blockIdx.x; t < outer * parts; t += gridDim.x) {
        u64 o = t / parts, first = t % parts * length, last = first + length < n ? first + length : n;
        A carry = write && parts > 1 ? totals[t] : O::start();
        for (u64 base = first; base < last; base += 1024) {
            A v[4];
            u64 p = base + threadIdx.x * 4;
#pragma unroll
            for (int k = 0; k < 4; k++) {
                v[k] = p + k < last ? O::read(x[o * n + p + k], p + k) : O::start();
                if (k > 0) v[k] = O::both(v[k - 1], v[k]);
            }
            A sum = v[3];
#pragma unroll
            for (int by = 1; by < 32; by *= 2) {
                A other = shuffle_up(sum, by);
                if (lane >= by) sum = O::both(other, sum);
            }
            if (lane == 31) warps[warp] = sum;
            A before = shuffle_up(sum, 1);
            if (lane == 0) before = O::start();
            __syncthreads();
            A prefix = carry;
            for (u32 w = 0; w < 8; w++) {
                if (w < warp) prefix = O::both(prefix, warps[w]);
                carry = O::both(carry, warps[w]);
            }
            __syncthreads();
            prefix = O::both(prefix, before);
            if (write) {
#pragma unroll
                for (int k = 0; k < 4; k++)
                    if (p + k < last) O::write(y, at, o * n + p + k, O::both(prefix, v[k]));
            }
        }
        if (!write && threadIdx.x == 0) totals[t] = carry;
    }
}

// inner > 1: a thread per column and part, neighbours on neighbouring columns.
template <class O>
__device__ inline void columns(T* y, i64* at, const T* x, typename O::A* totals, u64 outer, u64 n, u64 inner,
                               u64 parts, u32 write) {
    u64 length = (n + parts - 1) / parts;
    for (u64 t = thread_index(); t < outer * parts * inner; t += thread_count()) {
        u64 j = t % inner, part = t / inner % parts, o = t / inner / parts;
        typename O::A a = write && parts > 1 ? totals[t] : O::start();
        u64 last = (part + 1) * length < n ? (part + 1) * length : n;
#pragma unroll 4
        for (u64 i = part * length; i < last; i++) {
            u64 p = (o * n + i) * inner + j;
            a = O::both(a, O::read(x[p], i));
            if (write) O::write(y, at, p, a);
        }
        if (!write) totals[t] = a;
    }
}

// Totals of parts [outer, parts, inner] to what comes before each part.
template <class O> __device__ inline void before(typename O::A* totals, u64 outer, u64 inner, u64 parts) {
    for (u64 t = thread_index(); t < outer * inner; t += thread_count()) {
        typename O::A a = O::start();
        for (u64 i = 0; i < parts; i++) {
            u64 p = (t / inner * parts + i) * inner + t % inner;
            typename O::A v = totals[p];
            totals[p] = a;
            a = O::both(a, v);
        }
    }
}

#define SCAN(name, O)                                                                                                 \
    extern "C" __global__ void name##_rows(T* y, i64* at, const T* x, O::A* totals, u64 outer, u64 n, u64 inner,      \
                                           u64 parts, u32 write) {                                                    \
        rows<O>(y, at, x, totals, outer, n, parts, write);                                                            \
    }                                                                                                                 \
    extern "C" __global__ void name##_columns(T* y, i64* at, const T* x, O::A* totals, u64 outer, u64 n, u64 inner,   \
                                              u64 parts, u32 write) {                                                 \
        columns<O>(y, at, x, totals, outer, n, inner, parts, write);                                                  \
    }                                                                                                                 \
    extern "C" __global__ void name##_before(O::A* totals, u64 outer, u64 inner, u64 parts) {                         \
        before<O>(totals, outer, inner, parts);                                                                       \
    }
#if KIND > 0
SCAN(cumsum, Total)
#endif
SCAN(cummax, Largest)
