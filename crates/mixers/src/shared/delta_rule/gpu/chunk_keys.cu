// Gradients inside chunks, the key side, where channels decay each for itself: 64 key channels of a chunk to a block.
// From dP, dA and Z of `chunk_values`, S before and dS' behind the chunk, with e = b . k:
//
//   dQg = do S^T         dKg = u dS'^T      d(e^G_C) = rows of S . dS'
//   dq_r = e^G_r dQg_r + sum_s dP_rs e^(G_r - G_s) k_s
//   de_r = e^G_r Z_r   + sum_s dA_rs e^(G_r - G_s) k_s
//   dk_s = e^(G_C - G_s) dKg_s + sum_r e^(G_r - G_s) (dP_rs q_r + dA_rs e_r)
//   dG_r = q_r . dq_r + e_r . de_r - k_r . dk_r,   dG_C += e^G_C . d(e^G_C) + sum_s e^(G_C - G_s) k_s . dKg_s
//
// and dg is dG summed from the end. No exponent is positive: between blocks of 16 tokens the tensor cores multiply rows
// decayed from their block's beginning with keys decayed to theirs' end, and whole blocks between them scale the
// accumulators; inside a block the decay of a pair is a running product.

#define THREADS 256
#define KEYS (KD / 64)
#define VALUES (VD / 64)

// A place in a tile [64, 64] of f32, its columns turned so that accumulators and columns meet no bank twice.
__device__ inline int turned(int row, int column) { return row * 64 + (column ^ ((row & 3) << 3)); }

__device__ inline void put_wide(float* panel, const float (&c)[4][4], int m, int n, int lane) {
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
        for (int h = 0; h < 2; h++)
            *(Vec<float, 2>*)(panel + turned(m + h * 8 + lane / 4, n + j * 8 + lane % 4 * 2)) = {c[j][2 * h],
                                                                                             c[j][2 * h + 1]};
}

__device__ inline float decayed(float g) { return __expf(fmaxf(g, -110.0f)); }

// One channel of 16 tokens: unit query with its scale, unit key, decay, erase gate.
struct Block {
    float q[16], k[16], keep[16], b[16];

    // From what was loaded, all of it before any of it is used. Behind the last token nothing decays.
    __device__ void finish(const float* norm, int rows) {
#pragma unroll
        for (int r = 0; r < 16; r++) asm volatile("" : "+f"(q[r]), "+f"(k[r]), "+f"(keep[r]), "+f"(b[r]));
#pragma unroll
        for (int r = 0; r < 16; r++) {
            q[r] *= norm[r];
            k[r] *= norm[64 + r];
            keep[r] = r < rows ? decayed(keep[r]) : 1.0f;
        }
    }
};

// Where the values of a channel lie; the erase gate may have one number for all of them.
struct Column {
    const bf16 *q, *k;
    const float *decay, *erase;
    u32 stride, decay_stride, erase_stride;
    int last;
    __device__ Column(const bf16* q, u64 stride, u64 keys, const float* decay, u64 decay_stride, const float* erase,
                      u64 erase_stride, int rows)
        : q(q), k(q + keys), decay(decay), erase(erase), stride(stride), decay_stride(decay_stride),
          erase_stride(erase_stride), last(rows - 1) {}

    // All loads at once, so that they wait together. The addresses are worked out anew each time: kept, they would
    // cost more registers than there are.
    __device__ void load(Block& x, int first) {
        asm volatile("" : "+r"(stride), "+r"(decay_stride), "+r"(erase_stride), "+r"(last));
#pragma unroll
        for (int r = 0; r < 16; r++) {
            const u32 row = min(first + r, last);
            x.q[r] = up(q[(u64)row * stride]);
            x.k[r] = up(k[(u64)row * stride]);
            x.b[r] = erase[(u64)row * erase_stride];
            x.keep[r] = decay[(u64)row * decay_stride];
        }
    }
};

// norms [tiles, 2, 64] are 1 / |q| KD^-1/2 and 1 / |k|, 0 behind the last token. d_q and d_k [batch, tokens,
// value_heads, KD] are those of the unit vectors, q's scale in them; d_decay and d_erase have that shape
// too, but an erase gate of one number leaves its gradient as [batch, tokens, value_heads, KEYS].
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    chunk_keys(bf16* d_q, bf16* d_k, float* d_decay, float* d_erase, const float* norms, const bf16* d_reads,
               const bf16* d_pairs, const bf16* d_solve, const bf16* added, const bf16* states, const bf16* d_states,
               const bf16* d_o, const bf16* qkv, const float* decay, u64 decay_heads, const float* erase,
               u64 erase_heads, u64 erase_width, u64 tiles, u64 chunks, u64 tokens, u64 heads, u64 value_heads) {
    extern __shared__ __align__(128) char shared[];
    __shared__ float norm[128], through[4][64], whole[64], sums[4][64], ends[4][64];
    char *pairs = shared + 8 * PANEL, *solves = pairs + PANEL, *tokens_q = solves + PANEL;
    char *tokens_e = tokens_q + PANEL, *tokens_k = tokens_e + PANEL;
    const u32 slots = shared_address(shared);
    float* wide = (float*)shared; // four tiles, once the slots have been used
    const u64 width = 2 * heads * KD + value_heads * VD;

    for (u64 item = blockIdx.x; item < tiles * KEYS; item += gridDim.x) {
        const int thread = own_thread(), lane = thread % 32, warp = thread / 32;
        // Accumulators: tokens of one block and 32 channels. Elsewhere: one channel through the tokens of one block.
        const int own = warp % 4, n = warp / 4 * 32;
        const int channel = thread % 64, block = thread / 64;
        const u64 tile = item / KEYS;
        const int first = item % KEYS * 64;
        const Place at(tile, chunks, tokens, heads, value_heads);
        const u64 position = at.batch * tokens + at.start;
        const auto fetch = [&](int job) {
            if (job < VALUES) {
                const u32 to = slots + job % 2 * 4 * PANEL;
                const bf16* o = d_o + (position * value_heads + at.value_head) * VD + job * 64;
                load_rows<8, THREADS>(to, o, (u32)(value_heads * VD), at.rows, thread);
                load_panel<8, VD, 64, THREADS>(to + PANEL, added + tile * 64 * VD + job * 64, thread);
                const u64 from = (tile * KD + first) * VD + job * 64;
                load_panel<8, VD, 64, THREADS>(to + 2 * PANEL, states + from, thread);
                load_panel<8, VD, 64, THREADS>(to + 3 * PANEL, d_states + from, thread);
            }
            commit();
        };
        load_tile<64, THREADS>(shared_address(pairs), d_pairs + tile * 4096, thread);
        load_tile<64, THREADS>(shared_address(solves), d_solve + tile * 4096, thread);
        fetch(0);
        fetch(1);

        const bf16* rows_q = qkv + position * width + at.head * KD;
        Column column(rows_q + first + channel, width, heads * KD,
                            decay + (position * decay_heads + (decay_heads == heads ? at.head : at.value_head)) * KD +
                                first + channel,
                            decay_heads * KD,
                            erase + position * erase_heads * erase_width +
                                (erase_heads == heads ? at.head : at.value_head) * erase_width +
                                (erase_width == 1 ? 0 : first + channel),
                            erase_heads * erase_width, at.rows);
        {
            Block x;
            column.load(x, block * 16);
            if (thread < 128) norm[thread] = norms[tile * 128 + thread];
            __syncthreads();
            x.finish(norm + block * 16, at.rows - block * 16);
            float since = 1;
#pragma unroll
            for (int r = 0; r < 16; r++) {
                since *= x.keep[r];
                const u32 place = element_at<8>(block * 16 + r, channel);
                *(bf16*)(tokens_q + place) = down<bf16>(x.q[r] * since);
                *(bf16*)(tokens_e + place) = down<bf16>(x.b[r] * x.k[r] * since);
            }
            through[block][channel] = since;
            float until = 1;
#pragma unroll
            for (int r = 15; r >= 0; r--) {
                *(bf16*)(tokens_k + element_at<8>(block * 16 + r, channel)) = down<bf16>(x.k[r] * until);
                until *= x.keep[r];
            }
        }

        float d_queries[4][4] = {}, d_keys[4][4] = {}, d_older[4][4] = {}, d_erased[4][4], product_of_states = 0;
#pragma unroll 1
        for (int job = 0; job < VALUES; job++) {
            wait_copies<1>();
            __syncthreads();
            const u32 slot = slots + job % 2 * 4 * PANEL;
            product<false, true, 64>(d_queries, slot, own * 16, slot + 2 * PANEL, n, lane);
            product<false, true, 64>(d_keys, slot + PANEL, own * 16, slot + 3 * PANEL, n, lane);
            const char* s = shared + (job % 2 * 4 + 2) * PANEL;
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const u32 piece = piece_at<8>(thread / 4, thread % 4 * 2 + i);
                const Vec<u32, 4> x = *(const Vec<u32, 4>*)(s + piece), d = *(const Vec<u32, 4>*)(s + PANEL + piece);
#pragma unroll
                for (int j = 0; j < 4; j++)
                    product_of_states += low(x.v[j]) * low(d.v[j]) + high(x.v[j]) * high(d.v[j]);
            }
            __syncthreads();
            fetch(job + 2);
        }
#pragma unroll
        for (int by = 2; by > 0; by /= 2) product_of_states += __shfl_xor_sync(FULL_WARP, product_of_states, by);
        if (lane % 4 == 0) whole[thread / 4] = product_of_states;

        const bf16* z = d_reads + (tile * 64 + own * 16 + lane / 4) * KD + first + n + lane % 4 * 2;
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const u32 pair = *(const u32*)(z + h * 8 * KD + j * 8);
                d_erased[j][2 * h] = low(pair);
                d_erased[j][2 * h + 1] = high(pair);
            }
        // Blocks before this one, for its rows; blocks behind it, for its keys.
        const u32 p_panel = shared_address(pairs), a_panel = p_panel + PANEL;
        const u32 q_panel = a_panel + PANEL, e_panel = q_panel + PANEL, k_panel = e_panel + PANEL;
        const auto scale = [&](float(&c)[4][4], int other) {
#pragma unroll
            for (int j = 0; j < 4; j++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const float x = through[other][n + j * 8 + lane % 4 * 2 + i];
                    c[j][i] *= x;
                    c[j][2 + i] *= x;
                }
        };
#pragma unroll 1
        for (int other = 0; other < own; other++) {
            scale(d_queries, other);
            scale(d_erased, other);
            u32 left_p[4], left_a[4], b[4];
            left<false>(left_p, p_panel, own * 16, other * 16, lane);
            left<false>(left_a, a_panel, own * 16, other * 16, lane);
#pragma unroll
            for (int j = 0; j < 4; j += 2) {
                right<false>(b, k_panel, other * 16, n + j * 8, lane);
                multiply(d_queries[j], left_p, b[0], b[1]);
                multiply(d_queries[j + 1], left_p, b[2], b[3]);
                multiply(d_erased[j], left_a, b[0], b[1]);
                multiply(d_erased[j + 1], left_a, b[2], b[3]);
            }
        }
#pragma unroll 1
        for (int other = 3; other > own; other--) {
            scale(d_older, other);
            u32 left_p[4], left_a[4], b[4];
            left<true>(left_p, p_panel, own * 16, other * 16, lane);
            left<true>(left_a, a_panel, own * 16, other * 16, lane);
#pragma unroll
            for (int j = 0; j < 4; j += 2) {
                right<false>(b, q_panel, other * 16, n + j * 8, lane);
                multiply(d_older[j], left_p, b[0], b[1]);
                multiply(d_older[j + 1], left_p, b[2], b[3]);
                right<false>(b, e_panel, other * 16, n + j * 8, lane);
                multiply(d_older[j], left_a, b[0], b[1]);
                multiply(d_older[j + 1], left_a, b[2], b[3]);
            }
        }
        put_wide(wide, d_queries, own * 16, n, lane);
        put_wide(wide + 4096, d_erased, own * 16, n, lane);
        put_wide(wide + 2 * 4096, d_older, own * 16, n, lane);
        put_wide(wide + 3 * 4096, d_keys, own * 16, n, lane);
        Block own_block;
        column.load(own_block, block * 16);
        __syncthreads();

        own_block.finish(norm + block * 16, at.rows - block * 16);
        const auto& [all_q, k, a, all_b] = own_block;
        // What keys get from behind their block, and the state behind the chunk alone.
        float behind = 1, until = 1, end = 0;
        for (int other = 3; other > block; other--) behind *= through[other][channel];
#pragma unroll
        for (int r = 15; r >= 0; r--) {
            float* own_k = wide + 2 * 4096 + turned(block * 16 + r, channel);
            const float last = own_k[4096] * behind * until;
            end += k[r] * last;
            own_k[0] = own_k[0] * until + last;
            until *= a[r];
        }
        // Pairs inside the block.
        float dk[16], since = 1;
        const u64 out = (position * value_heads + at.value_head) * KD + first + channel;
        const u32 out_row = (u32)value_heads * KD;
#pragma unroll
        for (int r = 0; r < 16; r++) {
            const int row = block * 16 + r;
            const float q = all_q[r], b = all_b[r];
            dk[r] = 0;
            since *= a[r];
            const float e = b * k[r];
            float* own_q = wide + turned(row, channel);
            float* own_e = own_q + 4096;
            float dq = *own_q * since, de = *own_e * since;
            u32 p[8], s[8];
#pragma unroll
            for (int i = 0; i <= r / 8; i++) {
                *(Vec<u32, 4>*)(p + 4 * i) = *(const Vec<u32, 4>*)(pairs + piece_at<8>(row, block * 2 + i));
                *(Vec<u32, 4>*)(s + 4 * i) = *(const Vec<u32, 4>*)(solves + piece_at<8>(row, block * 2 + i));
            }
            const float self = r % 2 ? high(p[r / 2]) : low(p[r / 2]);
            dq += self * k[r];
            dk[r] += self * q;
            float run = a[r];
#pragma unroll
            for (int i = r - 1; i >= 0; i--) {
                const float pair = i % 2 ? high(p[i / 2]) : low(p[i / 2]);
                const float solve = i % 2 ? high(s[i / 2]) : low(s[i / 2]);
                const float kept = run * k[i];
                dq += pair * kept;
                de += solve * kept;
                dk[i] += (pair * q + solve * e) * run;
                run *= a[i];
            }
            *own_q = k[r] * de;
            own_q[3 * 4096] = q * dq + e * de;
            *own_e = b * de;
            if (row < at.rows) d_q[out + (u64)row * out_row] = down<bf16>(dq);
        }
        float run = 0;
#pragma unroll
        for (int r = 15; r >= 0; r--) {
            const int row = block * 16 + r;
            const float* own_q = wide + turned(row, channel);
            const float d = dk[r] + own_q[2 * 4096];
            run += own_q[3 * 4096] - k[r] * d;
            dk[r] = run;
            if (row < at.rows) {
                d_k[out + (u64)row * out_row] = down<bf16>(d + own_q[4096]);
                if (erase_width != 1) d_erase[out + (u64)row * out_row] = own_q[0];
            }
        }
        sums[block][channel] = run;
        ends[block][channel] = end;
        __syncthreads();
        float rest = whole[channel];
#pragma unroll
        for (int other = 0; other < 4; other++) rest *= through[other][channel];
#pragma unroll
        for (int other = 0; other < 4; other++)
            rest += ends[other][channel] + (other > block ? sums[other][channel] : 0.0f);
#pragma unroll
        for (int r = 0; r < 16; r++)
            if (block * 16 + r < at.rows) d_decay[out + (u64)(block * 16 + r) * out_row] = dk[r] + rest;
        if (erase_width == 1) {
            const int row = thread / 4;
            float total = 0;
#pragma unroll
            for (int i = 0; i < 16; i++) total += wide[turned(row, thread % 4 * 16 + (i + lane) % 16)];
#pragma unroll
            for (int by = 2; by > 0; by /= 2) total += __shfl_xor_sync(FULL_WARP, total, by);
            if (row < at.rows && lane % 4 == 0)
                d_erase[((position + row) * value_heads + at.value_head) * KEYS + first / 64] = total;
        }
        __syncthreads();
    }
}
