//! Rows of outputs [B, T, units, width], handed out to what computes each unit in parallel.

/// Splits `data` [B, T, units, width] into one list of T rows for each (sequence, unit), so that units can be
/// written in parallel.
pub fn rows_by_unit<R>(
    data: &mut [R],
    tokens: usize,
    units: usize,
    width: usize,
) -> Vec<Vec<&mut [R]>> {
    let count = data.len() / (tokens * width).max(1);
    let mut rows: Vec<Vec<&mut [R]>> = (0..count).map(|_| Vec::with_capacity(tokens)).collect();
    for (i, row) in data.chunks_exact_mut(width.max(1)).enumerate() {
        rows[i / (tokens * units) * units + i % units].push(row);
    }
    rows
}
