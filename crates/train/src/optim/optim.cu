// Optimisers over many tensors in one launch. A launch gets a list of pieces of tensors; the blocks of a tensor are
// numbered from its `first` on and each takes CHUNK elements. Everything waits for `guard`, which the gradients'
// norm fills: {norm, factor on the gradients, loss}. If the norm or the loss is not finite, nothing changes.

#define CHUNK 16384
#define MOST 64

struct Guard {
    double norm;
    double scale;
    double loss;
};
__device__ inline bool refused(const Guard* guard) {
    const double most = 1.7976931348623157e308;
    return !(guard->norm <= most && fabs(guard->loss) <= most);
}

// N tensors of one parameter, and two numbers of its own.
template <int N> struct Entry {
    float* at[N];
    u64 count;
    u64 first;
    float x, y;
};
template <int N> struct List {
    u64 entries;
    Entry<N> entry[MOST];
};

template <int N, class F> __device__ inline void each(const List<N>& list, u64 blocks, F f) {
    for (u64 block = blockIdx.x; block < blocks; block += gridDim.x) {
        u32 e = 0;
        while (e + 1 < list.entries && list.entry[e + 1].first <= block) e++;
        const Entry<N>& entry = list.entry[e];
        u64 start = (block - entry.first) * CHUNK;
        u64 end = start + CHUNK < entry.count ? start + CHUNK : entry.count;
        for (u64 i = start + threadIdx.x; i < end; i += blockDim.x) f(entry, i);
    }
}

__device__ inline double block_sum(double v) {
    __shared__ double parts[32];
    for (int by = 16; by > 0; by /= 2) v += __shfl_down_sync(FULL_WARP, v, by);
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
    __syncthreads();
    v = threadIdx.x < blockDim.x / 32 ? parts[threadIdx.x] : 0.0;
    if (threadIdx.x < 32)
        for (int by = 16; by > 0; by /= 2) v += __shfl_down_sync(FULL_WARP, v, by);
    __syncthreads();
    return v;
}

// parts[from + block]: the sum of squares of that block's elements.
extern "C" __global__ void square_sums(const __grid_constant__ List<1> list, u64 blocks, double* parts, u64 from) {
    for (u64 block = blockIdx.x; block < blocks; block += gridDim.x) {
        u32 e = 0;
        while (e + 1 < list.entries && list.entry[e + 1].first <= block) e++;
        const Entry<1>& entry = list.entry[e];
        u64 start = (block - entry.first) * CHUNK;
        u64 end = start + CHUNK < entry.count ? start + CHUNK : entry.count;
        double sum = 0;
        for (u64 i = start + threadIdx.x; i < end; i += blockDim.x) {
            double g = entry.at[0][i];
            sum += g * g;
        }
        sum = block_sum(sum);
        if (threadIdx.x == 0) parts[from + block] = sum;
    }
}

// One block: the norm of the mean of `summed` gradients, the factor that makes it at most `clip` (0: any), and the mean
// of as many losses (null: 0).
extern "C" __global__ void guard(Guard* out, const double* parts, u64 n, const float* losses, double summed, double clip) {
    double sum = 0;
    for (u64 i = threadIdx.x; i < n; i += blockDim.x) sum += parts[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        double norm = sqrt(sum) / summed;
        out->norm = norm;
        out->scale = (clip > 0 && norm > clip ? clip / norm : 1.0) / summed;
        out->loss = losses ? (double)*losses / summed : 0.0;
    }
}

// a += b
extern "C" __global__ void accumulate(const __grid_constant__ List<2> list, u64 blocks) {
    each(list, blocks, [](const Entry<2>& e, u64 i) { e.at[0][i] += e.at[1][i]; });
}

// at: parameter, mean, square, gradient (null: zeros); x: 1 - lr decay.
extern "C" __global__ void adamw(const __grid_constant__ List<4> list, u64 blocks, const Guard* guard, float beta1,
                                 float beta2, float rest1, float rest2, float rate, float correction, float eps) {
    if (refused(guard)) return;
    float scale = (float)guard->scale;
    each(list, blocks, [=](const Entry<4>& e, u64 i) {
        float g = e.at[3] ? e.at[3][i] * scale : 0.0f;
        float m = beta1 * e.at[1][i] + rest1 * g;
        float v = beta2 * e.at[2][i] + rest2 * (g * g);
        e.at[1][i] = m;
        e.at[2][i] = v;
        e.at[0][i] = e.x * e.at[0][i] - rate * m / (sqrtf(v) * correction + eps);
    });
}

// at: momentum, direction, gradient (null: zeros); x: mu, y: 1 - mu.
extern "C" __global__ void muon_direction(const __grid_constant__ List<3> list, u64 blocks, const Guard* guard) {
    bool no = refused(guard);
    float scale = (float)guard->scale;
    each(list, blocks, [=](const Entry<3>& e, u64 i) {
        if (no) {
            e.at[1][i] = 0;
            return;
        }
        float g = e.at[2] ? e.y * scale * e.at[2][i] : 0.0f;
        float m = e.x * e.at[0][i] + g;
        e.at[0][i] = m;
        e.at[1][i] = e.x * m + g;
    });
}

// at: parameter, orthogonal direction; x: 1 - lr decay, y: rate.
extern "C" __global__ void muon_apply(const __grid_constant__ List<2> list, u64 blocks, const Guard* guard) {
    if (refused(guard)) return;
    each(list, blocks, [](const Entry<2>& e, u64 i) { e.at[0][i] = e.x * e.at[0][i] - e.y * e.at[1][i]; });
}
