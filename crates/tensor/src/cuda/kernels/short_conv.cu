// y = silu(p), p[t] = sum_j w[:, j] x[t + j]: depthwise, channels last, x [B, T + K - 1, C], w [C, K].
// A thread keeps one channel's last K inputs in registers and walks ROWS steps of time.

typedef Computing<T>::type M;
#define ROWS 64

// dp = g silu'(p)
__device__ inline M slope(M p, M g) {
    M s = Fast<T>::sigmoid(p);
    return g * (s + p * s * ((M)1 - s));
}

__device__ inline M convolve(const M (&w)[K], const M (&x)[K]) {
    M p = 0;
#pragma unroll
    for (int j = 0; j < K; j++) p += w[j] * x[j];
    return p;
}

extern "C" __global__ void conv1d_silu(T* y, const T* x, const T* w, u64 batch, u64 tokens, u64 channels) {
    u64 pieces = (tokens + ROWS - 1) / ROWS, rows_in = tokens + K - 1;
    for (u64 i = thread_index(); i < batch * pieces * channels; i += thread_count()) {
        u64 c = i % channels, piece = i / channels % pieces, b = i / channels / pieces;
        u64 t0 = piece * ROWS, t1 = t0 + ROWS < tokens ? t0 + ROWS : tokens;
        M weight[K], window[K];
        const T* in = x + (b * rows_in + t0) * channels + c;
#pragma unroll
        for (int j = 0; j < K; j++) {
            weight[j] = up(w[c * K + j]);
            if (j > 0) window[j] = up(in[(j - 1) * channels]);
        }
        in += (K - 1) * channels;
        T* out = y + (b * tokens + t0) * channels + c;
#pragma unroll 4
        for (u64 t = t0; t < t1; t++, in += channels, out += channels) {
#pragma unroll
            for (int j = 0; j + 1 < K; j++) window[j] = window[j + 1];
            window[K - 1] = up(*in);
            M p = convolve(weight, window);
            *out = down<T>(p * Fast<T>::sigmoid(p));
        }
    }
}

// Input row r gets sum_j w[j] dp[r - j]; a piece of ROWS input rows computes dp of its rows and of the K - 1
// before them. parts [batch * pieces, C, K]: each piece's share of dw.
extern "C" __global__ void conv1d_silu_back(T* dx, M* parts, const T* x, const T* w, const T* g, u64 batch, u64 tokens,
                                            u64 channels) {
    u64 rows_in = tokens + K - 1, pieces = (rows_in + ROWS - 1) / ROWS;
    for (u64 i = thread_index(); i < batch * pieces * channels; i += thread_count()) {
        u64 c = i % channels, piece = i / channels % pieces, b = i / channels / pieces;
        i64 r0 = piece * ROWS, r1 = r0 + ROWS < (i64)rows_in ? r0 + ROWS : (i64)rows_in;
        M weight[K], window[K], dp[K], dw[K];
        const T* in = x + b * rows_in * channels + c;
        const T* gradient = g + b * tokens * channels + c;
        // window[j] = x[t + j] and dp[j] = dp[t - j] for the output t in turn.
        i64 t = r0 - (K - 1);
#pragma unroll
        for (int j = 0; j < K; j++) {
            weight[j] = up(w[c * K + j]);
            dw[j] = dp[j] = 0;
            i64 row = t + j - 1;
            if (j > 0) window[j] = row >= 0 && row < (i64)rows_in ? up(in[row * channels]) : (M)0;
        }
        for (; t < r1; t++) {
#pragma unroll
            for (int j = 0; j + 1 < K; j++) window[j] = window[j + 1];
            i64 row = t + K - 1;
            window[K - 1] = row < (i64)rows_in ? up(in[row * channels]) : (M)0;
#pragma unroll
            for (int j = K - 1; j > 0; j--) dp[j] = dp[j - 1];
            dp[0] = 0;
            if (t >= 0 && t < (i64)tokens) {
                dp[0] = slope(convolve(weight, window), up(gradient[t * channels]));
                if (t >= r0) {
#pragma unroll
                    for (int j = 0; j < K; j++) dw[j] += dp[0] * window[j];
                }
            }
            if (t >= r0) {
                M sum = 0;
#pragma unroll
                for (int j = 0; j < K; j++) sum += weight[j] * dp[j];
                dx[(b * rows_in + t) * channels + c] = down<T>(sum);
            }
        }
#pragma unroll
        for (int j = 0; j < K; j++) parts[((b * pieces + piece) * channels + c) * K + j] = dw[j];
    }
}
