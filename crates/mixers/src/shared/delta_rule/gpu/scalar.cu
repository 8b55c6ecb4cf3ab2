// What `scan` needs of a chunk when a token decays, erases and writes with one number for each value head:
//
//   A_rs = b_r (k_r . k_s) e^(G_r - G_s)  (s < r)      T = (I + A)^-1
//   P_rs = (q_r . k_s) e^(G_r - G_s)      (s <= r)
//
// G the sum of log decays up to a token, k and q unit (q times KD^-1/2). T and P [B, HV, slots, C, C] in bf16; the rest is
// a factor for each row, so that the scan takes keys, queries and values as they are:
// rows [B, HV, slots, 4 C + 4] in f32: b e^G / |k|, w, e^(G_C - G) / |k|, e^G / |q| KD^-1/2, and e^G_C.
//
// A block of 4 warps does a chunk of one key head: both products once, then the rest for each of its value heads.

#define ROWS (4 * C + 4)

extern "C" __global__ void __launch_bounds__(128, 4)
    prepare_scalar(bf16* inverse, bf16* reads, float* rows, const bf16* qkv, const float* decay, const float* erase,
                   const float* write, const i64* starts, u64 sequences, u64 tokens, u64 slots, u64 heads,
                   u64 value_heads, u64 values) {
    extern __shared__ u128 memory[];
    __shared__ alignas(16) float norm_k[C], norm_q[C], sum[C], erased[C];
    char* q = (char*)memory;
    char* k = q + C * KD * 2;
    // Later in their place.
    float* matrix = (float*)memory;
    char* p_tile = q + C * PITCH * 4;
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, g = lane / 4, t = lane % 4;
    const u64 width = 2 * heads * KD + value_heads * values, repeat = value_heads / heads;
    const u64 all = starts ? slots : sequences * slots;
    for (u64 item = blockIdx.x; item < all * heads; item += gridDim.x) {
        const u64 slot = item / heads, h = item % heads;
        const Chunk here = chunk(starts, sequences, slot, tokens, slots);
        if (here.tokens == 0) continue;
        const bf16* row = qkv + here.first * width + h * KD;
        __syncthreads();
#pragma unroll 4
        for (int i = thread; i < C * KD / 8; i += 128) {
            const int r = i / (KD / 8), piece = i % (KD / 8);
            const bf16* from = row + (r < here.tokens ? r : 0) * width + piece * 8;
            const u32 to = place<KD>(r, piece);
            copy16(shared_address(q + to), from, r < here.tokens);
            copy16(shared_address(k + to), from + heads * KD, r < here.tokens);
        }
        commit();
        arrived<0>();
        __syncthreads();
        norms<KD>(q, norm_q, 16 * warp, lane, rsqrtf((float)KD));
        norms<KD>(k, norm_k, 16 * warp, lane, 1.0f);

        // Rows 16 warp + g and + 8; columns 8 j + 2 t, up to the diagonal.
        float kk[8][4] = {}, qk[8][4] = {};
#pragma unroll
        for (int c = 0; c < KD / 16; c++) {
            u32 left_k[4], left_q[4], right[4];
            const u32 at = place<KD>(16 * warp + lane % 16, 2 * c + lane / 16);
            load4(left_k, shared_address(k + at));
            load4(left_q, shared_address(q + at));
#pragma unroll
            for (int j = 0; j < 4; j++)
                if (j <= warp) {
                    load4(right, shared_address(k + place<KD>(16 * j + lane / 16 * 8 + lane % 8, 2 * c + lane / 8 % 2)));
                    multiply(kk[2 * j], left_k, right[0], right[1]);
                    multiply(kk[2 * j + 1], left_k, right[2], right[3]);
                    multiply(qk[2 * j], left_q, right[0], right[1]);
                    multiply(qk[2 * j + 1], left_q, right[2], right[3]);
                }
        }
        __syncthreads();

        for (u64 hv = h * repeat; hv < (h + 1) * repeat; hv++) {
            const u64 tile = (slot / slots * value_heads + hv) * slots + slot % slots;
            float* factors = rows + tile * ROWS;
            if (warp == 0) {
                // Two tokens a lane.
                float x[2] = {0, 0};
#pragma unroll
                for (int i = 0; i < 2; i++)
                    if (decay && 2 * lane + i < here.tokens)
                        x[i] = fmaxf(decay[(here.first + 2 * lane + i) * value_heads + hv] * LOG2_E, FLOOR);
                float before = x[0] + x[1];
#pragma unroll
                for (int by = 1; by < 32; by *= 2) {
                    const float other = __shfl_up_sync(FULL_WARP, before, by);
                    if (lane >= by) before += other;
                }
                const float end = __shfl_sync(FULL_WARP, before, 31);
                x[0] = before - x[1];
                x[1] = before;
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const int r = 2 * lane + i;
                    const bool real = r < here.tokens;
                    const u64 from = (here.first + r) * value_heads + hv;
                    const float b = real ? erase[from] : 0, w = real ? write[from] : 0;
                    sum[r] = x[i];
                    erased[r] = b * norm_k[r];
                    factors[r] = b * norm_k[r] * exp2_fast(x[i]);
                    factors[C + r] = w;
                    factors[2 * C + r] = real ? norm_k[r] * exp2_fast(fminf(end - x[i], 0)) : 0;
                    factors[3 * C + r] = real ? norm_q[r] * exp2_fast(x[i]) : 0;
                }
                if (lane < 4) factors[4 * C + lane] = exp2_fast(end);
            }
            __syncthreads();
#pragma unroll
            for (int j = 0; j < 8; j++) {
                const int s = 8 * j + 2 * t;
                const float sum_s[2] = {sum[s], sum[s + 1]}, norm_s[2] = {norm_k[s], norm_k[s + 1]};
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const int r = 16 * warp + g + 8 * i;
                    float a[2], p[2];
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        const float factor =
                            s + e <= r ? exp2_fast(fminf(sum[r] - sum_s[e], 0)) * norm_s[e] : 0;
                        a[e] = kk[j][2 * i + e] * factor * erased[r];
                        p[e] = qk[j][2 * i + e] * factor * norm_q[r];
                    }
                    if (j < 2 * warp + 2) *(float2*)(matrix + r * PITCH + s) = make_float2(a[0], a[1]);
                    *(u32*)(p_tile + word<C>(r, s)) = pack(p[0], p[1]);
                }
            }
            __syncthreads();
            invert(matrix, warp, lane);
            __syncthreads();
            store_tile<C>(inverse + tile * C * C, (char*)matrix, thread, 128);
            store_tile<C>(reads + tile * C * C, p_tile, thread, 128);
            __syncthreads();
        }
    }
}
