// One token of a whole layer of the family, from its projections to the input of its last one, in place on the state
// S [B, HV, KD, VD] in f32 and on the last inputs of the short convolution [B, TAPS - 1, 2 H KD + HV VD] in T:
//
//   q | k | v = SiLU(convolution)            g = -exp(A) softplus(f + bias)   or   bound sigmoid(exp(A) (f + bias))
//   b = factor sigmoid(.)   w = sigmoid(.)   S <- e^g S     r = S^T (b k)     S <- S + k (w v - r)^T     o = S^T q
//   y = o / sqrt(mean o^2 + eps) norm act(gate)
//
// with unit q (times KD^-1/2) and k. Decay logits are [B, heads, 1 or KD], erase logits too, write logits [B, HV, VD] or
// null: then the erase gate of a value head is its write gate. Convolution weights are of q, k and v, [channels, TAPS].
//
// A block does a key head and its value heads one after the other, so that nobody else touches its channels of the
// convolution. A value head's state is in registers: a warp has 32 columns of every 4 PARTS-th four rows, a thread 4
// columns; sums over rows go through shuffles and shared memory.

#define THREADS 512
#define BLOCKS (VD / 32)
#define PARTS (THREADS / 32 / BLOCKS)
#define STRIDE (4 * PARTS)
#define ROWS (KD / STRIDE)

struct Logits {
    const T* data;
    u64 heads, width;
};

// softplus, linear above 20.
__device__ inline float softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }
__device__ inline float silu(float x) { return x / (1.0f + expf(-x)); }
__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// One channel of the convolution, moved on by one input.
__device__ inline float convolved(T* before, u64 pitch, T input, const U* weight) {
    float x = up(input) * up(weight[TAPS - 1]);
#pragma unroll
    for (int i = 0; i < TAPS - 1; i++) {
        const T here = before[i * pitch];
        x += up(here) * up(weight[i]);
        if (i > 0) before[(i - 1) * pitch] = here;
    }
    before[(TAPS - 2) * pitch] = input;
    // What follows reads activations.
    return up(down<T>(silu(x)));
}

// Sums over all rows of a thread's 4 columns; every thread gets those of its own.
__device__ inline float4 over_rows(float4 x, float (*parts)[VD], int part, int lane, int column) {
    float(&v)[4] = *(float(*)[4])&x;
#pragma unroll
    for (int c = 0; c < 4; c++) {
        v[c] += __shfl_xor_sync(FULL_WARP, v[c], 8);
        v[c] += __shfl_xor_sync(FULL_WARP, v[c], 16);
    }
    if (lane < 8) *(float4*)(parts[part] + column) = x;
    __syncthreads();
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
    for (int p = 0; p < PARTS; p++) {
        const float4 y = *(const float4*)(parts[p] + column);
        sum.x += y.x;
        sum.y += y.y;
        sum.z += y.z;
        sum.w += y.w;
    }
    return sum;
}

extern "C" __global__ void __launch_bounds__(THREADS, KD * VD > 16384 ? 1 : 2)
    layer_step(float* state, T* conv, T* y, const T* qkv, const U* conv_q, const U* conv_k, const U* conv_v, Logits decay,
               const float* rate, const float* bias, float bound, u32 bounded, Logits erase, float factor, const T* write,
               const T* gate, const U* norm, float eps, float plus, u32 sigmoid_gate, u32 batch, u32 heads,
               u32 value_heads) {
    __shared__ alignas(16) float query[KD], key[KD], erased[KD], keep[KD], values[VD], parts[2][PARTS][VD];
    __shared__ float squares[2][THREADS / 32], column_squares[BLOCKS];
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int part = warp / BLOCKS, column = warp % BLOCKS * 32 + lane % 8 * 4, row = part * 4 + lane / 8;
    const u32 repeat = value_heads / heads;
    const u64 width = 2 * heads * KD + value_heads * VD;
    for (u32 item = blockIdx.x; item < batch * heads; item += gridDim.x) {
        const u32 b = item / heads, h = item % heads;
        const T* inputs = qkv + b * width;
        T* before = conv + b * (TAPS - 1) * width;
        for (u32 n = 0; n < repeat; n++) {
            const u32 hv = h * repeat + n;
            const u64 unit = (u64)b * value_heads + hv;
            float* s = state + unit * KD * VD + column;
            float4 rows[ROWS];
#pragma unroll
            for (int i = 0; i < ROWS; i++) rows[i] = *(const float4*)(s + (row + STRIDE * i) * VD);
            if (n == 0) {
                // Queries, then keys, a thread each.
                float x = 0;
                if (thread < 2 * KD) {
                    const bool is_key = thread >= KD;
                    const u64 within = h * KD + thread % KD, channel = is_key * heads * KD + within;
                    x = convolved(before + channel, width, inputs[channel], (is_key ? conv_k : conv_q) + within * TAPS);
                }
                float square = x * x;
#pragma unroll
                for (int by = 16; by > 0; by /= 2) square += __shfl_xor_sync(FULL_WARP, square, by);
                if (lane == 0) squares[0][warp] = square;
                __syncthreads();
                if (thread < 2 * KD) {
                    const int first = thread / KD * (KD / 32);
                    float sum = 0;
#pragma unroll
                    for (int w = 0; w < KD / 32; w++) sum += squares[0][first + w];
                    x *= 1.0f / sqrtf(sum + 1e-6f);
                    if (thread < KD) query[thread] = x * (1.0f / sqrtf((float)KD));
                    else key[thread - KD] = x;
                }
            }
            if (thread < VD) {
                const u64 within = hv * VD + thread, channel = 2 * heads * KD + within;
                const float x = convolved(before + channel, width, inputs[channel], conv_v + within * TAPS);
                const float logit = write ? up(write[unit * VD + thread])
                                          : up(erase.data[b * erase.heads + (erase.heads == heads ? h : hv)]);
                values[thread] = x * sigmoid(logit) * (write ? 1.0f : factor);
            }
            // Threads of the second half, so that both halves have something to wait for.
            const int channel = thread - (THREADS - KD);
            if (channel >= 0) {
                const u32 of_decay = decay.heads == heads ? h : hv, of_erase = erase.heads == heads ? h : hv;
                const u64 at = of_decay * decay.width + (decay.width == 1 ? 0 : channel);
                const float f = up(decay.data[b * decay.heads * decay.width + at]) + bias[at], a = expf(rate[of_decay]);
                keep[channel] = expf(bounded ? bound * sigmoid(a * f) : -a * softplus(f));
                const u64 from = (b * erase.heads + of_erase) * erase.width + (erase.width == 1 ? 0 : channel);
                erased[channel] = factor * sigmoid(up(erase.data[from]));
            }
            __syncthreads();

            float4 read = make_float4(0, 0, 0, 0);
#pragma unroll
            for (int i = 0; i < ROWS; i++) {
                const int r = row + STRIDE * i;
                const float decayed = keep[r], by = erased[r] * key[r];
                float4& x = rows[i];
                x.x *= decayed;
                x.y *= decayed;
                x.z *= decayed;
                x.w *= decayed;
                read.x += by * x.x;
                read.y += by * x.y;
                read.z += by * x.z;
                read.w += by * x.w;
            }
            read = over_rows(read, parts[0], part, lane, column);
            const float4 v = *(const float4*)(values + column);
            const float4 added = make_float4(v.x - read.x, v.y - read.y, v.z - read.z, v.w - read.w);
            float4 out = make_float4(0, 0, 0, 0);
#pragma unroll
            for (int i = 0; i < ROWS; i++) {
                const int r = row + STRIDE * i;
                const float k = key[r], q = query[r];
                float4& x = rows[i];
                x.x += k * added.x;
                x.y += k * added.y;
                x.z += k * added.z;
                x.w += k * added.w;
                out.x += q * x.x;
                out.y += q * x.y;
                out.z += q * x.z;
                out.w += q * x.w;
                *(float4*)(s + r * VD) = x;
            }
            out = over_rows(out, parts[1], part, lane, column);

            float square = out.x * out.x + out.y * out.y + out.z * out.z + out.w * out.w;
#pragma unroll
            for (int by = 4; by > 0; by /= 2) square += __shfl_xor_sync(FULL_WARP, square, by);
            if (part == 0 && lane == 0) column_squares[warp] = square;
            __syncthreads();
            if (part == 0 && lane < 8) {
                float sum = 0;
#pragma unroll
                for (int w = 0; w < BLOCKS; w++) sum += column_squares[w];
                const float scale = 1.0f / sqrtf(sum / VD + eps);
                const float o[4] = {out.x, out.y, out.z, out.w};
                Vec<T, 4> result;
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    const float x = up(gate[unit * VD + column + c]), act = sigmoid_gate ? sigmoid(x) : silu(x);
                    result.v[c] = down<T>(o[c] * scale * (up(norm[column + c]) + plus) * act);
                }
                *(Vec<T, 4>*)(y + unit * VD + column) = result;
            }
            __syncthreads();
        }
    }
}
