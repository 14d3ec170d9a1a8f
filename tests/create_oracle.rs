//! The same options to `qemu-img create` and to us: the same file, byte for byte.
//!
//! Two differences are meant, and only these are allowed:
//! 1. A refcount table that outgrows one cluster has its final size and place at once; the stock tool moves it.
//! 2. A preallocated disk of no bytes looks like one that is not preallocated.
//!
//! Then headers agree in every other field, and the stock tool finds a clean image with the same mapping.
//! Skipped where `qemu-img` is missing.

use qcow2::testing::format::Header;
use qcow2::testing::ops::create::{create, create_with_data_file};
use qcow2::testing::options::CreateOptions;
use qcow2::testing::storage::file::{FileOptions, FileStorage};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

fn qemu_img(arguments: &[&str]) -> (bool, String) {
    let output = Command::new("qemu-img").args(arguments).output().expect("qemu-img");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

fn is_missing() -> bool {
    let missing = Command::new("qemu-img").arg("--version").output().is_err();
    if missing {
        eprintln!("skipped: no qemu-img");
    }
    missing
}

/// Two files to be compared, and how many comparisons were of every kind.
struct Bench {
    directory: tempfile::TempDir,
    identical: usize,
    equivalent: usize,
}

impl Bench {
    fn new() -> Bench {
        Bench { directory: tempfile::tempdir().unwrap(), identical: 0, equivalent: 0 }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Whether both made an image; both refuse in the same words.
    fn create_both(&self, options: &[&str], size: u64) -> bool {
        let stock = self.path("stock.qcow2");
        let ours = self.path("ours.qcow2");
        let _ = std::fs::remove_file(&stock);
        let shown = stock.to_str().unwrap();
        let size_text = size.to_string();
        let list = options.join(",");
        let mut arguments = vec!["create", "-q", "-u", "-f", "qcow2"];
        if !options.is_empty() {
            arguments.extend(["-o", &list]);
        }
        arguments.extend([shown, &size_text]);
        let (stock_did, stock_text) = qemu_img(&arguments);
        let file =
            FileStorage::open(&ours, FileOptions { writable: true, create: true, ..FileOptions::default() });
        let file = file.unwrap();
        let answer = CreateOptions::parse(options).and_then(|o| create(&file, size, &o));
        match &answer {
            Ok(()) => assert!(stock_did, "{options:?} {size}: {stock_text}"),
            Err(e) => assert_eq!(stock_text.trim(), format!("qemu-img: {shown}: {e}"), "{options:?} {size}"),
        }
        answer.is_ok()
    }

    fn compare(&mut self, options: &[&str], size: u64) {
        if !self.create_both(options, size) {
            return;
        }
        let what = format!("{options:?} size {size}");
        let (stock, ours) = (self.path("stock.qcow2"), self.path("ours.qcow2"));
        let difference = first_difference(&stock, &ours);
        if difference.is_none() {
            self.identical += 1;
            return;
        }
        let (theirs, mine) = (read_header(&stock), read_header(&ours));
        let contiguous = options.iter().any(|o| is_contiguous(o));
        let grown = mine.refcount_table_clusters > 1 && !contiguous;
        let empty = size == 0 && contiguous;
        assert!(grown || empty, "{what}: differs at {difference:?}");
        let same = Header {
            l1_table_offset: theirs.l1_table_offset,
            refcount_table_offset: theirs.refcount_table_offset,
            refcount_table_clusters: theirs.refcount_table_clusters,
            ..mine
        };
        assert_eq!(theirs, same, "{what}");
        self.check_with_stock_tool(&what, &stock, &ours);
        self.equivalent += 1;
    }

    /// Whether both have made an image, which is the same then.
    fn compare_data_file(&mut self, cluster: &str, mode: &str, raw: &str, more: &str, size: u64) -> bool {
        let (stock, ours, data) = (self.path("stock.qcow2"), self.path("ours.qcow2"), self.path("data"));
        let name = format!("data_file={}", data.display());
        let (cluster, mode) = (format!("cluster_size={cluster}"), format!("preallocation={mode}"));
        let raw = format!("data_file_raw={raw}");
        let options = [name.as_str(), &cluster, &mode, &raw, more];
        let (shown, list, bytes) = (stock.to_str().unwrap(), options.join(","), size.to_string());
        let (stock_did, text) = qemu_img(&["create", "-q", "-f", "qcow2", "-o", &list, shown, &bytes]);
        let how = FileOptions { writable: true, create: true, ..FileOptions::default() };
        let (file, data_file) =
            (FileStorage::open(&ours, how).unwrap(), FileStorage::open(&data, how).unwrap());
        let answer = CreateOptions::parse(&options)
            .and_then(|o| create_with_data_file(&file, Some(&data_file), size, &o));
        assert_eq!(answer.is_ok(), stock_did, "{options:?} {size}: {answer:?} {text}");
        if stock_did {
            assert_eq!(first_difference(&stock, &ours), None, "{options:?} {size}");
            assert_eq!(std::fs::metadata(&data).unwrap().len(), size, "{options:?}");
        }
        stock_did
    }

    fn check_with_stock_tool(&self, what: &str, stock: &Path, ours: &Path) {
        let (clean, text) = qemu_img(&["check", "-f", "qcow2", ours.to_str().unwrap()]);
        assert!(clean && text.contains("No errors were found"), "{what}: {text}");
        let info = |path: &Path| {
            let (ok, text) = qemu_img(&["info", "--output=json", "-f", "qcow2", path.to_str().unwrap()]);
            assert!(ok, "{what}: {text}");
            // Deeper lines are about the container, whose length may differ.
            text.lines()
                .filter(|l| !l.contains("\"filename\"") && !l.contains("\"actual-size\""))
                .filter(|l| !(l.starts_with("        ") && l.contains("\"virtual-size\"")))
                .map(|l| format!("{l}\n"))
                .collect::<String>()
        };
        assert_eq!(info(stock), info(ours), "{what}");
        let map = |path: &Path| {
            let (ok, text) = qemu_img(&["map", "--output=json", "-f", "qcow2", path.to_str().unwrap()]);
            assert!(ok, "{what}: {text}");
            guest_map(&text)
        };
        assert!(map(stock) == map(ours), "{what}: the maps differ");
    }
}

fn is_contiguous(option: &str) -> bool {
    ["preallocation=falloc", "preallocation=full"].contains(&option)
}

/// The map without host offsets and without "zero", which here says where the host file has holes; neighbours
/// with the same properties joined.
fn guest_map(json: &str) -> Vec<(u64, String)> {
    let mut runs: Vec<(u64, String)> = Vec::new();
    for line in json.lines() {
        let field = |name: &str| {
            let (_, rest) = line.split_once(&format!("\"{name}\": ")).unwrap_or(("", "?"));
            rest.split([',', '}', ']']).next().unwrap_or_default().trim().to_owned()
        };
        let Ok(length) = field("length").parse::<u64>() else { continue };
        let kind = ["depth", "present", "data"].map(field).join(" ");
        match runs.last_mut() {
            Some((total, last)) if *last == kind => *total += length,
            _ => runs.push((length, kind)),
        }
    }
    runs
}

fn read_header(path: &Path) -> Header {
    let file = File::open(path).unwrap();
    let mut start = vec![0; 2 << 20];
    let read = file.read_at(&mut start, 0).unwrap();
    let cluster = Header::peek_cluster_bytes(&start).unwrap() as usize;
    Header::parse(&start[..cluster.min(read)]).unwrap()
}

/// Offset of the first byte that differs; a file that ends differs there.
fn first_difference(a: &Path, b: &Path) -> Option<u64> {
    let (a, b) = (File::open(a).unwrap(), File::open(b).unwrap());
    let (a_bytes, b_bytes) = (a.metadata().unwrap().len(), b.metadata().unwrap().len());
    let shorter = a_bytes.min(b_bytes);
    let (mut x, mut y) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0;
    while at < shorter {
        let step = (shorter - at).min(1 << 20) as usize;
        a.read_exact_at(&mut x[..step], at).unwrap();
        b.read_exact_at(&mut y[..step], at).unwrap();
        if x[..step] != y[..step] {
            return x[..step].iter().zip(&y[..step]).position(|(p, q)| p != q).map(|p| at + p as u64);
        }
        at += step as u64;
    }
    (a_bytes != b_bytes).then_some(shorter)
}

const CLUSTER_SIZES: [&str; 6] = ["512", "1k", "4k", "8k", "64k", "2M"];
const FORMS: [&[&str]; 6] = [
    &["compat=0.10"],
    &[],
    &["lazy_refcounts=on"],
    &["compression_type=zstd"],
    &["refcount_bits=1"],
    &["refcount_bits=64", "lazy_refcounts=on"],
];

fn with<'a>(form: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    form.iter().chain(more).copied().collect()
}

/// An external data file has another path on each side, and one name in both images.
#[test]
fn images_with_external_data_files_are_the_same_files() {
    if is_missing() {
        return;
    }
    let mut bench = Bench::new();
    let mut same = 0;
    for cluster_size in ["512", "4k", "64k", "2M"] {
        for mode in ["off", "metadata", "falloc", "full"] {
            for raw in ["off", "on"] {
                for more in ["lazy_refcounts=on", "refcount_bits=1", "extended_l2=on"] {
                    for size in [0, 1000 << 10, 5 << 20] {
                        same += u32::from(bench.compare_data_file(cluster_size, mode, raw, more, size));
                    }
                }
            }
        }
    }
    assert!(same > 200, "{same}");
}

#[test]
fn plain_images_are_the_same_files() {
    if is_missing() {
        return;
    }
    let mut bench = Bench::new();
    for cluster_size in CLUSTER_SIZES {
        let cluster = format!("cluster_size={cluster_size}");
        for form in FORMS {
            for size in [0, 511, 1 << 30] {
                bench.compare(&with(form, &[&cluster]), size);
            }
            let backed = ["backing_file=some/base.img", "backing_fmt=qcow2", &cluster];
            bench.compare(&with(form, &backed), 3 << 20);
        }
    }
    assert_eq!((bench.identical, bench.equivalent), (144, 0));
}

#[test]
fn images_with_extended_l2_entries_are_the_same_files() {
    if is_missing() {
        return;
    }
    let mut bench = Bench::new();
    let backed: &[&str] = &["backing_file=some/base.img", "backing_fmt=qcow2"];
    for cluster_size in ["16k", "64k", "2M"] {
        let cluster = format!("cluster_size={cluster_size}");
        let form = with(&["extended_l2=on", "lazy_refcounts=on"], &[&cluster]);
        for size in [0, 511, 1 << 30] {
            bench.compare(&form, size);
        }
        bench.compare(&with(&form, backed), 3 << 20);
        for size in [(5 << 20) + 1, (5 << 20) + 70_000, 600 << 20] {
            bench.compare(&with(&form, &["preallocation=metadata"]), size);
        }
        bench.compare(&with(&form, &with(backed, &["preallocation=metadata"])), (5 << 20) + 1);
        for mode in ["preallocation=falloc", "preallocation=full"] {
            bench.compare(&with(&form, &[mode]), (5 << 20) + 1);
        }
    }
    assert_eq!((bench.identical, bench.equivalent), (30, 0));
}

#[test]
fn preallocated_images_are_the_same_files() {
    if is_missing() {
        return;
    }
    let mut bench = Bench::new();
    for cluster_size in CLUSTER_SIZES {
        let cluster = format!("cluster_size={cluster_size}");
        for form in FORMS {
            for mode in ["preallocation=metadata", "preallocation=falloc", "preallocation=full"] {
                bench.compare(&with(form, &[&cluster, mode]), (5 << 20) + 1);
            }
        }
    }
    for mode in ["preallocation=metadata", "preallocation=falloc"] {
        for size in [0, 1, 70_000, 600 << 20] {
            bench.compare(&[mode], size);
        }
        bench.compare(&["cluster_size=512", "refcount_bits=64", mode], 40 << 20);
        bench.compare(&["cluster_size=4k", "refcount_bits=64", mode], 300 << 20);
    }
    eprintln!("{} identical, {} equivalent", bench.identical, bench.equivalent);
    assert!(bench.identical >= 90 && bench.equivalent >= 2);
}

#[test]
fn sizes_at_the_limits_are_the_same_files() {
    if is_missing() {
        return;
    }
    let mut bench = Bench::new();
    for size in [(2 << 40) - 1, 2 << 40, (2 << 40) + 1, 64 << 40, 2 << 50, (2 << 50) + 1] {
        bench.compare(&[], size);
    }
    for size in [i64::MAX as u64, i64::MAX as u64 - 512, 0x7fff_ffff_c000_0001] {
        assert!(!bench.create_both(&[], size));
    }
    bench.compare(&["cluster_size=2M"], 2 << 60);
    bench.compare(&["cluster_size=512", "refcount_bits=64"], 7 << 30);
    bench.compare(&["cluster_size=512"], 128 << 30);
    bench.compare(&["cluster_size=512"], (128 << 30) + 1);
    assert_eq!((bench.identical, bench.equivalent), (7, 1));
}

#[test]
fn large_metadata_preallocation_has_the_same_mapping() {
    if is_missing() {
        return;
    }
    let bench = Bench::new();
    let (stock, ours) = (bench.path("stock.qcow2"), bench.path("ours.qcow2"));
    for options in [&["preallocation=metadata"][..], &["preallocation=metadata", "refcount_bits=64"]] {
        assert!(bench.create_both(options, (20 << 30) + 1));
        assert_eq!(read_header(&stock), read_header(&ours));
        bench.check_with_stock_tool("20 GiB", &stock, &ours);
    }
    // Here the refcount table grows.
    assert!(bench.create_both(&["preallocation=metadata", "cluster_size=4k"], 5 << 30));
    assert!(read_header(&ours).refcount_table_clusters > 1);
    bench.check_with_stock_tool("5 GiB", &stock, &ours);
}

#[test]
fn refusals_have_the_same_words() {
    if is_missing() {
        return;
    }
    let bench = Bench::new();
    let cases: [&[&str]; 26] = [
        &["foo=1"],
        &["cluster_size=3000"],
        &["cluster_size=4M"],
        &["cluster_size=foo"],
        &["cluster_size=-1"],
        &["cluster_size=20E"],
        &["cluster_size="],
        &["refcount_bits=3"],
        &["refcount_bits=foo"],
        &["refcount_bits=-1"],
        &["refcount_bits=18446744073709551616"],
        &["refcount_bits=8", "compat=0.10"],
        &["compat=0.9"],
        &["compat=0.10", "lazy_refcounts=on"],
        &["lazy_refcounts=maybe"],
        &["preallocation=foo"],
        &["preallocation=full", "backing_file=x", "backing_fmt=raw"],
        &["backing_file=x"],
        &["backing_file="],
        &["backing_file=x", "backing_fmt=foo"],
        &["backing_fmt=raw"],
        &["compression_type=foo"],
        &["compression_type=zstd", "compat=0.10"],
        &["extended_l2=on", "cluster_size=8k"],
        &["extended_l2=on", "compat=0.10"],
        &["extended_l2=on", "compat=0.10", "cluster_size=8k", "lazy_refcounts=on"],
    ];
    for options in cases {
        assert!(!bench.create_both(options, 1 << 20), "{options:?}");
    }
}

#[test]
fn a_terabyte_of_metadata_takes_no_time() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("big.qcow2");
    let file =
        FileStorage::open(&path, FileOptions { writable: true, create: true, ..FileOptions::default() });
    let options = CreateOptions::parse(&["preallocation=metadata"]).unwrap();
    let start = std::time::Instant::now();
    create(&file.unwrap(), 1 << 40, &options).unwrap();
    // Most of it is the host writing 160 MiB of tables out.
    eprintln!("1 TiB with metadata: {:?}", start.elapsed());
    assert!(start.elapsed().as_secs() < 60);
}
