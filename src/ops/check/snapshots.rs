//! The snapshot table: read with what a repair can mend, and written anew when it has been mended.

use super::finding::{Finding, What};
use super::pass::Pass;
use super::MessageKind;
use crate::error::{Error, ErrorKind, Result};
use crate::format::header::MAX_SNAPSHOTS;
use crate::format::snapshot::{EntrySizes, Snapshot, FIXED_BYTES, MAX_EXTRA_BYTES, MAX_TABLE_BYTES};
use crate::storage::{read_exact, write_all, Purpose};

/// Bytes of the table read at once; more than one entry of usual size.
const WINDOW_BYTES: u64 = 64 << 10;

/// The table's bytes, read as needed.
struct Window {
    start: u64,
    bytes: Vec<u8>,
}

impl Pass<'_> {
    /// Reads the snapshot table. An entry that is too short is told; what no reader accepts ends the check,
    /// unless errors are being repaired.
    pub fn read_snapshots(&mut self) -> Result<()> {
        let mut count = self.header.snapshot_count;
        if count == 0 {
            return Ok(());
        }
        if count > MAX_SNAPSHOTS {
            self.drop_overhanging(count - MAX_SNAPSHOTS)?;
            count = MAX_SNAPSHOTS;
        }
        let mut window = Window { start: 0, bytes: Vec::new() };
        let (mut at, mut end) = (0, 0);
        for index in 0..count {
            let (snapshot, entry_bytes) = self.read_entry(&mut window, at, index)?;
            if at + entry_bytes > MAX_TABLE_BYTES {
                self.drop_past_the_limit(count - index)?;
                break;
            }
            end = at + entry_bytes;
            at = end.div_ceil(8) * 8;
            self.snapshots.list.push(snapshot);
        }
        self.snapshots.stored_bytes = end;
        self.complete_entries();
        Ok(())
    }

    /// Entries without the data that version 3 asks for.
    fn complete_entries(&mut self) {
        if self.header.version < 3 {
            return;
        }
        for index in 0..self.snapshots.list.len() {
            if self.snapshots.list[index].is_complete() {
                continue;
            }
            let finding = Finding::new(What::SnapshotIncomplete, [index as u64, 0, 0]);
            if self.options.repair_errors {
                self.report.corruptions_fixed += 1;
                self.snapshots.changed = true;
                self.tell(finding.mended(true));
            } else {
                self.corruption(finding);
            }
        }
    }

    fn drop_overhanging(&mut self, overhang: u32) -> Result<()> {
        self.drop_last(What::SnapshotsTooMany, overhang, "snapshot table too large")
    }

    /// The last `overhang` entries reach past the largest table.
    fn drop_past_the_limit(&mut self, overhang: u32) -> Result<()> {
        self.drop_last(What::SnapshotTableTooBig, overhang, "Snapshot table is too big")
    }

    /// Drops the last `overhang` entries, or tells that a repair would.
    fn drop_last(&mut self, what: What, overhang: u32, text: &str) -> Result<()> {
        let numbers = [0, 0, u64::from(overhang)];
        self.tell(Finding::new(what, numbers).mended(self.options.repair_errors));
        if !self.options.repair_errors {
            self.tell(Finding::new(What::HintSnapshots, numbers).of_kind(MessageKind::Info));
            return Err(too_large(text));
        }
        self.report.corruptions_fixed += u64::from(overhang);
        self.snapshots.changed = true;
        Ok(())
    }

    /// Reads entry `index` at `at`; answers it and the bytes that it takes in the image without padding.
    fn read_entry(&mut self, window: &mut Window, at: u64, index: u32) -> Result<(Snapshot, u64)> {
        let sizes = EntrySizes::parse(self.table_bytes(window, at, FIXED_BYTES as u64)?);
        if sizes.extra_bytes <= MAX_EXTRA_BYTES {
            let entry = self.table_bytes(window, at, sizes.entry_bytes())?;
            return Ok((Snapshot::parse(entry, index)?, sizes.entry_bytes()));
        }
        let numbers = [index, sizes.extra_bytes, MAX_EXTRA_BYTES].map(u64::from);
        self.tell(Finding::new(What::SnapshotExtra, numbers).mended(self.options.repair_errors));
        if !self.options.repair_errors {
            self.tell(Finding::new(What::HintExtra, [0; 3]).of_kind(MessageKind::Info));
            return Err(too_large("Too much extra metadata in snapshot table entry"));
        }
        self.report.corruptions_fixed += 1;
        self.snapshots.changed = true;
        let kept = FIXED_BYTES as u64 + u64::from(MAX_EXTRA_BYTES);
        let mut entry = self.table_bytes(window, at, kept)?.to_vec();
        EntrySizes { extra_bytes: MAX_EXTRA_BYTES, ..sizes }.put(&mut entry);
        let names_at = at + FIXED_BYTES as u64 + u64::from(sizes.extra_bytes);
        let names_bytes = u64::from(sizes.id_bytes) + u64::from(sizes.name_bytes);
        entry.extend(self.table_bytes(window, names_at, names_bytes)?);
        Ok((Snapshot::parse(&entry, index)?, sizes.entry_bytes()))
    }

    /// Bytes of the stored table, through the window. Past the end of the file they are zeroes.
    fn table_bytes<'w>(&self, window: &'w mut Window, at: u64, bytes: u64) -> Result<&'w [u8]> {
        let end = window.start + window.bytes.len() as u64;
        if at < window.start || at + bytes > end {
            window.start = at;
            window.bytes.clear();
            window.bytes.resize(bytes.max(WINDOW_BYTES) as usize, 0);
            let from = self.header.snapshots_offset + at;
            read_exact(self.storage, Purpose::Snapshots, from, &mut window.bytes)?;
        }
        let first = (at - window.start) as usize;
        Ok(&window.bytes[first..first + bytes as usize])
    }

    /// Writes a mended table into free clusters, then points the header to it, then frees the old one.
    pub fn write_snapshots(&mut self) -> Result<()> {
        if !self.snapshots.changed || !self.repairs() {
            return Ok(());
        }
        let mut table = Vec::new();
        for snapshot in &self.snapshots.list {
            snapshot.encode(self.header.virtual_size, &mut table);
        }
        if table.len() as u64 > MAX_TABLE_BYTES {
            return Err(too_large("snapshot table is larger than 64 MiB"));
        }
        let offset = match table.len() as u64 {
            0 => 0,
            bytes => self.take_clusters(bytes)?,
        };
        write_all(self.storage, Purpose::Snapshots, offset, &table)?;
        self.stored.write_back(self.storage)?;
        self.sync()?;
        let (old, old_bytes) = (self.header.snapshots_offset, self.snapshots.stored_bytes);
        self.header.snapshot_count = self.snapshots.list.len() as u32;
        self.header.snapshots_offset = offset;
        self.write_header_fields()?;
        self.sync()?;
        if self.snapshots.counted {
            self.release_clusters(old, old_bytes)?;
            self.stored.write_back(self.storage)?;
        }
        self.unsynced = true;
        Ok(())
    }
}

fn too_large(text: &str) -> Error {
    Error::new(ErrorKind::TooLarge, text)
}
