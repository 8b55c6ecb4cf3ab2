// Stable order of rows: a bitonic network in shared memory for short rows, least-significant-digit radix
// sort for long ones. Keys are unsigned integers that compare like the elements, NaN last. The key's type U is u32 or u64.

__device__ inline u64 bits_of(float x) { return __float_as_uint(x); }
__device__ inline u64 bits_of(double x) { return (u64)__double_as_longlong(x); }

template <class S> struct Key {
    template <class M> __device__ static u64 from(M x) {
        constexpr int width = sizeof(M) * 8;
        u64 sign = 1ull << (width - 1), mask = sign | (sign - 1);
        // -0 and 0 are equal and keep their order.
        u64 b = bits_of(x == 0 ? (M)0 : x);
        return (b & sign ? ~b : b | sign) & mask;
    }
};
template <> struct Key<i64> {
    __device__ static u64 from(i64 x) { return (u64)x ^ (1ull << 63); }
};
template <> struct Key<u8> {
    __device__ static u64 from(u8 x) { return x; }
};
template <> struct Key<u64> {
    __device__ static u64 from(u64 x) { return x; }
};
__device__ inline u64 up(u64 v) { return v; }

__device__ inline U key_of(T x, u32 descending) {
    auto v = up(x);
    if (v != v) return (U)~(U)0;
    U k = (U)Key<T>::from(v);
    return descending ? (U)~k : k;
}

// Rows of n <= 2048: one block of 256 threads per row, (key, position) pairs in a bitonic network.
extern "C" __global__ void sort_short(i64* order, const T* x, u64 rows, u32 n, u32 padded, u32 descending) {
    __shared__ U keys[2048];
    __shared__ u16 places[2048];
    for (u64 r = blockIdx.x; r < rows; r += gridDim.x) {
        for (u32 i = threadIdx.x; i < padded; i += blockDim.x) {
            keys[i] = i < n ? key_of(x[r * n + i], descending) : (U)~(U)0;
            places[i] = (u16)i;
        }
        for (u32 size = 2; size <= padded; size *= 2) {
            for (u32 half = size / 2; half > 0; half /= 2) {
                __syncthreads();
                for (u32 t = threadIdx.x; t < padded / 2; t += blockDim.x) {
                    u32 a = t / half * 2 * half + t % half, b = a + half;
                    bool up_run = (a & size) == 0;
                    U ka = keys[a], kb = keys[b];
                    u16 pa = places[a], pb = places[b];
                    bool after = ka > kb || (ka == kb && pa > pb);
                    if (after == up_run) {
                        keys[a] = kb, keys[b] = ka;
                        places[a] = pb, places[b] = pa;
                    }
                }
            }
        }
        __syncthreads();
        for (u32 i = threadIdx.x; i < n; i += blockDim.x) order[r * n + i] = places[i];
        __syncthreads();
    }
}

// Radix sort of rows: keys and positions, then per digit of 8 bits: count, prefix, move.
#define TILE 2048
#define THREADS 256

extern "C" __global__ void radix_start(U* keys, u32* places, const T* x, u64 count, u64 n, u32 descending) {
    for (u64 i = thread_index(); i < count; i += thread_count()) {
        keys[i] = key_of(x[i], descending);
        places[i] = (u32)(i % n);
    }
}

// counts [rows, 256, tiles]
extern "C" __global__ void radix_count(u32* counts, const U* keys, u64 rows, u64 n, u32 shift) {
    __shared__ u32 local[256];
    u64 tiles = (n + TILE - 1) / TILE;
    for (u64 t = blockIdx.x; t < rows * tiles; t += gridDim.x) {
        u64 r = t / tiles, tile = t % tiles;
        local[threadIdx.x] = 0;
        __syncthreads();
        for (u64 i = tile * TILE + threadIdx.x; i < (tile + 1) * TILE && i < n; i += THREADS)
            atomicAdd(&local[(u32)(keys[r * n + i] >> shift) & 255u], 1u);
        __syncthreads();
        counts[(r * 256 + threadIdx.x) * tiles + tile] = local[threadIdx.x];
        __syncthreads();
    }
}

// Exclusive running sum of each row's counts, one block of 1024 per row.
extern "C" __global__ void radix_prefix(u32* counts, u64 rows, u64 width) {
    __shared__ u32 warps[32];
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (u64 r = blockIdx.x; r < rows; r += gridDim.x) {
        u32 carry = 0;
        for (u64 base = 0; base < width; base += 1024) {
            u64 i = base + threadIdx.x;
            u32 v = i < width ? counts[r * width + i] : 0, sum = v;
            for (int by = 1; by < 32; by *= 2) {
                u32 other = __shfl_up_sync(FULL_WARP, sum, by);
                if (lane >= by) sum += other;
            }
            if (lane == 31) warps[warp] = sum;
            __syncthreads();
            u32 before = carry;
            for (u32 w = 0; w < 32; w++) {
                if (w < warp) before += warps[w];
                carry += warps[w];
            }
            if (i < width) counts[r * width + i] = before + sum - v;
            __syncthreads();
        }
    }
}

// Each warp owns a consecutive piece of the tile, so ranks inside (tile, warp, round, lane) are stable.
extern "C" __global__ void radix_move(U* keys_out, u32* places_out, const U* keys, const u32* places, const u32* counts,
                                      u64 rows, u64 n, u32 shift) {
    constexpr int WARPS = THREADS / 32, PIECE = TILE / WARPS;
    __shared__ u32 next[WARPS][256];
    u64 tiles = (n + TILE - 1) / TILE;
    u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (u64 t = blockIdx.x; t < rows * tiles; t += gridDim.x) {
        u64 r = t / tiles, tile = t % tiles, start = tile * TILE + warp * PIECE;
        for (u32 d = lane; d < 256; d += 32) next[warp][d] = 0;
        __syncwarp();
        for (u32 i = lane; i < PIECE; i += 32)
            if (start + i < n) atomicAdd(&next[warp][(u32)(keys[r * n + start + i] >> shift) & 255u], 1u);
        __syncthreads();
        u32 at = counts[(r * 256 + threadIdx.x) * tiles + tile];
        for (int w = 0; w < WARPS; w++) {
            u32 c = next[w][threadIdx.x];
            next[w][threadIdx.x] = at;
            at += c;
        }
        __syncthreads();
        for (u32 i = lane; i < PIECE; i += 32) {
            bool here = start + i < n;
            U key = here ? keys[r * n + start + i] : 0;
            u32 place = here ? places[r * n + start + i] : 0;
            u32 digit = here ? (u32)(key >> shift) & 255u : 256u;
            u32 same = __match_any_sync(FULL_WARP, digit), rank = __popc(same & ((1u << lane) - 1u));
            u32 base = here ? next[warp][digit] : 0;
            __syncwarp();
            if (here) {
                if (rank == 0) next[warp][digit] = base + __popc(same);
                keys_out[r * n + base + rank] = key;
                places_out[r * n + base + rank] = place;
            }
            __syncwarp();
        }
        __syncthreads();
    }
}

extern "C" __global__ void radix_end(i64* order, const u32* places, u64 count) {
    for (u64 i = thread_index(); i < count; i += thread_count()) order[i] = places[i];
}
