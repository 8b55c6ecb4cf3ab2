// A few queries over a long cache: the keys of a key head are split over blocks, and `merge` puts their results
// together, in order. Rows of a key head are (query, head of the group), the head running fastest.

// What the blocks of one split leave: `parts` [B, Hkv, splits, rows], of the scores in base 2 the highest and the sum of
// the weights 2^(score - high), and `sums` [B, Hkv, splits, rows, HEAD_DIM] of the values, weighted.
struct alignas(8) Softmax {
    float high, sum;
};

struct Split {
    u64 splits, rows, group;
};

__device__ inline float weight(float high, float top) {
    return high == negative_infinity<float>() ? 0.0f : exp2f(high - top);
}

// Where o [B, T, Hq, HEAD_DIM] and lse [B, Hq, T] keep a row.
__device__ inline u64 out_row(const Call& c, u64 group, u64 b, u64 g, u64 row) {
    return (b * c.queries + row / group) * c.heads + g * group + row % group;
}
__device__ inline u64 lse_at(const Call& c, u64 group, u64 b, u64 g, u64 row) {
    return (b * c.heads + g * group + row % group) * c.queries + row / group;
}
__device__ inline float natural(float high, float sum) { return (high + log2f(sum)) * 0.6931471805599453f; }

// A block's share: SHARES softmaxes of its rows, row r of share p at [p * ROWS + r], into one.
template <int ROWS, int SHARES>
__device__ inline void finish(T* o, float* lse, Softmax* parts_out, float* sums_out, const Call& c, const Split& s,
                              u64 unit, u64 split, u64 first_row, const Softmax* parts, const float* sums) {
    const u64 b = unit / c.kv_heads, g = unit % c.kv_heads;
    for (int i = threadIdx.x; i < ROWS * HEAD_DIM; i += THREADS) {
        const int r = i / HEAD_DIM, d = i % HEAD_DIM;
        if (first_row + r >= s.rows) break;
        float top = negative_infinity<float>(), total = 0, x = 0;
        for (int p = 0; p < SHARES; p++) top = fmaxf(top, parts[p * ROWS + r].high);
        for (int p = 0; p < SHARES; p++) {
            const float w = weight(parts[p * ROWS + r].high, top);
            total += w * parts[p * ROWS + r].sum;
            x += w * sums[(p * ROWS + r) * HEAD_DIM + d];
        }
        const u64 row = first_row + r, part = (unit * s.splits + split) * s.rows + row;
        if (s.splits == 1) {
            o[out_row(c, s.group, b, g, row) * HEAD_DIM + d] = down<T>(total == 0 ? 0.0f : x / total);
            if (d == 0) lse[lse_at(c, s.group, b, g, row)] = natural(top, total);
        } else {
            sums_out[part * HEAD_DIM + d] = x;
            if (d == 0) parts_out[part] = {top, total};
        }
    }
}

// One warp for a row.
extern "C" __global__ void __launch_bounds__(THREADS)
    merge(T* o, float* lse, const Softmax* parts, const float* sums, Call c, Split s) {
    const u64 rows = c.batch * c.kv_heads * s.rows;
    const int lane = threadIdx.x % 32;
    for (u64 i = thread_index() / 32; i < rows; i += thread_count() / 32) {
        const u64 unit = i / s.rows, row = i % s.rows, b = unit / c.kv_heads, g = unit % c.kv_heads;
        const u64 first = unit * s.splits * s.rows + row;
        float top = negative_infinity<float>();
        for (u64 p = lane; p < s.splits; p += 32) top = fmaxf(top, parts[first + p * s.rows].high);
        top = combine<32>(top, [](float x, float y) { return fmaxf(x, y); });
        float total = 0, x[HEAD_DIM / 32] = {};
#pragma unroll 4
        for (u64 p = 0; p < s.splits; p++) {
            const Softmax part = parts[first + p * s.rows];
            const float w = weight(part.high, top);
            total += w * part.sum;
#pragma unroll
            for (int d = 0; d < HEAD_DIM / 32; d++) x[d] += w * sums[(first + p * s.rows) * HEAD_DIM + d * 32 + lane];
        }
        const float inverse = total == 0 ? 0 : 1 / total;
#pragma unroll
        for (int d = 0; d < HEAD_DIM / 32; d++)
            o[out_row(c, s.group, b, g, row) * HEAD_DIM + d * 32 + lane] = down<T>(x[d] * inverse);
        if (lane == 0) lse[lse_at(c, s.group, b, g, row)] = natural(top, total);
    }
}
