//! Inflates one cluster: exactly its length, or an error. What follows the stream in its last sector is not looked at.

use super::Codec;
use zstd::zstd_safe::{self, DCtx};

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

/// Takes frames until the cluster is full: one from every known writer. Each is inflated in one go, so that `cluster`
/// itself is the history and the window that the frame asks for costs nothing.
fn inflate_zstd(engine: &mut DCtx<'_>, input: &[u8], cluster: &mut [u8]) -> Result<(), &'static str> {
    let bad = "not a valid zstd frame";
    let (mut input, mut rest) = (input, cluster);
    while !rest.is_empty() {
        if input.is_empty() {
            return Err("the zstd frame is shorter than a cluster");
        }
        let length = zstd_safe::find_frame_compressed_size(input).map_err(|_| bad)?;
        let (frame, behind) = input.split_at_checked(length).filter(|_| length > 0).ok_or(bad)?;
        let done = engine.decompress(rest, frame).map_err(|_| bad)?;
        (input, rest) = (behind, rest.get_mut(done..).ok_or(bad)?);
    }
    Ok(())
}
