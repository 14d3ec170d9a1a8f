//! A caller's storage: a table of functions behind the engine's storage trait.

use super::edge::take;
use super::text::path;
use super::types::QCOW2_EXTENT_ZERO;
use crate::error::{Error, Result};
use crate::ops::open::Origin;
use crate::storage::end::{End, EndAlone};
use crate::storage::event::Event;
use crate::storage::{HostRun, Purpose, Storage, Traits};
use std::cell::Cell;
use std::ffi::{c_char, c_int, c_void};
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

/// A caller's storage. The functions return 0 or -errno and move whole ranges; a read past the end fills
/// zeroes. They are called from every thread that calls the library, several at once. Optional ones may be
/// NULL. The table is copied by the call that takes it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct qcow2_io_ops {
    /// sizeof(qcow2_io_ops), set by the caller.
    pub struct_size: usize,
    /// Fills the buffers from `offset`.
    pub preadv: Option<
        unsafe extern "C" fn(
            opaque: *mut c_void,
            iov: *const libc::iovec,
            iovcnt: c_int,
            offset: u64,
        ) -> c_int,
    >,
    /// Writes the buffers at `offset`. NULL: the storage is read-only.
    pub pwritev: Option<
        unsafe extern "C" fn(
            opaque: *mut c_void,
            iov: *const libc::iovec,
            iovcnt: c_int,
            offset: u64,
        ) -> c_int,
    >,
    /// Makes every completed write durable. NULL: they are at once.
    pub sync: Option<unsafe extern "C" fn(opaque: *mut c_void) -> c_int>,
    /// Length in bytes, or -errno.
    pub length: Option<unsafe extern "C" fn(opaque: *mut c_void) -> i64>,
    /// Cuts, or extends with zeroes. Optional: without it storage grows by writes, and never shrinks.
    pub truncate: Option<unsafe extern "C" fn(opaque: *mut c_void, length: u64) -> c_int>,
    /// The range is not needed any more. Optional.
    pub discard: Option<unsafe extern "C" fn(opaque: *mut c_void, offset: u64, length: u64) -> c_int>,
    /// Makes the range read as zeroes. Optional.
    pub write_zeroes: Option<unsafe extern "C" fn(opaque: *mut c_void, offset: u64, length: u64) -> c_int>,
    /// Called once, when the library is done with the storage, also when the call that was given it fails: it is the
    /// library's from the moment of that call. Not where nothing was handed over: the struct that names it, or this one,
    /// is refused for its `struct_size` or for fields that this version does not know. Optional.
    pub close: Option<unsafe extern "C" fn(opaque: *mut c_void)>,
    /// For tests against faults: told what the engine is about to do here, by the names of the stock tools' driver for
    /// faults: read_aio, write_aio (guest data), l1_update, l2_load, l2_update, reftable_load, reftable_update,
    /// refblock_load, refblock_update_part (just before that read or write); l1_grow_alloc_table, l1_grow_write_table,
    /// l1_grow_activate_table, l2_alloc_write, cluster_alloc, cluster_alloc_bytes, cluster_free, reftable_grow,
    /// refblock_alloc, refblock_alloc_write, refblock_alloc_hookup, refblock_alloc_write_blocks, refblock_alloc_write_table,
    /// refblock_alloc_switch_table, empty_image_prepare, read_compressed, write_compressed, flush_to_os,
    /// flush_to_disk (as a flush begins), vmstate_load, vmstate_save. More may come. `name` is static. It
    /// may wait: the request stands still there, with what it holds. Optional, and costs nothing where it is not given.
    pub event: Option<unsafe extern "C" fn(opaque: *mut c_void, name: *const c_char)>,
    /// What the storage knows about a range: `*flags` becomes QCOW2_EXTENT_ZERO where it reads as zeroes, else
    /// QCOW2_EXTENT_DATA, and `*run` for how many bytes from `offset` on this holds, at least 1. Asked only about what a
    /// sync has covered. Optional: without it all of it is data.
    pub block_status: Option<
        unsafe extern "C" fn(
            opaque: *mut c_void,
            offset: u64,
            length: u64,
            run: *mut u64,
            flags: *mut u32,
        ) -> c_int,
    >,
}

/// No table has been made.
const NOWHERE: u64 = u64::MAX;
/// A table has been made that nobody has read from yet.
const ANYWHERE: u64 = u64::MAX - 1;

thread_local! {
    /// What is read or written next has been told of: compressed clusters are data of a kind of their own.
    static TOLD: Cell<bool> = const { Cell::new(false) };
}

struct CustomIo {
    ops: qcow2_io_ops,
    opaque: *mut c_void,
    end: End,
    /// Where the next read of a table that has just been made begins: it is no load for who listens.
    newborn: AtomicU64,
}

// SAFETY: the contract of `qcow2_io_ops` allows calls from any thread, several at once.
unsafe impl Send for CustomIo {}
// SAFETY: as above.
unsafe impl Sync for CustomIo {}

impl CustomIo {
    /// Whether a read goes on through a table that has just been made.
    fn is_newborn(&self, offset: u64, buffers: &[IoSliceMut<'_>]) -> bool {
        let next = self.newborn.load(Ordering::SeqCst);
        let bytes: u64 = buffers.iter().map(|b| b.len() as u64).sum();
        let newborn = next == ANYWHERE || next == offset;
        if newborn {
            self.newborn.store(offset + bytes, Ordering::SeqCst);
        }
        newborn
    }

    fn tell(&self, event: Option<Event>) {
        let (Some(tell), Some(event)) = (self.ops.event, event) else { return };
        let told = TOLD.replace(matches!(event, Event::ReadCompressed | Event::WriteCompressed));
        if told && matches!(event, Event::ReadData | Event::WriteData) {
            return;
        }
        if event == Event::L2AllocWrite {
            self.newborn.store(ANYWHERE, Ordering::SeqCst);
        }
        // SAFETY: the caller's function and opaque pointer; names are static.
        unsafe { tell(self.opaque, event.name().as_ptr()) }
    }

    /// Grows storage that has no `truncate`: by writing, for a write past the end extends. Zeroes all the way,
    /// for nobody says what the gap before such a write holds.
    fn extend(&self, length: u64) -> io::Result<()> {
        static ZEROES: [u8; 65536] = [0; 65536];
        let mut at = self.length()?;
        if length < at {
            return Err(not_supported());
        }
        while at < length {
            let count = (length - at).min(ZEROES.len() as u64);
            self.write_all(at, &[IoSlice::new(&ZEROES[..count as usize])])?;
            at += count;
        }
        Ok(())
    }

    /// As `set_length`, while nobody writes past the end.
    fn set_length_alone(&self, alone: &EndAlone<'_>, length: u64) -> io::Result<()> {
        alone.set(length, || match self.ops.truncate {
            None => self.extend(length),
            // SAFETY: the caller's function and opaque pointer.
            Some(truncate) => answer(unsafe { truncate(self.opaque, length) }),
        })
    }

    fn write_all(&self, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        let Some(pwritev) = self.ops.pwritev else { return Err(io::Error::from_raw_os_error(libc::EROFS)) };
        let mut at = offset;
        for group in buffers.chunks(1024) {
            // SAFETY: IoSlice has the layout of iovec; the buffers live across the call.
            answer(unsafe { pwritev(self.opaque, group.as_ptr().cast(), group.len() as c_int, at) })?;
            at += group.iter().map(|b| b.len() as u64).sum::<u64>();
        }
        Ok(())
    }
}

impl Drop for CustomIo {
    fn drop(&mut self) {
        if let Some(close) = self.ops.close {
            // SAFETY: the last use of the caller's opaque pointer.
            unsafe { close(self.opaque) }
        }
    }
}

/// Takes over a caller's storage.
pub(super) unsafe fn wrap(ops: *const qcow2_io_ops, opaque: *mut c_void) -> Result<Arc<dyn Storage>> {
    let none = qcow2_io_ops {
        struct_size: 0,
        preadv: None,
        pwritev: None,
        sync: None,
        length: None,
        truncate: None,
        discard: None,
        write_zeroes: None,
        close: None,
        event: None,
        block_status: None,
    };
    // SAFETY: the caller's pointer, checked for NULL.
    let ops = unsafe { take(ops, none, "io") }?;
    let custom = CustomIo { ops, opaque, end: End::new(0), newborn: AtomicU64::new(NOWHERE) };
    if custom.ops.preadv.is_none() || custom.ops.length.is_none() {
        return Err(Error::invalid("io: preadv and length are required"));
    }
    Ok(Arc::new(custom))
}

/// The one place that is given, if any. A storage is taken over, and closed, also beside another place.
pub(super) unsafe fn place(
    name: *const c_char,
    fd: Option<c_int>,
    io: *const qcow2_io_ops,
    opaque: *mut c_void,
) -> Result<Option<Origin>> {
    // SAFETY: the caller's pointers, as the contract says.
    let custom = if io.is_null() { None } else { Some(unsafe { wrap(io, opaque) }?) };
    match (!name.is_null(), fd, custom) {
        (false, None, None) => Ok(None),
        // SAFETY: as above.
        (true, None, None) => Ok(Some(Origin::Path(unsafe { path(name) }?))),
        (false, Some(fd), None) => Ok(Some(Origin::Descriptor(fd))),
        (false, None, Some(custom)) => Ok(Some(Origin::Custom(custom))),
        _ => Err(Error::invalid("more than one of path, fd and io is given")),
    }
}

fn answer(code: c_int) -> io::Result<()> {
    match code {
        0 => Ok(()),
        -4095..0 => Err(io::Error::from_raw_os_error(-code)),
        _ => Err(io::Error::from_raw_os_error(libc::EIO)),
    }
}

fn not_supported() -> io::Error {
    io::Error::from_raw_os_error(libc::EOPNOTSUPP)
}

impl Storage for CustomIo {
    fn read(&self, purpose: Purpose, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        let Some(preadv) = self.ops.preadv else { return Err(not_supported()) };
        if self.ops.event.is_some() && !(purpose == Purpose::L2 && self.is_newborn(offset, buffers)) {
            self.tell(Event::of_read(purpose));
        }
        let mut at = offset;
        for group in buffers.chunks_mut(1024) {
            // SAFETY: IoSliceMut has the layout of iovec; the buffers live across the call.
            answer(unsafe { preadv(self.opaque, group.as_ptr().cast(), group.len() as c_int, at) })?;
            at += group.iter().map(|b| b.len() as u64).sum::<u64>();
        }
        Ok(())
    }

    fn write(&self, purpose: Purpose, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        self.tell(Event::of_write(purpose));
        let bytes: u64 = buffers.iter().map(|b| b.len() as u64).sum();
        self.end.write(offset.saturating_add(bytes), || self.write_all(offset, buffers))
    }

    fn sync(&self) -> io::Result<()> {
        // SAFETY: the caller's function and opaque pointer.
        self.ops.sync.map_or(Ok(()), |sync| answer(unsafe { sync(self.opaque) }))
    }

    fn length(&self) -> io::Result<u64> {
        let Some(length) = self.ops.length else { return Err(not_supported()) };
        // SAFETY: the caller's function and opaque pointer.
        let bytes = unsafe { length(self.opaque) };
        let length =
            u64::try_from(bytes).map_err(|_| io::Error::from_raw_os_error((-bytes).clamp(1, 4095) as i32))?;
        self.end.note(length);
        Ok(length)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.set_length_alone(&self.end.alone(), length)
    }

    fn grow(&self, length: u64) -> io::Result<u64> {
        let alone = self.end.alone();
        let now = self.length()?;
        if now < length {
            self.set_length_alone(&alone, length)?;
        }
        Ok(now.max(length))
    }

    fn write_zeroes(&self, purpose: Purpose, offset: u64, length: u64) -> io::Result<()> {
        let Some(write_zeroes) = self.ops.write_zeroes else { return Err(not_supported()) };
        self.tell(Event::of_write(purpose));
        // SAFETY: the caller's function and opaque pointer.
        answer(unsafe { write_zeroes(self.opaque, offset, length) })
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        let Some(discard) = self.ops.discard else { return Err(not_supported()) };
        // SAFETY: the caller's function and opaque pointer.
        answer(unsafe { discard(self.opaque, offset, length) })
    }

    fn event(&self, event: Event) {
        self.tell(Some(event));
    }

    fn listens(&self) -> bool {
        self.ops.event.is_some()
    }

    fn preallocate(&self, _: u64, _: u64) -> io::Result<()> {
        Err(not_supported())
    }

    fn host_run(&self, offset: u64) -> io::Result<HostRun> {
        let end = self.length()?;
        let Some(status) = self.ops.block_status.filter(|_| offset < end) else {
            return Ok(HostRun { data: true, end });
        };
        let (mut run, mut flags) = (0, 0);
        // SAFETY: the caller's function and opaque pointer; the places outlive the call.
        answer(unsafe { status(self.opaque, offset, end - offset, &raw mut run, &raw mut flags) })?;
        Ok(HostRun { data: flags & QCOW2_EXTENT_ZERO == 0, end: offset + run.clamp(1, end - offset) })
    }

    fn settle_runs(&self) -> io::Result<()> {
        self.ops.block_status.map_or(Ok(()), |_| self.sync())
    }

    fn traits(&self) -> Traits {
        Traits {
            alignment: 1,
            zero_past_end: self.ops.truncate.is_some(),
            discard_zeroes: false,
            read_only: self.ops.pwritev.is_none(),
        }
    }
}
