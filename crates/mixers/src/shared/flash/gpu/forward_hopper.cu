// `forward.cu` for Hopper, keys as runs of positions, all of which are seen. One thread loads, GROUPS warpgroups compute:
// each has 64 of the block's queries and asks for the scores of the next tile before it adds the values of the last one,
// so that its softmax runs while the tensor cores work. A block stays on its multiprocessor and takes one item after the
// other, the next item's loads running ahead.

#if HEAD_DIM == 64
#define GROUPS 3
#define REGISTERS 160
#define LOADER_REGISTERS 32
#else
#define GROUPS 2
#define REGISTERS 240
#define LOADER_REGISTERS 24
#endif
#define BM (64 * GROUPS)
#define BN 128
#define STAGES 2
#define TILE_BYTES (BN * ROW_BYTES)
#define ALL_THREADS (128 * (GROUPS + 1))

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
extern __shared__ u128 memory[];

// The weights of one tile in place of its scores; `decay` is what older sums shrink by.
__device__ inline void softmax(float (&s)[BN / 8][4], float (&top)[2], float (&sum)[2], float (&decay)[2], float c) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float high = top[half];
#pragma unroll
        for (int j = 0; j < BN / 8; j++) high = fmaxf(high, fmaxf(s[j][2 * half], s[j][2 * half + 1]));
        high = quad_max(high);
        // Rows that have seen nothing yet: 2^(-inf - 0), not -inf - (-inf).
        const float base = high == negative_infinity<float>() ? 0.0f : high * c;
        decay[half] = exp2_fast(top[half] * c - base);
        top[half] = high;
        float added = 0;
#pragma unroll
        for (int j = 0; j < BN / 8; j++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                s[j][2 * half + e] = exp2_fast(s[j][2 * half + e] * c - base);
                added += s[j][2 * half + e];
            }
        sum[half] = sum[half] * decay[half] + added;
    }
}

// Most tiles raise no maximum.
__device__ inline void rescale(float (&out)[HEAD_DIM / 8][4], const float (&decay)[2]) {
    if (!__any_sync(FULL_WARP, decay[0] < 1 || decay[1] < 1)) return;
#pragma unroll
    for (int d = 0; d < HEAD_DIM / 8; d++)
#pragma unroll
        for (int e = 0; e < 4; e++) out[d][e] *= decay[e / 2];
}
#endif

extern "C" __global__ void __launch_bounds__(ALL_THREADS, 1)
    forward(bf16* o, float* lse, const __grid_constant__ Map q, const __grid_constant__ Map k,
            const __grid_constant__ Map v, Call call, float scale) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    __shared__ alignas(8) u64 barriers[2 + 4 * STAGES];
    const u32 q_tile = (shared_address(memory) + 1023) / 1024 * 1024, k_tiles = q_tile + BM * ROW_BYTES;
    const u32 v_tiles = k_tiles + STAGES * TILE_BYTES, o_tile = v_tiles + STAGES * TILE_BYTES;
    const u32 q_full = shared_address(barriers), q_empty = q_full + 8;
    const u32 k_full = q_full + 16, k_empty = k_full + 8 * STAGES;
    const u32 v_full = k_empty + 8 * STAGES, v_empty = v_full + 8 * STAGES;
    if (threadIdx.x == 0) {
        barrier_init(q_full, 1);
        barrier_init(q_empty, 4 * GROUPS);
        for (int i = 0; i < STAGES; i++) {
            barrier_init(k_full + 8 * i, 1);
            barrier_init(k_empty + 8 * i, 4 * GROUPS);
            barrier_init(v_full + 8 * i, 1);
            barrier_init(v_empty + 8 * i, 4 * GROUPS);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    const u64 q_stride = call.heads * HEAD_DIM, k_stride = call.kv_heads * HEAD_DIM;
    const u64 pairs = call.batch * call.heads, tiles = (call.queries + BM - 1) / BM;
    u32 items = 0, used = 0;

    if (threadIdx.x >= 128 * GROUPS) {
        give_registers<LOADER_REGISTERS>();
        if (threadIdx.x > 128 * GROUPS) return;
        for (u64 n = blockIdx.x; n < pairs * tiles; n += gridDim.x) {
            const Item item(n, pairs, tiles, call.together, true);
            const int b = (int)(item.pair / call.heads), h = (int)(item.pair % call.heads);
            const int g = h / (int)(call.heads / call.kv_heads);
            const View view(call, b);
            const int t0 = item.tile * BM, t1 = min(t0 + BM, view.queries) - 1;
            const KeyTiles<BN> key_tiles(view, t0, t1);
            if (key_tiles.count == 0) continue;
            barrier_wait(q_empty, (items++ & 1) ^ 1);
            barrier_expect(q_full, BM * ROW_BYTES);
            load_tile<BM>(q_tile, &q, h, t0, b, q_full);
            for (int i = 0; i < key_tiles.count; i++, used++) {
                const int s0 = key_tiles.tile(i) * BN;
                const u32 stage = used % STAGES, free = (used / STAGES & 1) ^ 1;
                barrier_wait(k_empty + 8 * stage, free);
                barrier_expect(k_full + 8 * stage, TILE_BYTES);
                load_tile<BN>(k_tiles + stage * TILE_BYTES, &k, g, s0, b, k_full + 8 * stage);
                barrier_wait(v_empty + 8 * stage, free);
                barrier_expect(v_full + 8 * stage, TILE_BYTES);
                load_tile<BN>(v_tiles + stage * TILE_BYTES, &v, g, s0, b, v_full + 8 * stage);
            }
        }
    } else {
        take_registers<REGISTERS>();
        const int lane = threadIdx.x % 32, group_row = warpgroup() * 64;
        const int r0 = group_row + threadIdx.x % 128 / 32 * 16;
        const float c = scale * LOG2E;
        // Warpgroups ask for products by turns, so that one computes weights while another's products run.
        const int turn = warpgroup();
        if (turn == GROUPS - 1) turn_pass<GROUPS>(turn);
        auto release = [&](u32 bar) {
            __syncwarp();
            if (lane == 0) barrier_arrive(bar);
        };
        for (u64 n = blockIdx.x; n < pairs * tiles; n += gridDim.x) {
            const Item item(n, pairs, tiles, call.together, true);
            const u64 b = item.pair / call.heads, h = item.pair % call.heads;
            const View view(call, b);
            const int t0 = item.tile * BM, t1 = min(t0 + BM, view.queries) - 1;
            const KeyTiles<BN> key_tiles(view, t0, t1);
            float out[HEAD_DIM / 8][4] = {}, s[BN / 8][4];
            float top[2] = {negative_infinity<float>(), negative_infinity<float>()}, sum[2] = {}, decay[2];
            u32 p[BN / 16][4];
            auto scores = [&](u32 stage) {
                hold(s);
                products_begin();
#pragma unroll
                for (int d = 0; d < HEAD_DIM / 16; d++)
                    Products<BN / 8>::shared<0, 0>(s, across<BM>(q_tile, group_row, d),
                                                   across<BN>(k_tiles + stage * TILE_BYTES, 0, d), d > 0);
                products_end();
            };
            auto add_values = [&](u32 stage) {
                hold(out);
                products_begin();
#pragma unroll
                for (int j = 0; j < BN / 16; j++)
                    Products<HEAD_DIM / 8>::registers_left<1>(
                        out, p[j], down_rows<BN>(v_tiles + stage * TILE_BYTES, 16 * j), 1);
                products_end();
            };
            if (key_tiles.count > 0) {
                barrier_wait(q_full, items & 1);
                barrier_wait(k_full + 8 * (used % STAGES), used / STAGES & 1);
                scores(used % STAGES);
                products_wait<0>();
                hold(s);
                release(k_empty + 8 * (used % STAGES));
                hide_keys<BN>(s, view, key_tiles.tile(0) * BN, t0 + r0, t1, nullptr);
                softmax(s, top, sum, decay, c);
#pragma unroll
                for (int j = 0; j < BN / 16; j++) as_left(p[j], s[2 * j], s[2 * j + 1]);
                for (int i = 1; i < key_tiles.count; i++) {
                    const u32 last = used++;
                    barrier_wait(k_full + 8 * (used % STAGES), used / STAGES & 1);
                    turn_wait(turn);
                    scores(used % STAGES);
                    barrier_wait(v_full + 8 * (last % STAGES), last / STAGES & 1);
                    add_values(last % STAGES);
                    turn_pass<GROUPS>(turn);
                    products_wait<1>();
                    hold(s);
                    release(k_empty + 8 * (used % STAGES));
                    hide_keys<BN>(s, view, key_tiles.tile(i) * BN, t0 + r0, t1, nullptr);
                    softmax(s, top, sum, decay, c);
                    products_wait<0>();
                    hold(out);
                    release(v_empty + 8 * (last % STAGES));
#pragma unroll
                    for (int j = 0; j < BN / 16; j++) as_left(p[j], s[2 * j], s[2 * j + 1]);
                    rescale(out, decay);
                }
                release(q_empty);
                items++;
                barrier_wait(v_full + 8 * (used % STAGES), used / STAGES & 1);
                add_values(used % STAGES);
                products_wait<0>();
                hold(out);
                release(v_empty + 8 * (used % STAGES));
                used++;
            }
            float inverse[2];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const float total = quad_sum(sum[half]);
                inverse[half] = total == 0 ? 0 : 1 / total;
                const int t = t0 + r0 + 8 * half + lane / 4;
                if (lane % 4 == 0 && t < view.queries)
                    lse[item.pair * call.queries + t] = top[half] * scale + logf(total);
            }
            store_rows(out, inverse[0], inverse[1], o_tile, r0, o + b * call.queries * q_stride + h * HEAD_DIM, q_stride,
                       t0, view.queries);
        }
    }
#endif
}
