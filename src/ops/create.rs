//! Creating an image.
//!
//! Everything but the first sector of the header is written and synced before that sector: a crash at any point
//! leaves a file that is not a qcow2 image, or the finished one. What was there before is made unrecognisable
//! first, with a sync of its own.

pub(super) mod luks;
mod plan;

use super::keys::{NewKeys, NewVolume};
use crate::disk::Secret;
use crate::error::{Error, ErrorKind, Result};
use crate::format::entries::{L1Entry, COPIED, ZERO};
use crate::format::extensions::{
    encryption_extension, EncryptionPointer, Extension, BACKING_FORMAT, DATA_FILE, FEATURE_NAMES,
};
use crate::format::features::{
    encode_name_table, AUTOCLEAR_RAW_DATA, COMPAT_LAZY_REFCOUNTS, INCOMPAT_COMPRESSION, INCOMPAT_DATA_FILE,
    INCOMPAT_EXTENDED_L2, MIN_NAME_TABLE_CLUSTER_BYTES,
};
use crate::format::geometry::{round_up, SECTOR_BYTES};
use crate::format::header::{MAX_BACKING_NAME_BYTES, V2_BYTES, V3_BYTES, V3_MIN_BYTES};
use crate::format::{put_be64, refcount, table_bytes, Header};
use crate::options::{CreateOptions, Preallocation};
use crate::storage::{
    is_not_supported, reserve_range, write_all, write_zero_bytes, zero_range, Purpose, Storage,
};
use plan::{L2Table, Plan};
use std::io;
use std::os::unix::ffi::OsStrExt;

/// Size argument that stands for "as the options say".
pub const SIZE_FROM_OPTIONS: u64 = u64::MAX;
/// Largest length that the reference implementation accepts for any file.
const MAX_LENGTH_BYTES: u64 = 0x7fff_ffff_c000_0000;
/// Most bytes that are gathered for one write.
const BATCH_BYTES: usize = 1 << 20;

/// Creates an image of `virtual_size` bytes, rounded up to 512; `SIZE_FROM_OPTIONS` takes `options.size`.
///
/// What the storage held is lost, unless the options or the size are refused: then nothing has changed.
/// A backing file is recorded and not opened. After an error in the middle the storage holds no image.
pub fn create(storage: &dyn Storage, virtual_size: u64, options: &CreateOptions) -> Result<()> {
    create_with(storage, None, virtual_size, options, None)
}

/// As `create`, of an image with an external data file too, which is `data_file`: what it held is lost.
pub fn create_with_data_file(
    storage: &dyn Storage,
    data_file: Option<&dyn Storage>,
    virtual_size: u64,
    options: &CreateOptions,
) -> Result<()> {
    create_with(storage, data_file, virtual_size, options, None)
}

/// As `create_with_data_file`, of an encrypted image too, with `keys` that were made for the options.
pub fn create_with(
    storage: &dyn Storage,
    data_file: Option<&dyn Storage>,
    virtual_size: u64,
    options: &CreateOptions,
    keys: Option<&NewKeys>,
) -> Result<()> {
    options.validate()?;
    if keys.is_some() != options.encryption.is_some() {
        return Err(Secret::missing("encrypt.key-secret"));
    }
    if data_file.is_some() != options.data_file.is_some() {
        return Err(Error::invalid("a data file needs a name to record, and a name a data file"));
    }
    if std::iter::once(storage).chain(data_file).any(|s| s.traits().read_only) {
        return Err(Error::new(ErrorKind::ReadOnly, "a storage takes no writes"));
    }
    let virtual_size = match (virtual_size, options.size) {
        (SIZE_FROM_OPTIONS, Some(size)) if size != SIZE_FROM_OPTIONS => size,
        (SIZE_FROM_OPTIONS, _) => return Err(Error::invalid("Image creation needs a size parameter")),
        (size, _) => size,
    };
    let virtual_size = checked_size(virtual_size, options)?;
    let preallocation = options.preallocation_in_force();
    let volume = keys.and_then(NewKeys::volume);
    let geometry = options.geometry();
    let encryption_clusters = volume.map_or(0, |volume| geometry.clusters_ceil(volume.bytes()));
    let plan = Plan::new(geometry, virtual_size, preallocation, encryption_clusters)?;
    let header = encode_header(&plan, virtual_size, options, volume)?;
    let file_bytes = plan.file_bytes();
    let sizes = [(Some(storage), file_bytes), (data_file, virtual_size)];
    if sizes.iter().any(|(file, bytes)| file.is_some_and(|f| *bytes > f.size_limit())) {
        return Err(Error::host("Could not resize image", &io::Error::from_raw_os_error(libc::EFBIG)));
    }
    let is_blank = clear(storage)?;
    match storage.set_length(file_bytes) {
        // It keeps its length, in which there is room.
        Err(e) if is_not_supported(&e) && storage.length().is_ok_and(|now| now >= file_bytes) => {}
        done => done.map_err(|e| Error::host("Could not resize image", &e))?,
    }

    let mut out = Writer { storage, is_blank, purpose: Purpose::Header, start: 0, buffer: Vec::new() };
    write_refcounts(&mut out, &plan)?;
    write_tables(&mut out, &plan, keys.is_some())?;
    out.flush()?;
    if let Some(volume) = volume {
        write_volume(&out, &plan, volume)?;
    }
    match data_file {
        Some(data_file) => prepare_data_file(data_file, virtual_size, preallocation)?,
        None => prepare_data(&out, &plan, preallocation)?,
    }
    write_header(&out, &plan, header)
}

fn checked_size(virtual_size: u64, options: &CreateOptions) -> Result<u64> {
    let rounded = round_up(virtual_size, SECTOR_BYTES);
    if rounded > i64::MAX as u64 {
        return Err(Error::invalid("Could not resize image: Image size cannot be negative"));
    }
    if rounded > MAX_LENGTH_BYTES {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!("Could not resize image: offset({rounded}) exceeds maximum({MAX_LENGTH_BYTES})"),
        ));
    }
    if rounded > options.geometry().max_virtual_size() {
        return Err(Error::new(
            ErrorKind::TooLarge,
            "The image size is too large for file format 'qcow2' (try using a larger cluster size)",
        ));
    }
    Ok(rounded)
}

/// The used bytes of the header cluster.
fn encode_header(
    plan: &Plan,
    virtual_size: u64,
    options: &CreateOptions,
    volume: Option<&NewVolume>,
) -> Result<Vec<u8>> {
    let geometry = plan.geometry;
    let is_v3 = options.version >= 3;
    let mut extensions = Vec::new();
    let mut extend = |kind, data| extensions.push(Extension { kind, data, offset: 0 });
    if let Some(format) = &options.backing_format {
        extend(BACKING_FORMAT, format.clone().into_bytes());
    }
    if let Some(name) = &options.data_file {
        extend(DATA_FILE, name.as_bytes().to_vec());
    }
    if let Some(volume) = volume {
        let pointer =
            EncryptionPointer { offset: geometry.cluster_offset(plan.encryption_at), bytes: volume.bytes() };
        extensions.push(encryption_extension(&pointer));
    }
    let mut extend = |kind, data| extensions.push(Extension { kind, data, offset: 0 });
    if is_v3 && geometry.cluster_bytes() >= MIN_NAME_TABLE_CLUSTER_BYTES {
        extend(FEATURE_NAMES, encode_name_table());
    }
    let mut header = Header {
        version: options.version,
        backing_file_offset: 0,
        backing_file_bytes: 0,
        cluster_bits: options.cluster_bits,
        virtual_size,
        crypt_method: options.encryption.as_ref().map_or(0, |e| e.method.number()),
        l1_size: plan.l1_entries as u32,
        l1_table_offset: geometry.cluster_offset(plan.l1_at),
        refcount_table_offset: geometry.cluster_offset(plan.table_at),
        refcount_table_clusters: plan.table_clusters as u32,
        snapshot_count: 0,
        snapshots_offset: 0,
        incompatible: incompatible(options),
        compatible: if options.lazy_refcounts { COMPAT_LAZY_REFCOUNTS } else { 0 },
        autoclear: if options.data_file_raw { AUTOCLEAR_RAW_DATA } else { 0 },
        refcount_order: options.refcount_order,
        header_length: if is_v3 { V3_BYTES } else { V2_BYTES } as u32,
        compression_type: options.zstd.into(),
        extra: if is_v3 { vec![0; V3_BYTES - V3_MIN_BYTES - 1] } else { Vec::new() },
        extensions,
        backing_file: options.backing_file.as_ref().map(|name| name.as_bytes().to_vec()),
    };
    let assign = |why: &str| {
        let name = options.backing_file.as_deref().unwrap_or_default().to_string_lossy();
        let format = options.backing_format.as_deref().unwrap_or_default();
        format!("Could not assign backing file '{name}' with format '{format}': {why}")
    };
    if header.backing_file.as_ref().is_some_and(|n| n.len() > MAX_BACKING_NAME_BYTES as usize) {
        return Err(Error::invalid(assign("Invalid argument")));
    }
    // The fixed fields and our extensions fit in any cluster; only a name can be too long.
    header.encode().map_err(|e| {
        let text = match options.backing_file {
            Some(_) => assign("No space left on device"),
            None => "Could not update qcow2 header: No space left on device".into(),
        };
        Error::new(e.kind(), text)
    })
}

fn incompatible(options: &CreateOptions) -> u64 {
    let bits = [
        (options.zstd, INCOMPAT_COMPRESSION),
        (options.extended_l2, INCOMPAT_EXTENDED_L2),
        (options.data_file.is_some(), INCOMPAT_DATA_FILE),
    ];
    bits.iter().filter(|b| b.0).fold(0, |all, b| all | b.1)
}

/// Makes what the storage holds unrecognisable, durably. Answers whether all of it reads as zeroes now.
fn clear(storage: &dyn Storage) -> Result<bool> {
    let length = || storage.length().map_err(|e| Error::host("reading the length of the file", &e));
    let zero_past_end = storage.traits().zero_past_end;
    if length()? == 0 {
        return Ok(zero_past_end);
    }
    match storage.set_length(0) {
        Ok(()) => {}
        Err(e) if is_not_supported(&e) => {}
        Err(e) => return Err(Error::host("Could not truncate the file", &e)),
    }
    let is_blank = length()? == 0;
    if !is_blank {
        write_all(storage, Purpose::Header, 0, &[0; SECTOR_BYTES as usize])?;
    }
    sync(storage)?;
    Ok(is_blank && zero_past_end)
}

fn sync(storage: &dyn Storage) -> Result<()> {
    storage.sync().map_err(|e| Error::host("sync", &e))
}

/// Gathers neighbouring writes of one purpose.
struct Writer<'a> {
    storage: &'a dyn Storage,
    /// What has not been written reads as zeroes.
    is_blank: bool,
    purpose: Purpose,
    start: u64,
    buffer: Vec<u8>,
}

impl Writer<'_> {
    fn write(&mut self, purpose: Purpose, offset: u64, bytes: &[u8]) -> Result<()> {
        let end = self.start + self.buffer.len() as u64;
        if purpose != self.purpose || offset != end || self.buffer.len() + bytes.len() > BATCH_BYTES {
            self.flush()?;
            (self.purpose, self.start) = (purpose, offset);
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let mut bytes = self.buffer.as_slice();
        if self.is_blank {
            // Zero sectors at the end need no space on the host.
            let used = bytes.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
            bytes = &bytes[..round_up(used as u64, SECTOR_BYTES).min(bytes.len() as u64) as usize];
        }
        if !bytes.is_empty() {
            write_all(self.storage, self.purpose, self.start, bytes)?;
        }
        self.buffer.clear();
        Ok(())
    }

    /// Makes a range read as zeroes that nothing has been written to.
    fn zero(&self, purpose: Purpose, offset: u64, length: u64) -> Result<()> {
        if self.is_blank || length == 0 {
            return Ok(());
        }
        zero_range(self.storage, purpose, offset, length)
    }
}

/// The refcount table and the blocks: every cluster of the plan is used once.
fn write_refcounts(out: &mut Writer<'_>, plan: &Plan) -> Result<()> {
    let geometry = plan.geometry;
    let entries = geometry.refcount_block_entries();
    let full = counted_block(plan, entries);
    for (index, at) in plan.blocks.iter().enumerate() {
        let counted = plan.end.saturating_sub(index as u64 * entries).min(entries);
        let offset = geometry.cluster_offset(*at);
        if counted == entries {
            out.write(Purpose::RefcountBlock, offset, &full)?;
        } else {
            out.write(Purpose::RefcountBlock, offset, &counted_block(plan, counted))?;
        }
    }
    let offsets: Vec<u64> = plan.blocks.iter().map(|at| geometry.cluster_offset(*at)).collect();
    let mut table = table_bytes("refcount table", &offsets)?;
    table.resize((plan.table_clusters * geometry.cluster_bytes()) as usize, 0);
    out.write(Purpose::RefcountTable, geometry.cluster_offset(plan.table_at), &table)
}

/// A block whose first `counted` clusters have the count 1.
fn counted_block(plan: &Plan, counted: u64) -> Vec<u8> {
    let order = plan.geometry.refcount_order;
    let mut block = vec![0; plan.geometry.cluster_bytes() as usize];
    // Eight bytes hold whole counts of every width; a block may hold 16 million.
    let mut pattern = [0; 8];
    let per_pattern = 64 >> order;
    (0..per_pattern).for_each(|index| refcount::set(&mut pattern, order, index, 1));
    let patterns = (counted / per_pattern) as usize;
    block.chunks_exact_mut(8).take(patterns).for_each(|part| part.copy_from_slice(&pattern));
    (counted / per_pattern * per_pattern..counted)
        .for_each(|index| refcount::set(&mut block, order, index, 1));
    block
}

/// The encryption header, zeroes around it.
fn write_volume(out: &Writer<'_>, plan: &Plan, volume: &NewVolume) -> Result<()> {
    let geometry = plan.geometry;
    let at = geometry.cluster_offset(plan.encryption_at);
    out.zero(Purpose::Encryption, at, geometry.cluster_offset(plan.encryption_clusters))?;
    write_all(out.storage, Purpose::Encryption, at, &volume.header.encode())?;
    let material_at = at + volume.header.material_offset(0);
    write_all(out.storage, Purpose::Encryption, material_at, &volume.material)
}

/// The L1 table and the L2 tables of a preallocation.
fn write_tables(out: &mut Writer<'_>, plan: &Plan, encrypted: bool) -> Result<()> {
    let geometry = plan.geometry;
    // Zeroes of the host are none where they are decrypted. An extended entry says of no subcluster that it is there.
    let flags = if encrypted && !geometry.extended_l2 { COPIED | ZERO } else { COPIED };
    let l1_offset = geometry.cluster_offset(plan.l1_at);
    let l1_bytes = (plan.l1_entries * 8).min(plan.file_bytes() - l1_offset);
    let l1_area = round_up(plan.l1_entries * 8, geometry.cluster_bytes()).min(plan.file_bytes() - l1_offset);
    if plan.l2.is_empty() {
        out.flush()?;
        return out.zero(Purpose::L1, l1_offset, l1_area);
    }
    debug_assert_eq!(l1_bytes, plan.l1_entries * 8);
    let mut table = vec![0; geometry.cluster_bytes() as usize];
    for l2 in &plan.l2 {
        let mut entry = geometry.cluster_offset(l2.data_at) | flags;
        // The bitmap of an extended entry stays zero: no subcluster is allocated yet, a backing file shows through.
        let (used, rest) = table.split_at_mut((l2.data_clusters * geometry.l2_entry_bytes()) as usize);
        for raw in used.chunks_exact_mut(geometry.l2_entry_bytes() as usize) {
            put_be64(raw, 0, entry);
            entry += geometry.cluster_bytes();
        }
        rest.fill(0);
        out.write(Purpose::L2, geometry.cluster_offset(l2.at), &table)?;
    }
    let entry = |l2: &L2Table| L1Entry::owned(geometry.cluster_offset(l2.at)).0;
    let mut l1 = table_bytes("L1 table", &plan.l2.iter().map(entry).collect::<Vec<_>>())?;
    l1.resize(l1_area as usize, 0);
    out.write(Purpose::L1, l1_offset, &l1)
}

/// Makes preallocated data read as zeroes, with as much host space as was asked for.
fn prepare_data(out: &Writer<'_>, plan: &Plan, preallocation: Preallocation) -> Result<()> {
    let geometry = plan.geometry;
    if preallocation == Preallocation::Metadata {
        // Nothing to do on blank files, where it costs nothing; elsewhere old bytes would become guest data.
        for l2 in plan.l2.iter().filter(|_| !out.is_blank) {
            let length = geometry.cluster_offset(l2.data_clusters);
            out.zero(Purpose::Data, geometry.cluster_offset(l2.data_at), length)?;
        }
        return Ok(());
    }
    // The data is one run.
    let (Some(first), Some(last)) = (plan.l2.first(), plan.l2.last()) else { return Ok(()) };
    let start = geometry.cluster_offset(first.data_at);
    let length = geometry.cluster_offset(last.data_at + last.data_clusters) - start;
    if preallocation == Preallocation::Falloc {
        let reserved = reserve_range(out.storage, Purpose::Data, start, length);
        reserved.map_err(|e| Error::host("Could not preallocate data clusters", &e))?;
        return out.zero(Purpose::Data, start, length);
    }
    fill(out.storage, start, length)
}

/// Makes a data file one of zeroes, as long as the disk, durably.
fn prepare_data_file(storage: &dyn Storage, virtual_size: u64, preallocation: Preallocation) -> Result<()> {
    let is_blank = clear(storage)?;
    let could_not = |e| Error::host("Could not resize the data file", &e);
    match storage.set_length(virtual_size) {
        Err(e) if !is_blank && is_not_supported(&e) => {}
        done => done.map_err(could_not)?,
    }
    if preallocation == Preallocation::Falloc && virtual_size > 0 {
        let reserved = reserve_range(storage, Purpose::Data, 0, virtual_size);
        reserved.map_err(|e| Error::host("Could not preallocate data clusters", &e))?;
    }
    if preallocation == Preallocation::Full {
        fill(storage, 0, virtual_size)?;
    } else if !is_blank && virtual_size > 0 {
        zero_range(storage, Purpose::Data, 0, virtual_size)?;
    }
    sync(storage)
}

/// As `write_zero_bytes`, of the guest's data.
fn fill(storage: &dyn Storage, start: u64, length: u64) -> Result<()> {
    write_zero_bytes(storage, Purpose::Data, start, length)
        .map_err(|e| e.within("Could not preallocate data clusters"))
}

/// The header, its first sector last.
fn write_header(out: &Writer<'_>, plan: &Plan, mut header: Vec<u8>) -> Result<()> {
    let used = if out.is_blank { SECTOR_BYTES } else { plan.geometry.cluster_bytes() };
    header.resize(round_up(header.len() as u64, used) as usize, 0);
    let (sector, rest) = header.split_at(SECTOR_BYTES as usize);
    if !rest.is_empty() {
        write_all(out.storage, Purpose::Header, SECTOR_BYTES, rest)?;
    }
    sync(out.storage)?;
    write_all(out.storage, Purpose::Header, 0, sector)?;
    sync(out.storage)
}

#[cfg(test)]
mod tests;
