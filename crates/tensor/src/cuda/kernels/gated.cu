// silu(a) b, and back: da = g b silu'(a), db = g silu(a). Contiguous.

typedef Computing<T>::type M;

__device__ inline void read(const T* p, int limit, T (&out)[V]) {
    if (limit == V) {
        Vec<T, V> t = *(const Vec<T, V>*)p;
#pragma unroll
        for (int k = 0; k < V; k++) out[k] = t.v[k];
    } else {
#pragma unroll
        for (int k = 0; k < V; k++) out[k] = p[k < limit ? k : 0];
    }
}

extern "C" __global__ void silu_mul(T* y, const T* a, const T* b, u64 n) {
    for (u64 i = thread_index(); i * V < n; i += thread_count()) {
        T va[V], vb[V];
        int limit = remaining(n, i, V);
        read(a + i * V, limit, va);
        read(b + i * V, limit, vb);
#pragma unroll
        for (int k = 0; k < V; k++) {
            M x = up(va[k]);
            va[k] = down<T>(x * Fast<T>::sigmoid(x) * up(vb[k]));
        }
        store<V>(y + i * V, limit, va);
    }
}

extern "C" __global__ void silu_mul_back(T* da, T* db, const T* a, const T* b, const T* g, u64 n) {
    for (u64 i = thread_index(); i * V < n; i += thread_count()) {
        T va[V], vb[V], vg[V];
        int limit = remaining(n, i, V);
        read(a + i * V, limit, va);
        read(b + i * V, limit, vb);
        read(g + i * V, limit, vg);
#pragma unroll
        for (int k = 0; k < V; k++) {
            M x = up(va[k]), gradient = up(vg[k]), s = Fast<T>::sigmoid(x), silu = x * s;
            va[k] = down<T>(gradient * up(vb[k]) * (s + silu * ((M)1 - s)));
            vb[k] = down<T>(gradient * silu);
        }
        store<V>(da + i * V, limit, va);
        store<V>(db + i * V, limit, vb);
    }
}
