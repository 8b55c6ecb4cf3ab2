// What `scan` needs of a chunk, for gates of any width:
//
//   A_rs = sum_c (b k)_r[c] e^(G_r - G_s)[c] k_s[c]  (s < r)      T = (I + A)^-1
//   P_rs = sum_c q_r[c] e^(G_r - G_s)[c] k_s[c]      (s <= r)
//   W = T (b k e^G)   U = T (w v)   Q = q e^G   K = k e^(G_C - G)   last = e^G_C
//
// G [C, KD] the sum of log decays up to a token, k and q unit (q times KD^-1/2). Tiles [B, HV, slots, C, ..] in bf16, rows
// behind a sequence's end 0; last [B, HV, slots, KD] in f32. For the way back lengths [B, HV, slots, 2, C] in f32:
// 1 / |q| KD^-1/2 and 1 / |k|, 0 behind the end.
//
// No exponent is positive. The rows of a block of 16 tokens meet the columns before it at the block's first row: both
// factors, from there to the row and from the column to there, are at most 1, and tensor cores multiply them. The same
// for the later and the earlier 8 rows of a block. Within 8 rows the ratio grows token by token, as a product.
//
// A block of 8 warps does a chunk of one value head.

#define THREADS 256
// Floats from one row of G to the next.
#define SUMS (KD + 8)
#define TILE (C * KD * 2)
#define SEGMENTS (THREADS / KD)

struct Gate {
    const float* data;
    u64 heads, width;
};

__device__ inline float2 pair(const float* x) { return *(const float2*)x; }

// Two neighbouring elements of a tile's row.
__device__ inline float2 elements(const char* tile, int row, int column) {
    const u32 x = *(const u32*)(tile + word<KD>(row, column));
    return make_float2(low(x), high(x));
}

// e^(G_row - G_from) for two neighbouring channels, or turned around.
__device__ inline float2 ratio(const float* sums, int row, float2 from, float sign, int column) {
    const float2 x = pair(sums + row * SUMS + column);
    return make_float2(exp2_fast(fminf(sign * (x.x - from.x), 0)), exp2_fast(fminf(sign * (x.y - from.y), 0)));
}

__device__ inline u32 scaled(float2 x, float2 by) { return pack(x.x * by.x, x.y * by.y); }

// A and P of rows first + (g, g + 8) and columns from `left` on, which end before row `edge`: NEAR takes the later 8 of
// the rows and 8 columns, otherwise all 16 rows and 16 columns.
template <bool NEAR>
__device__ inline void below(float (&a)[2][4], float (&p)[2][4], const float* sums, const char* q, const char* k,
                             const char* bk, int first, int edge, int left, int g, int t) {
#pragma unroll 2
    for (int c = 0; c < KD / 16; c++) {
        u32 row_k[4] = {}, row_q[4] = {}, column[2][2];
#pragma unroll
        for (int x = 0; x < 2; x++) {
            const int channel = 16 * c + 8 * x + 2 * t;
            const float2 from = pair(sums + edge * SUMS + channel);
#pragma unroll
            for (int y = NEAR ? 1 : 0; y < 2; y++) {
                const int r = first + g + 8 * y;
                const float2 decay = ratio(sums, r, from, 1, channel);
                row_k[2 * x + y] = scaled(elements(bk, r, channel), decay);
                row_q[2 * x + y] = scaled(elements(q, r, channel), decay);
            }
#pragma unroll
            for (int n = 0; n < (NEAR ? 1 : 2); n++) {
                const int s = left + g + 8 * n;
                column[n][x] = scaled(elements(k, s, channel), ratio(sums, s, from, -1, channel));
            }
        }
#pragma unroll
        for (int n = 0; n < (NEAR ? 1 : 2); n++) {
            multiply(a[n], row_k, column[n][0], column[n][1]);
            multiply(p[n], row_q, column[n][0], column[n][1]);
        }
    }
}

// Half of the sums over lanes a distance of N / 2 apart; each lane keeps the half that its number says.
template <int N> __device__ inline void fold(float (&x)[64], int lane) {
    constexpr int by = N / 4;
    const bool upper = lane & by;
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
        const float send = upper ? x[i] : x[i + N / 2], keep = upper ? x[i + N / 2] : x[i];
        x[i] = keep + __shfl_xor_sync(FULL_WARP, send, by);
    }
}

// A and P of 8 rows among themselves: x[8 r + s] is A_rs for s < r, and x[8 s + r] is P_rs for s <= r, each lane with its
// own channels.
__device__ inline void among(float (&x)[64], const float* sums, const char* q, const char* k, const char* bk, int first,
                             int lane) {
    for (int channel = lane; channel < KD; channel += 32) {
        float decay[8], key[8], left[8], query[8];
#pragma unroll
        for (int r = 0; r < 8; r++) {
            const u32 at = place<KD>(first + r, channel / 8) + channel % 8 * 2;
            key[r] = up(*(const bf16*)(k + at));
            left[r] = up(*(const bf16*)(bk + at));
            query[r] = up(*(const bf16*)(q + at));
            decay[r] = sums[(first + r) * SUMS + channel];
        }
#pragma unroll
        for (int r = 7; r > 0; r--) decay[r] = exp2_fast(fminf(decay[r] - decay[r - 1], 0));
#pragma unroll
        for (int s = 0; s < 8; s++) {
            float column = key[s];
            x[9 * s] += query[s] * column;
#pragma unroll
            for (int r = s + 1; r < 8; r++) {
                column *= decay[r];
                x[8 * r + s] += left[r] * column;
                x[8 * s + r] += query[r] * column;
            }
        }
    }
}

// Among 4 neighbouring lanes: word j of lane i becomes word i of lane j.
__device__ inline void exchange(u32 (&x)[4], int t) {
#pragma unroll
    for (int by = 1; by < 4; by *= 2)
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (!(i & by)) {
                const u32 got = __shfl_xor_sync(FULL_WARP, t & by ? x[i] : x[i + by], by);
                if (t & by) x[i] = got;
                else x[i + by] = got;
            }
}

// Rows 16 block + .. of T times a tile's columns [first, last), to rows `pitch` apart in memory.
__device__ inline void solved(bf16* to, u64 pitch, const char* t_tile, const char* tile, int block, int first, int last,
                              int lane) {
    const int g = lane / 4, t = lane % 4;
    u32 left[4][4];
#pragma unroll
    for (int c = 0; c < 4; c++)
        load4(left[c], shared_address(t_tile + place<C>(16 * block + lane % 16, 2 * c + lane / 16)));
    for (int column = first; column < last; column += 32) {
        float x[4][4] = {};
#pragma unroll
        for (int c = 0; c < 4; c++)
            if (c <= block)
#pragma unroll
                for (int n = 0; n < 2; n++) {
                    u32 right[4];
                    load4_turned(right, shared_address(tile + place<KD>(16 * c + lane % 16, column / 8 + 2 * n + lane / 16)));
                    multiply(x[2 * n], left[c], right[0], right[1]);
                    multiply(x[2 * n + 1], left[c], right[2], right[3]);
                }
#pragma unroll
        for (int y = 0; y < 2; y++) {
            u32 words[4];
#pragma unroll
            for (int n = 0; n < 4; n++) words[n] = pack(x[n][2 * y], x[n][2 * y + 1]);
            exchange(words, t);
            *(uint4*)(to + (16 * block + g + 8 * y) * pitch + column + 8 * t) =
                make_uint4(words[0], words[1], words[2], words[3]);
        }
    }
}

// 8 values times their write gate.
struct Written {
    uint4 values, low, high;
};

__device__ inline Written load_written(const bf16* v, const float* w, bool per_channel, bool wanted) {
    Written x = {};
    if (wanted) {
        x.values = read16(v);
        if (per_channel) {
            x.low = read16(w);
            x.high = read16(w + 4);
        } else {
            const u32 one = __float_as_uint(*w);
            x.low = x.high = make_uint4(one, one, one, one);
        }
    }
    return x;
}

__device__ inline uint4 product(const Written& x) {
    const uint4 v = x.values, a = x.low, b = x.high;
    return make_uint4(pack(low(v.x) * __uint_as_float(a.x), high(v.x) * __uint_as_float(a.y)),
                      pack(low(v.y) * __uint_as_float(a.z), high(v.y) * __uint_as_float(a.w)),
                      pack(low(v.z) * __uint_as_float(b.x), high(v.z) * __uint_as_float(b.y)),
                      pack(low(v.w) * __uint_as_float(b.z), high(v.w) * __uint_as_float(b.w)));
}

extern "C" __global__ void __launch_bounds__(THREADS, KD > 128 ? 1 : 2)
    prepare(bf16* keys_w, bf16* queries, bf16* keys, bf16* values_u, bf16* reads, bf16* inverse, float* last,
            float* lengths, const bf16* qkv, Gate decay, Gate erase, Gate write, const i64* starts, u32 sequences,
            u32 tokens, u32 slots, u32 heads, u32 value_heads, u32 values) {
    extern __shared__ __align__(1024) char memory[];
    __shared__ alignas(16) float norm_k[C], norm_q[C], norm_b[C], totals[THREADS];
    __shared__ int turns;
    float* sums = (float*)memory;
    char* q = (char*)(sums + C * SUMS);
    char* k = q + TILE;
    char* p_tile = k + TILE;
    float* matrix = (float*)(p_tile + C * C * 2);
    // b k, where b has a number for each channel.
    const bool each = erase.width > 1;
    char* bk = each ? (char*)(matrix + C * PITCH) : k;
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, g = lane / 4, t = lane % 4;
    const u32 width = 2 * heads * KD + value_heads * values, repeat = value_heads / heads;
    const u32 all = starts ? slots : sequences * slots;
    for (u32 item = blockIdx.x; item < all * value_heads; item += gridDim.x) {
        const u32 slot = item / value_heads, hv = item % value_heads, h = hv / repeat;
        const Chunk here = chunk(starts, sequences, slot, tokens, slots);
        if (here.tokens == 0) continue;
        const u64 tile = (u64)(slot / slots * value_heads + hv) * slots + slot % slots;
        const bf16* row = qkv + here.first * width + h * KD;
        __syncthreads();
        fetch<KD, THREADS>(q, row, width, here.tokens, thread);
        fetch<KD, THREADS>(k, row + heads * KD, width, here.tokens, thread);
        commit();
        {
            constexpr int count = C / SEGMENTS;
            const int channel = thread % KD, first = thread / KD * count;
            const u64 pitch = decay.heads * decay.width;
            const float* from = decay.data + (here.first + first) * pitch +
                                (decay.heads == heads ? h : hv) * decay.width + (decay.width > 1 ? channel : 0);
            float x[count];
#pragma unroll
            for (int r = 0; r < count; r++) x[r] = decay.data && first + r < here.tokens ? from[r * pitch] : 0;
            x[0] = fmaxf(x[0] * LOG2_E, FLOOR);
#pragma unroll
            for (int r = 1; r < count; r++) x[r] = x[r - 1] + fmaxf(x[r] * LOG2_E, FLOOR);
            totals[thread] = x[count - 1];
            if (thread == 0) turns = 0;
            if (thread < C) {
                const float* b = erase.data + (here.first + thread) * erase.heads + (erase.heads == heads ? h : hv);
                norm_b[thread] = each ? 1 : thread < here.tokens ? *b : 0;
            }
            for (int i = thread; i < C * C / 8; i += THREADS) *(uint4*)(p_tile + 16 * i) = make_uint4(0, 0, 0, 0);
            __syncthreads();
            float before = 0;
            for (int s = channel; s < thread - channel; s += KD) before += totals[s];
#pragma unroll
            for (int r = 0; r < count; r++) sums[(first + r) * SUMS + channel] = before + x[r];
        }
        arrived<0>();
        __syncthreads();
        if (warp < 4) norms<KD>(q, norm_q, 16 * warp, lane, rsqrtf((float)KD));
        else norms<KD>(k, norm_k, 16 * (warp - 4), lane, 1.0f);
        if (each) {
            const float* b = erase.data + (here.first * erase.heads + (erase.heads == heads ? h : hv)) * KD;
            for (int i = thread; i < C * KD / 8; i += THREADS) {
                const int r = i / (KD / 8), piece = i % (KD / 8);
                const u32 at = place<KD>(r, piece);
                uint4 out = make_uint4(0, 0, 0, 0);
                if (r < here.tokens) {
                    const uint4 in = *(const uint4*)(k + at);
                    const float* gate = b + r * erase.heads * KD + piece * 8;
                    const float4 b0 = *(const float4*)gate, b1 = *(const float4*)(gate + 4);
                    out.x = pack(low(in.x) * b0.x, high(in.x) * b0.y);
                    out.y = pack(low(in.y) * b0.z, high(in.y) * b0.w);
                    out.z = pack(low(in.z) * b1.x, high(in.z) * b1.y);
                    out.w = pack(low(in.w) * b1.z, high(in.w) * b1.w);
                }
                *(uint4*)(bk + at) = out;
            }
        }
        __syncthreads();

        {
            // Six warps take a block of 16 rows and one of the blocks of columns before it, two the halves of two blocks.
            const bool near = warp >= 6;
            for (int n = 0; n < (near ? 2 : 1); n++) {
                float a[2][4] = {}, p[2][4] = {};
                const int first = 16 * (near ? 2 * (warp - 6) + n : warp < 1 ? 1 : warp < 3 ? 2 : 3);
                const int left = near ? first : 16 * (warp < 1 ? 0 : warp < 3 ? warp - 1 : warp - 3);
                if (near) below<true>(a, p, sums, q, k, bk, first, first + 8, left, g, t);
                else below<false>(a, p, sums, q, k, bk, first, first, left, g, t);
#pragma unroll
                for (int x = 0; x < 2; x++)
#pragma unroll
                    for (int y = 0; y < 2; y++) {
                        if (near && (x == 1 || y == 0)) continue;
                        const int r = first + g + 8 * y, s = left + 8 * x + 2 * t;
                        const float b = norm_b[r] * norm_k[r], c = norm_q[r], n0 = norm_k[s], n1 = norm_k[s + 1];
                        *(float2*)(matrix + r * PITCH + s) =
                            make_float2(a[x][2 * y] * b * n0, a[x][2 * y + 1] * b * n1);
                        *(u32*)(p_tile + word<C>(r, s)) = pack(p[x][2 * y] * c * n0, p[x][2 * y + 1] * c * n1);
                    }
            }
            float x[64] = {};
            const int first = 8 * warp;
            among(x, sums, q, k, bk, first, lane);
            fold<64>(x, lane);
            fold<32>(x, lane);
            fold<16>(x, lane);
            fold<8>(x, lane);
            fold<4>(x, lane);
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const int i = lane * 2 + e, r = first + i / 8, s = first + i % 8;
                if (s < r) matrix[r * PITCH + s] = x[e] * norm_b[r] * norm_k[r] * norm_k[s];
                else *(bf16*)(p_tile + word<C>(s, r & ~1) + r % 2 * 2) = down<bf16>(x[e] * norm_q[s] * norm_k[r]);
            }
        }
        __syncthreads();

        const bf16* v = qkv + here.first * width + 2 * heads * KD + hv * values;
        const u32 w_pitch = value_heads * (u32)write.width;
        const float* w = write.data + here.first * w_pitch + hv * write.width;
        // A piece of values that a thread writes for `first` and up, to the place of a piece of q.
        const auto value = [&](int first, int r, int piece) {
            const int column = first + 8 * piece;
            return load_written(v + (u64)r * width + column, w + (u64)r * w_pitch + (write.width > 1 ? column : 0),
                                write.width > 1, r < here.tokens && column < (int)values);
        };
        if (warp < 4) invert(matrix, warp, lane);
        else store_tile<C>(reads + tile * C * C, p_tile, thread - 128, 128);
        // All that is done row by row, in turns of 32 pieces, by whoever is free.
        const float* end = sums + (C - 1) * SUMS;
        for (;;) {
            int turn = 0;
            if (lane == 0) turn = atomicAdd(&turns, 1);
            turn = __shfl_sync(FULL_WARP, turn, 0);
            const int i = turn * 32 + lane;
            if (turn >= C * KD / 256) break;
            const int r = i / (KD / 8), piece = i % (KD / 8);
            const u32 at = place<KD>(r, piece);
            const Written next = value(0, r, piece);
            const uint4 in[3] = {*(const uint4*)(q + at), *(const uint4*)(k + at), *(const uint4*)(bk + at)};
            const float of_q = norm_q[r], of_k = norm_k[r], of_b = of_k * norm_b[r];
            u32 out[3][4];
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const float2 x = pair(sums + r * SUMS + piece * 8 + 2 * e), y = pair(end + piece * 8 + 2 * e);
                const float2 since = make_float2(exp2_fast(x.x), exp2_fast(x.y));
                const float2 until = make_float2(exp2_fast(fminf(y.x - x.x, 0)), exp2_fast(fminf(y.y - x.y, 0)));
                const u32 word_q = (&in[0].x)[e], word_k = (&in[1].x)[e], word_b = (&in[2].x)[e];
                out[0][e] = pack(low(word_q) * of_q * since.x, high(word_q) * of_q * since.y);
                out[1][e] = pack(low(word_k) * of_k * until.x, high(word_k) * of_k * until.y);
                out[2][e] = pack(low(word_b) * of_b * since.x, high(word_b) * of_b * since.y);
            }
            const u64 to = tile * C * KD + r * KD + piece * 8;
            *(uint4*)(queries + to) = make_uint4(out[0][0], out[0][1], out[0][2], out[0][3]);
            *(uint4*)(keys + to) = make_uint4(out[1][0], out[1][1], out[1][2], out[1][3]);
            *(uint4*)(k + at) = make_uint4(out[2][0], out[2][1], out[2][2], out[2][3]);
            *(uint4*)(q + at) = product(next);
        }
        if (thread < KD) last[tile * KD + thread] = exp2_fast(end[thread]);
        if (thread < 2 * C)
            lengths[tile * 2 * C + thread] =
                thread % C < here.tokens ? (thread < C ? norm_q : norm_k)[thread % C] : 0.0f;
        __syncthreads();
        store_tile<C>(inverse + tile * C * C, (char*)matrix, thread, THREADS);
        const int block = warp < 4 ? warp : 7 - warp, half = warp / 4;
        solved(keys_w + tile * C * KD, KD, (char*)matrix, k, block, half * KD / 2, (half + 1) * KD / 2, lane);
        for (int first = 0; first < (int)values; first += KD) {
            if (first) {
                __syncthreads();
                for (int i = thread; i < C * KD / 8; i += THREADS)
                    *(uint4*)(q + place<KD>(i / (KD / 8), i % (KD / 8))) =
                        product(value(first, i / (KD / 8), i % (KD / 8)));
                __syncthreads();
            }
            const int columns = (int)values - first < KD ? (int)values - first : KD;
            solved(values_u + tile * C * values + first, values, (char*)matrix, q, block, half * columns / 2,
                   (half + 1) * columns / 2, lane);
        }
    }
}
