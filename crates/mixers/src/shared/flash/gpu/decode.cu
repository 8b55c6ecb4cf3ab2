// A few queries over a long cache in bf16. A block has 16 rows of a key head, so that they share what is loaded; each
// of its warps takes 16 keys of a tile, with a softmax of its own, and the four are put together at the end.

#define BN 64
#define WARPS (THREADS / 32)
#if HEAD_DIM == 256
#define STAGES 2
#else
#define STAGES 3
#endif
#define STAGE_BYTES (2 * BN * ROW_BYTES)
#define ROWS 16

extern "C" __global__ void __launch_bounds__(THREADS)
    decode(T* o, float* lse, Softmax* parts_out, float* sums_out, const T* q, const T* k, const T* v, Call call,
           Split split, float scale) {
    extern __shared__ u128 memory[];
    __shared__ int stands[STAGES][BN];
    __shared__ Softmax parts[WARPS][ROWS];
    const u32 stages = shared_address(memory), q_tile = stages + STAGES * STAGE_BYTES;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u64 k_stride = call.kv_heads * HEAD_DIM, chunks = (split.rows + ROWS - 1) / ROWS;
    const float c = scale * LOG2E;
    for (u64 n = blockIdx.x; n < call.batch * call.kv_heads * chunks * split.splits; n += gridDim.x) {
        // Blocks that read the same keys are neighbours.
        const u64 first_row = n % chunks * ROWS, part = n / chunks % split.splits, unit = n / chunks / split.splits;
        const u64 b = unit / call.kv_heads, g = unit % call.kv_heads;
        const View view(call, b);
        const KeyTiles<BN> tiles(view, 0, view.queries - 1);
        const int begin = (int)(tiles.count * part / split.splits);
        const int count = (int)(tiles.count * (part + 1) / split.splits) - begin;
        const bf16* keys = k + b * call.keys * k_stride + g * HEAD_DIM;
        const bf16* values = v + b * call.keys * k_stride + g * HEAD_DIM;
        auto load = [&](int i) {
            const int s0 = tiles.tile(begin + i) * BN;
            const u32 stage = stages + i % STAGES * STAGE_BYTES;
            auto real = [&](int s) { return view.seen(view.at(s)); };
            load_rows<BN>(stage, keys, k_stride, s0, real);
            load_rows<BN>(stage + BN * ROW_BYTES, values, k_stride, s0, real);
            if (threadIdx.x < BN) stands[i % STAGES][threadIdx.x] = view.at(s0 + threadIdx.x);
        };
        __syncthreads();
        for (int i = threadIdx.x; i < ROWS * PIECES; i += THREADS) {
            const int row = i / PIECES, piece = i % PIECES;
            const bool real = first_row + row < split.rows;
            const u64 from = out_row(call, split.group, b, g, real ? first_row + row : 0);
            copy16(q_tile + row * ROW_BYTES + ((piece ^ (row % 8)) << 4), q + from * HEAD_DIM + piece * 8, real);
        }
#pragma unroll
        for (int i = 0; i < STAGES - 1; i++) {
            if (i < count) load(i);
            copies_end();
        }
        // Which queries this thread's two rows are.
        int t[2];
#pragma unroll
        for (int half = 0; half < 2; half++) t[half] = (int)((first_row + lane / 4 + 8 * half) / split.group);

        float out[HEAD_DIM / 8][4] = {}, sum[2] = {}, top[2] = {negative_infinity<float>(), negative_infinity<float>()};
        for (int i = 0; i < count; i++) {
            copies_wait<STAGES - 2>();
            __syncthreads();
            if (i + STAGES - 1 < count) load(i + STAGES - 1);
            copies_end();
            const u32 k_tile = stages + i % STAGES * STAGE_BYTES, v_tile = k_tile + BN * ROW_BYTES;
            const int* at = stands[i % STAGES] + warp * 16;
            float s[2][4] = {};
#pragma unroll
            for (int d = 0; d < HEAD_DIM / 16; d++) {
                u32 x[4], y[4];
                left(x, q_tile, 0, d);
                right(y, k_tile, warp * 16, d);
                product(s[0], x, y[0], y[1]);
                product(s[1], x, y[2], y[3]);
            }
            float high[2] = {top[0], top[1]};
#pragma unroll
            for (int j = 0; j < 2; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    if (!view.sees(t[e / 2], at[j * 8 + lane % 4 * 2 + e % 2])) s[j][e] = negative_infinity<float>();
                    high[e / 2] = fmaxf(high[e / 2], s[j][e]);
                }
#pragma unroll
            for (int half = 0; half < 2; half++) {
                high[half] = quad_max(high[half]);
                const float base = high[half] == negative_infinity<float>() ? 0.0f : high[half] * c;
                const float decay = exp2_fast(top[half] * c - base);
                top[half] = high[half];
                sum[half] *= decay;
#pragma unroll
                for (int j = 0; j < 2; j++)
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        s[j][2 * half + e] = exp2_fast(s[j][2 * half + e] * c - base);
                        sum[half] += s[j][2 * half + e];
                    }
#pragma unroll
                for (int d = 0; d < HEAD_DIM / 8; d++) {
                    out[d][2 * half] *= decay;
                    out[d][2 * half + 1] *= decay;
                }
            }
            u32 p[4];
            as_left(p, s[0], s[1]);
#pragma unroll
            for (int d = 0; d < HEAD_DIM / 16; d++) {
                u32 y[4];
                right_rows(y, v_tile, warp * 16, d);
                product(out[2 * d], p, y[0], y[1]);
                product(out[2 * d + 1], p, y[2], y[3]);
            }
        }
        copies_wait<0>();
        __syncthreads();
        float* sums = (float*)memory;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = lane / 4 + 8 * half;
            const float total = quad_sum(sum[half]);
            if (lane % 4 == 0) parts[warp][row] = {top[half] * c, total};
#pragma unroll
            for (int d = 0; d < HEAD_DIM / 8; d++)
#pragma unroll
                for (int e = 0; e < 2; e++)
                    sums[(warp * ROWS + row) * HEAD_DIM + d * 8 + lane % 4 * 2 + e] = out[d][2 * half + e];
        }
        __syncthreads();
        finish<ROWS, WARPS>(o, lse, parts_out, sums_out, call, split, unit, part, first_row, parts[0], sums);
    }
}
