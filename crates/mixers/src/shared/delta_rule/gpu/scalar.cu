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

// Value heads whose gates are read at once, a warp each.
#define GROUP 4

// Two tokens of a value head, 2 lane and the next.
struct Gates {
    float sum[2], end, erase[2], write[2];
};

__device__ inline Gates gates(const float* decay, const float* erase, const float* write, u64 from, u32 heads, int tokens,
                              int lane) {
    Gates x = {};
#pragma unroll
    for (int i = 0; i < 2; i++)
        if (2 * lane + i < tokens) {
            const u64 at = from + (u64)(2 * lane + i) * heads;
            if (decay) x.sum[i] = fmaxf(decay[at] * LOG2_E, FLOOR);
            x.erase[i] = erase[at];
            x.write[i] = write[at];
        }
    float before = x.sum[0] + x.sum[1];
#pragma unroll
    for (int by = 1; by < 32; by *= 2) {
        const float other = __shfl_up_sync(FULL_WARP, before, by);
        if (lane >= by) before += other;
    }
    x.end = __shfl_sync(FULL_WARP, before, 31);
    x.sum[0] = before - x.sum[1];
    x.sum[1] = before;
    return x;
}

extern "C" __global__ void __launch_bounds__(128, 3)
    prepare_scalar(bf16* inverse, bf16* reads, float* rows, const bf16* qkv, const float* decay, const float* erase,
                   const float* write, const i64* starts, u32 sequences, u32 tokens, u32 slots, u32 heads,
                   u32 value_heads, u32 values) {
    extern __shared__ __align__(1024) char memory[];
    __shared__ alignas(16) float norm_k[C], norm_q[C], sum[GROUP][C], erased[GROUP][C];
    char* q = memory;
    char* k = q + C * KD * 2;
    // Later in their place.
    float* matrix = (float*)memory;
    char* p_tile = q + C * PITCH * 4;
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, g = lane / 4, t = lane % 4;
    const u32 width = 2 * heads * KD + value_heads * values, repeat = value_heads / heads;
    const u32 all = starts ? slots : sequences * slots;
    for (u32 item = blockIdx.x; item < all * heads; item += gridDim.x) {
        const u32 slot = item / heads, h = item % heads;
        const Chunk here = chunk(starts, sequences, slot, tokens, slots);
        if (here.tokens == 0) continue;
        const bf16* row = qkv + here.first * width + h * KD;
        const u64 first_tile = (u64)(slot / slots * value_heads) * slots + slot % slots;
        __syncthreads();
        fetch<KD, 128>(q, row, width, here.tokens, thread);
        fetch<KD, 128>(k, row + heads * KD, width, here.tokens, thread);
        commit();
        const u64 gate_at = here.first * value_heads + h * repeat;
        Gates own = {};
        if (warp < repeat) own = gates(decay, erase, write, gate_at + warp, value_heads, here.tokens, lane);
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
        // The norms belong to the rows and columns of both products.
#pragma unroll
        for (int j = 0; j < 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const float column = norm_k[8 * j + 2 * t + e % 2];
                kk[j][e] *= column;
                qk[j][e] *= column * norm_q[16 * warp + g + e / 2 * 8];
            }

        for (u32 n = 0; n < repeat; n++) {
            if (n % GROUP == 0) {
                __syncthreads();
                if (n && n + warp < repeat)
                    own = gates(decay, erase, write, gate_at + n + warp, value_heads, here.tokens, lane);
                if (n + warp < repeat) {
                    float* factors = rows + (first_tile + (u64)(h * repeat + n + warp) * slots) * ROWS;
                    float out[4][2];
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        const int r = 2 * lane + i;
                        const bool real = r < here.tokens;
                        const float of_k = norm_k[r], since = exp2_fast(own.sum[i]);
                        sum[warp][r] = own.sum[i];
                        erased[warp][r] = own.erase[i] * of_k;
                        out[0][i] = own.erase[i] * of_k * since;
                        out[1][i] = own.write[i];
                        out[2][i] = real ? of_k * exp2_fast(fminf(own.end - own.sum[i], 0)) : 0;
                        out[3][i] = real ? norm_q[r] * since : 0;
                    }
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        *(float2*)(factors + C * i + 2 * lane) = make_float2(out[i][0], out[i][1]);
                    if (lane < 4) factors[4 * C + lane] = exp2_fast(own.end);
                }
                __syncthreads();
            }
            const u64 tile = first_tile + (u64)(h * repeat + n) * slots;
            const float* sums = sum[n % GROUP];
            const int r = 16 * warp + g;
            const float sum_r[2] = {sums[r], sums[r + 8]}, erased_r[2] = {erased[n % GROUP][r], erased[n % GROUP][r + 8]};
#pragma unroll
            for (int j = 0; j < 8; j++) {
                const int s = 8 * j + 2 * t;
                u32 p[2] = {};
                if (j < 2 * warp + 2) {
                    const float2 sum_s = *(const float2*)(sums + s);
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        const float first = s <= r + 8 * i ? exp2_fast(fminf(sum_r[i] - sum_s.x, 0)) : 0;
                        const float second = s < r + 8 * i ? exp2_fast(fminf(sum_r[i] - sum_s.y, 0)) : 0;
                        *(float2*)(matrix + (r + 8 * i) * PITCH + s) = make_float2(
                            kk[j][2 * i] * first * erased_r[i], kk[j][2 * i + 1] * second * erased_r[i]);
                        p[i] = pack(qk[j][2 * i] * first, qk[j][2 * i + 1] * second);
                    }
                }
#pragma unroll
                for (int i = 0; i < 2; i++) *(u32*)(p_tile + word<C>(r + 8 * i, s)) = p[i];
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
