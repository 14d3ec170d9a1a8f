//! One pass: its state, and the order of its steps.

use super::counts::Counts;
use super::finding::{Finding, Findings, What};
use super::seen::{Region, SnapshotTable, Visits};
use super::stored::Stored;
use super::{CheckOptions, CheckReport};
use crate::error::{Error, ErrorKind, Result};
use crate::format::features::AUTOCLEAR_KNOWN;
use crate::format::geometry::SECTOR_BYTES;
use crate::format::{Geometry, Header};
use crate::meta::read_header;
use crate::storage::Storage;
use std::collections::{BTreeMap, HashMap};

/// What a comparison mends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mend {
    /// Counts that are too high.
    pub leaks: bool,
    /// Counts that are too low.
    pub errors: bool,
}

impl Mend {
    /// Only tells.
    pub const NOTHING: Mend = Mend { leaks: false, errors: false };
}

/// Everything that the steps of a pass share.
pub(super) struct Pass<'a> {
    pub storage: &'a dyn Storage,
    pub options: CheckOptions,
    pub header: Header,
    pub geometry: Geometry,
    pub report: CheckReport,
    pub file_length: u64,
    pub counts: Counts,
    pub stored: Stored,
    pub snapshots: SnapshotTable,
    /// L2 tables already looked at, by host offset.
    pub visits: HashMap<u64, Visits>,
    /// Room for one table that is being looked at.
    pub table: Vec<u8>,
    /// Where metadata other than L2 tables and refcount blocks is.
    pub regions: Vec<Region>,
    /// References to clusters just past the end of the file.
    pub outside: BTreeMap<u64, u64>,
    /// The refcount structures themselves are broken.
    pub needs_rebuild: bool,
    /// Some entry that refers to a cluster does not have COPIED set.
    pub any_not_copied: bool,
    /// Entries have been written that let go of clusters; a sync must come before counts fall.
    pub unsynced: bool,
    /// Clusters whose count has fallen to zero in this pass: first cluster and number, for the host.
    pub freed: Vec<(u64, u64)>,
    findings: Option<Findings<'a>>,
    progress: &'a mut dyn FnMut(u64, u64) -> bool,
    /// Tables and directories of bitmaps that something else has, too, by right counts: errors that stay.
    pub shared_bitmaps: u64,
    /// Leaks and errors that the last comparison has told and not mended.
    pub found: (u64, u64),
    /// The last comparison left no count too low.
    pub refcounts_right: bool,
    pub done: u64,
    pub total: u64,
}

impl<'a> Pass<'a> {
    /// Reads and checks the header; changes nothing.
    pub fn open(
        storage: &'a dyn Storage,
        options: CheckOptions,
        findings: Option<Findings<'a>>,
        progress: &'a mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<Pass<'a>> {
        let file_length = storage.length().map_err(|e| Error::host("length of the image", &e))?;
        let (header, _) = read_header(storage)?;
        header.check_tables(true)?;
        if (options.repair_leaks || options.repair_errors) && storage.traits().read_only {
            return Err(Error::new(ErrorKind::ReadOnly, "an image opened read-only cannot be repaired"));
        }
        let geometry = header.geometry();
        let counts = Counts::new(&geometry, geometry.clusters_ceil(file_length))?;
        let stored = Stored::load(storage, &header, file_length)?;
        let report = CheckReport {
            // Whole sectors only, as the stock tool counts.
            total_clusters: geometry.clusters_ceil(header.virtual_size & !(SECTOR_BYTES - 1)),
            ..CheckReport::default()
        };
        Ok(Pass {
            storage,
            options,
            header,
            geometry,
            report,
            file_length,
            counts,
            stored,
            snapshots: SnapshotTable::default(),
            visits: HashMap::new(),
            table: Vec::new(),
            regions: Vec::new(),
            outside: BTreeMap::new(),
            needs_rebuild: false,
            any_not_copied: false,
            unsynced: false,
            freed: Vec::new(),
            findings,
            progress,
            shared_bitmaps: 0,
            found: (0, 0),
            refcounts_right: false,
            done: 0,
            total: 1,
        })
    }

    pub fn repairs(&self) -> bool {
        self.options.repair_leaks || self.options.repair_errors
    }

    /// The whole pass.
    pub fn run(mut self) -> Result<CheckReport> {
        if self.repairs() {
            // Whoever writes to an image says first that features it does not know are not kept up.
            self.clear_autoclear(!AUTOCLEAR_KNOWN)?;
        }
        self.read_snapshots()?;
        self.plan_progress();
        self.count_guest_references()?;
        let structure_errors = self.report.corruptions;
        self.count_refcount_structures()?;
        self.compare(Mend::NOTHING)?;
        self.tell_shared_bitmaps()?;
        if self.needs_rebuild && self.repairs() {
            if !self.options.repair_errors {
                self.tell(Finding::new(What::RebuildNeeded, [0; 3]));
                return Err(Error::new(ErrorKind::Corrupt, "need to rebuild refcount structures"));
            }
            self.rebuild_and_recount(structure_errors)?;
        } else if self.repairs() && self.report.corruptions + self.report.leaks > 0 {
            self.mend_counts()?;
        }
        // Lets go of the old table, which a damaged header may have put into a cluster of the guest's.
        self.write_snapshots()?;
        if self.report.check_errors == 0 {
            self.check_copied()?;
        }
        self.count_shared_bitmaps()?;
        if self.repairs() {
            self.seal()?;
        }
        // All is done; there is nothing left to cancel.
        let _ = (self.progress)(self.total, self.total);
        Ok(self.report)
    }

    /// Compares again, this time mending what the options allow.
    fn mend_counts(&mut self) -> Result<()> {
        let mend = Mend { leaks: self.options.repair_leaks, errors: self.options.repair_errors };
        let found = self.compare_found();
        if found == (0, 0) {
            return Ok(());
        }
        self.report.leaks -= found.0;
        self.report.corruptions -= found.1;
        self.sync_if_needed()?;
        self.compare(mend)?;
        self.stored.write_back(self.storage)?;
        self.sync()
    }

    /// Builds the refcount structures anew and looks at the result as at any image.
    fn rebuild_and_recount(&mut self, structure_errors: u64) -> Result<()> {
        let fixed = (self.report.leaks, self.report.corruptions - structure_errors);
        self.sync_if_needed()?;
        self.tell(Finding::new(What::Rebuild, [0; 3]).mended(true));
        self.rebuild(structure_errors > 0)?;
        let before = self.report;
        self.start_over()?;
        self.count_guest_references()?;
        self.count_refcount_structures()?;
        self.report.corruptions_fixed = before.corruptions_fixed;
        self.report.leaks_fixed = before.leaks_fixed;
        if self.needs_rebuild {
            return Err(Error::new(ErrorKind::Corrupt, "refcount structures are broken after their rebuild"));
        }
        self.compare(Mend { leaks: true, errors: true })?;
        // The old structures: the next allocations take them, and giving them back would be a call for each.
        self.freed.clear();
        // What the second look mended is the old structures, which were no finding.
        self.report.leaks_fixed = before.leaks_fixed + fixed.0;
        self.report.corruptions_fixed = before.corruptions_fixed + fixed.1;
        self.stored.write_back(self.storage)?;
        self.sync()
    }

    /// Forgets what has been counted, after the refcount structures have moved.
    fn start_over(&mut self) -> Result<()> {
        self.file_length = self.storage.length().map_err(|e| Error::host("length of the image", &e))?;
        self.counts = Counts::new(&self.geometry, self.geometry.clusters_ceil(self.file_length))?;
        self.stored = Stored::load(self.storage, &self.header, self.file_length)?;
        self.report = CheckReport {
            total_clusters: self.report.total_clusters,
            corruptions_fixed: self.report.corruptions_fixed,
            leaks_fixed: self.report.leaks_fixed,
            ..CheckReport::default()
        };
        self.visits.clear();
        self.outside.clear();
        self.regions.clear();
        self.needs_rebuild = false;
        self.any_not_copied = false;
        self.freed.clear();
        Ok(())
    }

    /// Tells a finding.
    pub fn tell(&mut self, finding: Finding<'_>) {
        if let Some(findings) = &mut self.findings {
            findings(&finding);
        }
    }

    /// Whether anybody takes findings.
    pub fn is_heard(&self) -> bool {
        self.findings.is_some()
    }

    /// Tells an error and counts it.
    pub fn corruption(&mut self, finding: Finding<'_>) {
        self.report.corruptions += 1;
        self.tell(finding);
    }

    /// Progress units: one for each L1 entry and refcount table entry, counted twice for the two looks.
    fn plan_progress(&mut self) {
        let snapshots: u64 = self.snapshots.list.iter().map(|s| u64::from(s.l1_size)).sum();
        let blocks = self.geometry.refcount_table_index(self.counts.clusters()) + 1;
        self.total = 2 * u64::from(self.header.l1_size) + snapshots + blocks + 1;
    }

    /// Moves progress by `units` and asks whether to go on.
    pub fn advance(&mut self, units: u64) -> Result<()> {
        self.done = (self.done + units).min(self.total);
        if (self.progress)(self.done, self.total) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Cancelled, "check cancelled"))
    }

    pub fn sync(&mut self) -> Result<()> {
        self.unsynced = false;
        self.storage.sync().map_err(|e| Error::failed_sync("sync", &e))
    }

    pub fn sync_if_needed(&mut self) -> Result<()> {
        if self.unsynced {
            self.sync()?;
        }
        Ok(())
    }
}
