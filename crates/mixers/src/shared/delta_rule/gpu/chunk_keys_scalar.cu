// Gradients inside chunks, the key side, where all channels of a head decay alike or none does: 64 key channels of a
// chunk to a block. The equations of `chunk_keys`, but now the decay of a pair of tokens is one number,
//
//   dP'_rs = dP_rs e^(G_r - G_s)       dA'_rs = dA_rs e^(G_r - G_s)
//   dq = e^G dQg + dP' k      de = e^G Z + dA' k      dk = e^(G_C - G) dKg + dP'^T q + dA'^T e
//
// so that tensor cores do all of it, and dG is a sum over channels.

#define THREADS 256
#define KEYS (KD / 64)
#define VALUES (VD / 64)

// The sum over 64 threads from the first on (or back from the last), in each of them; `shared` has room for one number.
// Warps 0 and 1 call it.
template <bool BACK> __device__ inline float running_sum(float x, int lane, int warp, float* shared) {
#pragma unroll
    for (int by = 1; by < 32; by *= 2) {
        const float y = BACK ? __shfl_down_sync(FULL_WARP, x, by) : __shfl_up_sync(FULL_WARP, x, by);
        if (BACK ? lane + by < 32 : lane >= by) x += y;
    }
    if (warp == (BACK ? 1 : 0) && lane == (BACK ? 0 : 31)) *shared = x;
    asm volatile("bar.sync 1, 64;" ::: "memory");
    return warp == (BACK ? 0 : 1) ? x + *shared : x;
}

// The sum over the four lanes that have columns of the same row.
__device__ inline float over_columns(float x) {
    x += __shfl_xor_sync(FULL_WARP, x, 1);
    return x + __shfl_xor_sync(FULL_WARP, x, 2);
}

// norms [tiles, 2, 64] are 1 / |q| KD^-1/2 and 1 / |k|, 0 behind the last token. d_q and d_k [batch, tokens,
// value_heads, KD] are those of the unit vectors, q's scale in them. A gate of one number leaves its
// gradient as [batch, tokens, value_heads, KEYS], an erase gate with channels as [.., KD]. `decay` [batch, tokens,
// value_heads] may be null.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    chunk_keys(bf16* d_q, bf16* d_k, float* d_decay, float* d_erase, const float* norms, const bf16* d_reads,
               const bf16* d_pairs, const bf16* d_solve, const bf16* added, const bf16* states, const bf16* d_states,
               const bf16* d_o, const bf16* qkv, const float* decay, const float* erase, u64 erase_heads,
               u64 erase_width, u64 tiles, u64 chunks, u64 tokens, u64 heads, u64 value_heads) {
    extern __shared__ __align__(128) char shared[];
    __shared__ float sum[64], since[64], until[64], parts[2][2][64], totals[2][8], half[2];
    char *pairs = shared + 8 * PANEL, *solves = pairs + PANEL, *tokens_q = solves + PANEL;
    char *tokens_e = tokens_q + PANEL, *tokens_k = tokens_e + PANEL;
    const u32 slots = shared_address(shared);
    const u64 width = 2 * heads * KD + value_heads * VD;

    for (u64 item = blockIdx.x; item < tiles * KEYS; item += gridDim.x) {
        const int thread = own_thread(), lane = thread % 32, warp = thread / 32;
        const int own = warp % 4, n = warp / 4 * 32;
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

        // Unit q and k, and e.
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int row = thread / 8 + i * 32, piece = thread % 8, there = min(row, at.rows - 1);
            const u64 place = (position + there) * width + at.head * KD + first + piece * 8;
            const Vec<u32, 4> q = *(const Vec<u32, 4>*)(qkv + place);
            const Vec<u32, 4> k = *(const Vec<u32, 4>*)(qkv + place + heads * KD);
            const float* gate = erase + ((position + there) * erase_heads +
                                         (erase_heads == heads ? at.head : at.value_head)) * erase_width;
            float b[8];
            if (erase_width == 1) {
                const float one = *gate;
#pragma unroll
                for (int j = 0; j < 8; j++) b[j] = one;
            } else {
                *(Vec<float, 4>*)b = *(const Vec<float, 4>*)(gate + first + piece * 8);
                *(Vec<float, 4>*)(b + 4) = *(const Vec<float, 4>*)(gate + first + piece * 8 + 4);
            }
            const float norm_q = norms[tile * 128 + row], norm_k = norms[tile * 128 + 64 + row];
            Vec<u32, 4> unit_q, unit_k, e;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const float x = low(k.v[j]) * norm_k, y = high(k.v[j]) * norm_k;
                unit_q.v[j] = pack(low(q.v[j]) * norm_q, high(q.v[j]) * norm_q);
                unit_k.v[j] = pack(x, y);
                e.v[j] = pack(x * b[2 * j], y * b[2 * j + 1]);
            }
            const u32 to = piece_at<8>(row, piece);
            *(Vec<u32, 4>*)(tokens_q + to) = unit_q;
            *(Vec<u32, 4>*)(tokens_k + to) = unit_k;
            *(Vec<u32, 4>*)(tokens_e + to) = e;
        }
        if (warp < 2) {
            float g = 0;
            if (decay && thread < at.rows) g = decay[(position + thread) * value_heads + at.value_head];
            const float x = running_sum<false>(fmaxf(g, -110.0f), lane, warp, half);
            sum[thread] = x;
            since[thread] = __expf(x);
            asm volatile("bar.sync 1, 64;" ::: "memory");
            until[thread] = __expf(sum[63] - x);
        }

        float d_queries[4][4] = {}, d_keys[4][4] = {}, d_older[4][4] = {}, d_erased[4][4], product_of_states = 0;
#pragma unroll 1
        for (int job = 0; job < VALUES; job++) {
            wait_copies<1>();
            __syncthreads();
            if (job == 0) {
                // dP' and dA', in place.
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const int row = thread / 8 + i * 32, column = thread % 8 * 8;
                    const u32 place = piece_at<8>(row, thread % 8);
                    Vec<u32, 4> p = *(Vec<u32, 4>*)(pairs + place), a = *(Vec<u32, 4>*)(solves + place);
                    float ratio[8];
#pragma unroll
                    for (int j = 0; j < 8; j++) ratio[j] = __expf(fminf(sum[row] - sum[column + j], 0.0f));
#pragma unroll
                    for (int j = 0; j < 4; j++) {
                        p.v[j] = pack(low(p.v[j]) * ratio[2 * j], high(p.v[j]) * ratio[2 * j + 1]);
                        a.v[j] = pack(low(a.v[j]) * ratio[2 * j], high(a.v[j]) * ratio[2 * j + 1]);
                    }
                    *(Vec<u32, 4>*)(pairs + place) = p;
                    *(Vec<u32, 4>*)(solves + place) = a;
                }
            }
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

        const u32 p_panel = shared_address(pairs), a_panel = p_panel + PANEL;
        const u32 q_panel = a_panel + PANEL, e_panel = q_panel + PANEL, k_panel = e_panel + PANEL;
        const int row = own * 16 + lane / 4, column = n + lane % 4 * 2;
        const bf16* z = d_reads + (tile * 64 + row) * KD + first + column;
        float end = 0;
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const u32 pair = *(const u32*)(z + h * 8 * KD + j * 8);
                const float up_to = since[row + h * 8], from = until[row + h * 8];
                d_erased[j][2 * h] = low(pair) * up_to;
                d_erased[j][2 * h + 1] = high(pair) * up_to;
                const u32 k = *(const u32*)(tokens_k + element_at<8>(row + h * 8, column + j * 8));
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    d_queries[j][2 * h + i] *= up_to;
                    d_keys[j][2 * h + i] *= from;
                    end += d_keys[j][2 * h + i] * (i ? high(k) : low(k));
                }
            }
#pragma unroll 1
        for (int other = 0; other <= own; other++) {
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
        for (int other = own; other < 4; other++) {
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
        // Row by row: what goes to dG, and to an erase gate of one number. b . de joins dk.
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int r = row + h * 8;
            const float* gate = erase + ((position + min(r, at.rows - 1)) * erase_heads +
                                         (erase_heads == heads ? at.head : at.value_head)) * erase_width +
                                (erase_width == 1 ? 0 : first + column);
            float rows[2] = {};
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const u32 place = element_at<8>(r, column + j * 8);
                const u32 q = *(const u32*)(tokens_q + place), k = *(const u32*)(tokens_k + place);
                Vec<float, 2> d_b, b;
                if (erase_width == 1) b = {gate[0], gate[0]};
                else b = *(const Vec<float, 2>*)(gate + j * 8);
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const float unit = i ? high(k) : low(k), d_e = d_erased[j][2 * h + i];
                    const float d_k = d_older[j][2 * h + i] + d_keys[j][2 * h + i];
                    d_b.v[i] = unit * d_e;
                    rows[0] += (i ? high(q) : low(q)) * d_queries[j][2 * h + i] + d_b.v[i] * b.v[i] - unit * d_k;
                    rows[1] += d_b.v[i];
                    d_keys[j][2 * h + i] = d_k + b.v[i] * d_e;
                }
                if (erase_width != 1 && r < at.rows)
                    *(Vec<float, 2>*)(d_erase + ((position + r) * value_heads + at.value_head) * KD + first + column +
                                      j * 8) = d_b;
            }
#pragma unroll
            for (int which = 0; which < 2; which++) {
                const float x = over_columns(rows[which]);
                if (lane % 4 == 0) parts[which][warp / 4][r] = x;
            }
        }
#pragma unroll
        for (int by = 16; by > 0; by /= 2) {
            product_of_states += __shfl_xor_sync(FULL_WARP, product_of_states, by);
            end += __shfl_xor_sync(FULL_WARP, end, by);
        }
        if (lane == 0) {
            totals[0][warp] = product_of_states;
            totals[1][warp] = end;
        }
        put<8>(shared, d_queries, own * 16, n, lane);
        put<8>(shared + PANEL, d_keys, own * 16, n, lane);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int r = thread / 8 + i * 32, piece = thread % 8;
            if (r < at.rows) {
                const u64 to = ((position + r) * value_heads + at.value_head) * KD + first + piece * 8;
                *(u128*)(d_q + to) = *(const u128*)(shared + piece_at<8>(r, piece));
                *(u128*)(d_k + to) = *(const u128*)(shared + PANEL + piece_at<8>(r, piece));
            }
        }
        if (warp < 2) {
            const u64 to = ((position + thread) * value_heads + at.value_head) * KEYS + first / 64;
            const float x = running_sum<true>(parts[0][0][thread] + parts[0][1][thread], lane, warp, half + 1);
            float rest = 0, states_part = 0;
#pragma unroll
            for (int w = 0; w < 8; w++) {
                states_part += totals[0][w];
                rest += totals[1][w];
            }
            if (thread < at.rows) {
                if (decay) d_decay[to] = x + rest + states_part * since[63];
                if (erase_width == 1) d_erase[to] = parts[1][0][thread] + parts[1][1][thread];
            }
        }
        __syncthreads();
    }
}
