// y = silu(p), p[t] = sum_j w[:, j] x[t + j]: depthwise, channels last, x [B, T + K - 1, C], w [C, K].
// A thread keeps the last K inputs of V neighbouring channels in registers and walks ROWS steps of time.

typedef Computing<T>::type M;
#define ROWS 64

struct Channels {
    M v[V];
    __device__ void read(const T* p) {
        Vec<T, V> t = *(const Vec<T, V>*)p;
#pragma unroll
        for (int c = 0; c < V; c++) v[c] = up(t.v[c]);
    }
    __device__ void write(T* p) const {
        Vec<T, V> t;
#pragma unroll
        for (int c = 0; c < V; c++) t.v[c] = down<T>(v[c]);
        *(Vec<T, V>*)p = t;
    }
    __device__ void clear() {
#pragma unroll
        for (int c = 0; c < V; c++) v[c] = 0;
    }
    // this += a b
    __device__ void add(const Channels& a, const Channels& b) {
#pragma unroll
        for (int c = 0; c < V; c++) v[c] += a.v[c] * b.v[c];
    }
};

__device__ inline Channels convolve(const Channels (&w)[K], const Channels (&x)[K]) {
    Channels p;
    p.clear();
#pragma unroll
    for (int j = 0; j < K; j++) p.add(w[j], x[j]);
    return p;
}

__device__ inline void taps(Channels (&weight)[K], const T* w) {
#pragma unroll
    for (int j = 0; j < K; j++)
#pragma unroll
        for (int c = 0; c < V; c++) weight[j].v[c] = up(w[c * K + j]);
}

extern "C" __global__ void conv1d_silu(T* y, const T* x, const T* w, u64 batch, u64 tokens, u64 channels) {
    u64 pieces = (tokens + ROWS - 1) / ROWS, rows_in = tokens + K - 1, groups = channels / V;
    for (u64 i = thread_index(); i < batch * pieces * groups; i += thread_count()) {
        u64 c = i % groups * V, piece = i / groups % pieces, b = i / groups / pieces;
        u64 t0 = piece * ROWS, t1 = t0 + ROWS < tokens ? t0 + ROWS : tokens;
        Channels weight[K], window[K];
        taps(weight, w + c * K);
        const T* in = x + (b * rows_in + t0) * channels + c;
#pragma unroll
        for (int j = 1; j < K; j++) window[j].read(in + (j - 1) * channels);
        in += (K - 1) * channels;
        T* out = y + (b * tokens + t0) * channels + c;
#pragma unroll 4
        for (u64 t = t0; t < t1; t++, in += channels, out += channels) {
#pragma unroll
            for (int j = 0; j + 1 < K; j++) window[j] = window[j + 1];
            window[K - 1].read(in);
            Channels p = convolve(weight, window);
#pragma unroll
            for (int k = 0; k < V; k++) p.v[k] *= Fast<T>::sigmoid(p.v[k]);
            p.write(out);
        }
    }
}

// Input row r gets sum_j w[j] dp[r - j]; a piece of ROWS input rows computes dp of its rows and of the K - 1
// before them. parts [batch * pieces, C, K]: each piece's share of dw.
extern "C" __global__ void conv1d_silu_back(T* dx, M* parts, const T* x, const T* w, const T* g, u64 batch, u64 tokens,
                                            u64 channels) {
    u64 rows_in = tokens + K - 1, pieces = (rows_in + ROWS - 1) / ROWS, groups = channels / V;
    for (u64 i = thread_index(); i < batch * pieces * groups; i += thread_count()) {
        u64 c = i % groups * V, piece = i / groups % pieces, b = i / groups / pieces;
        i64 r0 = piece * ROWS, r1 = r0 + ROWS < (i64)rows_in ? r0 + ROWS : (i64)rows_in;
        Channels weight[K], window[K], dp[K], dw[K];
        taps(weight, w + c * K);
        const T* in = x + b * rows_in * channels + c;
        const T* gradient = g + b * tokens * channels + c;
        // window[j] = x[t + j] and dp[j] = dp[t - j] for the output t in turn.
        i64 t = r0 - (K - 1);
#pragma unroll
        for (int j = 0; j < K; j++) {
            dw[j].clear();
            dp[j].clear();
            window[j].clear();
            i64 row = t + j - 1;
            if (j > 0 && row >= 0 && row < (i64)rows_in) window[j].read(in + row * channels);
        }
        for (; t < r1; t++) {
#pragma unroll
            for (int j = 0; j + 1 < K; j++) window[j] = window[j + 1];
            window[K - 1].clear();
            i64 row = t + K - 1;
            if (row < (i64)rows_in) window[K - 1].read(in + row * channels);
#pragma unroll
            for (int j = K - 1; j > 0; j--) dp[j] = dp[j - 1];
            dp[0].clear();
            if (t >= 0 && t < (i64)tokens) {
                dp[0].read(gradient + t * channels);
                Channels p = convolve(weight, window);
#pragma unroll
                for (int k = 0; k < V; k++) {
                    M s = Fast<T>::sigmoid(p.v[k]);
                    dp[0].v[k] *= s + p.v[k] * s * ((M)1 - s);
                }
                if (t >= r0) {
#pragma unroll
                    for (int j = 0; j < K; j++) dw[j].add(dp[0], window[j]);
                }
            }
            if (t >= r0) {
                Channels sum;
                sum.clear();
#pragma unroll
                for (int j = 0; j < K; j++) sum.add(weight[j], dp[j]);
                sum.write(dx + (b * rows_in + t) * channels + c);
            }
        }
#pragma unroll
        for (int k = 0; k < V; k++)
#pragma unroll
            for (int j = 0; j < K; j++) parts[((b * pieces + piece) * channels + c + k) * K + j] = dw[j].v[k];
    }
}
