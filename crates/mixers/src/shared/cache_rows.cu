// cache [B, slots, row] at each sequence's slots `start[b] ..` takes new [B, tokens, row], all in words of type T.
// `start` is null where all sequences begin at `same`.

extern "C" __global__ void write_rows(T* cache, const T* added, const i64* start, u64 same, u64 batch, u64 tokens,
                                      u64 slots, u64 row) {
    u64 per_sequence = tokens * row, n = batch * per_sequence;
    for (u64 i = thread_index(); i < n; i += thread_count()) {
        u64 b = i / per_sequence, at = (start ? (u64)start[b] : same) * row + i % per_sequence;
        if (at < slots * row) cache[b * slots * row + at] = added[i];
    }
}
