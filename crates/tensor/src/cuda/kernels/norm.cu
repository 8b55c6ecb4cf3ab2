// RMSNorm rows: y = x s w with s = 1 / sqrt(mean(x^2) + eps); back: dx = g w s - x s^3 mean(g w x),
// dw = sum over rows of g x s. A block of W threads per row (or a warp), V elements per access.

typedef Computing<T>::type M;

template <class F> __device__ inline void each(u64 d, u32 lane, u32 W, u32 vector, F f) {
    if (vector) {
        for (u64 i = lane * V; i < d; i += W * V) f(i);
    } else {
        for (u64 i = lane; i < d; i += W) f(i);
    }
}

// Up to V elements: all of them in one access if `vector`, else one.
struct Pack {
    M v[V];
    __device__ void read(const T* p, u32 vector) {
        if (vector) {
            Vec<T, V> t = *(const Vec<T, V>*)p;
#pragma unroll
            for (int k = 0; k < V; k++) v[k] = up(t.v[k]);
        } else {
            v[0] = up(*p);
#pragma unroll
            for (int k = 1; k < V; k++) v[k] = 0;
        }
    }
    __device__ void write(T* p, u32 vector) {
        if (vector) {
            Vec<T, V> t;
#pragma unroll
            for (int k = 0; k < V; k++) t.v[k] = down<T>(v[k]);
            *(Vec<T, V>*)p = t;
        } else {
            *p = down<T>(v[0]);
        }
    }
};

__device__ inline M add(M a, M b) { return a + b; }

template <int W>
__device__ inline void forward(T* y, const T* x, const T* w, u64 rows, u64 d, double eps, u32 vector) {
    u32 lane = threadIdx.x % W;
    u64 groups = (u64)gridDim.x * (blockDim.x / W), rounds = (rows + groups - 1) / groups;
    for (u64 round = 0; round < rounds; round++) {
        u64 r = round * groups + (u64)blockIdx.x * (blockDim.x / W) + threadIdx.x / W;
        M sum = 0;
        if (r < rows)
            each(d, lane, W, vector, [&](u64 i) {
                Pack a;
                a.read(x + r * d + i, vector);
#pragma unroll
                for (int k = 0; k < V; k++) sum += a.v[k] * a.v[k];
            });
        sum = combine<W>(sum, add);
        M s = (M)1 / m_sqrt(sum / (M)d + (M)eps);
        if (r < rows)
            each(d, lane, W, vector, [&](u64 i) {
                Pack a, b;
                a.read(x + r * d + i, vector);
                b.read(w + i, vector);
#pragma unroll
                for (int k = 0; k < V; k++) a.v[k] = a.v[k] * s * b.v[k];
                a.write(y + r * d + i, vector);
            });
    }
}

extern "C" __global__ void rms_norm32(T* y, const T* x, const T* w, u64 rows, u64 d, double eps, u32 vector) {
    forward<32>(y, x, w, rows, d, eps, vector);
}
extern "C" __global__ void rms_norm256(T* y, const T* x, const T* w, u64 rows, u64 d, double eps, u32 vector) {
    forward<256>(y, x, w, rows, d, eps, vector);
}

// A block of 256 per group of rows; dw of the group is gathered in `parts` [gridDim.x, d], each element by the
// thread that reads its column. In shared memory if `shared` says that d fits.
extern "C" __global__ void rms_norm_back(T* dx, M* parts, const T* x, const T* w, const T* g, const T* other,
                                         u64 rows, u64 d, double eps, u32 vector, u32 shared) {
    extern __shared__ double memory[];
    M* dw = shared ? (M*)memory : parts + (u64)blockIdx.x * d;
    u32 lane = threadIdx.x;
    int width = vector ? V : 1;
    each(d, lane, 256, vector, [&](u64 i) {
        for (int k = 0; k < width; k++) dw[i + k] = 0;
    });
    u64 length = (rows + gridDim.x - 1) / gridDim.x, first = blockIdx.x * length;
    u64 last = first + length < rows ? first + length : rows;
    struct Sums {
        M square, dot;
    };
    for (u64 r = first; r < last; r++) {
        Sums s;
        s.square = s.dot = 0;
        each(d, lane, 256, vector, [&](u64 i) {
            Pack a, b, c;
            a.read(x + r * d + i, vector);
            b.read(w + i, vector);
            c.read(g + r * d + i, vector);
#pragma unroll
            for (int k = 0; k < V; k++) {
                s.square += a.v[k] * a.v[k];
                s.dot += a.v[k] * b.v[k] * c.v[k];
            }
        });
        s = combine<256>(s, [](Sums p, Sums q) {
            p.square += q.square;
            p.dot += q.dot;
            return p;
        });
        M inverse = (M)1 / m_sqrt(s.square / (M)d + (M)eps), c3 = s.dot * inverse * inverse * inverse / (M)d;
        each(d, lane, 256, vector, [&](u64 i) {
            Pack a, b, c;
            a.read(x + r * d + i, vector);
            b.read(w + i, vector);
            c.read(g + r * d + i, vector);
#pragma unroll
            for (int k = 0; k < V; k++) {
                if (k < width) dw[i + k] += c.v[k] * a.v[k] * inverse;
                a.v[k] = c.v[k] * b.v[k] * inverse - a.v[k] * c3;
            }
            if (other) {
                b.read(other + r * d + i, vector);
#pragma unroll
                for (int k = 0; k < V; k++) a.v[k] += b.v[k];
            }
            a.write(dx + r * d + i, vector);
        });
    }
    if (shared) {
        M* out = parts + (u64)blockIdx.x * d;
        each(d, lane, 256, vector, [&](u64 i) {
            for (int k = 0; k < width; k++) out[i + k] = dw[i + k];
        });
    }
}
