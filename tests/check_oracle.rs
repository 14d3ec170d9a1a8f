//! Check and repair against the installed stock tools: same words, same order, same counters, and the same
//! answer of `qemu-img check` afterwards. Skipped when the tools are missing.
//!
//! Where this library means to differ (it never mends what may be guest data, places new refcount structures
//! behind everything when a pointer is broken, and repairs images that make the stock tool give up), the
//! damage is left out here and tested in `ops::check`.

use qcow2::testing::ops::check::{check, in_words, CheckOptions, CheckReport, MessageKind};
use qcow2::testing::storage::file::{FileOptions, FileStorage};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use testkit::images::l2_entries;
use testkit::oracle::{Bytes, Head, COMPRESSED, COPIED, OFFSET};

fn have_tools() -> bool {
    let found = |tool: &str| Command::new(tool).arg("--version").output().is_ok_and(|o| o.status.success());
    let both = found("qemu-img") && found("qemu-io");
    if !both {
        eprintln!("skipped: qemu-img or qemu-io is missing");
    }
    both
}

/// Exit status, stdout and stderr of a command that must start.
fn run(program: &str, args: &[&str]) -> (i32, String, String) {
    let output = Command::new(program).args(args).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

/// What one of the tools says and leaves.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    status: i32,
    counters: BTreeMap<String, u64>,
    messages: Vec<String>,
}

const COUNTERS: [&str; 10] = [
    "image-end-offset",
    "total-clusters",
    "allocated-clusters",
    "fragmented-clusters",
    "compressed-clusters",
    "corruptions",
    "corruptions-fixed",
    "leaks",
    "leaks-fixed",
    "check-errors",
];

fn stock(path: &Path, repair: Option<&str>) -> Outcome {
    let path = path.to_str().unwrap();
    let mut args = vec!["check", "-f", "qcow2", "--output=json"];
    if let Some(what) = repair {
        args.extend(["-r", what]);
    }
    args.push(path);
    let (status, out, err) = run("qemu-img", &args);
    let mut counters = BTreeMap::new();
    for line in out.lines() {
        let mut parts = line.trim().trim_end_matches(',').splitn(2, ": ");
        let key = parts.next().unwrap_or_default().trim_matches('"').to_owned();
        if let (true, Some(Ok(value))) = (COUNTERS.contains(&key.as_str()), parts.next().map(str::parse)) {
            counters.insert(key, value);
        }
    }
    let own = |line: &&str| !line.starts_with("qemu-img: ");
    Outcome { status, counters, messages: err.lines().filter(own).map(str::to_owned).collect() }
}

/// The same two passes that the stock tool makes, with this library.
fn ours(path: &Path, repair: Option<&str>) -> Outcome {
    let all = repair.is_some_and(|r| r == "all");
    let options = CheckOptions { repair_leaks: repair.is_some(), repair_errors: all, workers: 2 };
    let storage =
        FileStorage::open(path, FileOptions { writable: repair.is_some(), ..FileOptions::default() })
            .unwrap();
    let mut messages = Vec::new();
    let mut message = |_: MessageKind, text: &str| messages.push(text.to_owned());
    let mut tell = in_words(&mut message);
    let mut result = check(&storage, options, Some(&mut tell), &mut |_, _| true);
    if let Ok(first) = &result {
        let first = *first;
        if first.leaks_fixed + first.corruptions_fixed > 0 {
            result =
                check(&storage, CheckOptions::default(), Some(&mut tell), &mut |_, _| true).map(|second| {
                    CheckReport {
                        leaks_fixed: first.leaks_fixed,
                        corruptions_fixed: first.corruptions_fixed,
                        ..second
                    }
                });
        }
    }
    drop(tell);
    let Ok(r) = result else {
        return Outcome { status: 1, counters: BTreeMap::new(), messages };
    };
    let values = [
        r.image_end_offset,
        r.total_clusters,
        r.allocated_clusters,
        r.fragmented_clusters,
        r.compressed_clusters,
        r.corruptions,
        r.corruptions_fixed,
        r.leaks,
        r.leaks_fixed,
        r.check_errors,
    ];
    let shown = |(name, value): (&&str, &u64)| {
        (*value != 0 || **name == *"check-errors").then(|| (name.to_string(), *value))
    };
    let counters = COUNTERS.iter().zip(&values).filter_map(shown).collect();
    let status = match r {
        CheckReport { check_errors: 1.., .. } => 1,
        CheckReport { corruptions: 1.., .. } => 2,
        CheckReport { leaks: 1.., .. } => 3,
        _ => 0,
    };
    Outcome { status, counters, messages }
}

/// An image file in memory, with the fields that damage needs.
#[derive(Clone)]
struct Image(Vec<u8>);

impl Image {
    fn be64(&self, at: u64) -> u64 {
        self.0.be64(at)
    }

    fn head(&self) -> Head {
        Head::fields(&self.0[..])
    }

    fn put64(&mut self, at: u64, value: u64) {
        self.0[at as usize..at as usize + 8].copy_from_slice(&value.to_be_bytes());
    }

    fn cluster_bytes(&self) -> u64 {
        self.head().cluster_bytes()
    }

    fn l1(&self) -> u64 {
        self.head().l1_offset
    }

    /// Positions of the active L2 entries that have a plain host cluster.
    fn data_entries(&self) -> Vec<u64> {
        let plain = |word: u64| word & COMPRESSED == 0 && word & (OFFSET | 1) > 1;
        l2_entries(&self.0).into_iter().filter(|(_, word)| plain(*word)).map(|(at, _)| at as u64).collect()
    }

    fn clusters(&self) -> u64 {
        (self.0.len() as u64).div_ceil(self.cluster_bytes())
    }

    /// Sets a stored refcount; false when there is no block or the value does not fit.
    fn set_refcount(&mut self, cluster: u64, value: u64) -> bool {
        let head = self.head();
        let (order, per_block) = (head.refcount_order, head.block_entries());
        let block = self.be64(head.table_offset + cluster / per_block * 8);
        if block == 0 || (order < 6 && value >> (1 << order) != 0) {
            return false;
        }
        let bits = 1u64 << order;
        let first = cluster % per_block * bits;
        let at = (block + first / 8) as usize;
        if bits >= 8 {
            let bytes = (bits / 8) as usize;
            self.0[at..at + bytes].copy_from_slice(&value.to_be_bytes()[8 - bytes..]);
        } else {
            let mask = (((1u16 << bits) - 1) as u8) << (first % 8);
            self.0[at] = self.0[at] & !mask | (value as u8) << (first % 8);
        }
        true
    }
}

struct Bench {
    dir: tempfile::TempDir,
    image: Image,
    name: String,
    /// Digest of the guest's contents before any damage.
    guest: u32,
}

impl Bench {
    fn new(options: &str, size: &str, commands: &[&str], snapshot: bool) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("base.qcow2");
        let file = path.to_str().unwrap();
        let mut args = vec!["create", "-q", "-f", "qcow2"];
        if !options.is_empty() {
            args.extend(["-o", options]);
        }
        args.extend([file, size]);
        assert_eq!(run("qemu-img", &args).0, 0);
        let write = |commands: &[&str]| {
            let mut args = vec!["-f", "qcow2"];
            commands.iter().for_each(|c| args.extend(["-c", c]));
            args.push(file);
            let (status, out, err) = run("qemu-io", &args);
            assert_eq!(status, 0, "{out}{err}");
        };
        write(commands);
        if snapshot {
            assert_eq!(run("qemu-img", &["snapshot", "-c", "one", file]).0, 0);
            write(&["write -P 0x99 0 70k"]);
            assert_eq!(run("qemu-img", &["snapshot", "-c", "two", file]).0, 0);
            write(&["write -P 0x9a 64k 3k"]);
        }
        let mut bytes = std::fs::read(&path).unwrap();
        let guest = digest(&dir.path().join("raw"), &path);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        Bench { dir, image: Image(bytes), name: format!("{options} {size} snapshot={snapshot}"), guest }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Compares all three modes on one damaged image. `readable`: no guest data has been harmed.
    fn compare(&self, damaged: &Image, what: &str, readable: bool) {
        for repair in [None, Some("leaks"), Some("all")] {
            let what = format!("{}: {what}, repair {repair:?}", self.name);
            let (theirs, mine) = (self.file("theirs.qcow2"), self.file("mine.qcow2"));
            std::fs::write(&theirs, &damaged.0).unwrap();
            std::fs::write(&mine, &damaged.0).unwrap();
            let wanted = stock(&theirs, repair);
            let got = ours(&mine, repair);
            assert_eq!(got, wanted, "{what}");
            let after = std::fs::read(&mine).unwrap();
            if repair.is_none() {
                assert!(after == damaged.0, "{what}: a look changed the image");
                continue;
            }
            assert_eq!(stock(&mine, None).status, stock(&theirs, None).status, "{what}: afterwards");
            if repair == Some("all") && readable {
                assert_eq!(stock(&mine, None).status, 0, "{what}: not clean");
                assert_eq!(digest(&self.file("raw"), &mine), self.guest, "{what}: guest contents changed");
            }
        }
    }
}

/// CRC of the guest's contents as the stock tool reads them.
fn digest(raw: &Path, image: &Path) -> u32 {
    let args = ["convert", "-f", "qcow2", "-O", "raw", image.to_str().unwrap(), raw.to_str().unwrap()];
    let (status, _, err) = run("qemu-img", &args);
    assert_eq!(status, 0, "{err}");
    crc32fast::hash(&std::fs::read(raw).unwrap())
}

const MIXED: &[&str] = &[
    "write -P 1 0 256k",
    "write -c -P 2 256k 64k",
    "write -c -P 3 320k 64k",
    "write -z 384k 64k",
    "write -P 4 500k 20k",
];

/// Images whose layout makes entries differ.
fn few_benches() -> Vec<Bench> {
    vec![
        Bench::new("", "1M", MIXED, true),
        Bench::new("cluster_size=512,refcount_bits=64", "768k", MIXED, true),
        Bench::new("extended_l2=on", "1M", MIXED, false),
        Bench::new("compat=0.10,cluster_size=4k", "1M", MIXED, true),
        Bench::new("refcount_bits=1", "1M", &MIXED[..1], false),
    ]
}

/// One image for each combination that counts differently.
fn benches() -> Vec<Bench> {
    vec![
        Bench::new("", "1M", MIXED, false),
        Bench::new("", "1M", MIXED, true),
        Bench::new("compat=0.10", "1M", MIXED, true),
        Bench::new("cluster_size=512,refcount_bits=64", "768k", MIXED, true),
        Bench::new("cluster_size=4k,refcount_bits=8", "3M", MIXED, true),
        Bench::new("extended_l2=on", "1M", MIXED, true),
        Bench::new("refcount_bits=1", "1M", &MIXED[..1], false),
        Bench::new("cluster_size=2M,refcount_bits=2", "9M", &["write -P 1 0 5M"], false),
        Bench::new("lazy_refcounts=on", "1M", MIXED, false),
    ]
}

#[test]
fn refcounts_and_flags_agree_with_the_stock_tool() {
    if !have_tools() {
        return;
    }
    for bench in benches() {
        bench.compare(&bench.image, "as it is", true);
        let entries = bench.image.data_entries();
        let mut damage = bench.image.clone();
        damage.put64(entries[1], damage.be64(entries[1]) ^ COPIED);
        bench.compare(&damage, "COPIED of data", true);
        let mut damage = bench.image.clone();
        damage.put64(damage.l1(), damage.be64(damage.l1()) ^ COPIED);
        bench.compare(&damage, "COPIED of an L2 table", true);
        let mut damage = bench.image.clone();
        for cluster in 0..damage.clusters() {
            damage.set_refcount(cluster, 0);
        }
        bench.compare(&damage, "all counts zero", true);
        let mut damage = bench.image.clone();
        damage.put64(damage.be64(48), 0);
        bench.compare(&damage, "refcount block lost", true);
        let mut damage = bench.image.clone();
        damage.0[56..60].fill(0);
        bench.compare(&damage, "refcount table lost", true);
        let mut damage = bench.image.clone();
        let data = damage.be64(entries[0]) & OFFSET;
        for cluster in [0, 3, data >> damage.head().cluster_bits] {
            damage.set_refcount(cluster, 3);
        }
        bench.compare(&damage, "counts of three", true);
    }
}

#[test]
fn broken_entries_agree_with_the_stock_tool() {
    if !have_tools() {
        return;
    }
    for bench in few_benches() {
        let entries = bench.image.data_entries();
        let cluster = bench.image.cluster_bytes();
        let mut cases: Vec<(&str, u64, u64)> = Vec::new();
        let (l1, old) = (bench.image.l1(), bench.image.be64(entries[1]));
        cases.push(("two references", entries[1], bench.image.be64(entries[0])));
        cases.push(("entry lost", entries[1], 0));
        cases.push(("data past the end", entries[1], old + 4096 * cluster));
        cases.push(("data far past the end", entries[1], old | 1 << 50));
        cases.push(("reserved bit", entries[1], old | 1 << 60));
        cases.push(("reserved low bit", entries[1], old | 4));
        if cluster > 512 {
            cases.push(("misaligned data", entries[1], old | 0x200));
        }
        cases.push(("L1 reserved bit", l1, bench.image.be64(l1) | 1 << 60));
        cases.push(("L2 table past the end", l1, bench.image.be64(l1) + 4096 * cluster));
        cases.push(("L1 entry lost", l1, 0));
        let table = bench.image.be64(48);
        // With one-bit counts the stock tool does not see that it must rebuild.
        if bench.image.head().refcount_order > 0 {
            cases.push(("same block twice", table + 8, bench.image.be64(table)));
        }
        for (what, at, value) in cases {
            let mut damage = bench.image.clone();
            damage.put64(at, value);
            bench.compare(&damage, what, what == "same block twice");
        }
    }
}

#[test]
fn snapshot_damage_agrees_with_the_stock_tool() {
    if !have_tools() {
        return;
    }
    for bench in few_benches().into_iter().filter(|b| b.name.ends_with("true")) {
        let table = bench.image.be64(64);
        let l1 = bench.image.be64(table);
        let cluster = bench.image.cluster_bytes();
        let cases: Vec<(&str, u64, u64)> = vec![
            ("snapshot L1 past the end", table, l1 + 8192 * cluster),
            ("snapshot L1 misaligned", table, l1 + 8),
            ("snapshot without L1", table + 8, bench.image.be64(table + 8) & 0xffff_ffff),
            ("snapshot L1 too large", table + 8, bench.image.be64(table + 8) | 0x50_0000 << 32),
            ("snapshot L1 entry copied", l1, bench.image.be64(l1) ^ COPIED),
            ("snapshot L1 entry lost", l1, 0),
            ("snapshot L2 past the end", l1, bench.image.be64(l1) + 8192 * cluster),
            ("one snapshot more", 56, bench.image.be64(56) + 1),
        ];
        for (what, at, value) in cases {
            let mut damage = bench.image.clone();
            damage.put64(at, value);
            bench.compare(&damage, what, false);
        }
    }
}

#[test]
fn random_refcounts_agree_with_the_stock_tool() {
    if !have_tools() {
        return;
    }
    let seed = std::env::var("QCOW2_TEST_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(20_260_102u64);
    println!("QCOW2_TEST_SEED={seed}");
    let mut state = seed;
    let mut below = |limit: u64| {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 33) % limit
    };
    for bench in few_benches() {
        for round in 0..8 {
            let mut damage = bench.image.clone();
            let mut what = format!("round {round}:");
            for _ in 0..1 + below(6) {
                let (cluster, value) = (below(damage.clusters()), below(4));
                if damage.set_refcount(cluster, value) {
                    what += &format!(" {cluster}={value}");
                }
            }
            let entries = damage.data_entries();
            for _ in 0..below(3) {
                let at = entries[below(entries.len() as u64) as usize];
                damage.put64(at, damage.be64(at) ^ COPIED);
                what += &format!(" copied@{at:#x}");
            }
            if bench.image.head().version == 3 {
                damage.0[79] |= below(4) as u8;
            }
            bench.compare(&damage, &what, true);
        }
    }
}

#[test]
fn clusters_of_a_data_file_are_not_counted_in_the_image() {
    if !have_tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("guest.data");
    let bench = Bench::new(&format!("data_file={}", data.display()), "1M", &["write -P 1 0 256k"], false);
    bench.compare(&bench.image, "as it is", true);
    let l2 = bench.image.be64(bench.image.l1()) & OFFSET;
    let cases = [
        ("not copied", l2 + 8, 0x10000),
        ("misaligned", l2 + 8, COPIED | 0x10200),
        ("misaligned preallocation", l2 + 8, COPIED | 0x10201),
        ("elsewhere", l2 + 8, COPIED | 1 << 40),
        ("compressed", l2 + 8, COPIED | 1 << 62 | 0x50000),
        ("refcount block lost", bench.image.be64(48), 0),
    ];
    for (what, at, value) in cases {
        let mut damage = bench.image.clone();
        damage.put64(at, value);
        bench.compare(&damage, what, false);
    }
}

#[test]
fn bitmaps_are_counted_and_kept() {
    if !have_tools() {
        return;
    }
    let bench = Bench::new("", "64M", MIXED, false);
    let path = bench.file("bitmaps.qcow2");
    std::fs::write(&path, &bench.image.0).unwrap();
    let file = path.to_str().unwrap();
    assert_eq!(run("qemu-img", &["bitmap", "--add", file, "changes"]).0, 0);
    assert_eq!(run("qemu-io", &["-f", "qcow2", "-c", "write -P 7 1M 64k", file]).0, 0);
    let guest = digest(&bench.file("raw"), &path);
    let image = Image(std::fs::read(&path).unwrap());
    assert_eq!(ours(&path, None), stock(&path, None));
    for cluster in 0..image.clusters() {
        let mut damage = image.clone();
        assert!(damage.set_refcount(cluster, 0));
        std::fs::write(&path, &damage.0).unwrap();
        let looked = stock(&path, None);
        assert_eq!(ours(&path, None), looked);
        ours(&path, Some("all"));
        assert_eq!(stock(&path, None).status, 0, "cluster {cluster}");
        assert_eq!(digest(&bench.file("raw"), &path), guest);
        let (_, info, _) = run("qemu-img", &["info", file]);
        assert!(info.contains("name: changes") && !info.contains("in-use"), "cluster {cluster}: {info}");
    }
}
