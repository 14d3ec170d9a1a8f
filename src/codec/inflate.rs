//! Inflating one cluster.

use super::Codec;
use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, ResetDirective};

/// Inflates clusters one after the other; for one thread.
pub struct Inflater {
    engine: Engine,
}

enum Engine {
    Deflate(libdeflater::Decompressor),
    Zstd(DCtx<'static>),
}

impl Codec {
    /// An inflater of this kind; `None` when there is no memory for it.
    pub fn inflater(self) -> Option<Inflater> {
        let engine = match self {
            Codec::Deflate => Engine::Deflate(libdeflater::Decompressor::new()),
            Codec::Zstd => Engine::Zstd(DCtx::try_create()?),
        };
        Some(Inflater { engine })
    }
}

impl Inflater {
    /// Inflates the stream at the start of `input` to exactly fill `cluster`; the error is the broken rule, and
    /// `cluster` holds anything then.
    pub fn inflate(&mut self, input: &[u8], cluster: &mut [u8]) -> Result<(), &'static str> {
        match &mut self.engine {
            Engine::Deflate(engine) => inflate_deflate(engine, input, cluster),
            Engine::Zstd(engine) => inflate_zstd(engine, input, cluster),
        }
    }
}

fn inflate_deflate(
    engine: &mut libdeflater::Decompressor,
    input: &[u8],
    cluster: &mut [u8],
) -> Result<(), &'static str> {
    match engine.deflate_decompress(input, cluster) {
        Ok(length) if length == cluster.len() => Ok(()),
        Ok(_) => Err("the deflate stream is shorter than a cluster"),
        Err(libdeflater::DecompressionError::InsufficientSpace) => {
            Err("the deflate stream is longer than a cluster")
        }
        Err(_) => Err("not a valid deflate stream"),
    }
}

/// Takes one frame, and no more than a cluster from it. With the size in the frame, as every known writer stores
/// it, zstd inflates in one go into `cluster`; otherwise through its window.
fn inflate_zstd(engine: &mut DCtx<'_>, input: &[u8], cluster: &mut [u8]) -> Result<(), &'static str> {
    let bad = "not a valid zstd frame";
    // Whatever the last stream left half done.
    engine.reset(ResetDirective::SessionOnly).map_err(|_| bad)?;
    // The format's writers use a window of at most a cluster; zstd's least limit is 2^10.
    let window_log = cluster.len().next_power_of_two().trailing_zeros().max(17);
    engine.set_parameter(DParameter::WindowLogMax(window_log)).map_err(|_| bad)?;
    let wanted = cluster.len();
    let mut out = OutBuffer::around(cluster);
    let mut stream = InBuffer::around(input);
    while out.pos() < wanted {
        let before = (stream.pos(), out.pos());
        let left = engine.decompress_stream(&mut out, &mut stream).map_err(|_| bad)?;
        if out.pos() == wanted {
            break;
        }
        if left == 0 {
            return Err("the zstd frame is shorter than a cluster");
        }
        if before == (stream.pos(), out.pos()) {
            return Err(bad);
        }
    }
    Ok(())
}
