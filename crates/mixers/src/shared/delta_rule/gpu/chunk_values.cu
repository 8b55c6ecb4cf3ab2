// Gradients inside chunks of 64 tokens, all chunks at once, the value side: given those of the added values (du).
// With T = (I + A)^-1, S the state before the chunk, u = U - W S what was added:
//
//   d(wv) = T^T du       dW = -du S^T       Z = T^T dW       dA = -lower(d(wv) U^T + Z W^T)       dP = lower(do u^T)
//
// Z is the gradient of e^G (b . k). `chunk_keys` and `chunk_keys_scalar` go on from there, `chunk_norms` is last. Tiles
// [batch, value_heads, chunks, 64, ..] as in `scan_back`; qkv [batch, tokens, 2 heads KD + value_heads VD].

#define THREADS 256
#define KEYS (KD / 64)
#define VALUES (VD / 64)

#define SLOT (VALUES + 1 > 3 ? VALUES + 1 : 3)

// d_reads is Z; d_pairs and d_solve are dP and dA [64, 64]. d_write has the width of the write gate, 1 or VD.
extern "C" __global__ void __launch_bounds__(THREADS, VD <= 128 ? 2 : 1)
    chunk_values(bf16* d_qkv, float* d_write, bf16* d_reads, bf16* d_pairs, bf16* d_solve, const bf16* solve,
                 const bf16* solved, const bf16* added, const bf16* reads, const bf16* du, const bf16* states,
                 const bf16* d_o, const bf16* qkv, const float* write, u64 write_width, u64 tiles, u64 chunks,
                 u64 tokens, u64 heads, u64 value_heads) {
    extern __shared__ __align__(128) char shared[];
    char *y_panel = shared + PANEL, *z_panel = shared + 2 * PANEL;
    const u32 inverse = shared_address(shared), y = inverse + PANEL, z = y + PANEL, d_added = z + PANEL;
    const u32 slots = d_added + VALUES * PANEL;
    const u64 width = 2 * heads * KD + value_heads * VD;

    for (u64 tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const int thread = own_thread(), lane = thread % 32, warp = thread / 32;
        const int m = warp % 4 * 16, n = warp / 4 * 32;
        const Place at(tile, chunks, tokens, heads, value_heads);
        const u64 position = at.batch * tokens + at.start;
        // First panels of values, then panels of keys.
        const auto fetch = [&](int job) {
            const u32 to = slots + job % 2 * SLOT * PANEL;
            if (job < VALUES) {
                const u64 from = tile * 64 * VD + job * 64;
                const bf16* o = d_o + (position * value_heads + at.value_head) * VD + job * 64;
                load_rows<8, THREADS>(to, o, (u32)(value_heads * VD), at.rows, thread);
                load_panel<8, VD, 64, THREADS>(to + PANEL, added + from, thread);
                load_panel<8, VD, 64, THREADS>(to + 2 * PANEL, solved + from, thread);
            } else if (job < VALUES + KEYS) {
                const int p = job - VALUES;
#pragma unroll
                for (int v = 0; v < VALUES; v++)
                    load_panel<8, VD, 64, THREADS>(to + v * PANEL, states + (tile * KD + p * 64) * VD + v * 64, thread);
                load_panel<8, KD, 64, THREADS>(to + VALUES * PANEL, reads + tile * 64 * KD + p * 64, thread);
            }
            commit();
        };
        load_tile<64, THREADS>(inverse, solve + tile * 4096, thread);
        load_tile<VD, THREADS>(d_added, du + tile * 64 * VD, thread);
        fetch(0);
        fetch(1);

        float p[4][4] = {}, a[4][4] = {}, sums[2] = {};
#pragma unroll 1
        for (int job = 0; job < VALUES; job++) {
            Vec<u32, 4> v[2];
            float w[2];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const u64 row = position + min(thread / 8 + half * 32, at.rows - 1);
                const u64 channel = at.value_head * VD + job * 64 + thread % 8 * 8;
                v[half] = *(const Vec<u32, 4>*)(qkv + row * width + 2 * heads * KD + channel);
                w[half] = write[(row * value_heads + at.value_head) * write_width];
            }
            wait_copies<1>();
            __syncthreads();
            const u32 slot = slots + job % 2 * SLOT * PANEL;
            product<false, true, 64>(p, slot, m, slot + PANEL, n, lane);
            float c[4][4] = {};
            product<true, false, 64>(c, inverse, m, d_added + job * PANEL, n, lane);
            put<8>(y_panel, c, m, n, lane);
            __syncthreads();
            product<false, true, 64>(a, y, m, slot + 2 * PANEL, n, lane);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int row = thread / 8 + half * 32, piece = thread % 8;
                if (row < at.rows) {
                    const Vec<u32, 4> d = *(const Vec<u32, 4>*)(y_panel + piece_at<8>(row, piece));
                    const u64 channel = job * 64 + piece * 8;
                    const u64 place = (position + row) * width + 2 * heads * KD + at.value_head * VD + channel;
                    const u64 gate = ((position + row) * value_heads + at.value_head) * write_width;
                    float gates[8], d_w[8];
                    if (write_width == 1) {
#pragma unroll
                        for (int i = 0; i < 8; i++) gates[i] = w[half];
                    } else {
                        *(Vec<float, 4>*)gates = *(const Vec<float, 4>*)(write + gate + channel);
                        *(Vec<float, 4>*)(gates + 4) = *(const Vec<float, 4>*)(write + gate + channel + 4);
                    }
                    Vec<u32, 4> d_v;
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        d_v.v[i] = pack(low(d.v[i]) * gates[2 * i], high(d.v[i]) * gates[2 * i + 1]);
                        d_w[2 * i] = low(d.v[i]) * low(v[half].v[i]);
                        d_w[2 * i + 1] = high(d.v[i]) * high(v[half].v[i]);
                    }
                    *(Vec<u32, 4>*)(d_qkv + place) = d_v;
                    if (write_width == 1) {
#pragma unroll
                        for (int i = 0; i < 8; i++) sums[half] += d_w[i];
                    } else {
                        *(Vec<float, 4>*)(d_write + gate + channel) = *(Vec<float, 4>*)d_w;
                        *(Vec<float, 4>*)(d_write + gate + channel + 4) = *(Vec<float, 4>*)(d_w + 4);
                    }
                }
            }
            __syncthreads();
            fetch(job + 2);
        }
        if (write_width == 1)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int row = thread / 8 + half * 32;
#pragma unroll
                for (int by = 4; by > 0; by /= 2) sums[half] += __shfl_xor_sync(FULL_WARP, sums[half], by);
                if (lane % 8 == 0 && row < at.rows)
                    d_write[(position + row) * value_heads + at.value_head] = sums[half];
            }

#pragma unroll 1
        for (int job = VALUES; job < VALUES + KEYS; job++) {
            wait_copies<1>();
            __syncthreads();
            const u32 slot = slots + job % 2 * SLOT * PANEL;
            float c[4][4] = {};
#pragma unroll
            for (int v = 0; v < VALUES; v++)
                product<false, true, 64>(c, d_added + v * PANEL, m, slot + v * PANEL, n, lane);
#pragma unroll
            for (int j = 0; j < 4; j++)
#pragma unroll
                for (int i = 0; i < 4; i++) c[j][i] = -c[j][i];
            put<8>(y_panel, c, m, n, lane);
            __syncthreads();
            float d[4][4] = {};
            product<true, false, 64>(d, inverse, m, y, n, lane);
            put<8>(z_panel, d, m, n, lane);
            __syncthreads();
            product<false, true, 64>(a, z, m, slot + VALUES * PANEL, n, lane);
            store_panel<8, 64, THREADS>(d_reads + tile * 64 * KD + (job - VALUES) * 64, z_panel, KD, thread);
            __syncthreads();
            fetch(job + 2);
        }
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int row = m + i / 2 * 8 + lane / 4, column = n + j * 8 + lane % 4 * 2 + i % 2;
                p[j][i] = column <= row ? p[j][i] : 0.0f;
                a[j][i] = column < row ? -a[j][i] : 0.0f;
            }
        put<8>(y_panel, p, m, n, lane);
        put<8>(z_panel, a, m, n, lane);
        __syncthreads();
        store_panel<8, 64, THREADS>(d_pairs + tile * 4096, y_panel, 64, thread);
        store_panel<8, 64, THREADS>(d_solve + tile * 4096, z_panel, 64, thread);
        __syncthreads();
    }
}

// The gradients of q and k before their norms, summed over the value heads of their head: with y = x / |x|,
// dx = (dy - y (y . dy)) / |x|. KD / 8 lanes take a row; d_qkv's other columns are left alone.
extern "C" __global__ void __launch_bounds__(THREADS)
    chunk_norms(bf16* d_qkv, const bf16* d_q, const bf16* d_k, const bf16* qkv, u64 positions, u64 heads,
                u64 value_heads) {
    constexpr int GROUP = KD / 8;
    const u64 repeat = value_heads / heads, width = 2 * heads * KD + value_heads * VD;
    const u64 rows = positions * heads * 2, each = THREADS / GROUP;
    for (u64 begin = blockIdx.x * each; begin < rows; begin += gridDim.x * each) {
        const u64 row = begin + threadIdx.x / GROUP, piece = threadIdx.x % GROUP * 8;
        const bool there = row < rows;
        const u64 which = row % 2, head = row / 2 % heads, position = row / 2 / heads;
        const u64 place = position * width + (which * heads + head) * KD + piece;
        float d[8] = {}, x[8] = {}, square = 0, dot = 0;
        if (there) {
            const Vec<u32, 4> x8 = *(const Vec<u32, 4>*)(qkv + place);
            const bf16* from = (which ? d_k : d_q) + (position * value_heads + head * repeat) * KD + piece;
            for (u64 r = 0; r < repeat; r++) {
                const Vec<u32, 4> d8 = *(const Vec<u32, 4>*)(from + r * KD);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    d[2 * i] += low(d8.v[i]);
                    d[2 * i + 1] += high(d8.v[i]);
                }
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                x[2 * i] = low(x8.v[i]);
                x[2 * i + 1] = high(x8.v[i]);
            }
#pragma unroll
            for (int i = 0; i < 8; i++) {
                square += x[i] * x[i];
                dot += x[i] * d[i];
            }
        }
#pragma unroll
        for (int by = GROUP / 2; by > 0; by /= 2) {
            square += __shfl_xor_sync(FULL_WARP, square, by);
            dot += __shfl_xor_sync(FULL_WARP, dot, by);
        }
        if (there) {
            const float over = rsqrtf(square + 1e-6f), scaled = which ? over : over * rsqrtf((float)KD);
            const float along = dot * over * over;
            Vec<u32, 4> out;
#pragma unroll
            for (int i = 0; i < 4; i++)
                out.v[i] = pack(scaled * (d[2 * i] - along * x[2 * i]), scaled * (d[2 * i + 1] - along * x[2 * i + 1]));
            *(Vec<u32, 4>*)(d_qkv + place) = out;
        }
    }
}
