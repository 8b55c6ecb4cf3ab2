// Conversion between element types T and U, to nearest; to integers towards zero, saturating, NaN to 0.

template <class U> struct Convert {
    template <class M> __device__ static U from(M v) { return down<U>(v); }
    // Through f64, as on the CPU.
    __device__ static U from(i64 v) { return down<U>((double)v); }
    __device__ static U from(u8 v) { return down<U>((float)v); }
};
template <> struct Convert<i64> {
    template <class M> __device__ static i64 from(M v) { return v == v ? (i64)(double)v : 0; }
    __device__ static i64 from(i64 v) { return v; }
};
template <> struct Convert<u8> {
    template <class M> __device__ static u8 from(M v) {
        double d = (double)v;
        return d > 0 ? (d < 255 ? (u8)d : 255) : 0;
    }
};

extern "C" __global__ void cast(U* y, const T* x, const __grid_constant__ Walk<1> w, u64 n) {
    for (u64 g = thread_index(); g * V < n; g += thread_count()) {
        u64 at[1];
        T v[V];
        U out[V];
        offsets(w, g, at);
        int limit = w.axes == 1 ? remaining(n, g, V) : V;
        load<V>(x + at[0], w, 0, limit, v);
#pragma unroll
        for (int i = 0; i < V; i++) out[i] = Convert<U>::from(up(v[i]));
        store<V>(y + g * V, limit, out);
    }
}
