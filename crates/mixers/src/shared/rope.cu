// Turns pairs of channels: x [B, T, H, D] by position * frequency[pair], the first 2 n channels of each head; the rest is
// copied. `start` is null where all sequences begin at `same`. Angles in f64, reduced to a turn before their sines are
// taken in the computing type, so that they are as exact at position 10^6 as at 1. A thread has V pairs of a token, for
// HEADS heads in a row; SIGN turns back.

typedef Computing<T>::type M;

#define HEADS 4

__device__ inline void turn_of(double angle, float& c, float& s) {
    const double whole = rint(angle * 0.15915494309189533577);
    sincosf((float)fma(whole, -6.28318530717958647693, angle), &s, &c);
}
__device__ inline void turn_of(double angle, double& c, double& s) { sincos(angle, &s, &c); }

// V elements as one access; as assignments of structs the compiler splits these stores.
#if V16
__device__ inline void get(const T* x, T (&out)[V]) {
    const uint4 a = *(const uint4*)x;
    memcpy(out, &a, sizeof(a));
}
__device__ inline void put(T* y, const T (&in)[V]) {
    uint4 a;
    memcpy(&a, in, sizeof(a));
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(y), "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w) : "memory");
}
#else
__device__ inline void get(const T* x, T (&out)[V]) { out[0] = *x; }
__device__ inline void put(T* y, const T (&in)[V]) { *y = in[0]; }
#endif

// Pair i of a head is (p, q) with p = i and q = n + i, or with ADJACENT p = 2 i and q = 2 i + 1.
__device__ inline void read(const T* x, u64 i, u64 n, T (&p)[V], T (&q)[V]) {
#if ADJACENT
    T both[2][V];
    get(x + 2 * i, both[0]);
    get(x + 2 * i + V, both[1]);
#pragma unroll
    for (int k = 0; k < V; k++) {
        p[k] = both[2 * k / V][2 * k % V];
        q[k] = both[(2 * k + 1) / V][(2 * k + 1) % V];
    }
#else
    get(x + i, p);
    get(x + n + i, q);
#endif
}

__device__ inline void write(T* y, u64 i, u64 n, const T (&p)[V], const T (&q)[V]) {
#if ADJACENT
    T both[2][V];
#pragma unroll
    for (int k = 0; k < V; k++) {
        both[2 * k / V][2 * k % V] = p[k];
        both[(2 * k + 1) / V][(2 * k + 1) % V] = q[k];
    }
    put(y + 2 * i, both[0]);
    put(y + 2 * i + V, both[1]);
#else
    put(y + i, p);
    put(y + n + i, q);
#endif
}

extern "C" __global__ void rope(T* y, const T* x, const double* frequency, const i64* start, u64 same, double sign,
                                u64 batch, u64 tokens, u64 heads, u64 d, u64 n) {
    const u64 groups = n / V, rest = (d - 2 * n + V - 1) / V, pieces = groups + rest, runs = (heads + HEADS - 1) / HEADS;
    const u64 all = batch * tokens * runs * pieces;
    for (u64 g = thread_index(); g < all; g += thread_count()) {
        const u64 piece = g % pieces, run = g / pieces % runs, token = g / pieces / runs;
        const u64 first = run * HEADS, last = first + HEADS < heads ? first + HEADS : heads;
        if (piece >= groups) {
            const u64 from = 2 * n + (piece - groups) * V;
            for (u64 h = first; h < last; h++)
                for (u64 i = from; i < from + V && i < d; i++) {
                    const u64 at = (token * heads + h) * d + i;
                    y[at] = x[at];
                }
            continue;
        }
        const double position = (double)((start ? start[token / tokens] : (i64)same) + (i64)(token % tokens));
        M c[V], s[V];
#pragma unroll
        for (int k = 0; k < V; k++) {
            turn_of(position * frequency[piece * V + k], c[k], s[k]);
            s[k] *= (M)sign;
        }
#pragma unroll
        for (u32 run_head = 0; run_head < HEADS; run_head++) {
            const u64 h = first + run_head;
            if (h >= last) break;
            const u64 at = (token * heads + h) * d;
            T p[V], q[V];
            read(x + at, piece * V, n, p, q);
#pragma unroll
            for (int k = 0; k < V; k++) {
                const M a = up(p[k]), b = up(q[k]);
                p[k] = down<T>(a * c[k] - b * s[k]);
                q[k] = down<T>(a * s[k] + b * c[k]);
            }
            write(y + at, piece * V, n, p, q);
        }
    }
}
