// Attention, backward, from the forward's o and lse. With p = exp(scale q k^T - lse), 0 where a key is not visible:
//
//   delta_t = sum_d do_t o_t - dlse_t                ds = p (do v^T - delta)
//   dv = p^T do      dk = scale ds^T q               dq = scale ds k
//
// The kernels of dk and dv have some keys of a key head and walk over the queries of all its heads; those of dq have some
// queries and walk over the keys. Each computes p anew: adding dq up across blocks of keys would need atomics (whose
// order changes) or waiting.

struct alignas(8) Statistics {
    float log, delta;
};

// Rows of statistics of a head: whole tiles of queries.
__device__ inline u64 statistics_rows(const Call& c) { return (c.queries + 127) / 128 * 128; }

// One warp for a row (b, t, h): lse log2 e beside delta [B, Hq, T padded], weights of 0 in the padding.
extern "C" __global__ void __launch_bounds__(THREADS)
    statistics(Statistics* out, const bf16* o, const bf16* dout, const float* lse, const float* dlse, Call call) {
    const u64 padded = statistics_rows(call), rows = call.batch * padded * call.heads;
    const int lane = threadIdx.x % 32;
    for (u64 n = thread_index() / 32; n < rows; n += thread_count() / 32) {
        const u64 h = n % call.heads, t = n / call.heads % padded, b = n / call.heads / padded;
        const u64 at = b * call.heads + h;
        if (t >= call.queries) {
            if (lane == 0) out[at * padded + t] = {-negative_infinity<float>(), 0.0f};
            continue;
        }
        const u64 row = ((b * call.queries + t) * call.heads + h) * HEAD_DIM;
        float sum = 0;
#pragma unroll
        for (int i = lane * 2; i < HEAD_DIM; i += 64) {
            const Vec<bf16, 2> x = *(const Vec<bf16, 2>*)(o + row + i);
            const Vec<bf16, 2> y = *(const Vec<bf16, 2>*)(dout + row + i);
            sum += up(x.v[0]) * up(y.v[0]) + up(x.v[1]) * up(y.v[1]);
        }
        sum = combine<32>(sum, [](float x, float y) { return x + y; });
        if (lane == 0) {
            const float log = lse[at * call.queries + t];
            // A query that sees nothing has weights 2^(-inf - inf) = 0.
            out[at * padded + t].log = log == negative_infinity<float>() ? -log : log * LOG2E;
            out[at * padded + t].delta = sum - (dlse ? dlse[at * call.queries + t] : 0.0f);
        }
    }
}
