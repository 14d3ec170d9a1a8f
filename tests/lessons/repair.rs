//! C4, C6 and a part of C8: what a repair must count, and what a compressed entry says. Images of the stock tools.
//! (VM state: `ops::check::tests::kinds`.)

use qcow2::testing::disk::ZeroFlags;
use qcow2::testing::storage::file::{FileOptions, FileStorage};
use testkit::images::*;
use testkit::oracle::{be32, be64};
use testkit::rng::Rng;

const SECRET: &str = "secret,id=s,data=a word";

/// One image of each kind, as `disk`, with what its guest sees in `flat` where the library serves guests.
pub struct Kind {
    pub name: &'static str,
    /// Guest I/O is served.
    pub serves: bool,
    pub make: fn(&Bench, &str),
}

fn create(bench: &Bench, options: &str, more: &str, name: &str) {
    let all = [options, more].iter().filter(|o| !o.is_empty()).copied().collect::<Vec<_>>().join(",");
    bench.img(&["create", "-q", "-f", "qcow2", "-o", &all, name, "8M"]);
    bench.io(name, &["write -P 1 0 1M", "write -P 2 3M 700k", "write -z 1M 64k", "write -P 3 7M 64k"]);
}

/// Kinds of references; `make` takes the image's further creation options.
pub const KINDS: [Kind; 6] = [
    Kind {
        name: "plain",
        serves: true,
        make: |b, o| create(b, "cluster_size=512,refcount_bits=64", o, "disk"),
    },
    Kind {
        name: "snapshots",
        serves: true,
        make: |b, o| {
            create(b, "cluster_size=4k", o, "disk");
            b.img(&["snapshot", "-c", "one", "disk"]);
            b.io("disk", &["write -P 4 512k 1M"]);
            b.img(&["snapshot", "-c", "two", "disk"]);
            b.io("disk", &["write -P 5 0 100k", "discard 3M 200k"]);
        },
    },
    Kind {
        name: "bitmaps",
        serves: true,
        make: |b, o| {
            create(b, "cluster_size=64k", o, "disk");
            for bitmap in ["a", "b"] {
                b.img(&["bitmap", "--add", "-g", "64k", "disk", bitmap]);
            }
            b.io("disk", &["write -P 6 2M 1M"]);
        },
    },
    Kind {
        name: "extended L2",
        serves: true,
        make: |b, o| {
            create(b, "extended_l2=on,cluster_size=16k", o, "disk");
            b.io("disk", &["write -P 7 5M 700", "write -z 3M 3k", "discard 0 64k"]);
        },
    },
    Kind {
        name: "compressed",
        serves: true,
        make: |b, o| {
            b.write("source", &mixed(8 * MIB, 4096));
            let all = ["cluster_size=4k", o]
                .iter()
                .filter(|o| !o.is_empty())
                .copied()
                .collect::<Vec<_>>()
                .join(",");
            b.img(&["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", &all, "source", "disk"]);
            b.io("disk", &["write -P 8 1M 100k"]);
        },
    },
    Kind {
        name: "LUKS",
        serves: false,
        make: |b, o| {
            let luks = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
            let all = [luks, o].iter().filter(|o| !o.is_empty()).copied().collect::<Vec<_>>().join(",");
            b.img(&["create", "-q", "-f", "qcow2", "--object", SECRET, "-o", &all, "disk", "8M"]);
            let (good, said) = b.try_run(
                "qemu-io",
                &["--object", SECRET, "-c", "write -P 9 0 1M", "--image-opts", ENCRYPTED],
            );
            assert!(good, "{said}");
        },
    },
];

const ENCRYPTED: &str = "driver=qcow2,encrypt.key-secret=s,file.filename=disk";

/// Clusters that compress to about any length, some that do not, and holes.
pub fn mixed(bytes: u64, cluster: u64) -> Vec<u8> {
    let mut rng = Rng::new(bytes ^ cluster);
    let mut all = Vec::with_capacity(bytes as usize);
    for index in 0..bytes / cluster {
        let noise = match index % 8 {
            0 => 0,
            7 => cluster,
            _ => rng.below(cluster),
        };
        let text = (0..cluster - noise).map(|i| b"the quick brown fox "[(i % 20) as usize]);
        all.extend((0..noise).map(|_| rng.next() as u8).chain(text));
    }
    all
}

/// The stock check finds nothing at all.
pub fn assert_clean(bench: &Bench, kind: &Kind) {
    if kind.name != "LUKS" {
        return bench.assert_clean("disk");
    }
    let (good, said) = bench.try_run("qemu-img", &["check", "--object", SECRET, "--image-opts", ENCRYPTED]);
    assert!(good, "{said}");
}

/// What every view of the image shows: the guest, and each snapshot.
fn views(bench: &Bench, kind: &Kind) -> Vec<Vec<u8>> {
    let convert = |more: &[&str]| {
        let mut words = vec!["convert"];
        words.extend(more);
        words.extend(["-O", "raw", "disk", "view"]);
        if kind.name == "LUKS" {
            words = vec!["convert", "--object", SECRET, "--image-opts", ENCRYPTED, "-O", "raw", "view"];
        }
        bench.img(&words);
        bench.read("view")
    };
    let mut views = vec![convert(&[])];
    if kind.name == "snapshots" {
        views.extend(["snapshot.name=one", "snapshot.name=two"].map(|s| convert(&["-f", "qcow2", "-l", s])));
        assert!(views[1] != views[2] && views[2] != views[0]);
    }
    views
}

/// A repair did not count some kind of reference and gave live clusters away. Counts of an image of each kind are
/// lost, repaired by us, and judged by the stock tool.
#[test]
fn c04_a_repair_counts_every_kind_of_reference() {
    let Some(bench) = Bench::with_stock_tools("c04") else { return };
    let file = |writable| {
        FileStorage::open(&bench.path("disk"), FileOptions { writable, ..FileOptions::default() }).unwrap()
    };
    for kind in &KINDS {
        let _ = std::fs::remove_file(bench.path("disk"));
        (kind.make)(&bench, "");
        assert_clean(&bench, kind);
        let wanted = views(&bench, kind);
        let whole = bench.read("disk");
        let mut rng = Rng::new(whole.len() as u64);
        for way in ["zero", "ones", "random"] {
            let mut damaged = whole.clone();
            let blocks = scramble_counts(&mut damaged, || match way {
                "zero" => 0,
                "ones" => 0xff,
                _ => rng.next() as u8,
            });
            assert!(blocks > 0);
            bench.write("disk", &damaged);
            let (found, _) = checked(&file(false), LOOK);
            assert!(found.corruptions + found.leaks > 0, "{} {way}: the damage was not seen", kind.name);
            let (report, texts) = checked(&file(true), REPAIR);
            assert!(report.corruptions_fixed + report.leaks_fixed > 0, "{} {way}: {texts:?}", kind.name);
            let (left, texts) = checked(&file(false), LOOK);
            assert_eq!((left.corruptions, left.leaks), (0, 0), "{} {way}: {texts:?}", kind.name);
            assert_clean(&bench, kind);
            assert!(views(&bench, kind) == wanted, "{} {way}: the contents have changed", kind.name);
            if kind.name == "bitmaps" {
                let info = bench.img(&["info", "--output=json", "disk"]);
                assert!(info.contains("\"name\": \"a\"") && info.contains("\"name\": \"b\""), "{info}");
            }
            if kind.serves {
                // It goes on, and takes nothing that is in use.
                let handle = open_file(&bench.path("disk"), WRITABLE, &[]).unwrap();
                assert!(read_all(&handle) == wanted[0], "{} {way}", kind.name);
                write(&handle, 4 * MIB, &vec![0x77; MIB as usize]);
                handle.close().unwrap();
                if kind.name == "bitmaps" {
                    // Out of force since the write, as the format wants it; their clusters are leaks.
                    bench.img(&["check", "-q", "-f", "qcow2", "-r", "leaks", "disk"]);
                }
                bench.assert_clean("disk");
                let mut now = wanted.clone();
                now[0][4 * MIB as usize..5 * MIB as usize].fill(0x77);
                assert!(views(&bench, kind) == now, "{} {way}: after writing", kind.name);
            }
        }
    }
}

/// An external data file has no counts in the image: a repair must leave it and its pointers alone.
#[test]
fn c04_a_repair_leaves_an_external_data_file_alone() {
    let Some(bench) = Bench::with_stock_tools("c04, external data file") else { return };
    create(&bench, "data_file=data,data_file_raw=on", "", "disk");
    bench.assert_clean("disk");
    let (data, mut image) = (bench.read("data"), bench.read("disk"));
    scramble_counts(&mut image, || 0);
    bench.write("disk", &image);
    let file =
        FileStorage::open(&bench.path("disk"), FileOptions { writable: true, ..FileOptions::default() })
            .unwrap();
    let (report, texts) = checked(&file, REPAIR);
    assert!(report.corruptions_fixed > 0 && report.corruptions == 0, "{report:?} {texts:?}");
    drop(file);
    bench.assert_clean("disk");
    assert!(bench.read("data") == data);
    bench.io("disk", &["read -P 1 0 1M", "read -P 2 3M 700k", "read -P 3 7M 64k"]);
    // Guests go on with it: what they see is what the file has.
    let option = format!("data-file={}", bench.path("data").display());
    let handle = open_file(&bench.path("disk"), WRITABLE, &[&option]).unwrap();
    write(&handle, 5 * MIB, &vec![4; 300_000]);
    handle.disk().write_zeroes(0, MIB, ZeroFlags::default(), false).unwrap();
    handle.disk().discard(3 * MIB, 64 * KIB).unwrap();
    let mut shown = vec![0; handle.disk().length() as usize];
    handle.disk().read(0, &mut [std::io::IoSliceMut::new(&mut shown)]).unwrap();
    handle.close().unwrap();
    assert!(bench.read("data") == shown);
    bench.assert_clean("disk");
    bench.io("disk", &["read -P 0 0 1M", "read -P 2 3137k 500k", "read -P 4 5M 300000", "read -P 3 7M 64k"]);
}

/// Bit 0 of a compressed entry was taken for the zero flag, and the mask of its sector count was the one of 64 KiB
/// clusters. Every cluster size and both types, with entries of every troublesome form.
#[test]
fn c06_compressed_entries_of_every_form() {
    let Some(bench) = Bench::with_stock_tools("c06") else { return };
    for kind in ["zlib", "zstd"] {
        let (mut unaligned, mut odd, mut spanning, mut longest) = (0, 0, 0, 0);
        for bits in 9..=21u32 {
            let cluster = 1u64 << bits;
            let source = mixed((24 * cluster).clamp(256 * KIB, 24 * MIB), cluster);
            bench.write("source", &source);
            let options = format!("cluster_size={cluster},compression_type={kind}");
            bench.img(&["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", &options, "source", "disk"]);
            let image = bench.read("disk");
            assert_eq!(be32(&image, 20), u64::from(bits));
            let shift = 62 - (bits - 8); // the sector count begins here
            let streams: Vec<_> = l2_entries(&image).into_iter().filter(|(_, e)| e >> 62 & 1 != 0).collect();
            assert!(streams.len() > 5, "{options}: nothing is compressed");
            for (_, entry) in &streams {
                let offset = entry & ((1 << shift) - 1);
                let sectors = (entry & !(3 << 62)) >> shift;
                let last = (offset & !511) + (sectors + 1) * 512 - 1;
                unaligned += u32::from(offset % 512 != 0);
                odd += u32::from(entry & 1 != 0);
                spanning += u32::from(offset >> bits != last >> bits);
                longest += u32::from(
                    sectors + 1 == cluster / 512 + u64::from(bits == 9) || sectors == (1 << (bits - 8)) - 1,
                );
            }
            let handle = open_file(&bench.path("disk"), WRITABLE, &[]).unwrap();
            assert!(read_all(&handle) == source, "{options}");
            // Parts of clusters, across clusters, and over them.
            let mut rng = Rng::new(u64::from(bits));
            let mut now = source.clone();
            for round in 0..40 {
                let at = rng.below(source.len() as u64 - 5000);
                let length = 1 + rng.below(5000);
                if round % 4 == 0 {
                    let bytes = &pattern(5008, at)[..length as usize];
                    put(&mut now, at as usize, bytes);
                    write(&handle, at, bytes);
                }
                assert!(read(&handle, at, length) == now[at as usize..(at + length) as usize], "{options}");
            }
            handle.close().unwrap();
            bench.assert_clean("disk");
            bench.img(&["convert", "-f", "qcow2", "-O", "raw", "disk", "view"]);
            assert!(bench.read("view") == now, "{options}");
        }
        // The forms were there.
        assert!(
            unaligned > 50 && odd > 20 && spanning > 10 && longest > 3,
            "{kind}: {unaligned} {odd} {spanning} {longest}"
        );
    }
}

/// The same forms, written by us, several threads at once, then overwritten in part; read by both sides.
#[test]
fn c06_compressed_by_us_is_read_by_the_stock_tool() {
    let Some(bench) = Bench::with_stock_tools("c06, compressed by us") else { return };
    for kind in ["zlib", "zstd"] {
        for bits in [9u32, 12, 16, 21] {
            let cluster = 1u64 << bits;
            let source = mixed(24 * cluster, cluster);
            let options = format!("cluster_size={cluster},compression_type={kind}");
            let _ = std::fs::remove_file(bench.path("disk"));
            bench.img(&["create", "-q", "-f", "qcow2", "-o", &options, "disk", &source.len().to_string()]);
            let handle = open_file(&bench.path("disk"), WRITABLE, &[]).unwrap();
            std::thread::scope(|scope| {
                for part in 0..3 {
                    let (handle, source) = (&handle, &source);
                    scope.spawn(move || {
                        for index in (part..24).step_by(3) {
                            let bytes = &source[(index * cluster) as usize..((index + 1) * cluster) as usize];
                            let buffers = [std::io::IoSlice::new(bytes)];
                            handle
                                .disk()
                                .write_compressed(index * cluster, &buffers, index % 5 == 0)
                                .unwrap();
                        }
                    });
                }
            });
            assert!(read_all(&handle) == source, "{options}");
            // Over compressed clusters, and parts of them.
            let mut source = source;
            for (at, length) in [(3 * cluster, 2 * cluster), (9 * cluster - 5, 11)] {
                let bytes = &pattern(length.next_multiple_of(8), at)[..length as usize];
                put(&mut source, at as usize, bytes);
                write(&handle, at, bytes);
            }
            handle.close().unwrap();
            let image = bench.read("disk");
            let streams = l2_entries(&image).iter().filter(|(_, e)| e >> 62 & 1 != 0).count();
            assert!(streams > 10, "{options}: {streams} compressed clusters");
            bench.assert_clean("disk");
            bench.img(&["convert", "-f", "qcow2", "-O", "raw", "disk", "view"]);
            assert!(bench.read("view") == source, "{options}");
        }
    }
}

/// A resize lost the compression type, and with it every compressed cluster.
#[test]
fn c08_the_compression_type_survives_everything() {
    let Some(bench) = Bench::with_stock_tools("c08, compression type") else { return };
    let source = mixed(4 * MIB, 65536);
    bench.write("source", &source);
    bench.img(&[
        "convert",
        "-c",
        "-f",
        "raw",
        "-O",
        "qcow2",
        "-o",
        "compression_type=zstd",
        "source",
        "disk",
    ]);
    let handle = open_file(&bench.path("disk"), WRITABLE, &[]).unwrap();
    qcow2::testing::ops::resize::resize(&handle, 4096 * MIB, qcow2::testing::options::Preallocation::Off)
        .unwrap();
    qcow2::testing::ops::resize::resize(&handle, 4 * MIB, qcow2::testing::options::Preallocation::Off)
        .unwrap();
    write(&handle, 0, &source[..100]);
    handle.close().unwrap();
    let mut image = bench.read("disk");
    assert_eq!((image[104], be64(&image, 72)), (1, 8), "compression type and its feature bit");
    make_dirty(&mut image);
    bench.write("disk", &image);
    let handle = open_file(&bench.path("disk"), WRITABLE, &[]).unwrap();
    assert!(handle.repaired().is_some());
    assert!(read_all(&handle) == source);
    handle.close().unwrap();
    let image = bench.read("disk");
    assert_eq!((image[104], be64(&image, 72)), (1, 8));
    bench.assert_clean("disk");
}
