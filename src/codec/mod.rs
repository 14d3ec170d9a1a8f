//! Compressed clusters: buffers to buffers. No I/O, no policy; memory is bounded by the cluster.
//!
//! A compressed cluster is a raw deflate stream, or a zstd frame or several; what follows up to the end of its last
//! sector belongs to somebody else and is ignored.

mod compress;
mod inflate;
mod zeroes;

pub use compress::Compressor;
pub use inflate::Inflater;
pub use zeroes::is_zero;

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
                codec.inflater().unwrap().inflate(&stream, &mut out).unwrap();
                assert!(out == data, "{codec:?} {bytes}");
            }
        }
    }

    #[test]
    fn broken_streams_are_errors_and_do_not_disturb_the_next_one() {
        let data = sample(4096);
        for (codec, stream) in
            [(Codec::Deflate, deflate(&data)), (Codec::Zstd, zstd::bulk::compress(&data, 3).unwrap())]
        {
            let mut inflater = codec.inflater().unwrap();
            let (mut out, mut longer) = (vec![0; 4096], vec![0; 8192]);
            for broken in [&stream[..stream.len() / 2], &[], &[0xff; 600]] {
                assert!(inflater.inflate(broken, &mut out).is_err());
                inflater.inflate(&stream, &mut out).unwrap();
                assert!(out == data, "{codec:?}");
                assert!(inflater.inflate(&stream, &mut longer).is_err());
            }
        }
    }

    /// A writer that does not know the size asks for the window of its level, 2 MiB, whatever the cluster has.
    #[test]
    fn zstd_frames_without_a_size_and_with_large_windows() {
        use std::io::Write;
        let mut inflater = Codec::Zstd.inflater().unwrap();
        for bytes in [512, 65536] {
            let data = sample(bytes);
            for window_log in [10, 17, 21, 27] {
                let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
                encoder.include_contentsize(false).unwrap();
                encoder.window_log(window_log).unwrap();
                data.chunks(1000).for_each(|part| encoder.write_all(part).unwrap());
                let stream = [encoder.finish().unwrap(), sample(300)].concat();
                let mut out = vec![0; bytes];
                inflater.inflate(&stream, &mut out).unwrap();
                assert!(out == data, "{bytes} {window_log}");
            }
        }
    }

    /// A cluster in several frames, empty and skippable ones among them.
    #[test]
    fn zstd_frames_one_behind_the_other() {
        let data = sample(65536);
        let frame = |part: &[u8]| zstd::bulk::compress(part, 3).unwrap();
        let skippable = [0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4];
        let (first, second) = (frame(&data[..1000]), frame(&data[1000..]));
        let stream = [&skippable[..], &first, &frame(&[]), &second, &[0xff; 300]].concat();
        let mut inflater = Codec::Zstd.inflater().unwrap();
        let mut out = vec![0; 65536];
        inflater.inflate(&stream, &mut out).unwrap();
        assert!(out == data);
        assert!(inflater.inflate(&frame(&[&data[..], b"x"].concat()), &mut out).is_err());
        assert!(inflater.inflate(&[&first[..], &skippable].concat(), &mut out).is_err());
    }
}
