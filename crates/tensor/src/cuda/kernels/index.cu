// Reading at indices. T is only a size, so that a row of any type moves 16 bytes at a time. An index
// outside its axis is recorded for the host and gives zeros.

#if WIDE
typedef u64 Index;
#else
typedef u32 Index;
#endif

// y [outer, n, inner] = x [outer, size, inner] at list [n]
extern "C" __global__ void index_select(T* y, const T* x, const i64* list, u64 outer, u64 size, u64 n, u64 inner,
                                        u64 axis, Fault* fault) {
    for (u64 g = thread_index(); g < outer * n * inner; g += thread_count()) {
        Index r = (Index)g / (Index)inner, j = (Index)g - r * (Index)inner;
        Index o = r / (Index)n, p = r - o * (Index)n;
        i64 i = list[p];
        y[g] = inside(i, size, p, 0, axis, fault) ? x[((u64)o * size + i) * inner + j] : T{};
    }
}

// y [outer, n, inner] = x [outer, size, inner] at list [outer, n, inner]
extern "C" __global__ void gather(T* y, const T* x, const i64* list, u64 outer, u64 size, u64 n, u64 inner, u64 axis,
                                  Fault* fault) {
    for (u64 g = thread_index(); g < outer * n * inner; g += thread_count()) {
        Index r = (Index)g / (Index)inner, j = (Index)g - r * (Index)inner, o = r / (Index)n;
        i64 i = list[g];
        y[g] = inside(i, size, g, 1, axis, fault) ? x[((u64)o * size + i) * inner + j] : T{};
    }
}
