//! Compressed clusters: buffers to buffers. No I/O, no policy; memory is bounded by the cluster.
//!
//! A compressed cluster is a raw deflate stream or one zstd frame; what follows it up to the end of its last
//! sector belongs to somebody else and is ignored.

mod compress;

pub use compress::Compressor;

use std::io::Write;

/// How the clusters of an image are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// Raw deflate (compression type 0).
    Deflate,
    /// Zstandard (compression type 1).
    Zstd,
}

impl Codec {
    /// The codec of a header's compression type, which has been checked.
    pub fn from_type(compression_type: u8) -> Codec {
        match compression_type {
            0 => Codec::Deflate,
            _ => Codec::Zstd,
        }
    }

    /// Inflates the stream at the start of `input` to exactly fill `cluster`; the error is the broken rule.
    pub fn inflate(self, input: &[u8], cluster: &mut [u8]) -> Result<(), &'static str> {
        match self {
            Codec::Deflate => inflate_deflate(input, cluster),
            Codec::Zstd => inflate_zstd(input, cluster),
        }
    }
}

fn inflate_deflate(input: &[u8], cluster: &mut [u8]) -> Result<(), &'static str> {
    let mut decompressor = libdeflater::Decompressor::new();
    match decompressor.deflate_decompress(input, cluster) {
        Ok(length) if length == cluster.len() => Ok(()),
        Ok(_) => Err("the deflate stream is shorter than a cluster"),
        Err(libdeflater::DecompressionError::InsufficientSpace) => {
            Err("the deflate stream is longer than a cluster")
        }
        Err(_) => Err("not a valid deflate stream"),
    }
}

/// Takes no more than a cluster from the frame, so that a window is never larger than one.
struct Filling<'a> {
    cluster: &'a mut [u8],
    filled: usize,
}

impl Write for Filling<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let take = bytes.len().min(self.cluster.len() - self.filled);
        self.cluster[self.filled..self.filled + take].copy_from_slice(&bytes[..take]);
        self.filled += take;
        Ok(take)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn inflate_zstd(input: &[u8], cluster: &mut [u8]) -> Result<(), &'static str> {
    let bad = "not a valid zstd frame";
    let mut decoder = zstd::stream::read::Decoder::with_buffer(input).map_err(|_| bad)?.single_frame();
    // The format's writers use a window of at most a cluster; zstd's least limit is 2^10.
    let window_log = cluster.len().next_power_of_two().trailing_zeros().max(17);
    decoder.window_log_max(window_log).map_err(|_| bad)?;
    let mut out = Filling { cluster, filled: 0 };
    let wanted = out.cluster.len();
    let mut limited = std::io::Read::take(&mut decoder, wanted as u64);
    std::io::copy(&mut limited, &mut out).map_err(|_| bad)?;
    if out.filled < wanted {
        return Err("the zstd frame is shorter than a cluster");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|i| ((i / 7) ^ (i >> 5)) as u8).collect()
    }

    fn deflate(data: &[u8]) -> Vec<u8> {
        let mut compressor = libdeflater::Compressor::new(libdeflater::CompressionLvl::default());
        let mut out = vec![0; compressor.deflate_compress_bound(data.len())];
        let length = compressor.deflate_compress(data, &mut out).unwrap();
        out.truncate(length);
        out
    }

    #[test]
    fn streams_with_anything_behind_them_inflate() {
        for bytes in [512usize, 4096, 65536, 2 << 20] {
            let data = sample(bytes);
            let streams =
                [(Codec::Deflate, deflate(&data)), (Codec::Zstd, zstd::bulk::compress(&data, 3).unwrap())];
            for (codec, mut stream) in streams {
                stream.extend(sample(511));
                let mut out = vec![0; bytes];
                codec.inflate(&stream, &mut out).unwrap();
                assert!(out == data, "{codec:?} {bytes}");
            }
        }
    }

    #[test]
    fn broken_streams_are_errors() {
        let data = sample(4096);
        for (codec, stream) in
            [(Codec::Deflate, deflate(&data)), (Codec::Zstd, zstd::bulk::compress(&data, 3).unwrap())]
        {
            let mut out = vec![0; 4096];
            assert!(codec.inflate(&stream[..stream.len() / 2], &mut out).is_err());
            assert!(codec.inflate(&[], &mut out).is_err());
            assert!(codec.inflate(&[0xff; 600], &mut out).is_err());
            let mut longer = vec![0; 8192];
            assert!(codec.inflate(&stream, &mut longer).is_err());
        }
    }
}
