//! Stream: what a range shows of the disks below becomes the image's own, beside guest requests.

use super::backing::writable;
use super::handle::Handle;
use crate::error::{Error, Result};
use crate::image::{no_layer, StreamScope};

/// Takes over what the layers above the one at `base` hold of a range; 0: of all layers. `progress(done, total)` in
/// bytes; `false` cancels.
pub fn stream(
    handle: &Handle,
    offset: u64,
    length: u64,
    base: u32,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<()> {
    let image = writable(handle)?;
    let core = image.core();
    if core.header().backing_file.is_some() && core.backing().is_none() {
        return Err(Error::invalid(
            "the image was opened without its backing file: what it shows is not known",
        ));
    }
    if base as usize > handle.disk().backing_depth() {
        return Err(no_layer(base));
    }
    let scope = if base == 0 { StreamScope::All } else { StreamScope::Above(base) };
    image.stream(offset, length, scope, progress)
}
