// x[.., index, ..] += source along an axis, in the order of the source whatever the GPU does: either a thread
// per column walks its sources, or the sources are sorted by target first and each target's run is summed in
// pieces of CHUNK, whose partial sums are then added in order.

typedef Computing<T>::type M;

#define CHUNK 32

// A thread per column of x [outer, size, inner]; list and source [outer, n, inner].
extern "C" __global__ void scatter_columns(T* x, const i64* list, const T* source, u64 outer, u64 size, u64 n,
                                           u64 inner, u64 axis, Fault* fault) {
    for (u64 t = thread_index(); t < outer * inner; t += thread_count()) {
        u64 o = t / inner, j = t % inner;
        for (u64 a = 0; a < n; a++) {
            u64 p = (o * n + a) * inner + j;
            i64 i = list[p];
            if (inside(i, size, p, 2, axis, fault)) {
                T* target = x + (o * size + i) * inner + j;
                *target = down<T>(up(*target) + up(source[p]));
            }
        }
    }
}

// Sort keys: the target's place in x, or `none` (which sorts last) for an index outside the axis.
extern "C" __global__ void scatter_keys(u64* keys, const i64* list, u64 count, u64 size, u64 n, u64 inner, u64 axis,
                                        u64 none, Fault* fault) {
    for (u64 p = thread_index(); p < count; p += thread_count()) {
        i64 i = list[p];
        bool ok = inside(i, size, p, 2, axis, fault);
        keys[p] = ok ? (p / (n * inner) * size + i) * inner + p % inner : none;
    }
}

// Sorted places `at` with the sources `order` that go there; x and source have rows of `width`.
// parts [chunks, 2, width]: slot 1 for a run that goes on in the next chunk, 0 for one that came from before.
extern "C" __global__ void scatter_chunks(T* x, const T* source, const u64* at, const i64* order, M* parts, u64 count,
                                          u64 width, u64 none) {
    u64 chunks = (count + CHUNK - 1) / CHUNK, strips = (width + blockDim.x - 1) / blockDim.x;
    for (u64 t = blockIdx.x; t < chunks * strips; t += gridDim.x) {
        u64 c = t / strips, j = t % strips * blockDim.x + threadIdx.x;
        u64 first = c * CHUNK, last = first + CHUNK < count ? first + CHUNK : count;
        if (j >= width) continue;
        for (u64 p = first; p < last;) {
            u64 key = at[p], start = p;
            if (key == none) break;
            M a = 0;
            for (; p < last && at[p] == key; p++) a += up(source[order[p] * width + j]);
            bool from_before = start == first && first > 0 && at[first - 1] == key;
            bool goes_on = p == last && last < count && at[last] == key;
            if (from_before || goes_on) {
                parts[(c * 2 + (from_before ? 0 : 1)) * width + j] = a;
            } else {
                T* target = x + key * width + j;
                *target = down<T>(up(*target) + a);
            }
        }
    }
}

// The runs that cross chunks: whoever holds a run's first piece adds the others to it.
extern "C" __global__ void scatter_runs(T* x, const u64* at, const M* parts, u64 count, u64 width, u64 none) {
    u64 chunks = (count + CHUNK - 1) / CHUNK, strips = (width + blockDim.x - 1) / blockDim.x;
    for (u64 t = blockIdx.x; t < chunks * strips; t += gridDim.x) {
        u64 c = t / strips, j = t % strips * blockDim.x + threadIdx.x, last = (c + 1) * CHUNK;
        if (j >= width || last >= count) continue;
        u64 key = at[last - 1];
        bool covers = at[c * CHUNK] == key && c > 0 && at[c * CHUNK - 1] == key;
        if (key == none || at[last] != key || covers) continue;
        M a = parts[(c * 2 + 1) * width + j];
        for (u64 d = c + 1; d < chunks && at[d * CHUNK] == key; d++) a += parts[d * 2 * width + j];
        T* target = x + key * width + j;
        *target = down<T>(up(*target) + a);
    }
}
