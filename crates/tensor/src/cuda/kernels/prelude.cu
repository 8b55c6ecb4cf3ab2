// Put in front of every source: element types, arithmetic in the computing type, strided walks, warp sums.
// Self-contained: no toolkit header. Compute capability 8.0 and newer.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

struct alignas(16) u128 {
    u64 v[2];
};
struct bf16 {
    u16 x;
};

// The type arithmetic is done in.
template <class T> struct Computing { typedef T type; };
template <> struct Computing<bf16> { typedef float type; };

__device__ inline float up(bf16 h) { return __uint_as_float((u32)h.x << 16); }
__device__ inline float up(float v) { return v; }
__device__ inline double up(double v) { return v; }
__device__ inline i64 up(i64 v) { return v; }
__device__ inline u8 up(u8 v) { return v; }

template <class T> struct Down {
    template <class M> __device__ static T from(M v) { return (T)v; }
};
template <> struct Down<bf16> {
    __device__ static bf16 from(float v) {
        bf16 h;
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h.x) : "f"(v));
        return h;
    }
    // Rounded to odd first, so that the second rounding cannot see a tie that is none.
    __device__ static bf16 from(double v) {
        float f = __double2float_rz(v);
        if ((double)f != v && v == v) f = __uint_as_float(__float_as_uint(f) | 1u);
        return from(f);
    }
};
template <class T, class M> __device__ inline T down(M v) { return Down<T>::from(v); }

__device__ inline float m_exp(float x) { return expf(x); }
__device__ inline double m_exp(double x) { return exp(x); }
__device__ inline float m_log(float x) { return logf(x); }
__device__ inline double m_log(double x) { return log(x); }
__device__ inline float m_log1p(float x) { return log1pf(x); }
__device__ inline double m_log1p(double x) { return log1p(x); }
__device__ inline float m_sqrt(float x) { return sqrtf(x); }
__device__ inline double m_sqrt(double x) { return sqrt(x); }
__device__ inline float m_tanh(float x) { return tanhf(x); }
__device__ inline double m_tanh(double x) { return tanh(x); }
__device__ inline float m_abs(float x) { return fabsf(x); }
__device__ inline double m_abs(double x) { return fabs(x); }
__device__ inline float m_sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ inline double m_sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }
// bf16 keeps 8 bits: the short forms of exp and division are exact enough there, and three times as fast.
template <class T> struct Fast {
    template <class M> __device__ static M exp(M x) { return m_exp(x); }
    template <class M> __device__ static M sigmoid(M x) { return m_sigmoid(x); }
};
template <> struct Fast<bf16> {
    __device__ static float exp(float x) { return __expf(x); }
    __device__ static float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }
};

template <class M> __device__ inline M negative_infinity();
template <> __device__ inline float negative_infinity<float>() { return __uint_as_float(0xff800000u); }
template <> __device__ inline double negative_infinity<double>() {
    return __longlong_as_double((i64)0xfff0000000000000ull);
}

template <class T, int N> struct alignas(sizeof(T) * N) Vec {
    T v[N];
};

// Position of this thread and number of threads, for loops over any number of elements.
__device__ inline u64 thread_index() { return (u64)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ inline u64 thread_count() { return (u64)gridDim.x * blockDim.x; }

// A walk over N strided operands of one shape. The last axis counts groups of consecutive elements.
// Division by a size is a multiplication while all numbers stay below 2^31 (WIDE is 0).
#define AXES 8
template <int N> struct Walk {
    u64 size[AXES];
    u64 stride[N][AXES];
    u64 inner[N];
    u32 magic[AXES];
    u32 shift[AXES];
    u32 mode[N];
    u32 axes;
};
enum { REPEATED = 0, ALIGNED = 1, STRIDED = 2 };

#ifndef WIDE
#define WIDE 0
#endif

template <int N> __device__ inline void offsets(const Walk<N>& w, u64 g, u64 (&at)[N]) {
#pragma unroll
    for (int k = 0; k < N; k++) at[k] = 0;
#if WIDE
    u64 rest = g;
    for (int a = (int)w.axes - 1; a > 0; a--) {
        u64 quotient = rest / w.size[a], i = rest - quotient * w.size[a];
#else
    u32 rest = (u32)g;
    for (int a = (int)w.axes - 1; a > 0; a--) {
        u32 quotient = (__umulhi(rest, w.magic[a]) + rest) >> w.shift[a];
        u32 i = rest - quotient * (u32)w.size[a];
#endif
#pragma unroll
        for (int k = 0; k < N; k++) at[k] += i * w.stride[k][a];
        rest = quotient;
    }
#pragma unroll
    for (int k = 0; k < N; k++) at[k] += rest * w.stride[k][0];
}

// V elements of operand k from x (already offset), `limit` of them if fewer are left.
template <int V, class T, int N>
__device__ inline void load(const T* x, const Walk<N>& w, int k, int limit, T (&out)[V]) {
    if (V > 1 && w.mode[k] == ALIGNED && limit == V) {
        Vec<T, V> t = *(const Vec<T, V>*)x;
#pragma unroll
        for (int i = 0; i < V; i++) out[i] = t.v[i];
    } else if (w.mode[k] == REPEATED) {
        T t = *x;
#pragma unroll
        for (int i = 0; i < V; i++) out[i] = t;
    } else {
#pragma unroll
        for (int i = 0; i < V; i++) out[i] = x[i < limit ? i * w.inner[k] : 0];
    }
}

template <int V, class T> __device__ inline void store(T* y, int limit, const T (&in)[V]) {
    if (V > 1 && limit == V) {
        Vec<T, V> t;
#pragma unroll
        for (int i = 0; i < V; i++) t.v[i] = in[i];
        *(Vec<T, V>*)y = t;
    } else {
#pragma unroll
        for (int i = 0; i < V; i++)
            if (i < limit) y[i] = in[i];
    }
}

__device__ inline int remaining(u64 n, u64 g, int v) {
    u64 left = n - g * v;
    return left < (u64)v ? (int)left : v;
}

// What went wrong with an index, in memory that the host reads at its next synchronisation.
struct Fault {
    u32 taken;
    u32 op;
    i64 index;
    u64 position;
    u64 size;
    u64 axis;
};

__device__ inline bool inside(i64 index, u64 size, u64 position, u32 op, u64 axis, Fault* fault) {
    if (index >= 0 && (u64)index < size) return true;
    if (atomicCAS(&fault->taken, 0u, 1u) == 0u) {
        fault->op = op;
        fault->index = index;
        fault->position = position;
        fault->size = size;
        fault->axis = axis;
        __threadfence_system();
        *(volatile u32*)&fault->taken = 2u;
    }
    return false;
}

#define FULL_WARP 0xffffffffu

// Shuffles of any type, 4 bytes at a time.
template <class A, class F> __device__ inline A shuffled(A v, F f) {
    constexpr int words = (sizeof(A) + 3) / 4;
    u32 w[words] = {};
    memcpy(w, &v, sizeof(A));
#pragma unroll
    for (int i = 0; i < words; i++) w[i] = f(w[i]);
    memcpy(&v, w, sizeof(A));
    return v;
}
template <class A> __device__ inline A shuffle_up(A v, int by) {
    return shuffled(v, [=](u32 w) { return __shfl_up_sync(FULL_WARP, w, by); });
}
template <class A> __device__ inline A shuffle_down(A v, int by, int width) {
    return shuffled(v, [=](u32 w) { return __shfl_down_sync(FULL_WARP, w, by, width); });
}
template <class A> __device__ inline A from_first(A v, int width) {
    return shuffled(v, [=](u32 w) { return __shfl_sync(FULL_WARP, w, 0, width); });
}

// Sum over the W threads of a group (W = 8 or 32 inside a warp, or a block of W); every thread gets it.
template <int W, class A, class F> __device__ inline A combine(A v, F f) {
    constexpr int inside_warp = W < 32 ? W : 32;
#pragma unroll
    for (int by = inside_warp / 2; by > 0; by /= 2) v = f(v, shuffle_down(v, by, inside_warp));
    if constexpr (W <= 32) {
        return from_first(v, inside_warp);
    } else {
        __shared__ A parts[W / 32];
        __syncthreads(); // the previous use of `parts` is over
        if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
        __syncthreads();
        v = parts[0];
        for (int i = 1; i < W / 32; i++) v = f(v, parts[i]);
        return v;
    }
}
