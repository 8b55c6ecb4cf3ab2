// Attention, backward, from the forward's o and lse. With p = exp(scale q k^T - lse), 0 where a key is not visible:
//
//   delta_t = sum_d do_t o_t - dlse_t                ds = p (do v^T - delta)
//   dv = p^T do      dk = scale ds^T q               dq = scale ds k
//
// The kernels of dk and dv have some keys of a key head and walk over the queries of all its heads; those of dq have some
// queries and walk over the keys. Each computes p anew: adding dq up across blocks of keys would need atomics (whose
// order changes) or waiting.

// Rows of statistics of a head: whole tiles of queries.
__device__ inline u64 statistics_rows(const Call& c) { return (c.queries + 127) / 128 * 128; }
// Those of a pair (sequence, head): statistics_rows times lse log2 e, then as many times delta.
template <class F> __device__ inline F* statistics_of(F* all, const Call& c, u64 pair) {
    return all + pair * 2 * statistics_rows(c);
}

// HEAD_DIM / 8 threads for a row (b, t, h): lse log2 e and delta, so that weights in the padding are 0.
extern "C" __global__ void __launch_bounds__(THREADS)
    statistics(float* out, const bf16* o, const bf16* dout, const float* lse, const float* dlse, Call call) {
    const u64 padded = statistics_rows(call), rows = call.batch * padded * call.heads;
    const int piece = threadIdx.x % PIECES * 8;
    for (u64 n = blockIdx.x * (u64)(THREADS / PIECES); n < rows; n += gridDim.x * (u64)(THREADS / PIECES)) {
        const u32 row = (u32)n + threadIdx.x / PIECES, heads = (u32)call.heads;
        const u32 h = row % heads, t = row / heads % (u32)padded, b = row / heads / (u32)padded;
        const bool real = row < rows && t < call.queries;
        const u64 at = ((b * call.queries + t) * call.heads + h) * HEAD_DIM + piece;
        float sum = 0;
        if (real) {
            const Vec<bf16, 8> x = *(const Vec<bf16, 8>*)(o + at), y = *(const Vec<bf16, 8>*)(dout + at);
#pragma unroll
            for (int i = 0; i < 8; i++) sum += up(x.v[i]) * up(y.v[i]);
        }
#pragma unroll
        for (int by = PIECES / 2; by > 0; by /= 2) sum += __shfl_xor_sync(FULL_WARP, sum, by);
        if (piece > 0 || row >= rows) continue;
        const u64 pair = (u64)b * call.heads + h, in = pair * call.queries + t;
        // A query that sees nothing has weights 2^(-inf - inf) = 0, as the padding has.
        const float log = real ? lse[in] : negative_infinity<float>();
        float* to = statistics_of(out, call, pair) + t;
        to[0] = log == negative_infinity<float>() ? -log : log * LOG2E;
        to[padded] = real ? sum - (dlse ? dlse[in] : 0.0f) : 0.0f;
    }
}
