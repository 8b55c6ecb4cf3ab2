// From the last chunk to the first, the gradient dS' [KD, values] of the state behind each chunk of 64 tokens:
//
//   du = P^T do + Kg dS'          dS = diag(eG) dS' + Qg^T do - W^T du
//
// du [64, values] and dS' are kept (bf16) for the chunks' own gradients; what is left before the first chunk is the
// gradient of the initial state (f32). Value columns do not meet: a block of 8 warps takes COLUMNS of them through all
// chunks, the carry in its accumulators, tiles of STAGES chunks in shared memory.
//
// Qg, Kg, W [sequences, chunks, 64, KD], P [sequences, chunks, 64, 64], eG [sequences, chunks, KD];
// do [batch, tokens, value_heads, values]; sequences = batch * value_heads.

#define THREADS 256
#define PIECES (COLUMNS / 8)
#define KEYS (KD / 64)
#define ROWS (KD / 64) // blocks of 16 rows of the carry in a warp
#define TILES (COLUMNS / 16) // blocks of 8 columns in a warp
#define FACTORS (KEYS * PANEL)
#define OUTPUTS (64 * COLUMNS * 2)
#define STAGE (3 * FACTORS + PANEL + OUTPUTS + KD * 4)

extern "C" __global__ void __launch_bounds__(THREADS)
    scan_back(bf16* du, bf16* d_states, float* d_state, const bf16* q_decayed, const bf16* k_decayed, const bf16* reads,
              const bf16* pairs, const float* decays, const bf16* d_o, const float* d_final, u64 sequences, u64 chunks,
              u64 tokens, u64 value_heads, u64 values) {
    extern __shared__ __align__(128) char shared[];
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    // This warp's tokens, or rows of the carry, and its columns.
    const int token = warp % 4 * 16, row = warp % 4 * (KD / 4), column = warp / 4 * (COLUMNS / 2);
    char* carry_panel = shared + STAGES * STAGE;
    char* du_panel = carry_panel + KD * COLUMNS * 2;
    const u64 slices = values / COLUMNS;

    for (u64 item = blockIdx.x; item < sequences * slices; item += gridDim.x) {
        const u64 sequence = item / slices, first = item % slices * COLUMNS;
        const u64 batch = sequence / value_heads, head = sequence % value_heads;
        const auto fetch = [&](i64 chunk) {
            if (chunk >= 0) {
                const u64 tile = sequence * chunks + chunk;
                u32 to = shared_address(shared + chunk % STAGES * STAGE);
load_tile<KD, THREADS>(to, q_decayed + tile * 64 * KD, thread);
                load_tile<KD, THREADS>(to + FACTORS, k_decayed + tile * 64 * KD, thread);
                load_tile<KD, THREADS>(to + 2 * FACTORS, reads + tile * 64 * KD, thread);
                to += 3 * FACTORS;
                load_tile<64, THREADS>(to, pairs + tile * 4096, thread);
                to += PANEL;
                const u64 left = tokens - chunk * 64;
                const bf16* o = d_o + ((batch * tokens + chunk * 64) * value_heads + head) * values + first;
                load_rows<PIECES, THREADS>(to, o, (u32)(value_heads * values), left < 64 ? (int)left : 64, thread);
                to += OUTPUTS;
                if (thread < KD / 4) copy_async(to + thread * 16, decays + tile * KD + thread * 4);
            }
            commit();
        };

        float carry[ROWS][TILES][4];
        float* edge = d_state + sequence * KD * values + first;
        const float* behind = d_final + sequence * KD * values + first;
#pragma unroll
        for (int m = 0; m < ROWS; m++)
#pragma unroll
            for (int n = 0; n < TILES; n++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const u64 at = (row + m * 16 + h * 8 + lane / 4) * values + column + n * 8 + lane % 4 * 2;
                    const Vec<float, 2> x = d_final ? *(const Vec<float, 2>*)(behind + at) : Vec<float, 2>{};
                    carry[m][n][2 * h] = x.v[0];
                    carry[m][n][2 * h + 1] = x.v[1];
                }
#pragma unroll
        for (int s = 1; s < STAGES; s++) fetch((i64)chunks - s);

        for (i64 chunk = (i64)chunks - 1; chunk >= 0; chunk--) {
            if (STAGES == 1) {
                __syncthreads();
                fetch(chunk);
            }
#pragma unroll
            for (int m = 0; m < ROWS; m++) put<PIECES>(carry_panel, carry[m], row + m * 16, column, lane);
            wait_copies<STAGES == 1 ? 0 : STAGES - 2>();
            __syncthreads();
            if (STAGES > 1) fetch(chunk - (STAGES - 1));
            const u64 tile = sequence * chunks + chunk;
            const char* stage = shared + chunk % STAGES * STAGE;
            const u32 queries = shared_address(stage), keys = queries + FACTORS, erased = keys + FACTORS;
            const u32 scores = erased + FACTORS, out = scores + PANEL;
            const float* kept = (const float*)(stage + 3 * FACTORS + PANEL + OUTPUTS);

            float x[TILES][4] = {};
#pragma unroll
            for (int k = 0; k < 64; k += 16) {
                u32 a[4], b[4];
                left<true>(a, scores, token, k, lane);
#pragma unroll
                for (int n = 0; n < TILES; n += 2) {
                    right<false, PIECES>(b, out, k, column + n * 8, lane);
                    multiply(x[n], a, b[0], b[1]);
                    multiply(x[n + 1], a, b[2], b[3]);
                }
            }
            const u32 carried = shared_address(carry_panel);
#pragma unroll
            for (int k = 0; k < KD; k += 16) {
                u32 a[4], b[4];
                left<false>(a, keys + k / 64 * PANEL, token, k % 64, lane);
#pragma unroll
                for (int n = 0; n < TILES; n += 2) {
                    right<false, PIECES>(b, carried, k, column + n * 8, lane);
                    multiply(x[n], a, b[0], b[1]);
                    multiply(x[n + 1], a, b[2], b[3]);
                }
            }
            put<PIECES>(du_panel, x, token, column, lane);
            store_panel<PIECES, KD, THREADS>(d_states + tile * KD * values + first, carry_panel, (u32)values, thread);
#pragma unroll
            for (int m = 0; m < ROWS; m++)
#pragma unroll
                for (int n = 0; n < TILES; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++) carry[m][n][i] *= kept[row + m * 16 + i / 2 * 8 + lane / 4];
#pragma unroll
            for (int k = 0; k < 64; k += 16) {
                u32 b[TILES / 2][4];
#pragma unroll
                for (int n = 0; n < TILES; n += 2) right<false, PIECES>(b[n / 2], out, k, column + n * 8, lane);
#pragma unroll
                for (int m = 0; m < ROWS; m++) {
                    u32 a[4];
                    left<true>(a, queries + (row + m * 16) / 64 * PANEL, (row + m * 16) % 64, k, lane);
#pragma unroll
                    for (int n = 0; n < TILES; n++)
                        multiply(carry[m][n], a, b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
                }
            }
            __syncthreads();
            const u32 added = shared_address(du_panel);
#pragma unroll
            for (int k = 0; k < 64; k += 16) {
                u32 b[TILES / 2][4];
#pragma unroll
                for (int n = 0; n < TILES; n += 2) {
                    right<false, PIECES>(b[n / 2], added, k, column + n * 8, lane);
#pragma unroll
                    for (int i = 0; i < 4; i++) b[n / 2][i] ^= 0x80008000u;
                }
#pragma unroll
                for (int m = 0; m < ROWS; m++) {
                    u32 a[4];
                    left<true>(a, erased + (row + m * 16) / 64 * PANEL, (row + m * 16) % 64, k, lane);
#pragma unroll
                    for (int n = 0; n < TILES; n++)
                        multiply(carry[m][n], a, b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1]);
                }
            }
            store_panel<PIECES, 64, THREADS>(du + tile * 64 * values + first, du_panel, (u32)values, thread);
        }
#pragma unroll
        for (int m = 0; m < ROWS; m++)
#pragma unroll
            for (int n = 0; n < TILES; n++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const u64 at = (row + m * 16 + h * 8 + lane / 4) * values + column + n * 8 + lane % 4 * 2;
                    *(Vec<float, 2>*)(edge + at) = {carry[m][n][2 * h], carry[m][n][2 * h + 1]};
                }
        wait_copies<0>();
        __syncthreads();
    }
}
