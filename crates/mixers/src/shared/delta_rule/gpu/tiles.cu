// What the kernels of the chunkwise rule share: tiles in shared memory, matrix products of a warp, and the inverse of a
// unit lower triangular matrix.
//
// A chunk has C tokens. A tile of rows of N bf16 is kept in pieces of 16 bytes, permuted within each row so that the
// same piece of 8 rows lies in 8 different groups of banks.

#define C 64
// Floats from one row to the next of a [C, C] matrix in f32.
#define PITCH 68

template <int N> __device__ inline u32 place(int row, int piece) {
    constexpr int pieces = N / 8;
    constexpr int rows = pieces < 8 ? 8 / pieces : 1;
    constexpr int mask = pieces < 8 ? pieces - 1 : 7;
    return (u32)(row * pieces + (piece ^ (row / rows & mask))) * 16;
}

// The word with elements `column` and `column` + 1 of a row; `column` is even.
template <int N> __device__ inline u32 word(int row, int column) {
    return place<N>(row, column / 8) + column % 8 * 2;
}

__device__ inline u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

__device__ inline u32 pack(float low, float high) {
    u32 x;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(x) : "f"(high), "f"(low));
    return x;
}
__device__ inline float low(u32 x) { return __uint_as_float(x << 16); }
__device__ inline float high(u32 x) { return __uint_as_float(x & 0xffff0000u); }

// 2^x, 0 for anything far below 0.
__device__ inline float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
#define LOG2_E 1.4426950408889634f
// Lower than this a token's decay leaves nothing; sums of a chunk stay finite.
#define FLOOR -160.0f

__device__ inline void load4(u32 (&x)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(address)
                 : "memory");
}
__device__ inline void load4_turned(u32 (&x)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(address)
                 : "memory");
}
__device__ inline u32 turned(u32 x) {
    u32 y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}

// c [16, 8] += a [16, 16] b [16, 8].
__device__ inline void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two neighbouring [16, 8] accumulators as the left operand [16, 16] of another product.
__device__ inline void as_left(u32 (&a)[4], const float (&c0)[4], const float (&c1)[4]) {
    a[0] = pack(c0[0], c0[1]);
    a[1] = pack(c0[2], c0[3]);
    a[2] = pack(c1[0], c1[1]);
    a[3] = pack(c1[2], c1[3]);
}

// 16 bytes of an operand, which nothing in the kernel writes: may move before stores.
__device__ inline uint4 read16(const void* p) {
    uint4 x;
    asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "l"(p));
    return x;
}

// 16 bytes to shared memory in the background; zeros if not `wanted`.
__device__ inline void copy16(u32 to, const void* from, bool wanted) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(wanted ? 16 : 0) : "memory");
}
// A [C, N] tile from rows `pitch` apart by THREADS threads, rows from `rows` on 0. Of a TRIANGLE only the blocks of 16 on and
// below the diagonal.
template <int N, int THREADS, bool TRIANGLE = false>
__device__ inline void fetch(char* tile, const bf16* from, u32 pitch, int rows, int thread) {
    constexpr int pieces = N / 8, step = THREADS / pieces;
    const int row = thread / pieces, piece = thread % pieces;
    const u32 to = shared_address(tile) + place<N>(row, piece);
    const bf16* source = from + (u64)row * pitch + piece * 8;
#pragma unroll
    for (int r = 0; r < C; r += step) {
        // Adding r to a row changes which bits of the piece are flipped.
        const u32 at = (to ^ place<N>(r, 0) % (pieces * 16)) + r * pieces * 16;
        if (!TRIANGLE || piece / 2 <= (row + r) / 16) copy16(at, rows == C || row + r < rows ? source : from, row + r < rows);
        source += (u64)step * pitch;
    }
}

__device__ inline void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ inline void arrived() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

__device__ inline void barrier(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// What a sequence of tokens is made of: first token, number of tokens, first chunk slot. Packed sequences begin at
// `starts`, the last entry of which is the number of all tokens; sequence i has the slots from starts[i] / C + i on.
struct Sequence {
    u64 first;
    u32 tokens, slot;
};

__device__ inline Sequence sequence(const i64* starts, u32 i, u32 tokens, u32 slots) {
    if (!starts) return Sequence{(u64)i * tokens, tokens, i * slots};
    const u64 first = (u64)starts[i];
    return Sequence{first, (u32)((u64)starts[i + 1] - first), (u32)(first / C) + i};
}

// A chunk: first token, number of its tokens (0: a slot that nobody needs).
struct Chunk {
    u64 first;
    int tokens;
};

__device__ inline Chunk chunk(const i64* starts, u32 sequences, u32 slot, u32 tokens, u32 slots) {
    u32 i = slot / slots;
    if (starts) {
        u32 end = sequences;
        for (i = 0; end - i > 1;) {
            const u32 middle = (i + end) / 2;
            if ((u32)(starts[middle] / C) + middle <= slot) i = middle;
            else end = middle;
        }
    }
    const Sequence s = sequence(starts, i, tokens, slots);
    const u32 done = (slot - s.slot) * C;
    if (done >= s.tokens) return Chunk{0, 0};
    return Chunk{s.first + done, (int)(s.tokens - done < C ? s.tokens - done : C)};
}

struct Halves {
    u32 big, small;
};
// Two numbers as sums of two bf16 each.
__device__ inline Halves halves(float x, float y) {
    const u32 big = pack(x, y);
    return Halves{big, pack(x - low(big), y - high(big))};
}

// c += a b to about 16 bits, from halves.
__device__ inline void multiply_exact(float (&c)[4], const u32 (&a)[2][4], Halves b0, Halves b1) {
    multiply(c, a[1], b0.big, b1.big);
    multiply(c, a[0], b0.small, b1.small);
    multiply(c, a[0], b0.big, b1.big);
}

// The inverse of I + A by 4 warps, to a bf16 tile in the place of A. Of A [C, C] (f32, rows PITCH apart) only what is
// below the diagonal is read. First the inverses of the 16 x 16 blocks on the diagonal, by substitution, a warp each;
// then column by column of blocks T_ij = - T_ii sum_k A_ik T_kj (j <= k < i), all turned, so that one product's result
// is the next one's left operand without leaving the registers.
__device__ inline void invert(float* matrix, int warp, int lane) {
    const int g = lane / 4, t = lane % 4;
    float* own = matrix + 16 * warp * (PITCH + 1);
    {
        const int column = lane % 16;
        float x[16];
#pragma unroll
        for (int i = 0; i < 16; i++) {
            float sums[4] = {i == column ? 1.0f : 0.0f, 0, 0, 0};
#pragma unroll
            for (int j = 0; j < i; j += 4) {
                const float4 a = *(const float4*)(own + i * PITCH + j);
                sums[0] -= a.x * x[j];
                if (j + 1 < i) sums[1] -= a.y * x[j + 1];
                if (j + 2 < i) sums[2] -= a.z * x[j + 2];
                if (j + 3 < i) sums[3] -= a.w * x[j + 3];
            }
            x[i] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        }
        __syncwarp();
        if (lane < 16)
#pragma unroll
            for (int i = 0; i < 16; i++) own[i * PITCH + column] = x[i];
    }
    barrier(1, 128);
    // The warp's column of blocks, turned: rows 16 warp + g and + 8, columns of the block 2 t + ..
    float block[4][2][4];
    u32 left[3][2][4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const int row = 8 * n + 2 * t + e % 2, column = g + 8 * (e / 2);
                block[i][n][e] = i == warp ? own[row * PITCH + column] : 0.0f;
            }
        if (i > warp) {
            float sum[2][4] = {};
#pragma unroll
            for (int k = 0; k < i; k++)
                if (k >= warp)
#pragma unroll
                    for (int n = 0; n < 2; n++) {
                        const float* a = matrix + (16 * i + 8 * n + g) * PITCH + 16 * k + 2 * t;
                        multiply_exact(sum[n], left[k], halves(a[0], a[1]), halves(a[8], a[9]));
                    }
            u32 parts[2][4];
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const Halves h = halves(-sum[e / 2][e % 2 * 2], -sum[e / 2][e % 2 * 2 + 1]);
                parts[0][e] = h.big;
                parts[1][e] = h.small;
            }
#pragma unroll
            for (int n = 0; n < 2; n++) {
                const float* a = matrix + (16 * i + 8 * n + g) * PITCH + 16 * i + 2 * t;
                multiply_exact(block[i][n], parts, halves(a[0], a[1]), halves(a[8], a[9]));
            }
        }
        if (i < 3)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const float* c = block[i][e / 2] + e % 2 * 2;
                const Halves h = halves(c[0], c[1]);
                left[i][0][e] = h.big;
                left[i][1][e] = h.small;
            }
    }
    barrier(1, 128);
    char* tile = (char*)matrix;
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const u32 x = turned(pack(block[i][n][2 * h], block[i][n][2 * h + 1]));
                *(u32*)(tile + word<C>(16 * i + 8 * n + g, 16 * warp + 8 * h + 2 * t)) = x;
            }
}

// A [C, N] tile to 16-byte rows in memory, by `threads` threads.
template <int N> __device__ inline void store_tile(bf16* to, const char* tile, int thread, int threads) {
    for (int p = thread; p < C * N / 8; p += threads)
        *(u128*)(to + p * 8) = *(const u128*)(tile + place<N>(p / (N / 8), p % (N / 8)));
}

// `scale` / sqrt(sum of squares + 1e-6) of 16 rows of a tile from `first` on, by a warp: two lanes a row.
template <int N> __device__ inline void norms(const char* tile, float* norm, int first, int lane, float scale) {
    const int row = first + lane % 16;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < N / 16; i++) {
        const uint4 in = *(const uint4*)(tile + place<N>(row, 2 * i + lane / 16));
        sum += low(in.x) * low(in.x) + high(in.x) * high(in.x) + low(in.y) * low(in.y) + high(in.y) * high(in.y);
        sum += low(in.z) * low(in.z) + high(in.z) * high(in.z) + low(in.w) * low(in.w) + high(in.w) * high(in.w);
    }
    sum += __shfl_xor_sync(FULL_WARP, sum, 16);
    if (lane < 16) norm[row] = scale * rsqrtf(sum + 1e-6f);
}
