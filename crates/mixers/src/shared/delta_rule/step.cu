// One token of the delta rule, in place on the state S [B, HV, KD, values] in f32:
//
//   S <- e^g S     r = S^T (b k)     S <- S + k (w v - r)^T     o = S^T q
//
// with unit q (times KD^-1/2) and k, from rows of qkv [B, 2 H KD + HV values] in T. Decay and erase gate are
// [B, heads, KD or 1], heads H or HV; the write gate is [B, HV, values or 1]; all f32. `decay` may be null.
//
// The state is read once and written once: a block keeps all rows of 32 columns in registers, a thread 4 neighbouring
// columns of every 16th row, and the sums over rows go through shuffles and shared memory.

#define COLUMNS 32
#define GROUPS 16
#define ROWS (KD / GROUPS)
#define THREADS 128

struct alignas(16) Four {
    float v[4];
};

// The sum over all row groups, for each of the block's columns; every thread gets that of its own four.
__device__ inline Four over_rows(Four x, float (*parts)[COLUMNS], int lane, int warp, int column) {
#pragma unroll
    for (int c = 0; c < 4; c++) {
        x.v[c] += __shfl_xor_sync(FULL_WARP, x.v[c], 8);
        x.v[c] += __shfl_xor_sync(FULL_WARP, x.v[c], 16);
        if (lane < 8) parts[warp][column + c] = x.v[c];
    }
    __syncthreads();
#pragma unroll
    for (int c = 0; c < 4; c++) {
        float sum = 0;
#pragma unroll
        for (int w = 0; w < THREADS / 32; w++) sum += parts[w][column + c];
        x.v[c] = sum;
    }
    return x;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    step(float* state, T* o, const T* qkv, const float* decay, u64 decay_heads, u64 decay_width, const float* erase,
         u64 erase_heads, u64 erase_width, const float* write, u64 write_width, u64 batch, u64 heads, u64 value_heads,
         u64 values) {
    __shared__ float query[KD], key[KD], erased[KD], keep[KD];
    __shared__ float sums[2][THREADS / 32], parts[2][THREADS / 32][COLUMNS];
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int column = thread % 8 * 4, group = thread / 8;
    const u64 slices = values / COLUMNS, repeat = value_heads / heads;
    for (u64 item = blockIdx.x; item < batch * value_heads * slices; item += gridDim.x) {
        const u64 unit = item / slices, b = unit / value_heads, hv = unit % value_heads, h = hv / repeat;
        const u64 first = item % slices * COLUMNS;
        float* s = state + unit * KD * values + first + column;
        Four rows[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) rows[r] = *(const Four*)(s + (group + GROUPS * r) * values);

        const T* q = qkv + b * (2 * heads * KD + value_heads * values) + h * KD;
        const T* k = q + heads * KD;
        const T* v = qkv + b * (2 * heads * KD + value_heads * values) + 2 * heads * KD + hv * values + first;
        float squares[2] = {0, 0};
        for (int i = thread; i < KD; i += THREADS) {
            float x = up(q[i]), y = up(k[i]);
            squares[0] += x * x;
            squares[1] += y * y;
        }
#pragma unroll
        for (int n = 0; n < 2; n++) {
#pragma unroll
            for (int by = 16; by > 0; by /= 2) squares[n] += __shfl_xor_sync(FULL_WARP, squares[n], by);
            if (lane == 0) sums[n][warp] = squares[n];
        }
        __syncthreads();
        float norm[2];
#pragma unroll
        for (int n = 0; n < 2; n++) {
            float sum = 0;
#pragma unroll
            for (int w = 0; w < THREADS / 32; w++) sum += sums[n][w];
            norm[n] = 1.0f / sqrtf(sum + 1e-6f);
        }
        norm[0] *= 1.0f / sqrtf((float)KD);
        const float* e = erase + (b * erase_heads + (erase_heads == heads ? h : hv)) * erase_width;
        const float* g = decay + (b * decay_heads + (decay_heads == heads ? h : hv)) * decay_width;
        for (int i = thread; i < KD; i += THREADS) {
            float unit_key = up(k[i]) * norm[1];
            query[i] = up(q[i]) * norm[0];
            key[i] = unit_key;
            erased[i] = unit_key * e[erase_width == 1 ? 0 : i];
            keep[i] = decay ? expf(g[decay_width == 1 ? 0 : i]) : 1.0f;
        }
        __syncthreads();

        Four read = {};
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const int row = group + GROUPS * r;
#pragma unroll
            for (int c = 0; c < 4; c++) {
                rows[r].v[c] *= keep[row];
                read.v[c] += erased[row] * rows[r].v[c];
            }
        }
        read = over_rows(read, parts[0], lane, warp, column);
        const float* w = write + (b * value_heads + hv) * write_width;
        Four added;
#pragma unroll
        for (int c = 0; c < 4; c++)
            added.v[c] = w[write_width == 1 ? 0 : first + column + c] * up(v[column + c]) - read.v[c];
        Four out = {};
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const int row = group + GROUPS * r;
#pragma unroll
            for (int c = 0; c < 4; c++) {
                rows[r].v[c] += key[row] * added.v[c];
                out.v[c] += query[row] * rows[r].v[c];
            }
            *(Four*)(s + row * values) = rows[r];
        }
        out = over_rows(out, parts[1], lane, warp, column);
        if (group == 0)
#pragma unroll
            for (int c = 0; c < 4; c++) o[unit * values + first + column + c] = down<T>(out.v[c]);
        __syncthreads();
    }
}
