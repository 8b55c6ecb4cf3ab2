// The chain over chunks, from what `prepare` or `prepare_scalar` left of each, with state S [KD, V] in f32:
//
//   u = U - W S     o = Q S + P u     S <- diag(last) S + K^T u
//
// or, with a factor for each row and tiles of q, k and v as they are (SCALAR; d_b, d_w, d_k, d_q, last in `factors`):
//
//   u = T (d_w v - d_b k S)     o = d_q q S + P u     S <- last S + (d_k k)^T u
//
// Everything is computed turned: S^T, u^T and o^T have value columns as rows, so that a warp with 16 columns keeps S and u
// in registers, as results and as left operands. Two warps share 16 columns, half of the channels of S each; what both
// read of the state they add up through shared memory. A third warp computes o: it gets S and u in bf16. Two more warps
// load the next chunks' tiles. A chunk has two phases with a barrier before each: u needs S, then S needs u.
//
// A block does COLUMNS columns of one value head of one sequence. `before` (S before each chunk, [.., KD, V]) and `added`
// (u, [.., C, V]), both in bf16, may be null.

#define PAIRS (COLUMNS / 16)
// Channels of S in a warp.
#define HALF (KD / 2)
#define LOADERS 2
#define THREADS (32 * (3 * PAIRS + LOADERS))
#define ROWS (4 * C + 4)
#define KEY_TILE (C * KD * 2)
#define SQUARE (C * C * 2)
#define VALUE_TILE (C * COLUMNS * 2)
#if SCALAR
#define FACTORS (ROWS * 4)
// q | k | v | T | P | factors
#define SLOT (2 * KEY_TILE + VALUE_TILE + 2 * SQUARE + 2048)
#else
#define FACTORS (KD * 4)
// Q | K | U | W | P | last
#define SLOT (3 * KEY_TILE + VALUE_TILE + SQUARE + 1024)
#endif
// S and u as left operands, for 16 columns.
#define STATE_PART (KD / 16 * 512)
#define ADDED_PART (C / 16 * 512)
// What half of the channels gives of [16, C].
#define READ_PART (16 * C * 4)

struct Tiles {
    char *q, *k, *v, *square, *p;
    float* factors;
};

__device__ inline Tiles tiles(char* memory, u32 i) {
    char* at = memory + i % RING * SLOT;
    Tiles x;
    x.q = at;
    x.k = x.q + KEY_TILE;
    x.v = x.k + KEY_TILE;
    // T or W.
    x.square = x.v + VALUE_TILE;
    x.p = x.square + (SCALAR ? SQUARE : KEY_TILE);
    x.factors = (float*)(x.p + SQUARE);
    return x;
}

struct Operands {
    const bf16 *q, *k, *v, *left, *inverse, *reads;
    const float* factors;
};

// The chunk's tiles that the first phase needs.
__device__ inline void fetch_first(Tiles x, const Operands& from, u32 pitch, int rows, u64 tile, u64 first, u32 values,
                                   int thread) {
#if SCALAR
    fetch<KD, 32 * LOADERS>(x.q, from.q + first * pitch, pitch, rows, thread);
    fetch<COLUMNS, 32 * LOADERS>(x.v, from.v + first * pitch, pitch, rows, thread);
    fetch<C, 32 * LOADERS, true>(x.square, from.inverse + tile * C * C, C, C, thread);
#else
    fetch<KD, 32 * LOADERS>(x.square, from.left + tile * C * KD, KD, C, thread);
    fetch<COLUMNS, 32 * LOADERS>(x.v, from.v + tile * C * values, values, C, thread);
    fetch<KD, 32 * LOADERS>(x.q, from.q + tile * C * KD, KD, C, thread);
#endif
}

// The others.
__device__ inline void fetch_second(Tiles x, const Operands& from, u32 pitch, int rows, u64 tile, u64 first, int thread) {
#if SCALAR
    fetch<KD, 32 * LOADERS>(x.k, from.k + first * pitch, pitch, rows, thread);
#else
    fetch<KD, 32 * LOADERS>(x.k, from.k + tile * C * KD, KD, C, thread);
#endif
    fetch<C, 32 * LOADERS, true>(x.p, from.reads + tile * C * C, C, C, thread);
    for (int i = thread; i < FACTORS / 16; i += 32 * LOADERS)
        copy16(shared_address(x.factors + 4 * i), from.factors + tile * (FACTORS / 4) + 4 * i, true);
}

__device__ inline void meet() { barrier(0, THREADS); }

// Two columns of rows 8 j + 2 t of a turned result: the factors of those rows.
__device__ inline float2 of_rows(const float* factors, int j, int t) { return *(const float2*)(factors + 8 * j + 2 * t); }

__device__ inline void scale(float (&x)[4], float2 by) {
    x[0] *= by.x;
    x[1] *= by.y;
    x[2] *= by.x;
    x[3] *= by.y;
}

// x^T += left tile^T over N channels; left from shared memory, as it was put there.
template <int N> __device__ inline void times_keys(float (&x)[8][4], const char* left, u32 tile, u32 offset, int lane) {
#pragma unroll
    for (int c = 0; c < N / 16; c++) {
        const uint4 l = *(const uint4*)(left + (c * 32 + lane) * 16);
        const u32 a[4] = {l.x, l.y, l.z, l.w};
#pragma unroll
        for (int j = 0; j < 4; j++) {
            u32 right[4];
            load4(right, tile + (offset ^ 32 * c) + 16 * j * KD * 2);
            multiply(x[2 * j], a, right[0], right[1]);
            multiply(x[2 * j + 1], a, right[2], right[3]);
        }
    }
}

// x^T += left tile^T for a lower triangular [C, C] tile, one block of 16 columns.
__device__ inline void times_square(float (&x)[8][4], const u32 (&a)[4], u32 tile, u32 offset, int c) {
#pragma unroll
    for (int j = 0; j < 4; j++)
        if (j >= c) {
            u32 right[4];
            load4(right, tile + (offset ^ 32 * c) + 16 * j * C * 2);
            multiply(x[2 * j], a, right[0], right[1]);
            multiply(x[2 * j + 1], a, right[2], right[3]);
        }
}

// [16 columns, 16 rows] of a turned left operand to 16 rows in memory.
__device__ inline void store_turned(bf16* to, u32 pitch, const u32 (&a)[4], int limit, int lane) {
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int y = 0; y < 2; y++)
#pragma unroll
        for (int x = 0; x < 2; x++) {
            const u32 out = turned(a[2 * y + x]);
            if (8 * y + g < limit) *(u32*)(to + (u64)(8 * y + g) * pitch + 8 * x + 2 * t) = out;
        }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    scan(bf16* o, float* after, bf16* before, bf16* added, const float* initial, const bf16* q, const bf16* k,
         const bf16* v, const bf16* left, const bf16* inverse, const bf16* reads, const float* factors,
         const i64* starts, u32 sequences, u32 tokens, u32 slots, u32 heads, u32 value_heads, u32 values) {
    extern __shared__ __align__(1024) char memory[];
    char* states = memory + RING * SLOT;
    char* us = states + PAIRS * STATE_PART;
    char* reads_of = us + PAIRS * ADDED_PART;
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, g = lane / 4, t = lane % 4;
    const u32 parts = values / COLUMNS, repeat = value_heads / heads;
    const u32 width = 2 * heads * KD + value_heads * values;
    // Of a lane, in the right operand of a product.
    const u32 keys_at = place<KD>(lane / 16 * 8 + lane % 8, lane / 8 % 2), turned_at = place<KD>(lane % 16, lane / 16);
    const u32 square_at = place<C>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
    for (u32 item = blockIdx.x; item < sequences * value_heads * parts; item += gridDim.x) {
        const u32 unit = item / parts;
        const u32 part = item % parts, hv = unit % value_heads, i = unit / value_heads;
        const Sequence here = sequence(starts, i, tokens, slots);
        const u32 count = (here.tokens + C - 1) / C;
        const u64 base = starts ? (u64)hv * slots + here.slot : ((u64)i * value_heads + hv) * slots;
        if (warp < LOADERS) {
            Operands from = {q, k, v + part * COLUMNS, left, inverse, reads, factors};
            if (SCALAR) {
                from.q = q + hv / repeat * KD;
                from.k = from.q + heads * KD;
                from.v = q + 2 * heads * KD + hv * values + part * COLUMNS;
            }
            const auto rows = [&](u32 c) { return (int)(here.tokens - c * C < C ? here.tokens - c * C : C); };
            const auto first = [&](u32 c) {
                if (c < count)
                    fetch_first(tiles(memory, c), from, width, rows(c), base + c, here.first + c * C, values, thread);
                commit();
            };
            const auto second = [&](u32 c) {
                if (c < count)
                    fetch_second(tiles(memory, c), from, width, rows(c), base + c, here.first + c * C, thread);
                commit();
            };
            for (u32 c = 0; c < RING; c++) {
                first(c);
                if (c + 1 < RING) second(c);
            }
            for (u32 c = 0; c < count; c++) {
                // With SCALAR the second tiles must be there too.
                arrived<SCALAR ? 2 * RING - 3 : 2 * RING - 2>();
                meet();
                second(c + RING - 1);
                arrived<2 * RING - 2>();
                meet();
                first(c + RING);
            }
            arrived<0>();
        } else if (warp < LOADERS + 2 * PAIRS) {
            const int pair = (warp - LOADERS) / 2, half = (warp - LOADERS) % 2;
            // The warp's half of S as left operands.
            char* state = states + pair * STATE_PART + half * (STATE_PART / 2);
            char* own = us + pair * ADDED_PART;
            float4* mine = (float4*)(reads_of + (2 * pair + half) * READ_PART) + lane;
            const float4* others = (float4*)(reads_of + (2 * pair + 1 - half) * READ_PART) + lane;
            const u32 column = part * COLUMNS + 16 * pair;
            float* last = after + (((u64)i * value_heads + hv) * KD + half * HALF) * values + column;
            const float* before_first = initial + (last - after);
            // S^T: columns g and g + 8; channels 8 j + 2 t and the next.
            float s[HALF / 8][4];
#pragma unroll
            for (int j = 0; j < HALF / 8; j++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    s[j][e] = before_first[(8 * j + 2 * t + e % 2) * values + g + e / 2 * 8];
            const auto share = [&] {
#pragma unroll
                for (int c = 0; c < HALF / 16; c++) {
                    u32 a[4];
                    as_left(a, s[2 * c], s[2 * c + 1]);
                    *(uint4*)(state + (c * 32 + lane) * 16) = make_uint4(a[0], a[1], a[2], a[3]);
                }
            };
            share();
            const u32 value_at = place<COLUMNS>(lane / 16 * 8 + lane % 8, 2 * pair + lane / 8 % 2);
            const u32 half_at = keys_at ^ half * HALF * 2, half_turned = turned_at ^ half * HALF * 2;
            for (u32 c = 0; c < count; c++) {
                const Tiles x = tiles(memory, c);
                meet();
                float u[8][4] = {};
                times_keys<HALF>(u, state, shared_address(SCALAR ? x.k : x.square), half_at, lane);
#pragma unroll
                for (int j = 0; j < 8; j++) mine[j * 32] = make_float4(u[j][0], u[j][1], u[j][2], u[j][3]);
                barrier(1 + pair, 64);
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    u32 in[4];
                    load4_turned(in, shared_address(x.v) + value_at + 16 * j * COLUMNS * 2);
#pragma unroll
                    for (int n = 0; n < 2; n++) {
                        float(&y)[4] = u[2 * j + n];
                        const float4 z = others[(2 * j + n) * 32];
                        float v[4] = {low(in[2 * n]), high(in[2 * n]), low(in[2 * n + 1]), high(in[2 * n + 1])};
                        y[0] += z.x;
                        y[1] += z.y;
                        y[2] += z.z;
                        y[3] += z.w;
#if SCALAR
                        scale(v, of_rows(x.factors + C, 2 * j + n, t));
                        scale(y, of_rows(x.factors, 2 * j + n, t));
#endif
#pragma unroll
                        for (int e = 0; e < 4; e++) y[e] = v[e] - y[e];
                    }
                }
                u32 scaled[4][4];
#if SCALAR
                float solved[8][4] = {};
#pragma unroll
                for (int r = 0; r < 4; r++) {
                    u32 a[4];
                    as_left(a, u[2 * r], u[2 * r + 1]);
                    times_square(solved, a, shared_address(x.square), square_at, r);
                }
#else
                float(&solved)[8][4] = u;
#endif
#pragma unroll
                for (int r = 0; r < 4; r++) {
                    u32 a[4];
                    as_left(a, solved[2 * r], solved[2 * r + 1]);
                    if (r / 2 == half) {
                        *(uint4*)(own + (r * 32 + lane) * 16) = make_uint4(a[0], a[1], a[2], a[3]);
                        if (added) store_turned(added + ((base + c) * C + 16 * r) * values + column, values, a, C, lane);
                    }
#if SCALAR
#pragma unroll
                    for (int n = 0; n < 2; n++) scale(solved[2 * r + n], of_rows(x.factors + 2 * C, 2 * r + n, t));
                    as_left(scaled[r], solved[2 * r], solved[2 * r + 1]);
#else
#pragma unroll
                    for (int e = 0; e < 4; e++) scaled[r][e] = a[e];
#endif
                }
                if (before)
#pragma unroll
                    for (int r = 0; r < HALF / 16; r++) {
                        const uint4 l = *(const uint4*)(state + (r * 32 + lane) * 16);
                        const u32 a[4] = {l.x, l.y, l.z, l.w};
                        store_turned(before + ((base + c) * KD + half * HALF + 16 * r) * values + column, values, a, C,
                                     lane);
                    }
                meet();
#pragma unroll
                for (int j = 0; j < HALF / 8; j++) {
#if SCALAR
                    scale(s[j], make_float2(x.factors[4 * C], x.factors[4 * C]));
#else
                    scale(s[j], of_rows(x.factors + half * HALF, j, t));
#endif
                }
                const u32 keys = shared_address(x.k);
#pragma unroll
                for (int r = 0; r < 4; r++)
#pragma unroll
                    for (int j = 0; j < HALF / 8; j += 2) {
                        u32 right[4];
                        load4_turned(right, keys + (half_turned ^ 16 * j) + 16 * r * KD * 2);
                        multiply(s[j], scaled[r], right[0], right[1]);
                        multiply(s[j + 1], scaled[r], right[2], right[3]);
                    }
                share();
            }
#pragma unroll
            for (int j = 0; j < HALF / 8; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) last[(8 * j + 2 * t + e % 2) * values + g + e / 2 * 8] = s[j][e];
        } else {
            const int pair = warp - LOADERS - 2 * PAIRS;
            const char* state = states + pair * STATE_PART;
            const char* own = us + pair * ADDED_PART;
            bf16* to = o + (here.first * value_heads + hv) * values + part * COLUMNS + 16 * pair;
            for (u32 c = 0; c < count; c++) {
                const Tiles x = tiles(memory, c);
                float out[8][4] = {};
                meet();
                times_keys<KD>(out, state, shared_address(x.q), keys_at, lane);
#if SCALAR
#pragma unroll
                for (int j = 0; j < 8; j++) scale(out[j], of_rows(x.factors + 3 * C, j, t));
#endif
                meet();
#pragma unroll
                for (int r = 0; r < 4; r++) {
                    const uint4 l = *(const uint4*)(own + (r * 32 + lane) * 16);
                    const u32 a[4] = {l.x, l.y, l.z, l.w};
                    times_square(out, a, shared_address(x.p), square_at, r);
                }
                const u32 done = c * C;
#pragma unroll
                for (int r = 0; r < 4; r++) {
                    u32 a[4];
                    as_left(a, out[2 * r], out[2 * r + 1]);
                    const u32 row = done + 16 * r;
                    const int limit = here.tokens > row ? (here.tokens - row < 16 ? (int)(here.tokens - row) : 16) : 0;
                    store_turned(to + (u64)row * value_heads * values, value_heads * values, a, limit, lane);
                }
            }
        }
        // Nobody loads over what another warp still reads.
        meet();
    }
}
