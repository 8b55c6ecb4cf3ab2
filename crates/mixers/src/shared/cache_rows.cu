// Caches of keys and values, and the clock: positions that recorded work reads on the GPU.

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

// A ring of `window` slots behind `sinks` fixed ones, when each sequence takes the token at clock[b]: the slot that
// token goes to, and the positions in all slots afterwards (-1: none).
extern "C" __global__ void ring(i64* slot, i64* positions, const i64* clock, u64 batch, i64 window, i64 sinks) {
    const u64 slots = window + sinks;
    for (u64 i = thread_index(); i < batch * slots; i += thread_count()) {
        const i64 now = clock[i / slots], s = i % slots;
        positions[i] = s > now ? -1 : s < sinks ? s : s + (now - s) / window * window;
        if (s == 0) slot[i / slots] = now < sinks ? now : sinks + (now - sinks) % window;
    }
}

// Every sequence has seen one token more.
extern "C" __global__ void tick(i64* clock, u64 batch) {
    for (u64 b = thread_index(); b < batch; b += thread_count()) clock[b]++;
}
