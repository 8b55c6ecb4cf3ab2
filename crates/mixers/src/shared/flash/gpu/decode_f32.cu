// A few queries over a long cache in f32, without tensor cores: HEAD_DIM / 8 lanes share a key, each with 8 of its
// elements, and keep a softmax of their own for each of the block's rows; all are put together at the end.

#define ROWS 4
#define LANES (HEAD_DIM / 8)
#define TEAMS (THREADS / LANES)
// Keys that a team loads before it looks at them.
#define AHEAD 2

extern "C" __global__ void __launch_bounds__(THREADS)
    decode(T* o, float* lse, Softmax* parts_out, float* sums_out, const T* q, const T* k, const T* v, Call call,
           Split split, float scale) {
    extern __shared__ u128 memory[];
    __shared__ Softmax parts[TEAMS][ROWS];
    const int team = threadIdx.x / LANES, d0 = threadIdx.x % LANES * 8;
    const u64 k_stride = call.kv_heads * HEAD_DIM, chunks = (split.rows + ROWS - 1) / ROWS;
    const float c = scale * LOG2E;
    for (u64 n = blockIdx.x; n < call.batch * call.kv_heads * chunks * split.splits; n += gridDim.x) {
        // Blocks that read the same keys are neighbours.
        const u64 first_row = n % chunks * ROWS, part = n / chunks % split.splits, unit = n / chunks / split.splits;
        const u64 b = unit / call.kv_heads, g = unit % call.kv_heads;
        const View view(call, b);
        const KeyTiles<TEAMS * AHEAD> tiles(view, 0, view.queries - 1);
        const int begin = (int)(tiles.count * part / split.splits);
        const int end = (int)(tiles.count * (part + 1) / split.splits);
        const u64 base = b * call.keys * k_stride + g * HEAD_DIM + d0;

        float query[ROWS][8], out[ROWS][8] = {}, top[ROWS], sum[ROWS] = {};
        int t[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const u64 row = min(first_row + r, split.rows - 1);
            t[r] = (int)(row / split.group);
            top[r] = negative_infinity<float>();
            const float* from = q + out_row(call, split.group, b, g, row) * HEAD_DIM + d0;
#pragma unroll
            for (int e = 0; e < 8; e++) query[r][e] = from[e] * c;
        }
        for (int i = begin; i < end; i++) {
            Vec<float, 4> key[AHEAD][2] = {}, value[AHEAD][2] = {};
            int at[AHEAD];
#pragma unroll
            for (int a = 0; a < AHEAD; a++) {
                const int s = tiles.tile(i) * TEAMS * AHEAD + a * TEAMS + team;
                at[a] = view.at(s);
                if (!view.seen(at[a])) continue;
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    key[a][half] = *(const Vec<float, 4>*)(k + base + (u64)s * k_stride + half * 4);
                    value[a][half] = *(const Vec<float, 4>*)(v + base + (u64)s * k_stride + half * 4);
                }
            }
#pragma unroll
            for (int a = 0; a < AHEAD; a++)
#pragma unroll
                for (int r = 0; r < ROWS; r++) {
                    float x = 0;
#pragma unroll
                    for (int e = 0; e < 8; e++) x += query[r][e] * key[a][e / 4].v[e % 4];
#pragma unroll
                    for (int by = LANES / 2; by > 0; by /= 2) x += __shfl_xor_sync(FULL_WARP, x, by);
                    if (!view.sees(t[r], at[a])) continue;
                    const float high = fmaxf(top[r], x), decay = exp2f(top[r] - high), p = exp2f(x - high);
                    top[r] = high;
                    sum[r] = sum[r] * decay + p;
#pragma unroll
                    for (int e = 0; e < 8; e++) out[r][e] = out[r][e] * decay + p * value[a][e / 4].v[e % 4];
                }
        }
        float* sums = (float*)memory;
        __syncthreads();
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            if (d0 == 0) parts[team][r] = {top[r], sum[r]};
#pragma unroll
            for (int e = 0; e < 8; e++) sums[(team * ROWS + r) * HEAD_DIM + d0 + e] = out[r][e];
        }
        __syncthreads();
        finish<ROWS, TEAMS>(o, lse, parts_out, sums_out, call, split, unit, part, first_row, parts[0], sums);
    }
}
