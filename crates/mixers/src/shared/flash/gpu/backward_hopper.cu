// `backward.cu` for Hopper, keys as runs of positions, all of which are seen. As in `forward_hopper.cu` one thread loads and
// two warpgroups compute, each with 64 rows of the block's 128; the next tile's scores are asked for together with the
// last tile's sums, so that the tensor cores have work while weights are computed.

#define GROUPS 2
#define ROWS (64 * GROUPS)
#define ALL_THREADS (128 * (GROUPS + 1))

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
extern __shared__ u128 memory[];

__device__ inline u32 aligned_memory() { return (shared_address(memory) + 1023) / 1024 * 1024; }

// A ring of tiles and what belongs to them, and a place for what a block keeps.
template <int STAGES> struct Barriers {
    u32 kept_full, kept_empty, full, empty;

    __device__ Barriers(u64 (&words)[2 + 2 * STAGES]) {
        kept_full = shared_address(words);
        kept_empty = kept_full + 8;
        full = kept_full + 16;
        empty = full + 8 * STAGES;
        if (threadIdx.x == 0) {
            barrier_init(kept_full, 1);
            barrier_init(kept_empty, 4 * GROUPS);
            for (int i = 0; i < STAGES; i++) {
                barrier_init(full + 8 * i, 1);
                barrier_init(empty + 8 * i, 4 * GROUPS);
            }
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        }
        __syncthreads();
    }
};

__device__ inline void release(u32 bar) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(bar);
}

// c = left right^T for 64 rows of a kept tile and all N rows of another, over the elements of a head.
template <int N> __device__ inline void scores(float (&c)[N / 8][4], u32 left, int row, u32 right) {
    hold(c);
    products_begin();
#pragma unroll
    for (int d = 0; d < HEAD_DIM / 16; d++)
        Products<N / 8>::template shared<0, 0>(c, across<ROWS>(left, row, d), across<N>(right, 0, d), d > 0);
    products_end();
}
// sum += p tile, over the tile's N rows.
template <int N> __device__ inline void add(float (&sum)[HEAD_DIM / 8][4], const u32 (&p)[N / 16][4], u32 tile) {
    hold(sum);
    products_begin();
#pragma unroll
    for (int j = 0; j < N / 16; j++)
        Products<HEAD_DIM / 8>::template registers_left<1>(sum, p[j], down_rows<N>(tile, 16 * j), 1);
    products_end();
}
#endif

// ---- dk and dv ----

#define BQ 64
#if HEAD_DIM == 64
#define QUERY_STAGES 4
#else
#define QUERY_STAGES 3
#endif
#define QUERY_BYTES (BQ * ROW_BYTES)

extern "C" __global__ void __launch_bounds__(ALL_THREADS, 1)
    key_value_gradients(bf16* dk, bf16* dv, const __grid_constant__ Map q, const __grid_constant__ Map k,
                        const __grid_constant__ Map v, const __grid_constant__ Map dout, const float* statistics,
                        Call call, float scale) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    __shared__ alignas(8) u64 words[2 + 2 * QUERY_STAGES];
    __shared__ alignas(16) float logs[QUERY_STAGES][BQ], deltas[QUERY_STAGES][BQ];
    const Barriers<QUERY_STAGES> bars(words);
    const u32 k_tile = aligned_memory(), v_tile = k_tile + ROWS * ROW_BYTES, stages = v_tile + ROWS * ROW_BYTES;
    const u32 out_tile = stages + QUERY_STAGES * 2 * QUERY_BYTES;
    const int group = (int)(call.heads / call.kv_heads);
    const u64 pairs = call.batch * call.kv_heads, tiles = (call.keys + ROWS - 1) / ROWS;
    u32 items = 0, used = 0;

    // Tiles of queries that may see any of a block's keys.
    auto query_tiles = [&](const View& view, int s0, int& begin) {
        const int first = s0 - view.shift, last = min(s0 + ROWS, view.keys) - 1 - view.shift;
        int to = view.queries;
        if (first >= view.sink_end) to = min(to, max(0, last) + view.window);
        if (last < view.low) to = 0;
        begin = max(0, first) / BQ;
        return max(0, (to + BQ - 1) / BQ - begin);
    };
    if (threadIdx.x < 128) {
        give_registers<24>();
        if (threadIdx.x > 0) return;
        for (u64 n = blockIdx.x; n < pairs * tiles; n += gridDim.x) {
            const Item item(n, pairs, tiles, call.together, false);
            const int b = (int)(item.pair / call.kv_heads), g = (int)(item.pair % call.kv_heads);
            const View view(call, b);
            const int s0 = item.tile * ROWS;
            int begin;
            const int per_head = query_tiles(view, s0, begin);
            if (per_head == 0) continue;
            barrier_wait(bars.kept_empty, (items++ & 1) ^ 1);
            barrier_expect(bars.kept_full, 2 * ROWS * ROW_BYTES);
            load_tile<ROWS>(k_tile, &k, g, s0, b, bars.kept_full);
            load_tile<ROWS>(v_tile, &v, g, s0, b, bars.kept_full);
            for (int h = g * group; h < (g + 1) * group; h++)
                for (int i = begin; i < begin + per_head; i++, used++) {
                    const u32 stage = used % QUERY_STAGES, tile = stages + stage * 2 * QUERY_BYTES, full = bars.full + 8 * stage;
                    barrier_wait(bars.empty + 8 * stage, (used / QUERY_STAGES & 1) ^ 1);
                    barrier_expect(full, 2 * QUERY_BYTES + 2 * BQ * sizeof(float));
                    load_tile<BQ>(tile, &q, h, i * BQ, b, full);
                    load_tile<BQ>(tile + QUERY_BYTES, &dout, h, i * BQ, b, full);
                    const float* from = statistics_of(statistics, call, (u64)b * call.heads + h) + i * BQ;
                    load_words(shared_address(logs[stage]), from, BQ * sizeof(float), full);
                    load_words(shared_address(deltas[stage]), from + statistics_rows(call), BQ * sizeof(float), full);
                }
        }
    } else {
        take_registers<240>();
        const int lane = threadIdx.x % 32, group_row = (warpgroup() - 1) * 64;
        const int r0 = group_row + threadIdx.x % 128 / 32 * 16;
        const float c = scale * LOG2E;
        for (u64 n = blockIdx.x; n < pairs * tiles; n += gridDim.x) {
            const Item item(n, pairs, tiles, call.together, false);
            const u64 b = item.pair / call.kv_heads, g = item.pair % call.kv_heads;
            const View view(call, b);
            const int s0 = item.tile * ROWS;
            int begin;
            const int per_head = query_tiles(view, s0, begin), count = per_head * group;
            float dk_sum[HEAD_DIM / 8][4] = {}, dv_sum[HEAD_DIM / 8][4] = {}, s[BQ / 8][4], dp[BQ / 8][4];
            u32 p[BQ / 16][4];
            auto ask = [&]() {
                const u32 stage = used % QUERY_STAGES, tile = stages + stage * 2 * QUERY_BYTES;
                barrier_wait(bars.full + 8 * stage, used / QUERY_STAGES & 1);
                scores<BQ>(s, k_tile, group_row, tile);
                scores<BQ>(dp, v_tile, group_row, tile + QUERY_BYTES);
            };
            // From the scores of the tile asked for last to the sums it is added to.
            auto answer = [&](int i) {
                const u32 stage = used % QUERY_STAGES, tile = stages + stage * 2 * QUERY_BYTES;
                const int t0 = (begin + i % per_head) * BQ, t1 = min(t0 + BQ, view.queries) - 1;
                if (!view.all_seen(t0, t1, s0 + r0, 16))
                    hide_queries<BQ>(s, view, view.at(s0 + r0 + lane / 4), view.at(s0 + r0 + 8 + lane / 4), t0);
#pragma unroll
                for (int j = 0; j < BQ / 8; j++)
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        s[j][e] = exp2_fast(s[j][e] * c - logs[stage][j * 8 + lane % 4 * 2 + e % 2]);
#pragma unroll
                for (int j = 0; j < BQ / 16; j++) as_left(p[j], s[2 * j], s[2 * j + 1]);
                add<BQ>(dv_sum, p, tile + QUERY_BYTES);
                products_wait<0>();
                hold(dp);
                hold(dv_sum);
#pragma unroll
                for (int j = 0; j < BQ / 8; j++)
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        dp[j][e] = s[j][e] * (dp[j][e] - deltas[stage][j * 8 + lane % 4 * 2 + e % 2]);
#pragma unroll
                for (int j = 0; j < BQ / 16; j++) as_left(p[j], dp[2 * j], dp[2 * j + 1]);
                add<BQ>(dk_sum, p, tile);
            };
            if (count > 0) {
                barrier_wait(bars.kept_full, items++ & 1);
                ask();
                products_wait<1>();
                hold(s);
                for (int i = 0; i + 1 < count; i++) {
                    answer(i);
                    used++;
                    ask();
                    products_wait<1>();
                    hold(s);
                    hold(dk_sum);
                    hold(dv_sum);
                    release(bars.empty + 8 * ((used - 1) % QUERY_STAGES));
                }
                answer(count - 1);
                products_wait<0>();
                hold(dk_sum);
                hold(dv_sum);
                release(bars.empty + 8 * (used % QUERY_STAGES));
                release(bars.kept_empty);
                used++;
            }
            const u64 stride = call.kv_heads * HEAD_DIM, first_row = b * call.keys * stride + g * HEAD_DIM;
            store_rows(dv_sum, 1, 1, out_tile, r0, dv + first_row, stride, s0, view.keys);
            store_rows(dk_sum, scale, scale, out_tile, r0, dk + first_row, stride, s0, view.keys);
        }
    }
#endif
}

// ---- dq ----

#if HEAD_DIM == 64
#define BN 128
#else
#define BN 64
#endif
#define KEY_STAGES 4
// Small heads have no registers to spare for it, and gain nothing.
#define TURNS (HEAD_DIM == 128)
#define KEY_BYTES (BN * ROW_BYTES)

extern "C" __global__ void __launch_bounds__(ALL_THREADS, 1)
    query_gradients(bf16* dq, const __grid_constant__ Map q, const __grid_constant__ Map k,
                    const __grid_constant__ Map v, const __grid_constant__ Map dout, const float* statistics,
                    Call call, float scale) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    __shared__ alignas(8) u64 words[2 + 2 * KEY_STAGES];
    const Barriers<KEY_STAGES> bars(words);
    const u32 q_tile = aligned_memory(), do_tile = q_tile + ROWS * ROW_BYTES, stages = do_tile + ROWS * ROW_BYTES;
    const u32 out_tile = stages + KEY_STAGES * 2 * KEY_BYTES;
    const u64 pairs = call.batch * call.heads, tiles = (call.queries + ROWS - 1) / ROWS;
    u32 items = 0, used = 0;

    if (threadIdx.x < 128) {
        give_registers<24>();
        if (threadIdx.x > 0) return;
        for (u64 n = blockIdx.x; n < pairs * tiles; n += gridDim.x) {
            const Item item(n, pairs, tiles, call.together, true);
            const int b = (int)(item.pair / call.heads), h = (int)(item.pair % call.heads);
            const int g = h / (int)(call.heads / call.kv_heads);
            const View view(call, b);
            const int t0 = item.tile * ROWS;
            const KeyTiles<BN> key_tiles(view, t0, min(t0 + ROWS, view.queries) - 1);
            if (key_tiles.count == 0) continue;
            barrier_wait(bars.kept_empty, (items++ & 1) ^ 1);
            barrier_expect(bars.kept_full, 2 * ROWS * ROW_BYTES);
            load_tile<ROWS>(q_tile, &q, h, t0, b, bars.kept_full);
            load_tile<ROWS>(do_tile, &dout, h, t0, b, bars.kept_full);
            for (int i = 0; i < key_tiles.count; i++, used++) {
                const u32 stage = used % KEY_STAGES, tile = stages + stage * 2 * KEY_BYTES, full = bars.full + 8 * stage;
                barrier_wait(bars.empty + 8 * stage, (used / KEY_STAGES & 1) ^ 1);
                barrier_expect(full, 2 * KEY_BYTES);
                load_tile<BN>(tile, &k, g, key_tiles.tile(i) * BN, b, full);
                load_tile<BN>(tile + KEY_BYTES, &v, g, key_tiles.tile(i) * BN, b, full);
            }
        }
    } else {
        take_registers<240>();
        const int lane = threadIdx.x % 32, group_row = (warpgroup() - 1) * 64;
        const int r0 = group_row + threadIdx.x % 128 / 32 * 16;
        const float c = scale * LOG2E;
        const int turn = (int)threadIdx.x / 128 - 1;
        if (TURNS && turn == GROUPS - 1) turn_pass<GROUPS>(turn);
        for (u64 n = blockIdx.x; n < pairs * tiles; n += gridDim.x) {
            const Item item(n, pairs, tiles, call.together, true);
            const u64 b = item.pair / call.heads, h = item.pair % call.heads;
            const View view(call, b);
            const int t0 = item.tile * ROWS, t1 = min(t0 + ROWS, view.queries) - 1;
            const KeyTiles<BN> key_tiles(view, t0, t1);
            float log[2], delta[2];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const float* from = statistics_of(statistics, call, item.pair) + t0 + r0 + 8 * half + lane / 4;
                log[half] = from[0];
                delta[half] = from[statistics_rows(call)];
            }
            float sum[HEAD_DIM / 8][4] = {}, s[BN / 8][4], dp[BN / 8][4];
            u32 ds[BN / 16][4];
            auto ask = [&]() {
                const u32 stage = used % KEY_STAGES, tile = stages + stage * 2 * KEY_BYTES;
                barrier_wait(bars.full + 8 * stage, used / KEY_STAGES & 1);
                scores<BN>(s, q_tile, group_row, tile);
                scores<BN>(dp, do_tile, group_row, tile + KEY_BYTES);
            };
            auto answer = [&](int i) {
                const int s0 = key_tiles.tile(i) * BN;
                hide_keys<BN>(s, view, s0, t0 + r0, t1, nullptr);
#pragma unroll
                for (int j = 0; j < BN / 8; j++)
#pragma unroll
                    for (int e = 0; e < 4; e++) s[j][e] = exp2_fast(s[j][e] * c - log[e / 2]);
                products_wait<0>();
                hold(dp);
#pragma unroll
                for (int j = 0; j < BN / 8; j++)
#pragma unroll
                    for (int e = 0; e < 4; e++) dp[j][e] = s[j][e] * (dp[j][e] - delta[e / 2]);
#pragma unroll
                for (int j = 0; j < BN / 16; j++) as_left(ds[j], dp[2 * j], dp[2 * j + 1]);
            };
            if (key_tiles.count > 0) {
                barrier_wait(bars.kept_full, items++ & 1);
                ask();
                products_wait<1>();
                hold(s);
                for (int i = 0; i + 1 < key_tiles.count; i++) {
                    answer(i);
                    if (TURNS) turn_wait(turn);
                    add<BN>(sum, ds, stages + used % KEY_STAGES * 2 * KEY_BYTES);
                    used++;
                    ask();
                    if (TURNS) turn_pass<GROUPS>(turn);
                    products_wait<1>();
                    hold(s);
                    hold(sum);
                    release(bars.empty + 8 * ((used - 1) % KEY_STAGES));
                }
                answer(key_tiles.count - 1);
                add<BN>(sum, ds, stages + used % KEY_STAGES * 2 * KEY_BYTES);
                products_wait<0>();
                hold(sum);
                release(bars.empty + 8 * (used % KEY_STAGES));
                release(bars.kept_empty);
                used++;
            }
            const u64 stride = call.heads * HEAD_DIM;
            store_rows(sum, scale, scale, out_tile, r0, dq + b * call.queries * stride + h * HEAD_DIM, stride, t0,
                       view.queries);
        }
    }
#endif
}
