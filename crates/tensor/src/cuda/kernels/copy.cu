// Moving elements of sizeof(T) bytes without looking at them: constants, strided copies, transposes, selection.

extern "C" __global__ void fill(T* y, u64 value, u64 n) {
    T v = (T)value, out[V];
#pragma unroll
    for (int i = 0; i < V; i++) out[i] = v;
    for (u64 g = thread_index(); g * V < n; g += thread_count()) store<V>(y + g * V, remaining(n, g, V), out);
}

// x to y, both strided: operand 0 is y.
extern "C" __global__ void place(T* y, const T* x, const __grid_constant__ Walk<2> w, u64 n) {
    for (u64 g = thread_index(); g * V < n; g += thread_count()) {
        u64 at[2];
        T v[V];
        offsets(w, g, at);
        int limit = w.axes == 1 ? remaining(n, g, V) : V;
        load<V>(x + at[1], w, 1, limit, v);
        if (w.mode[0] == ALIGNED) {
            store<V>(y + at[0], limit, v);
        } else {
#pragma unroll
            for (int i = 0; i < V; i++)
                if (i < limit) y[at[0] + i * w.inner[0]] = v[i];
        }
    }
}

// y[.., p, q] = x[..] where x is dense along p and y along q: tiles of 32 x 32 through shared memory.
// The walk covers the other axes of y (operand 0) and x (operand 1).
extern "C" __global__ void transpose(T* y, const T* x, const __grid_constant__ Walk<2> w, u64 batch, u64 p, u64 q,
                                     u64 y_stride, u64 x_stride) {
    __shared__ T tile[32][33];
    u64 tiles_p = (p + 31) / 32, tiles_q = (q + 31) / 32, tiles = tiles_p * tiles_q;
    for (u64 t = blockIdx.x; t < tiles * batch; t += gridDim.x) {
        u64 at[2];
        offsets(w, t / tiles, at);
        u64 p0 = t % tiles / tiles_q * 32, q0 = t % tiles % tiles_q * 32;
        for (u32 i = threadIdx.y; i < 32; i += 8)
            if (q0 + i < q && p0 + threadIdx.x < p)
                tile[i][threadIdx.x] = x[at[1] + (q0 + i) * x_stride + p0 + threadIdx.x];
        __syncthreads();
        for (u32 i = threadIdx.y; i < 32; i += 8)
            if (p0 + i < p && q0 + threadIdx.x < q)
                y[at[0] + (p0 + i) * y_stride + q0 + threadIdx.x] = tile[threadIdx.x][i];
        __syncthreads();
    }
}

// mask != 0 ? a : b
extern "C" __global__ void choose(T* y, const u8* m, const T* a, const T* b, const __grid_constant__ Walk<3> w, u64 n) {
    for (u64 g = thread_index(); g * V < n; g += thread_count()) {
        u64 at[3];
        u8 vm[V];
        T va[V], vb[V];
        offsets(w, g, at);
        int limit = w.axes == 1 ? remaining(n, g, V) : V;
        load<V>(m + at[0], w, 0, limit, vm);
        load<V>(a + at[1], w, 1, limit, va);
        load<V>(b + at[2], w, 2, limit, vb);
#pragma unroll
        for (int i = 0; i < V; i++) va[i] = vm[i] ? va[i] : vb[i];
        store<V>(y + g * V, limit, va);
    }
}
