//! Default chunks.

/// The approximate size of default chunks in bytes.
pub const DEFAULT_CHUNK_BYTES: u64 = 16_000_000;

/// Returns chunks of about [`DEFAULT_CHUNK_BYTES`]. They are as close to cubes as the shape allows,
/// and of nearly equal lengths along each axis.
pub fn default_chunks(shape: &[u64], itemsize: usize) -> Vec<u64> {
    let mut chunks = vec![1; shape.len()];
    let mut order: Vec<usize> = (0..shape.len()).collect();
    order.sort_by_key(|d| shape[*d]);
    let mut elements = (DEFAULT_CHUNK_BYTES / itemsize.max(1) as u64).max(1);
    // Short axes first, so that the longer ones can use the remainder.
    for (i, d) in order.iter().enumerate() {
        let side = (elements as f64).powf(1.0 / (shape.len() - i) as f64).floor().max(1.0) as u64;
        let n = shape[*d].max(1);
        chunks[*d] = n.div_ceil(n.div_ceil(side));
        elements = (elements / chunks[*d]).max(1);
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(shape: &[u64], chunks: &[u64]) {
        assert_eq!(default_chunks(shape, 8), chunks);
    }

    #[test]
    fn chunks_are_near_cubes() {
        check(&[], &[]);
        check(&[0], &[1]);
        check(&[100], &[100]);
        check(&[10_000_000], &[2_000_000]);
        check(&[3, 100_000_000], &[3, 662_252]);
        check(&[4000, 4000], &[1334, 1334]);
        check(&[u64::MAX, u64::MAX], &[1414, 1414]);
    }
}
