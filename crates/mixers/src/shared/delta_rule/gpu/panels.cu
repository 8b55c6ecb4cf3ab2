// What the kernels of the way back share. Tiles for tensor cores: panels of 64 (or 32) columns of bf16 in shared
// memory, rows one after another, their 16-byte pieces permuted so that eight neighbouring rows of one piece lie in
// different banks.
//
// A warp multiplies with mma.m16n8k16: accumulators of a 16 x 8 block are c[0], c[1] in row lane / 4 and c[2], c[3]
// eight rows below, in columns lane % 4 * 2 and the next.

// Bytes of a panel of 64 tokens and 64 columns.
#define PANEL 8192

__device__ inline u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// Bytes to a piece of a row, `PIECES` (4 or 8) to a row.
template <int PIECES> __device__ inline u32 piece_at(int row, int piece) {
    const int turned = PIECES == 4 ? piece ^ (row >> 1 & 3) : piece ^ (row & 7);
    return (row * PIECES + turned) * 16;
}

// Bytes to an element.
template <int PIECES> __device__ inline u32 element_at(int row, int column) {
    return piece_at<PIECES>(row, column / 8) + column % 8 * 2;
}

// 16 bytes to shared memory, zeros instead if `!there`; `from` must be valid either way.
__device__ inline void copy_async(u32 to, const void* from, bool there = true) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0));
}
__device__ inline void commit() { asm volatile("cp.async.commit_group;"); }
// Waits until at most N groups are still on their way.
template <int N> __device__ inline void wait_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// A panel of ROWS rows of 8 * PIECES columns, STRIDE elements apart in memory.
template <int PIECES, int STRIDE, int ROWS, int THREADS>
__device__ inline void load_panel(u32 to, const bf16* from, int thread) {
    constexpr int STEP = THREADS / PIECES; // rows at a time, a multiple of what the permutation repeats after
    static_assert(STEP % 8 == 0 && ROWS % STEP == 0, "whole steps");
    const int row = thread / PIECES, piece = thread % PIECES;
    to += piece_at<PIECES>(row, piece);
    from += row * STRIDE + piece * 8;
#pragma unroll
    for (int i = 0; i < ROWS; i += STEP) copy_async(to + i * PIECES * 16, from + i * STRIDE);
}

// A whole tile of 64 rows and WIDTH columns, into its panels.
template <int WIDTH, int THREADS> __device__ inline void load_tile(u32 to, const bf16* from, int thread) {
    constexpr int STEP = THREADS * 8 / WIDTH;
    static_assert(STEP % 8 == 0 && 64 % STEP == 0, "whole steps");
    const int row = thread / (WIDTH / 8), piece = thread % (WIDTH / 8);
    to += piece / 8 * PANEL + piece_at<8>(row, piece % 8);
    from += thread * 8;
#pragma unroll
    for (int i = 0; i < 64; i += STEP) copy_async(to + i * 128, from + i * WIDTH);
}

// A panel of 64 rows, `stride` elements apart in memory; those from `limit` on become 0.
template <int PIECES, int THREADS>
__device__ inline void load_rows(u32 to, const bf16* from, u32 stride, int limit, int thread) {
    constexpr int STEP = THREADS / PIECES;
    const int first = thread / PIECES, piece = thread % PIECES;
    to += piece_at<PIECES>(first, piece);
#pragma unroll
    for (int i = 0; i < 64; i += STEP) {
        const bool there = first + i < limit;
        copy_async(to + i * PIECES * 16, from + (u64)(there ? first + i : 0) * stride + piece * 8, there);
    }
}

// From a panel of ROWS rows to memory.
template <int PIECES, int ROWS, int THREADS>
__device__ inline void store_panel(bf16* to, const char* from, u32 stride, int thread) {
    constexpr int STEP = THREADS / PIECES;
    const int first = thread / PIECES, piece = thread % PIECES;
    from += piece_at<PIECES>(first, piece);
    to += (u64)first * stride + piece * 8;
#pragma unroll
    for (int i = 0; i < ROWS; i += STEP) *(u128*)(to + (u64)i * stride) = *(const u128*)(from + i * PIECES * 16);
}

__device__ inline void matrices(u32 (&r)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}
__device__ inline void matrices_turned(u32 (&r)[4], u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

// The left factor, rows m .. m + 15 and columns k .. k + 15 of a panel; or of its transpose.
template <bool TURNED, int PIECES = 8> __device__ inline void left(u32 (&a)[4], u32 panel, int m, int k, int lane) {
    if (TURNED)
        matrices_turned(a, panel + piece_at<PIECES>(k + lane % 8 + lane / 16 * 8, m / 8 + lane / 8 % 2));
    else
        matrices(a, panel + piece_at<PIECES>(m + lane % 16, k / 8 + lane / 16));
}

// The right factor, rows k .. k + 15 and columns n .. n + 15 of a panel; or of its transpose. b[0], b[1] belong to the
// first eight columns.
template <bool TURNED, int PIECES = 8> __device__ inline void right(u32 (&b)[4], u32 panel, int k, int n, int lane) {
    if (TURNED)
        matrices(b, panel + piece_at<PIECES>(n + lane % 8 + lane / 16 * 8, k / 8 + lane / 8 % 2));
    else
        matrices_turned(b, panel + piece_at<PIECES>(k + lane % 16, n / 8 + lane / 16));
}

__device__ inline void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// c += A B for 16 rows from m, 8 * N columns from n and `depth` from k on. LEFT_TURNED: A is the transpose of its
// panel; RIGHT_TURNED: B is.
template <bool LEFT_TURNED, bool RIGHT_TURNED, int DEPTH, int N>
__device__ inline void product(float (&c)[N][4], u32 a_panel, int m, u32 b_panel, int n, int lane) {
#pragma unroll
    for (int k = 0; k < DEPTH; k += 16) {
        u32 a[4];
        left<LEFT_TURNED>(a, a_panel, m, k, lane);
#pragma unroll
        for (int j = 0; j < N; j += 2) {
            u32 b[4];
            right<RIGHT_TURNED>(b, b_panel, k, n + 8 * j, lane);
            multiply(c[j], a, b[0], b[1]);
            multiply(c[j + 1], a, b[2], b[3]);
        }
    }
}

__device__ inline u32 pack(float low, float high) {
    u32 r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
__device__ inline float low(u32 pair) { return __uint_as_float(pair << 16); }
__device__ inline float high(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

// Accumulators of rows m .. m + 15 and 8 * N columns from n, rounded into a panel.
template <int PIECES, int N> __device__ inline void put(char* panel, const float (&c)[N][4], int m, int n, int lane) {
    const int row = m + lane / 4, column = n + lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < N; j++) {
        *(u32*)(panel + element_at<PIECES>(row, column + 8 * j)) = pack(c[j][0], c[j][1]);
        *(u32*)(panel + element_at<PIECES>(row + 8, column + 8 * j)) = pack(c[j][2], c[j][3]);
    }
}

// Where a chunk lies.
struct Place {
    u64 batch, head, value_head, tile, start;
    int rows;
    __device__ Place(u32 tile, u32 chunks, u64 tokens, u32 heads, u32 value_heads) : tile(tile) {
        const u32 sequence = tile / chunks;
        batch = sequence / value_heads;
        value_head = sequence % value_heads;
        head = (u32)value_head / (value_heads / heads);
        start = (u64)(tile % chunks) * 64;
        rows = tokens - start < 64 ? (int)(tokens - start) : 64;
    }
};

// This thread, anew for each tile: what follows from it alone would otherwise be worked out before the loop over tiles
// and hold registers through all of it.
__device__ inline int own_thread() {
    int thread = threadIdx.x;
    asm volatile("" : "+r"(thread));
    return thread;
}
