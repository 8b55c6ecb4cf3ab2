// RMSNorm with a whole row in the registers of WIDTH threads, PACKS pieces of V elements each, so that each operand is
// read once. With `delta` the row is x + delta, rounded and written to `sum`. Back: dx = g w s - x s^3 mean(g w x)
// (+ other, what reaches the row besides), dw = sum over rows of g x s.

typedef Computing<T>::type M;

#define GROUPS_OF_BLOCK (256 / WIDTH)

// Row by row: the rows of this thread's group, and where its pieces lie in each.
#define ROWS_OF_GROUP                                                                            \
    constexpr u32 GROUPS = GROUPS_OF_BLOCK;                                                      \
    const u32 lane = threadIdx.x % WIDTH;                                                        \
    const u64 groups = (u64)gridDim.x * GROUPS, rounds = (rows + groups - 1) / groups;           \
    for (u64 round = 0; round < rounds; round++) {                                               \
        const u64 r = round * groups + (u64)blockIdx.x * GROUPS + threadIdx.x / WIDTH;           \
        const bool active = r < rows;

#define EACH_PACK(p, i) \
    _Pragma("unroll") for (int p = 0; p < PACKS; p++) if (const u64 i = (u64)(p * WIDTH + lane) * V; i < d)

__device__ inline M add(M a, M b) { return a + b; }

__device__ inline void read(const T* x, M (&out)[V]) {
    Vec<T, V> t = *(const Vec<T, V>*)x;
#pragma unroll
    for (int k = 0; k < V; k++) out[k] = up(t.v[k]);
}

__device__ inline void write(T* y, const M (&in)[V]) {
    Vec<T, V> t;
#pragma unroll
    for (int k = 0; k < V; k++) t.v[k] = down<T>(in[k]);
    *(Vec<T, V>*)y = t;
}

extern "C" __global__ void rms_norm(T* y, T* sum, const T* x, const T* delta, const T* w, u64 rows, u64 d,
                                    double eps) {
    ROWS_OF_GROUP
        M row[PACKS][V], square = 0;
        if (active) EACH_PACK(p, i) {
            read(x + r * d + i, row[p]);
            if (delta) {
                M more[V];
                read(delta + r * d + i, more);
#pragma unroll
                for (int k = 0; k < V; k++) row[p][k] = up(down<T>(row[p][k] + more[k]));
                write(sum + r * d + i, row[p]);
            }
#pragma unroll
            for (int k = 0; k < V; k++) square += row[p][k] * row[p][k];
        }
        square = combine<WIDTH>(square, add);
        const M s = (M)1 / m_sqrt(square / (M)d + (M)eps);
        if (active) EACH_PACK(p, i) {
            M gain[V];
            read(w + i, gain);
#pragma unroll
            for (int k = 0; k < V; k++) row[p][k] *= s * gain[k];
            write(y + r * d + i, row[p]);
        }
    }
}

// Sums of dw over this block's rows go to `parts` [gridDim.x, d].
extern "C" __global__ void rms_norm_back(T* dx, M* parts, const T* x, const T* w, const T* g, const T* other, u64 rows,
                                         u64 d, double eps) {
    M dw[PACKS][V] = {};
    ROWS_OF_GROUP
        M a[PACKS][V], b[PACKS][V];
        struct Sums {
            M square, dot;
        } s;
        s.square = s.dot = 0;
        if (active) EACH_PACK(p, i) {
            M gain[V];
            read(x + r * d + i, a[p]);
            read(g + r * d + i, b[p]);
            read(w + i, gain);
#pragma unroll
            for (int k = 0; k < V; k++) {
                s.square += a[p][k] * a[p][k];
                s.dot += a[p][k] * b[p][k] * gain[k];
            }
        }
        s = combine<WIDTH>(s, [](Sums p, Sums q) {
            p.square += q.square;
            p.dot += q.dot;
            return p;
        });
        const M inverse = (M)1 / m_sqrt(s.square / (M)d + (M)eps), c3 = s.dot * inverse * inverse * inverse / (M)d;
        if (active) EACH_PACK(p, i) {
            M gain[V], more[V] = {};
            read(w + i, gain);
            if (other) read(other + r * d + i, more);
#pragma unroll
            for (int k = 0; k < V; k++) {
                dw[p][k] += b[p][k] * a[p][k] * inverse;
                a[p][k] = b[p][k] * gain[k] * inverse - a[p][k] * c3 + more[k];
            }
            write(dx + r * d + i, a[p]);
        }
    }
    // The groups of the block one after another, in the memory of its row of parts.
    M* out = parts + (u64)blockIdx.x * d;
    for (u32 group = 0; group < GROUPS_OF_BLOCK; group++) {
        if (threadIdx.x / WIDTH == group) {
            const u32 lane = threadIdx.x % WIDTH;
            EACH_PACK(p, i) {
#pragma unroll
                for (int k = 0; k < V; k++) out[i + k] = (group ? out[i + k] : (M)0) + dw[p][k];
            }
        }
        __syncthreads();
    }
}
