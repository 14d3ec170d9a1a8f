//! Moving bytes: whole transfers, however short or interrupted the calls are.

use super::sys::{copy_file_range, host_offset, pread, preadv, pwrite, pwritev, MAX_IOV};
use crate::planted::{planted, Plant};
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};

/// Largest transfer of one system call, bytes; Linux stops at 2^31 - 4096.
const MAX_TRANSFER_BYTES: usize = 1 << 30;

/// Reads all of `buffer`; zeroes past the end of the file.
#[inline]
pub(in crate::storage) fn read_one(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
    let n = pread(file, buffer, offset as i64);
    if n == buffer.len() as isize {
        return Ok(());
    }
    read_rest(file, offset, buffer, n)
}

/// Goes on after a first call that answered `n`.
#[cold]
fn read_rest(file: &File, mut offset: u64, mut buffer: &mut [u8], mut n: isize) -> io::Result<()> {
    loop {
        match n {
            0 => {
                buffer.fill(0);
                return Ok(());
            }
            1.. => {
                offset += n as u64;
                buffer = &mut buffer[n as usize..];
            }
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
        if buffer.is_empty() {
            return Ok(());
        }
        let bytes = buffer.len().min(MAX_TRANSFER_BYTES);
        n = pread(file, &mut buffer[..bytes], host_offset(offset)?);
    }
}

/// Writes all of `buffer`.
#[inline]
pub(in crate::storage) fn write_one(file: &File, offset: u64, buffer: &[u8]) -> io::Result<()> {
    let n = pwrite(file, buffer, offset as i64);
    if n == buffer.len() as isize {
        return Ok(());
    }
    match n {
        ..0 => write_rest(file, offset, buffer, io::Error::last_os_error()),
        _ if planted(Plant::ShortWriteTakenForWhole) => Ok(()),
        n => write_more(file, offset + n as u64, &buffer[n as usize..]),
    }
}

/// Goes on after a first call that failed.
#[cold]
fn write_rest(file: &File, offset: u64, buffer: &[u8], error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::Interrupted => write_more(file, offset, buffer),
        _ => Err(error),
    }
}

/// Writes all of `buffer`, after a call that did less.
#[cold]
fn write_more(file: &File, mut offset: u64, mut buffer: &[u8]) -> io::Result<()> {
    while !buffer.is_empty() {
        let bytes = buffer.len().min(MAX_TRANSFER_BYTES);
        match once(|| pwrite(file, &buffer[..bytes], offset as i64))? {
            0 => return Err(io::Error::from_raw_os_error(libc::EIO)),
            n if n < bytes && planted(Plant::ShortWriteTakenForWhole) => return Ok(()),
            n => {
                offset += n as u64;
                buffer = &buffer[n..];
            }
        }
    }
    Ok(())
}

/// Fills all buffers with one system call where it goes in one; the rest piece by piece.
pub(in crate::storage) fn read_many(
    file: &File,
    mut offset: u64,
    buffers: &mut [IoSliceMut<'_>],
) -> io::Result<()> {
    for group in buffers.chunks_mut(MAX_IOV) {
        let wanted: usize = group.iter().map(|b| b.len()).sum();
        let mut done = 0;
        if wanted <= MAX_TRANSFER_BYTES {
            let at = host_offset(offset)?;
            done = once(|| preadv(file, group, at))?;
        }
        let mut start = 0;
        for buffer in group.iter_mut().filter(|_| done < wanted) {
            let skip = done.saturating_sub(start).min(buffer.len());
            read_one(file, offset + (start + skip) as u64, &mut buffer[skip..])?;
            start += buffer.len();
        }
        offset += wanted as u64;
    }
    Ok(())
}

/// Writes all buffers with one system call where it goes in one; the rest piece by piece.
pub(in crate::storage) fn write_many(
    file: &File,
    mut offset: u64,
    buffers: &[IoSlice<'_>],
) -> io::Result<()> {
    for group in buffers.chunks(MAX_IOV) {
        let wanted: usize = group.iter().map(|b| b.len()).sum();
        let mut done = 0;
        if wanted <= MAX_TRANSFER_BYTES {
            let at = host_offset(offset)?;
            done = once(|| pwritev(file, group, at))?;
        }
        let mut start = 0;
        for buffer in group.iter().filter(|_| done < wanted) {
            let skip = done.saturating_sub(start).min(buffer.len());
            write_one(file, offset + (start + skip) as u64, &buffer[skip..])?;
            start += buffer.len();
        }
        offset += wanted as u64;
    }
    Ok(())
}

/// One system call, again after EINTR.
pub(super) fn once(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        let answer = call();
        if answer >= 0 {
            return Ok(answer as usize);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Copies all of a range on the host.
pub(super) fn copy_range(
    from: i32,
    from_offset: u64,
    to: &File,
    to_offset: u64,
    length: u64,
) -> io::Result<()> {
    let (mut at, mut to_at) = (host_offset(from_offset)?, host_offset(to_offset)?);
    let mut left = length;
    while left > 0 {
        let part = left.min(MAX_TRANSFER_BYTES as u64);
        let copied = once(|| copy_file_range(from, &mut at, to, &mut to_at, part as usize));
        match copied {
            // The source has ended. What is missing reads as zeroes, which is not the host's to know.
            Ok(0) => return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
            Ok(bytes) => left -= bytes as u64,
            // On different file systems, or a kind of file that is not copied so.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EXDEV | libc::EBADF | libc::EPERM)) => {
                return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
