// Attention, forward: q [B, T, Hq, D], k, v [B, S, Hkv, D] -> o [B, T, Hq, D] in bf16, lse [B, Hq, T] in f32.
//
// A block has BM queries of one head and walks over tiles of BN keys; a warp has 16 BLOCKS queries. Online softmax in
// base 2: with c = scale log2 e, m the running maximum of the scores and l the sum of weights,
//
//   p = 2^(c s - c m)     l <- l 2^(c (m_old - m)) + sum p     o <- o 2^(c (m_old - m)) + p v
//
// Scores and weights never leave registers. Tiles of keys are loaded one ahead.

#if HEAD_DIM == 256
#define BLOCKS 1
#define BN 32
#else
#define BLOCKS 2
#define BN 64
#endif
#define BM (THREADS / 2 * BLOCKS)
#define STAGES 2
#define STAGE_BYTES (2 * BN * ROW_BYTES)

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    forward(bf16* o, float* lse, const bf16* q, const bf16* k, const bf16* v, Call call, float scale) {
    extern __shared__ u128 memory[];
    __shared__ int stands[STAGES][BN];
    const u32 q_tile = shared_address(memory), stages = q_tile + BM * ROW_BYTES;
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
        const KeyTiles<BN> key_tiles(view, t0, t1);
        const bf16* keys = k + b * call.keys * k_stride + g * HEAD_DIM;
        const bf16* values = v + b * call.keys * k_stride + g * HEAD_DIM;
        const u64 first_row = b * call.queries * q_stride + h * HEAD_DIM;
        auto load = [&](int i) {
            const int s0 = key_tiles.tile(i) * BN;
            const u32 stage = stages + i % STAGES * STAGE_BYTES;
            auto real = [&](int s) { return view.seen(view.at(s)); };
            load_rows<BN>(stage, keys, k_stride, s0, real);
            load_rows<BN>(stage + BN * ROW_BYTES, values, k_stride, s0, real);
#if SLOTS
            if (threadIdx.x < BN) stands[i % STAGES][threadIdx.x] = view.at(s0 + threadIdx.x);
#endif
        };
        __syncthreads();
        load_rows<BM>(q_tile, q + first_row, q_stride, t0, [&](int t) { return t < view.queries; });
        if (key_tiles.count > 0) load(0);
        copies_end();

        float out[BLOCKS][HEAD_DIM / 8][4] = {}, top[BLOCKS][2], sum[BLOCKS][2] = {};
#pragma unroll
        for (int m = 0; m < BLOCKS; m++) top[m][0] = top[m][1] = negative_infinity<float>();
        for (int i = 0; i < key_tiles.count; i++) {
            copies_wait<0>();
            __syncthreads();
            if (i + 1 < key_tiles.count) load(i + 1);
            copies_end();
            const int s0 = key_tiles.tile(i) * BN, w0 = t0 + r0, w1 = min(w0 + 16 * BLOCKS - 1, t1);
            if (w0 > t1 || view.none_seen(w0, w1, s0, BN)) continue;
            const u32 k_tile = stages + i % STAGES * STAGE_BYTES, v_tile = k_tile + BN * ROW_BYTES;

            float s[BLOCKS][BN / 8][4] = {};
#pragma unroll
            for (int d = 0; d < HEAD_DIM / 16; d++) {
                u32 x[BLOCKS][4];
#pragma unroll
                for (int m = 0; m < BLOCKS; m++) left(x[m], q_tile, r0 + 16 * m, d);
#pragma unroll
                for (int j = 0; j < BN / 16; j++) {
                    u32 y[4];
                    right(y, k_tile, 16 * j, d);
#pragma unroll
                    for (int m = 0; m < BLOCKS; m++) {
                        product(s[m][2 * j], x[m], y[0], y[1]);
                        product(s[m][2 * j + 1], x[m], y[2], y[3]);
                    }
                }
            }
#pragma unroll
            for (int m = 0; m < BLOCKS; m++)
                hide_keys<BN>(s[m], view, s0, w0 + 16 * m, t1, stands[i % STAGES]);
#pragma unroll
            for (int m = 0; m < BLOCKS; m++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    float high = top[m][half];
#pragma unroll
                    for (int j = 0; j < BN / 8; j++)
                        high = fmaxf(high, fmaxf(s[m][j][2 * half], s[m][j][2 * half + 1]));
                    high = quad_max(high);
                    // Rows that have seen nothing yet: 2^(-inf - 0), not -inf - (-inf).
                    const float base = high == negative_infinity<float>() ? 0.0f : high * c;
                    const float decay = exp2_fast(top[m][half] * c - base);
                    top[m][half] = high;
                    float added = 0;
#pragma unroll
                    for (int j = 0; j < BN / 8; j++)
#pragma unroll
                        for (int e = 0; e < 2; e++) {
                            const float p = exp2_fast(s[m][j][2 * half + e] * c - base);
                            s[m][j][2 * half + e] = p;
                            added += p;
                        }
                    sum[m][half] = sum[m][half] * decay + added;
#pragma unroll
                    for (int d = 0; d < HEAD_DIM / 8; d++) {
                        out[m][d][2 * half] *= decay;
                        out[m][d][2 * half + 1] *= decay;
                    }
                }
#pragma unroll
            for (int j = 0; j < BN / 16; j++) {
                u32 p[BLOCKS][4];
#pragma unroll
                for (int m = 0; m < BLOCKS; m++) as_left(p[m], s[m][2 * j], s[m][2 * j + 1]);
#pragma unroll
                for (int d = 0; d < HEAD_DIM / 16; d++) {
                    u32 y[4];
                    right_rows(y, v_tile, 16 * j, d);
#pragma unroll
                    for (int m = 0; m < BLOCKS; m++) {
                        product(out[m][2 * d], p[m], y[0], y[1]);
                        product(out[m][2 * d + 1], p[m], y[2], y[3]);
                    }
                }
            }
        }
        copies_wait<0>();
        // Rows of the tile that other warps have loaded, and this one overwrites.
        __syncthreads();
#pragma unroll
        for (int m = 0; m < BLOCKS; m++) {
            float inverse[2];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const float total = quad_sum(sum[m][half]);
                inverse[half] = total == 0 ? 0 : 1 / total;
                const int t = t0 + r0 + 16 * m + 8 * half + lane / 4;
                if (lane % 4 == 0 && t < view.queries)
                    lse[item.pair * call.queries + t] = top[m][half] * scale + logf(total);
            }
            store_rows(out[m], inverse[0], inverse[1], q_tile, r0 + 16 * m, o + first_row, q_stride, t0, view.queries);
        }
    }
}
