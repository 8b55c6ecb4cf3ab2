// What Hopper adds: products of whole warpgroups (4 warps) whose right operand, or both, are read from shared memory
// while the warps go on, an engine that copies tiles, barriers that count arrivals and bytes, and registers that move
// from one warpgroup to another.
//
// Tiles are cut into panels of 64 elements a row: [HEAD_DIM / 64][rows][128 bytes], piece c of row r at c ^ (r % 8), each
// panel at a multiple of 1024 bytes: the layout that the hardware calls a swizzle of 128 bytes.

#define PANELS (HEAD_DIM / 64)
#define PANEL_ROW 128

// ---- barriers ----

__device__ inline void barrier_init(u32 bar, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(arrivals) : "memory");
}
__device__ inline void barrier_arrive(u32 bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
__device__ inline void barrier_wait(u32 bar, u32 parity) {
    u32 done = 0;
    while (!done)
        asm volatile(
            "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
            : "=r"(done)
            : "r"(bar), "r"(parity)
            : "memory");
}
// Which warpgroup this is, in a register that a whole warp shares: so are addresses of its rows then.
__device__ inline int warpgroup() { return __shfl_sync(FULL_WARP, (int)threadIdx.x / 128, 0); }

// Warpgroups ask for products by turns, so that one computes weights while another's products run: a turn is a hardware
// barrier of each warpgroup, completed by the one before it.
__device__ inline void turn_wait(int turn) { asm volatile("bar.sync %0, 256;" ::"r"(turn + 1) : "memory"); }
template <int N> __device__ inline void turn_pass(int turn) {
    asm volatile("bar.arrive %0, 256;" ::"r"((turn + 1) % N + 1) : "memory");
}

template <int REGISTERS> __device__ inline void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS> __device__ inline void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// ---- loading ----

// How the copy engine finds an array [B, rows, heads, HEAD_DIM]; the driver fills it in.
struct alignas(64) Map {
    u64 words[16];
};

// The next arrival at a barrier waits for so many bytes.
__device__ inline void barrier_expect(u32 bar, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
// ROWS rows of one head, those beyond the array zero, into the panels of a tile. One thread starts a copy; its bytes
// arrive at `full`.
template <int ROWS>
__device__ inline void load_tile(u32 tile, const Map* map, int head, int row, int sequence, u32 full) {
#pragma unroll
    for (int panel = 0; panel < PANELS; panel++)
        asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, "
                     "%4, %5}], [%6];" ::"r"(tile + panel * ROWS * PANEL_ROW),
                     "l"(map), "r"(panel * 64), "r"(head), "r"(row), "r"(sequence), "r"(full)
                     : "memory");
}

// `bytes` in one piece, at multiples of 16.
__device__ inline void load_words(u32 to, const void* from, u32 bytes, u32 full) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(full)
                 : "memory");
}

// ---- products ----

// The upper part of a descriptor: 8 rows are 1024 bytes, swizzled; panels are `panel` bytes apart where a product goes
// across them.
__device__ inline u64 describe(u32 address, u32 panel) {
    return (u64)(address >> 4) | (u64)(panel >> 4) << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}
// Rows r0 .. of a tile of ROWS, sums running over elements 16 k .. 16 k + 16.
template <int ROWS> __device__ inline u64 across(u32 tile, int r0, int k) {
    return describe(tile + (k / 4 * ROWS + r0) * PANEL_ROW + k % 4 * 32, 16);
}
// All elements of a tile of ROWS, sums running over rows r0 .. r0 + 16.
template <int ROWS> __device__ inline u64 down_rows(u32 tile, int r0) {
    return describe(tile + r0 * PANEL_ROW, ROWS * PANEL_ROW);
}

__device__ inline void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void products_end() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int LEFT> __device__ inline void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}
// Nothing that uses these registers moves across.
template <int N> __device__ inline void hold(float (&x)[N][4]) {
#pragma unroll
    for (int i = 0; i < N; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) asm volatile("" : "+f"(x[i][j])::"memory");
}

#define REGISTERS_4(x, i) "+f"(x[i][0]), "+f"(x[i][1]), "+f"(x[i][2]), "+f"(x[i][3])
#define REGISTERS_16(x, i) REGISTERS_4(x, i), REGISTERS_4(x, i + 1), REGISTERS_4(x, i + 2), REGISTERS_4(x, i + 3)
#define REGISTERS_32(x) REGISTERS_16(x, 0), REGISTERS_16(x, 4)
#define REGISTERS_64(x) REGISTERS_32(x), REGISTERS_16(x, 8), REGISTERS_16(x, 12)
#define LIST_32                                                                                                        \
    "{" "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31" "}"
#define LIST_64                                                                                                        \
    "{" "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63" "}"

// c [64, 8 N] += a b for one warpgroup, 16 terms of the sum, or = a b if not `add`. Warp w has rows 16 w .., laid out as in
// `product`. TRANSPOSED says that the rows of b's tile are summed over.
template <int N> struct Products;
#define PRODUCTS(n, size, list, registers, a0, a1, a2, a3, a4, a5, a6)                                                    \
    template <> struct Products<n> {                                                                                   \
        template <int LEFT_ROWS, int TRANSPOSED>                                                                       \
        __device__ static void shared(float (&c)[n][4], u64 a, u64 b, int add) {                                       \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " a2 ", 0;\n"                                              \
                         "wgmma.mma_async.sync.aligned.m64n" size "k16.f32.bf16.bf16 " list ", " a0 ", " a1            \
                         ", p, 1, 1, " a3 ", " a4 ";\n}"                                                               \
                         : registers(c)                                                                                \
                         : "l"(a), "l"(b), "r"(add), "n"(LEFT_ROWS), "n"(TRANSPOSED));                                 \
        }                                                                                                              \
        template <int TRANSPOSED>                                                                                      \
        __device__ static void registers_left(float (&c)[n][4], const u32 (&a)[4], u64 b, int add) {                   \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " a5 ", 0;\n"                                              \
                         "wgmma.mma_async.sync.aligned.m64n" size "k16.f32.bf16.bf16 " list ", {" a0 ", " a1 ", " a2   \
                         ", " a3 "}, " a4 ", p, 1, 1, " a6 ";\n}"                                                      \
                         : registers(c)                                                                                \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(TRANSPOSED));             \
        }                                                                                                              \
    };
PRODUCTS(8, "64", LIST_32, REGISTERS_32, "%32", "%33", "%34", "%35", "%36", "%37", "%38")
PRODUCTS(16, "128", LIST_64, REGISTERS_64, "%64", "%65", "%66", "%67", "%68", "%69", "%70")
