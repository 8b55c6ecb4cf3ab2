// What the attention kernels share: who sees whom, tiles of bf16 rows in shared memory, products on tensor cores.
//
// Rows of a tile hold HEAD_DIM elements in pieces of 16 bytes; piece c of row r lies at c ^ (r % 8), so that the eight
// rows that a matrix load reads at once come from different banks.

#define PIECES (HEAD_DIM / 8)
#define ROW_BYTES (HEAD_DIM * 2)
#define LOG2E 1.4426950408889634f

// Sizes of a call, and the positions of its queries and keys. Where the lists are null, all sequences stand alike.
struct Call {
    u64 batch, queries, keys, heads, kv_heads;
    i64 query_start, key_start;
    const i64* query_starts;  // [B]
    const i64* key_positions; // [B] first positions, or with SLOTS [B, S] positions
    i64 window, sinks;
    u64 together; // pairs (sequence, head) that are worked on at a time, so that their keys stay in L2
};

#define THREADS 128
// Beyond any difference of positions that matters; and where keys stand that no query sees.
#define FAR (1 << 29)
#define NOWHERE (1 << 30)

__device__ inline int near_int(i64 x) { return (int)(x < -FAR ? -FAR : x > FAR ? FAR : x); }

// Positions of one sequence relative to its first query, so that query t stands at t. A query sees the keys at
// low <= at <= t with t - at < window or at < sink_end.
struct View {
    int queries, keys, shift, low, window, sink_end;
    i64 start;
    const i64* slots;

    __device__ View(const Call& c, u64 b) {
        queries = (int)c.queries;
        keys = (int)c.keys;
        start = c.query_starts ? c.query_starts[b] : c.query_start;
        window = near_int(c.window);
        sink_end = near_int(c.sinks - start);
        low = near_int(-start);
#if SLOTS
        slots = c.key_positions + b * c.keys;
        shift = 0;
#else
        slots = nullptr;
        shift = near_int(start - (c.key_positions ? c.key_positions[b] : c.key_start));
#endif
    }
    // Where key s stands, or NOWHERE.
    __device__ int at(int s) const {
        if (s >= keys) return NOWHERE;
#if SLOTS
        i64 position = slots[s];
        return position < 0 ? NOWHERE : near_int(position - start);
#else
        return s - shift;
#endif
    }
    __device__ bool sees(int t, int at) const {
        return (at <= t) & (at >= low) & ((t - at < window) | (at < sink_end));
    }
    // Whether any query of the call sees it. Other keys are never loaded: they may hold anything.
    __device__ bool seen(int at) const { return at < queries && sees(at > 0 ? at : 0, at); }
    // Whether all queries t0 ..= t1 see all of the keys s0 .. s0 + n.
    __device__ bool all_seen(int t0, int t1, int s0, int n) const {
#if SLOTS
        return false;
#else
        const int first = s0 - shift, last = first + n - 1;
        return s0 + n <= keys && last <= t0 && first >= low && (t1 - first < window || last < sink_end);
#endif
    }
    // Whether none of them sees any.
    __device__ bool none_seen(int t0, int t1, int s0, int n) const {
#if SLOTS
        return false;
#else
        const int first = s0 - shift, last = first + n - 1;
        return first > t1 || last < low || (t0 - last >= window && first >= sink_end);
#endif
    }
};

// Scores [16, N] of the queries from row0 on (up to `last`, in all) and the keys from s0 on: those that the query does not
// see become -infinity. `stands` says where the keys stand, if they are slots. No branch depends on a thread.
template <int N>
__device__ inline void hide_keys(float (&s)[N / 8][4], const View& view, int s0, int row0, int last, const int* stands) {
    if (view.all_seen(row0, min(row0 + 15, last), s0, N)) return;
    const int lane = threadIdx.x % 32;
#if !SLOTS
    const bool near = row0 + 16 - view.window + view.shift <= s0 && view.low + view.shift <= s0;
#endif
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int t = row0 + half * 8 + lane / 4;
#if !SLOTS
        // Columns of this thread that the query sees, but for the thread's own offset: first ..= end, and sinks.
        const int offset = view.shift - s0 - lane % 4 * 2, low = view.low + offset, sinks = view.sink_end + offset;
        const int end = min(t + offset, view.keys - 1 - s0 - lane % 4 * 2), first = max(low, t - view.window + 1 + offset);
#endif
#pragma unroll
        for (int j = 0; j < N / 8; j++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const int column = j * 8 + e;
#if SLOTS
                const bool seen = view.sees(t, stands[column + lane % 4 * 2]);
#else
                const bool seen =
                    (column <= end) & (near | (column >= first) | ((column >= low) & (column < sinks)));
#endif
                s[j][2 * half + e] = seen ? s[j][2 * half + e] : negative_infinity<float>();
            }
    }
}
// The same, transposed: scores [16, N] of keys that stand at `upper` and `lower` (the thread's two rows) and queries from
// t0 on.
template <int N>
__device__ inline void hide_queries(float (&s)[N / 8][4], const View& view, int upper, int lower, int t0) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int at = half ? lower : upper, offset = t0 + threadIdx.x % 4 * 2;
        const int first = at < view.low ? NOWHERE : at - offset;
        const int end = at < view.sink_end ? NOWHERE : at + view.window - offset;
#pragma unroll
        for (int j = 0; j < N / 8; j++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const int column = j * 8 + e;
                s[j][2 * half + e] =
                    (column >= first) & (column < end) ? s[j][2 * half + e] : negative_infinity<float>();
            }
    }
}

// The tiles of N rows that hold the keys which queries t0 ..= t1 may see: those of the sinks, then the others.
template <int N> struct KeyTiles {
    int sinks, sink_first, first, count;

    __device__ KeyTiles(const View& v, int t0, int t1) {
#if SLOTS
        sinks = sink_first = first = 0;
        count = (v.keys + N - 1) / N;
#else
        const int end = min(v.keys, max(0, t1 + 1 + v.shift));
        const int low = min(end, max(0, v.low + v.shift));
        const int back = min(end, max(low, t0 - v.window + 1 + v.shift));
        const int sink_end = min(back, max(low, v.sink_end + v.shift));
        const int low_tile = low / N, sink_tile = (sink_end + N - 1) / N, end_tile = (end + N - 1) / N;
        const bool split = sink_end > low && back / N > sink_tile;
        sinks = split ? sink_tile - low_tile : 0;
        first = split ? back / N : (sink_end > low ? low : back) / N;
        sink_first = low_tile;
        count = end > low ? sinks + end_tile - first : 0;
#endif
    }
    __device__ int tile(int i) const {
#if SLOTS
        return i;
#else
        return i < sinks ? sink_first + i : first + i - sinks;
#endif
    }
};

__device__ inline u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// 16 bytes to shared memory, or zeros.
__device__ inline void copy16(u32 to, const void* from, bool real) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(real ? 16 : 0) : "memory");
}
__device__ inline void copy4(u32 to, const void* from, bool real) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(real ? 4 : 0) : "memory");
}
__device__ inline void copies_end() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT> __device__ inline void copies_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
}

// Rows `from .. from + ROWS` of a matrix into a tile; those that `real` refuses are not read and become zero.
template <int ROWS, class F>
__device__ inline void load_rows(u32 tile, const bf16* matrix, u64 stride, int from, F real) {
    constexpr int step = THREADS / PIECES;
    const int first = threadIdx.x / PIECES, piece = threadIdx.x % PIECES;
    const bf16* source = matrix + (i64)(from + first) * (i64)stride + piece * 8;
#pragma unroll
    for (int i = 0; i < ROWS / step; i++) {
        const int row = first + i * step;
        copy16(tile + row * ROW_BYTES + ((piece ^ (row % 8)) << 4), source, real(from + row));
        source += step * stride;
    }
}

// Four 8 x 8 matrices. With rows = `lane % 16`, pieces `2 k + lane / 16`: the left operand of a product, or, transposed,
// the right operand of a tile whose rows are summed over. With rows 0-7 twice, then 8-15: the right operand of a tile
// whose rows become columns.
__device__ inline void load4(u32 (&x)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(at));
}
__device__ inline void load4_transposed(u32 (&x)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(at));
}
// Rows r0 .. r0 + 16 of a tile, elements 16 k .. 16 k + 16, as the left operand.
__device__ inline void left(u32 (&x)[4], u32 tile, int r0, int k) {
    const int lane = threadIdx.x % 32;
    load4(x, tile + (r0 + lane % 16) * ROW_BYTES + (((2 * k + lane / 16) ^ (lane % 8)) << 4));
}
// The same part as two right operands of 8 columns (the rows), sums running over the elements.
__device__ inline void right(u32 (&x)[4], u32 tile, int r0, int k) {
    const int lane = threadIdx.x % 32;
    load4(x, tile + (r0 + lane % 8 + lane / 16 * 8) * ROW_BYTES + (((2 * k + lane / 8 % 2) ^ (lane % 8)) << 4));
}
// The same part as two right operands of 8 columns (the elements), sums running over the rows.
__device__ inline void right_rows(u32 (&x)[4], u32 tile, int r0, int k) {
    const int lane = threadIdx.x % 32;
    load4_transposed(x, tile + (r0 + lane % 16) * ROW_BYTES + (((2 * k + lane / 16) ^ (lane % 8)) << 4));
}

// c [16, 8] += a [16, 16] b [16, 8]
__device__ inline void product(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two floats as a pair of bf16, the first in the lower half.
__device__ inline u32 pair(float x, float y) {
    u32 p;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(p) : "f"(y), "f"(x));
    return p;
}
__device__ inline float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ inline float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, 1));
    return fmaxf(x, __shfl_xor_sync(FULL_WARP, x, 2));
}
__device__ inline float quad_sum(float x) {
    x += __shfl_xor_sync(FULL_WARP, x, 1);
    return x + __shfl_xor_sync(FULL_WARP, x, 2);
}

// Two neighbouring accumulators [16, 8] of a product as the left operand [16, 16] of the next.
__device__ inline void as_left(u32 (&x)[4], const float (&c)[4], const float (&d)[4]) {
    x[0] = pair(c[0], c[1]);
    x[1] = pair(c[2], c[3]);
    x[2] = pair(d[0], d[1]);
    x[3] = pair(d[2], d[3]);
}

// Accumulators of 16 rows, times a factor for each of the two rows a thread has, as bf16 through the warp's own rows
// r0 .. r0 + 16 of a tile into rows `from + r0` of a matrix that has `rows`.
__device__ inline void store_rows(const float (&c)[HEAD_DIM / 8][4], float upper, float lower, u32 tile, int r0,
                                  bf16* matrix, u64 stride, int from, int rows) {
    const int lane = threadIdx.x % 32;
    __syncwarp();
#pragma unroll
    for (int n = 0; n < HEAD_DIM / 8; n++) {
        const u32 at = tile + (r0 + lane / 4) * ROW_BYTES + ((n ^ (lane / 4)) << 4) + lane % 4 * 4;
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(at), "r"(pair(c[n][0] * upper, c[n][1] * upper)) : "memory");
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(at + 8 * ROW_BYTES), "r"(pair(c[n][2] * lower, c[n][3] * lower))
                     : "memory");
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 16 * PIECES / 32; i++) {
        const int n = lane + i * 32, row = r0 + n / PIECES, piece = n % PIECES;
        u32 x[4];
        asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                     : "r"(tile + row * ROW_BYTES + ((piece ^ (row % 8)) << 4))
                     : "memory");
        if (from + row < rows)
            *(uint4*)(matrix + (u64)(from + row) * stride + piece * 8) = make_uint4(x[0], x[1], x[2], x[3]);
    }
}

// Block n of a launch: which (sequence, head), and which of its `tiles`, the last tile first if they grow heavier.
struct Item {
    u64 pair;
    int tile;

    __device__ Item(u64 n, u64 pairs, u64 tiles, u64 together, bool last_first) {
        const u64 section = n / (together * tiles), first = section * together;
        const u64 here = min(together, pairs - first), rest = n - first * tiles;
        pair = first + rest % here;
        tile = (int)(last_first ? tiles - 1 - rest / here : rest / here);
    }
};
