//! Compresses one cluster, for one thread: deflate with the window of 4 KiB that every reader has, or zstd. What does
//! not become shorter is the caller's to store as it is.

use super::Codec;
use flate2::{Compress, Compression, FlushCompress, Status};

/// log2 of the deflate window: the stock driver inflates with 4 KiB and refuses longer distances.
const DEFLATE_WINDOW_BITS: u8 = 12;

/// Compresses clusters one after the other; for one thread.
pub struct Compressor {
    engine: Engine,
    /// Room for the longest stream that a cluster can become: the deflate engine must never run out of it, for
    /// there it panics (zlib-rs 0.6).
    out: Vec<u8>,
}

enum Engine {
    Deflate(Compress),
    Zstd(zstd::bulk::Compressor<'static>),
}

impl Codec {
    /// A compressor of this kind at the codec's usual level; `None` when there is no memory for it.
    pub fn compressor(self) -> Option<Compressor> {
        let engine = match self {
            Codec::Deflate => {
                let level = Compression::default();
                Engine::Deflate(Compress::new_with_window_bits(level, false, DEFLATE_WINDOW_BITS))
            }
            Codec::Zstd => Engine::Zstd(zstd::bulk::Compressor::new(zstd::DEFAULT_COMPRESSION_LEVEL).ok()?),
        };
        Some(Compressor { engine, out: Vec::new() })
    }
}

/// Bytes that `length` bytes can become at most, for both codecs with some to spare.
fn longest_stream(length: usize) -> usize {
    length + length / 8 + length / 64 + 1024
}

impl Compressor {
    /// The stream of `cluster`; `None` when it does not get shorter.
    pub fn compress(&mut self, cluster: &[u8]) -> Option<&[u8]> {
        self.out.resize(longest_stream(cluster.len()), 0);
        let out = &mut self.out[..];
        let length = match &mut self.engine {
            Engine::Deflate(deflate) => {
                deflate.reset();
                let done = deflate.compress(cluster, out, FlushCompress::Finish);
                matches!(done, Ok(Status::StreamEnd)).then(|| deflate.total_out() as usize)
            }
            Engine::Zstd(zstd) => zstd.compress_to_buffer(cluster, out).ok(),
        };
        length.filter(|l| *l < cluster.len()).map(|l| &self.out[..l])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_compressed_inflates_with_a_window_of_4_kib() {
        // Repeats at a distance of 5000 bytes, which a longer window would use.
        let cluster: Vec<u8> = (0..65536u64).map(|i| (((i % 5000) * 2_654_435_761) >> 24) as u8).collect();
        for codec in [Codec::Deflate, Codec::Zstd] {
            let mut compressor = codec.compressor().unwrap();
            for text in [&cluster[..], &[b"text, ".repeat(3000), cluster.clone()].concat()[..65536]] {
                let Some(out) = compressor.compress(text) else { continue };
                let mut back = vec![0; text.len()];
                codec.inflater().unwrap().inflate(out, &mut back).unwrap();
                assert!(back == text, "{codec:?}");
                if codec == Codec::Deflate {
                    let mut narrow = flate2::Decompress::new_with_window_bits(false, DEFLATE_WINDOW_BITS);
                    let mut back = vec![0; text.len()];
                    let done = narrow.decompress(out, &mut back, flate2::FlushDecompress::Finish);
                    assert_eq!(done.unwrap(), Status::StreamEnd);
                    assert!(back == text);
                }
            }
        }
    }

    /// Text and noise in turns of random length.
    fn mixed(seed: &mut u64, bytes: usize, noise_only: bool) -> Vec<u8> {
        let mut next = || {
            *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            *seed >> 33
        };
        let mut out = Vec::with_capacity(bytes);
        while out.len() < bytes {
            let noise = noise_only || next() % 2 == 0;
            for _ in 0..next() % 3000 {
                out.push(if noise { next() as u8 } else { b"abc def"[(next() % 7) as usize] });
            }
        }
        out.truncate(bytes);
        out
    }

    #[test]
    fn what_does_not_get_shorter_is_none_and_the_next_cluster_is_not_disturbed() {
        let mut seed = 1;
        for codec in [Codec::Deflate, Codec::Zstd] {
            let mut compressor = codec.compressor().unwrap();
            let (mut inflater, mut seen) = (codec.inflater().unwrap(), [0, 0]);
            for round in 0..600 {
                let bytes = 512 << (round % 8);
                let cluster = mixed(&mut seed, bytes, round % 5 == 0);
                let stream = compressor.compress(&cluster).map(<[u8]>::to_vec);
                seen[usize::from(stream.is_some())] += 1;
                if let Some(stream) = stream {
                    let mut back = vec![0; bytes];
                    inflater.inflate(&stream, &mut back).unwrap();
                    assert!(back == cluster, "{codec:?} round {round}");
                }
            }
            assert!(seen[0] > 50 && seen[1] > 50, "{codec:?} {seen:?}");
        }
    }
}
