// Gradients on any GPU with tensor cores for bf16: see `statistics.cu`.

#define WARPS (THREADS / 32)

extern __shared__ u128 memory[];

// ---- dk and dv ----

// dk and dv of 16 keys a warp fill the registers up to 128 elements a head; beyond, a launch for each. OUTPUTS says
// which: 1 dv, 2 dk.
#define BN 64
#if HEAD_DIM == 256
#define BQ 32
#define STAGES 1
#else
#define BQ 64
#define STAGES 2
#endif
#define STAGE_BYTES (2 * BQ * ROW_BYTES)

template <int OUTPUTS>
__device__ inline void key_gradients(bf16* dk, bf16* dv, const bf16* q, const bf16* k, const bf16* v, const bf16* dout,
                                     const float* statistics, const Call& call, float scale) {
    __shared__ float logs[STAGES][BQ], deltas[STAGES][BQ];
    __shared__ int stands[BN];
    const u32 k_tile = shared_address(memory), v_tile = k_tile + BN * ROW_BYTES, stages = v_tile + BN * ROW_BYTES;
    const int lane = threadIdx.x % 32, r0 = threadIdx.x / 32 * 16;
    const u64 q_stride = call.heads * HEAD_DIM, k_stride = call.kv_heads * HEAD_DIM;
    const u64 group = call.heads / call.kv_heads;
    const u64 pairs = call.batch * call.kv_heads, tiles = (call.keys + BN - 1) / BN;
    const float c = scale * LOG2E;
    for (u64 n = blockIdx.x; n < pairs * tiles; n += gridDim.x) {
        const Item item(n, pairs, tiles, call.together, false);
        const u64 b = item.pair / call.kv_heads, g = item.pair % call.kv_heads;
        const View view(call, b);
        const int s0 = item.tile * BN, last = min(s0 + BN, view.keys) - 1;
        const u64 first_row = b * call.keys * k_stride + g * HEAD_DIM;
        // Queries that may see any of these keys.
        int from = 0, to = view.queries;
#if !SLOTS
        from = max(0, s0 - view.shift);
        if (s0 - view.shift >= view.sink_end) to = min(to, max(0, last - view.shift) + view.window);
        if (last - view.shift < view.low) to = 0;
#endif
        const int begin = from / BQ, per_head = max(0, (to + BQ - 1) / BQ - begin), count = per_head * (int)group;
        auto load = [&](int i) {
            const u64 h = g * group + i / per_head;
            const int t0 = (begin + i % per_head) * BQ;
            const u64 base = b * call.queries * q_stride + h * HEAD_DIM;
            const u32 stage = stages + i % STAGES * STAGE_BYTES;
            // Queries at negative positions see nothing: they may hold anything.
            auto real = [&](int t) { return t < view.queries && t >= view.low; };
            load_rows<BQ>(stage, q + base, q_stride, t0, real);
            load_rows<BQ>(stage + BQ * ROW_BYTES, dout + base, q_stride, t0, real);
            if (threadIdx.x < BQ) {
                const int t = t0 + threadIdx.x;
                const float* from = statistics_of(statistics, call, b * call.heads + h) + (real(t) ? t : 0);
                copy4(shared_address(&logs[i % STAGES][threadIdx.x]), from, real(t));
                copy4(shared_address(&deltas[i % STAGES][threadIdx.x]), from + statistics_rows(call), real(t));
            }
        };
        __syncthreads();
        auto real = [&](int s) { return view.seen(view.at(s)); };
        load_rows<BN>(k_tile, k + first_row, k_stride, s0, real);
        load_rows<BN>(v_tile, v + first_row, k_stride, s0, real);
        if (threadIdx.x < BN) stands[threadIdx.x] = view.at(s0 + threadIdx.x);
        if (STAGES > 1 && count > 0) load(0);
        copies_end();

        float dk_sum[HEAD_DIM / 8][4] = {}, dv_sum[HEAD_DIM / 8][4] = {};
        for (int i = 0; i < count; i++) {
            if (STAGES == 1) {
                __syncthreads();
                load(i);
                copies_end();
            }
            copies_wait<0>();
            __syncthreads();
            if (STAGES > 1 && i + 1 < count) load(i + 1);
            copies_end();
            const int t0 = (begin + i % per_head) * BQ, t1 = min(t0 + BQ, view.queries) - 1;
            if (view.none_seen(t0, t1, s0 + r0, 16)) continue;
            const u32 q_tile = stages + i % STAGES * STAGE_BYTES, do_tile = q_tile + BQ * ROW_BYTES;

            // Transposed: keys down, queries across.
            float s[BQ / 8][4] = {};
#pragma unroll
            for (int d = 0; d < HEAD_DIM / 16; d++) {
                u32 x[4];
                left(x, k_tile, r0, d);
#pragma unroll
                for (int j = 0; j < BQ / 16; j++) {
                    u32 y[4];
                    right(y, q_tile, 16 * j, d);
                    product(s[2 * j], x, y[0], y[1]);
                    product(s[2 * j + 1], x, y[2], y[3]);
                }
            }
            if (!view.all_seen(t0, t1, s0 + r0, 16))
                hide_queries<BQ>(s, view, stands[r0 + lane / 4], stands[r0 + 8 + lane / 4], t0);
#pragma unroll
            for (int j = 0; j < BQ / 8; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) s[j][e] = exp2_fast(s[j][e] * c - logs[i % STAGES][j * 8 + lane % 4 * 2 + e % 2]);
            if (OUTPUTS & 1)
#pragma unroll
                for (int j = 0; j < BQ / 16; j++) {
                    u32 p[4];
                    as_left(p, s[2 * j], s[2 * j + 1]);
#pragma unroll
                    for (int d = 0; d < HEAD_DIM / 16; d++) {
                        u32 y[4];
                        right_rows(y, do_tile, 16 * j, d);
                        product(dv_sum[2 * d], p, y[0], y[1]);
                        product(dv_sum[2 * d + 1], p, y[2], y[3]);
                    }
                }
            if (OUTPUTS & 2) {
                float dp[BQ / 8][4] = {};
#pragma unroll
                for (int d = 0; d < HEAD_DIM / 16; d++) {
                    u32 x[4];
                    left(x, v_tile, r0, d);
#pragma unroll
                    for (int j = 0; j < BQ / 16; j++) {
                        u32 y[4];
                        right(y, do_tile, 16 * j, d);
                        product(dp[2 * j], x, y[0], y[1]);
                        product(dp[2 * j + 1], x, y[2], y[3]);
                    }
                }
#pragma unroll
                for (int j = 0; j < BQ / 8; j++)
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        dp[j][e] = s[j][e] * (dp[j][e] - deltas[i % STAGES][j * 8 + lane % 4 * 2 + e % 2]);
#pragma unroll
                for (int j = 0; j < BQ / 16; j++) {
                    u32 p[4];
                    as_left(p, dp[2 * j], dp[2 * j + 1]);
#pragma unroll
                    for (int d = 0; d < HEAD_DIM / 16; d++) {
                        u32 y[4];
                        right_rows(y, q_tile, 16 * j, d);
                        product(dk_sum[2 * d], p, y[0], y[1]);
                        product(dk_sum[2 * d + 1], p, y[2], y[3]);
                    }
                }
            }
        }
        copies_wait<0>();
        __syncthreads();
        if (OUTPUTS & 1) store_rows(dv_sum, 1, 1, v_tile, r0, dv + first_row, k_stride, s0, view.keys);
        if (OUTPUTS & 2) store_rows(dk_sum, scale, scale, k_tile, r0, dk + first_row, k_stride, s0, view.keys);
    }
}

#define KEY_GRADIENTS(name, outputs)                                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS, 2)                                                           \
        name(bf16* dk, bf16* dv, const bf16* q, const bf16* k, const bf16* v, const bf16* dout,                        \
             const float* statistics, Call call, float scale) {                                                   \
        key_gradients<outputs>(dk, dv, q, k, v, dout, statistics, call, scale);                                        \
    }
#if HEAD_DIM == 256
KEY_GRADIENTS(value_gradients_only, 1)
KEY_GRADIENTS(key_gradients_only, 2)
#else
KEY_GRADIENTS(key_value_gradients, 3)
#endif

// ---- dq ----

#if HEAD_DIM == 256
#define BLOCKS 1
#else
#define BLOCKS 2
#endif
#define BM (WARPS * 16 * BLOCKS)
#if HEAD_DIM == 64
#define BK 64
#else
#define BK 32
#endif
#define KEY_STAGE_BYTES (2 * BK * ROW_BYTES)

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    query_gradients(bf16* dq, const bf16* q, const bf16* k, const bf16* v, const bf16* dout,
                    const float* statistics, Call call, float scale) {
    __shared__ int stands[STAGES][BK];
    const u32 q_tile = shared_address(memory), do_tile = q_tile + BM * ROW_BYTES, stages = do_tile + BM * ROW_BYTES;
    const int lane = threadIdx.x % 32, r0 = threadIdx.x / 32 * 16 * BLOCKS;
    const u64 q_stride = call.heads * HEAD_DIM, k_stride = call.kv_heads * HEAD_DIM;
    const u64 pairs = call.batch * call.heads, tiles = (call.queries + BM - 1) / BM;
    const float c = scale * LOG2E;
    for (u64 n = blockIdx.x; n < pairs * tiles; n += gridDim.x) {
        const Item item(n, pairs, tiles, call.together, true);
        const u64 b = item.pair / call.heads, h = item.pair % call.heads;
        const u64 g = h / (call.heads / call.kv_heads);
        const View view(call, b);
        const int t0 = item.tile * BM, t1 = min(t0 + BM, view.queries) - 1;
        const KeyTiles<BK> key_tiles(view, t0, t1);
        const bf16* keys = k + b * call.keys * k_stride + g * HEAD_DIM;
        const bf16* values = v + b * call.keys * k_stride + g * HEAD_DIM;
        const u64 first_row = b * call.queries * q_stride + h * HEAD_DIM;
        auto load = [&](int i) {
            const int s0 = key_tiles.tile(i) * BK;
            const u32 stage = stages + i % STAGES * KEY_STAGE_BYTES;
            auto real = [&](int s) { return view.seen(view.at(s)); };
            load_rows<BK>(stage, keys, k_stride, s0, real);
            load_rows<BK>(stage + BK * ROW_BYTES, values, k_stride, s0, real);
#if SLOTS
            if (threadIdx.x < BK) stands[i % STAGES][threadIdx.x] = view.at(s0 + threadIdx.x);
#endif
        };
        __syncthreads();
        auto real = [&](int t) { return t < view.queries; };
        load_rows<BM>(q_tile, q + first_row, q_stride, t0, real);
        load_rows<BM>(do_tile, dout + first_row, q_stride, t0, real);
        if (STAGES > 1 && key_tiles.count > 0) load(0);
        copies_end();
        float log[BLOCKS][2], delta[BLOCKS][2];
#pragma unroll
        for (int m = 0; m < BLOCKS; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int t = min(t0 + r0 + 16 * m + 8 * half + lane / 4, t1);
                log[m][half] = statistics_of(statistics, call, item.pair)[t];
                delta[m][half] = statistics_of(statistics, call, item.pair)[statistics_rows(call) + t];
            }

        float sum[BLOCKS][HEAD_DIM / 8][4] = {};
        for (int i = 0; i < key_tiles.count; i++) {
            if (STAGES == 1) {
                __syncthreads();
                load(i);
                copies_end();
            }
            copies_wait<0>();
            __syncthreads();
            if (STAGES > 1 && i + 1 < key_tiles.count) load(i + 1);
            copies_end();
            const int s0 = key_tiles.tile(i) * BK, w0 = t0 + r0, w1 = min(w0 + 16 * BLOCKS - 1, t1);
            if (w0 > t1 || view.none_seen(w0, w1, s0, BK)) continue;
            const u32 k_tile = stages + i % STAGES * KEY_STAGE_BYTES, v_tile = k_tile + BK * ROW_BYTES;

            float s[BLOCKS][BK / 8][4] = {}, dp[BLOCKS][BK / 8][4] = {};
            auto scores = [&](float(&to)[BLOCKS][BK / 8][4], u32 left_tile, u32 right_tile) {
#pragma unroll
                for (int d = 0; d < HEAD_DIM / 16; d++) {
                    u32 x[BLOCKS][4];
#pragma unroll
                    for (int m = 0; m < BLOCKS; m++) left(x[m], left_tile, r0 + 16 * m, d);
#pragma unroll
                    for (int j = 0; j < BK / 16; j++) {
                        u32 y[4];
                        right(y, right_tile, 16 * j, d);
#pragma unroll
                        for (int m = 0; m < BLOCKS; m++) {
                            product(to[m][2 * j], x[m], y[0], y[1]);
                            product(to[m][2 * j + 1], x[m], y[2], y[3]);
                        }
                    }
                }
            };
            scores(s, q_tile, k_tile);
            scores(dp, do_tile, v_tile);
#pragma unroll
            for (int m = 0; m < BLOCKS; m++) {
                hide_keys<BK>(s[m], view, s0, w0 + 16 * m, t1, stands[i % STAGES]);
#pragma unroll
                for (int j = 0; j < BK / 8; j++)
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        s[m][j][e] = exp2_fast(s[m][j][e] * c - log[m][e / 2]) * (dp[m][j][e] - delta[m][e / 2]);
            }
#pragma unroll
            for (int j = 0; j < BK / 16; j++) {
                u32 p[BLOCKS][4];
#pragma unroll
                for (int m = 0; m < BLOCKS; m++) as_left(p[m], s[m][2 * j], s[m][2 * j + 1]);
#pragma unroll
                for (int d = 0; d < HEAD_DIM / 16; d++) {
                    u32 y[4];
                    right_rows(y, k_tile, 16 * j, d);
#pragma unroll
                    for (int m = 0; m < BLOCKS; m++) {
                        product(sum[m][2 * d], p[m], y[0], y[1]);
                        product(sum[m][2 * d + 1], p[m], y[2], y[3]);
                    }
                }
            }
        }
        copies_wait<0>();
        __syncthreads();
#pragma unroll
        for (int m = 0; m < BLOCKS; m++)
            store_rows(sum[m], scale, scale, q_tile, r0 + 16 * m, dq + first_row, q_stride, t0, view.queries);
    }
}
