//! Options of an open image.

use super::table::{assign, Row, Scope, Set, Set::*, Table};
use super::words::{CacheMode, DetectZeroes, Discard, OverlapSet, OverlapTemplate, RefcountsAhead};
use crate::error::{Error, Result};
use crate::format::{Geometry, Structure};
use std::ffi::{OsStr, OsString};

/// How an image is used while it is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenOptions {
    /// Host cache and durability of writes.
    pub cache: CacheMode,
    /// Postpone refcount updates; `None`: as the image says.
    pub lazy_refcounts: Option<bool>,
    /// Bytes for both caches together. How the four sizes work together: `cache_sizes`.
    pub cache_size: Option<u64>,
    /// Bytes for the L2 cache.
    pub l2_cache_size: Option<u64>,
    /// Bytes of one entry (slice) of the L2 cache.
    pub l2_cache_entry_size: Option<u64>,
    /// Bytes for the refcount cache.
    pub refcount_cache_size: Option<u64>,
    /// Entries not used for this many seconds are dropped; 0 never.
    pub cache_clean_interval_seconds: u32,
    /// `overlap-check`, if given.
    pub overlap_check: Option<OverlapTemplate>,
    /// `overlap-check.template`, if given.
    pub overlap_check_template: Option<OverlapTemplate>,
    /// `overlap-check.<structure>`, if given, in the order of `Structure::ALL`.
    pub overlap_structures: [Option<bool>; Structure::ALL.len()],
    /// A write returns once its metadata has been written to the file.
    pub metadata_writethrough: bool,
    /// What a guest's discard does.
    pub discard: Discard,
    /// Pass freed clusters on to the host after a guest's discard; `None`: with `discard=unmap`.
    pub pass_discard_request: Option<bool>,
    /// Pass freed clusters on to the host after a snapshot operation.
    pub pass_discard_snapshot: bool,
    /// Pass freed clusters on to the host after anything else.
    pub pass_discard_other: bool,
    /// A discarded guest cluster keeps its host cluster.
    pub discard_no_unref: bool,
    /// Whether counts are raised ahead in an eager image.
    pub refcounts_ahead: RefcountsAhead,
    /// What a write of zero bytes becomes.
    pub detect_zeroes: DetectZeroes,
    /// What is read of the backing file is written to the image.
    pub copy_on_read: bool,
    /// Threads that compress one request.
    pub compress_threads: u32,
    /// Threads that a check reads tables with.
    pub check_threads: u32,
    /// The path of the external data file, instead of the recorded one.
    pub data_file: Option<OsString>,
    /// Writes go to a temporary overlay.
    pub snapshot: bool,
    /// The ID of the snapshot that is read instead of the disk.
    pub snapshot_id: Option<OsString>,
    /// The name of the snapshot that is read instead of the disk.
    pub snapshot_name: Option<OsString>,
    /// Bitmaps that are damaged are given up, instead of refusing to write the image.
    pub drop_damaged_bitmaps: bool,
}

impl Default for OpenOptions {
    fn default() -> Self {
        OpenOptions {
            cache: CacheMode::Writeback,
            lazy_refcounts: None,
            cache_size: None,
            l2_cache_size: None,
            l2_cache_entry_size: None,
            refcount_cache_size: None,
            cache_clean_interval_seconds: 600,
            overlap_check: None,
            overlap_check_template: None,
            overlap_structures: [None; Structure::ALL.len()],
            metadata_writethrough: false,
            discard: Discard::Unmap,
            pass_discard_request: None,
            pass_discard_snapshot: true,
            pass_discard_other: false,
            discard_no_unref: false,
            refcounts_ahead: RefcountsAhead::Auto,
            detect_zeroes: DetectZeroes::Off,
            copy_on_read: false,
            compress_threads: 1,
            check_threads: 1,
            data_file: None,
            snapshot: false,
            snapshot_id: None,
            snapshot_name: None,
            drop_damaged_bitmaps: false,
        }
    }
}

const fn row(
    name: &'static str,
    set: Set<OpenOptions>,
    default: Option<&'static str>,
    help: &'static str,
) -> Row<OpenOptions> {
    Row::new(Scope::Open, name, set, default, help)
}

#[rustfmt::skip]
impl Table for OpenOptions {
    const ROWS: &'static [Row<Self>] = &[
        row("cache", Text(|o, word| CacheMode::parse(word).map(|mode| o.cache = mode)), Some("writeback"), "Host cache mode (allowed values: writeback, writethrough, none, directsync, unsafe)"),
        row("cache-clean-interval", Number(|o, seconds| clean_interval(seconds).map(|s| o.cache_clean_interval_seconds = s)), Some("600"), "Seconds after which unused cache entries are dropped, by the next request or qcow2_clean_caches; 0 never"),
        row("cache-size", Size(|o, bytes| o.cache_size = Some(bytes)), None, "Most memory for L2 and refcount cache together"),
        row("check-threads", Threads(|o| &mut o.check_threads), Some("1"), "Threads that a check or repair reads L2 tables with, and a checksum the disk (1 to 64; with callbacks 1)"),
        row("compress-threads", Threads(|o| &mut o.compress_threads), Some("1"), "Threads that compress one request for compressed clusters (1 to 64)"),
        row("copy-on-read", Bool(|o, on| o.copy_on_read = on), Some("off"), "Write what is read where the image has holes to the image"),
        row("data-file", Name(|o, file| o.data_file = Some(file.into())), None, "Path of the external data file, instead of the one that the image names").fixed(),
        row("detect-zeroes", Text(|o, word| DetectZeroes::parse(word).map(|mode| o.detect_zeroes = mode)), Some("off"), "Turn writes of zeroes into zero clusters (allowed values: off, on, unmap)"),
        row("discard", Text(|o, word| Discard::parse(word).map(|mode| o.discard = mode)), Some("unmap"), "What a discard request does (allowed values: unmap, ignore)"),
        row("discard-no-unref", Bool(|o, on| o.discard_no_unref = on), Some("off"), "Keep the host clusters of discarded guest clusters"),
        row("drop-damaged-bitmaps", Bool(|o, on| o.drop_damaged_bitmaps = on), Some("off"), "Write an image whose bitmaps are damaged; all of them are gone then, and a repair frees their clusters"),
        row("l2-cache-entry-size", Size(|o, bytes| o.l2_cache_entry_size = Some(bytes)), None, "Size of one entry of the L2 cache; default: 4 KiB, or a cluster where the cache holds the whole disk"),
        row("l2-cache-size", Size(|o, bytes| o.l2_cache_size = Some(bytes)), None, "Most memory for the L2 cache; default: what the whole disk needs, at most 32 MiB"),
        row("lazy-refcounts", Bool(|o, on| o.lazy_refcounts = Some(on)), None, "Postpone refcount updates; default: as the image says"),
        row("metadata-writethrough", Bool(|o, on| o.metadata_writethrough = on), Some("off"), "A write returns once its metadata is in the file too, so that no flush is needed to survive the end of the process"),
        row("overlap-check", Text(|o, word| OverlapTemplate::parse(word).map(|set| o.overlap_check = Some(set))), Some("cached"), "Structures that writes are checked against (allowed values: none, constant, cached, all)"),
        row("overlap-check.active-l1", Bool(|o, on| o.check(Structure::ActiveL1, on)), None, "Check writes against the active L1 table"),
        row("overlap-check.active-l2", Bool(|o, on| o.check(Structure::ActiveL2, on)), None, "Check writes against the active L2 tables"),
        row("overlap-check.bitmap-directory", Bool(|o, on| o.check(Structure::BitmapDirectory, on)), None, "Check writes against the bitmap directory"),
        row("overlap-check.inactive-l1", Bool(|o, on| o.check(Structure::InactiveL1, on)), None, "Check writes against the L1 tables of snapshots"),
        row("overlap-check.inactive-l2", Bool(|o, on| o.check(Structure::InactiveL2, on)), None, "Check writes against the L2 tables of snapshots"),
        row("overlap-check.main-header", Bool(|o, on| o.check(Structure::Header, on)), None, "Check writes against the header"),
        row("overlap-check.refcount-block", Bool(|o, on| o.check(Structure::RefcountBlock, on)), None, "Check writes against the refcount blocks"),
        row("overlap-check.refcount-table", Bool(|o, on| o.check(Structure::RefcountTable, on)), None, "Check writes against the refcount table"),
        row("overlap-check.snapshot-table", Bool(|o, on| o.check(Structure::SnapshotTable, on)), None, "Check writes against the snapshot table"),
        row("overlap-check.template", Text(|o, word| OverlapTemplate::parse(word).map(|set| o.overlap_check_template = Some(set))), Some("cached"), "The same as overlap-check, which the single checks adjust"),
        row("pass-discard-other", Bool(|o, on| o.pass_discard_other = on), Some("off"), "Give clusters back to the host when anything else frees them"),
        row("pass-discard-request", Bool(|o, on| o.pass_discard_request = Some(on)), None, "Give clusters back to the host when the guest discards them; default: with discard=unmap"),
        row("pass-discard-snapshot", Bool(|o, on| o.pass_discard_snapshot = on), Some("on"), "Give clusters back to the host when a snapshot operation frees them"),
        row("refcount-cache-size", Size(|o, bytes| o.refcount_cache_size = Some(bytes)), None, "Most memory for the refcount cache; default: a few clusters"),
        row("refcounts-ahead", Text(|o, word| RefcountsAhead::parse(word).map(|mode| o.refcounts_ahead = mode)), Some("auto"), "Raise refcounts before they are needed, so that an eager image writes and syncs less; a killed handle leaks them (allowed values: off, on, auto)"),
        row("snapshot", Bool(|o, on| o.snapshot = on), Some("off"), "Open the image read-only; writes go to a temporary file (in TMPDIR, or /var/tmp) that is gone at close").fixed(),
        row("snapshot.id", Name(|o, id| o.snapshot_id = Some(id.into())), None, "Read the internal snapshot with this ID instead of the disk (read-only)"),
        row("snapshot.name", Name(|o, name| o.snapshot_name = Some(name.into())), None, "Read the internal snapshot with this name instead of the disk (read-only)"),
    ];
}

fn clean_interval(seconds: u64) -> Result<u32> {
    u32::try_from(seconds).map_err(|_| Error::invalid("Cache clean interval too big"))
}

impl OpenOptions {
    /// Options from `key=value` strings.
    pub fn parse<O: AsRef<OsStr>>(options: &[O]) -> Result<OpenOptions> {
        let mut parsed = OpenOptions::default();
        for option in options {
            let unknown = |key: &str| {
                Error::invalid(format!("Block format 'qcow2' does not support the option '{key}'"))
            };
            assign(&mut parsed, option.as_ref(), unknown)?;
        }
        parsed.check_combinations()?;
        Ok(parsed)
    }

    /// Changes options of an open image. Those not named keep their values; after an error all do.
    /// An option that cannot change may be named with the value it has.
    pub fn update<O: AsRef<OsStr>>(&mut self, options: &[O]) -> Result<()> {
        let mut changed = self.clone();
        let mut named = Vec::new();
        for option in options {
            let fixed = |key: &str| Error::invalid(format!("Cannot change the option '{key}'"));
            let before = changed.clone();
            let info = assign(&mut changed, option.as_ref(), fixed)?;
            if !info.runtime && changed != before {
                return Err(fixed(info.name));
            }
            named.push(info.name);
        }
        changed.forget_older(&named);
        changed.check_combinations()?;
        *self = changed;
        Ok(())
    }

    /// What can be said in two ways was said in a newer one: the older one does not count beside it.
    fn forget_older(&mut self, named: &[&str]) {
        let is_new = |name: &str| named.contains(&name);
        match (is_new("overlap-check"), is_new("overlap-check.template")) {
            (true, false) => self.overlap_check_template = None,
            (false, true) => self.overlap_check = None,
            _ => {}
        }
        let sizes = ["cache-size", "l2-cache-size", "refcount-cache-size"].map(is_new);
        // Where the old sizes contradict the new ones; two of three fit together if the sum is enough.
        let fields = [&mut self.cache_size, &mut self.l2_cache_size, &mut self.refcount_cache_size];
        let all = fields.iter().all(|f| f.is_some());
        let part = |a: &Option<u64>, b: &Option<u64>| a.zip(*b).is_some_and(|(both, part)| both < part);
        let too_large = part(fields[0], fields[1]) || part(fields[0], fields[2]);
        if sizes.contains(&true) && (all || too_large) {
            for (field, _) in fields.into_iter().zip(sizes).filter(|(_, new)| !new) {
                *field = None;
            }
        }
    }

    /// Whether writes are checked against `structure`, whatever the template says.
    fn check(&mut self, structure: Structure, on: bool) {
        self.overlap_structures[structure as usize] = Some(on);
    }

    fn check_combinations(&self) -> Result<()> {
        if self.detect_zeroes == DetectZeroes::Unmap && self.discard != Discard::Unmap {
            return Err(Error::invalid(
                "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap",
            ));
        }
        match (self.overlap_check, self.overlap_check_template) {
            (Some(a), Some(b)) if a != b => Err(Error::invalid(format!(
                "Conflicting values for qcow2 options 'overlap-check' ('{}') and 'overlap-check.template' ('{}')",
                a.name(),
                b.name()
            ))),
            _ => Ok(()),
        }
    }

    /// Refuses what an image of this geometry cannot do.
    pub fn check_geometry(&self, geometry: &Geometry) -> Result<()> {
        if geometry.version < 3 && self.lazy_refcounts == Some(true) {
            return Err(Error::invalid(
                "Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level",
            ));
        }
        if geometry.version < 3 && self.discard_no_unref {
            return Err(Error::invalid("discard-no-unref is only supported since qcow2 version 3"));
        }
        Ok(())
    }

    /// The overlap checks in force: the template with the single checks on top.
    pub fn overlap_checks(&self) -> OverlapSet {
        let template = self.overlap_check.or(self.overlap_check_template).unwrap_or_default();
        OverlapSet::of(|structure| {
            self.overlap_structures[structure as usize]
                .unwrap_or(template >= OverlapTemplate::least_with(structure))
        })
    }

    /// Whether clusters freed by a guest's discard are given back to the host.
    pub fn passes_discard_request(&self) -> bool {
        self.pass_discard_request.unwrap_or(self.discard == Discard::Unmap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(options: &[&str]) -> String {
        OpenOptions::parse(options).unwrap_err().to_string()
    }

    #[test]
    fn options_arrive_in_their_fields() {
        let parsed = OpenOptions::parse(&[
            "cache=none",
            "lazy-refcounts=on",
            "cache-size=1M",
            "l2-cache-size=512k",
            "l2-cache-entry-size=512",
            "refcount-cache-size=0x40000",
            "cache-clean-interval=0",
            "metadata-writethrough",
            "discard=ignore",
            "pass-discard-request=on",
            "pass-discard-snapshot=off",
            "pass-discard-other=on",
            "discard-no-unref=on",
            "detect-zeroes=on",
        ])
        .unwrap();
        let expected = OpenOptions {
            cache: CacheMode::None,
            lazy_refcounts: Some(true),
            cache_size: Some(1 << 20),
            l2_cache_size: Some(512 << 10),
            l2_cache_entry_size: Some(512),
            refcount_cache_size: Some(256 << 10),
            cache_clean_interval_seconds: 0,
            metadata_writethrough: true,
            discard: Discard::Ignore,
            pass_discard_request: Some(true),
            pass_discard_snapshot: false,
            pass_discard_other: true,
            discard_no_unref: true,
            detect_zeroes: DetectZeroes::On,
            ..OpenOptions::default()
        };
        assert_eq!(parsed, expected);
        assert!(parsed.cache.direct() && !parsed.cache.sync_each_write());
        assert!(parsed.passes_discard_request());
    }

    #[test]
    fn refusals_in_the_words_of_the_stock_tool() {
        let cases: &[(&[&str], &str)] = &[
            (&["foo=1"], "Block format 'qcow2' does not support the option 'foo'"),
            (
                &["overlap-check.foo=on"],
                "Block format 'qcow2' does not support the option 'overlap-check.foo'",
            ),
            (&["lazy-refcounts=maybe"], "Parameter 'lazy-refcounts' expects 'on' or 'off'"),
            (&["cache-clean-interval=foo"], "Parameter 'cache-clean-interval' expects a number"),
            (&["cache-clean-interval=-1"], "Cache clean interval too big"),
            (&["cache-clean-interval=4294967296"], "Cache clean interval too big"),
            (&["discard=foo"], "Invalid discard option"),
            (&["detect-zeroes=foo"], "invalid parameter value: foo"),
            (&["cache=foo"], "Invalid cache option: foo"),
            (
                &["detect-zeroes=unmap", "discard=ignore"],
                "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap",
            ),
            (
                &["overlap-check=all", "overlap-check.template=none"],
                "Conflicting values for qcow2 options 'overlap-check' ('all') and \
                 'overlap-check.template' ('none')",
            ),
            (
                &["overlap-check.template=foo"],
                "Unsupported value 'foo' for qcow2 option 'overlap-check'. \
                 Allowed are any of the following: none, constant, cached, all",
            ),
        ];
        for (options, text) in cases {
            assert_eq!(refused(options), *text, "{options:?}");
        }
    }

    #[test]
    fn overlap_checks_follow_template_and_single_options() {
        let count = |options: &[&str]| {
            let set = OpenOptions::parse(options).unwrap().overlap_checks();
            Structure::ALL.into_iter().filter(|p| set.contains(*p)).count()
        };
        assert_eq!(count(&["overlap-check=none"]), 0);
        assert_eq!(count(&["overlap-check=constant"]), 5);
        assert_eq!(count(&[]), 8);
        assert_eq!(count(&["overlap-check.template=all"]), 9);
        assert_eq!(count(&["overlap-check=none", "overlap-check.active-l2=on"]), 1);
        let set = OpenOptions::parse(&["overlap-check.main-header=off"]).unwrap().overlap_checks();
        assert!(!set.contains(Structure::Header) && set.contains(Structure::ActiveL2));
    }

    #[test]
    fn an_update_changes_what_it_names_or_nothing() {
        let mut options = OpenOptions::parse(&["l2-cache-size=1M", "discard=ignore"]).unwrap();
        options.update(&["lazy-refcounts=on"]).unwrap();
        assert_eq!(options.l2_cache_size, Some(1 << 20));
        assert_eq!(options.lazy_refcounts, Some(true));
        let before = options.clone();
        let error = options.update(&["lazy-refcounts=off", "foo=1"]).unwrap_err();
        assert_eq!(error.to_string(), "Cannot change the option 'foo'");
        assert!(options.update(&["lazy-refcounts=off", "detect-zeroes=unmap"]).is_err());
        assert_eq!(options, before);
    }

    #[test]
    fn a_newer_spelling_replaces_an_older_one() {
        let updated = |old: &[&str], new: &[&str]| {
            let mut options = OpenOptions::parse(old).unwrap();
            options.update(new).map(|()| options)
        };
        let checks = |old: String, new: String| updated(&[&old], &[&new]).unwrap().overlap_checks();
        for (old, new) in [("none", "all"), ("all", "none"), ("cached", "constant")] {
            let (plain, template) = ("overlap-check=", "overlap-check.template=");
            let wanted = OpenOptions::parse(&[format!("{plain}{new}")]).unwrap().overlap_checks();
            assert_eq!(checks(format!("{plain}{old}"), format!("{template}{new}")), wanted);
            assert_eq!(checks(format!("{template}{old}"), format!("{plain}{new}")), wanted);
        }
        assert!(updated(&[], &["overlap-check=all", "overlap-check.template=none"]).is_err());
        let sizes = |old: &[&str], new: &[&str]| {
            let options = updated(old, new).unwrap();
            [options.cache_size, options.l2_cache_size, options.refcount_cache_size]
        };
        let (m, k512) = (Some(1 << 20), Some(512 << 10));
        assert_eq!(
            sizes(&["l2-cache-size=512k", "refcount-cache-size=1M"], &["cache-size=1M"]),
            [m, None, None]
        );
        assert_eq!(sizes(&["cache-size=512k"], &["l2-cache-size=1M"]), [None, m, None]);
        assert_eq!(sizes(&["l2-cache-size=1M"], &["cache-size=512k"]), [k512, None, None]);
        assert_eq!(sizes(&["cache-size=1M"], &["l2-cache-size=512k"]), [m, k512, None]);
        let both = ["l2-cache-size=1M", "refcount-cache-size=512k"];
        assert_eq!(sizes(&["cache-size=1M"], &both), [None, m, k512]);
    }

    #[test]
    fn version_2_has_no_lazy_refcounts() {
        let v2 = Geometry {
            version: 2,
            cluster_bits: 16,
            refcount_order: 4,
            extended_l2: false,
            external_data: false,
        };
        for option in ["lazy-refcounts=on", "discard-no-unref=on"] {
            let options = OpenOptions::parse(&[option]).unwrap();
            assert!(options.check_geometry(&v2).is_err());
            assert!(options.check_geometry(&Geometry { version: 3, ..v2 }).is_ok());
        }
        assert!(OpenOptions::parse(&["lazy-refcounts=off"]).unwrap().check_geometry(&v2).is_ok());
    }
}
