//! An image is hostile input.

use qcow2::testing::error::ErrorKind;
use qcow2::testing::ops::check::{check, in_words};
use qcow2::testing::ops::open::{OpenFlags, Opening, Origin, ResolveAnswer};
use qcow2::testing::ops::resize::resize;
use qcow2::testing::options::{OpenOptions, Preallocation};
use qcow2::testing::storage::{Purpose, Storage};
use std::sync::Arc;
use std::time::Duration;
use testkit::images::*;
use testkit::ops::{random_setup, Op::*};
use testkit::oracle::{be32, be64};
use testkit::rng::{base_seed, cases, replay_line, Rng};
use testkit::runner::apply_plain;
use testkit::setup::Setup;

/// What nobody may take, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(30);

/// A guest wrote a qcow2 header that names a host file into its raw disk, and the next open probed the format and
/// followed the name. (That no file is opened, by watching the file: c-tests/nothing-opened.c.)
#[test]
fn security_backing_name_is_never_opened() {
    for compat in ["compat=0.10", "compat=1.1"] {
        for name in
            ["/etc/hostname", "file:///etc/hostname", "json:{\"driver\":\"raw\"}", "nbd://localhost/x"]
        {
            let words = [compat.to_owned(), format!("backing_file={name}"), "backing_fmt=raw".into()];
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let hostile = new_image(MIB, &words).contents();
            // It names a file: refused unless the caller allows it.
            let image = memory(hostile.clone());
            let origin = Origin::Custom(Arc::clone(&image));
            let refused = open_origin(&origin, WRITABLE, &[]).map(drop).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::NotAllowed, "{name}: {refused}");
            // Allowed or not: a name with a protocol is not a file name.
            if name.contains("json") || name.contains("nbd") {
                let allowed = OpenFlags { allow_recorded: true, ..READ_ONLY };
                let refused = open_origin(&origin, allowed, &[]).map(drop).unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::Unsupported, "{name}: {refused}");
            }
            for flags in
                [OpenFlags { no_backing: true, ..WRITABLE }, OpenFlags { metadata_only: true, ..READ_ONLY }]
            {
                open_origin(&origin, flags, &[]).unwrap();
            }
            // As a raw base it is bytes: nobody asks what they mean.
            let base = memory(hostile.clone());
            let asked = std::cell::Cell::new(0);
            let top: Arc<dyn Storage> = new_image(MIB, &["backing_file=base", "backing_fmt=raw"]);
            let mut resolver = |_: &_| {
                asked.set(asked.get() + 1);
                Ok(ResolveAnswer { origin: Origin::Custom(Arc::clone(&base)), format: None })
            };
            let options = OpenOptions::parse::<&str>(&[]).unwrap();
            let mut opening = Opening {
                flags: READ_ONLY,
                options,
                resolver: Some(&mut resolver),
                messages: None,
                secrets: Default::default(),
            };
            let handle = opening.open(&Origin::Custom(top)).unwrap();
            assert!(read(&handle, 0, 512) == hostile[..512]);
            assert_eq!(asked.get(), 1);
        }
        // A name without a format is never probed.
        let image: Arc<dyn Storage> = new_image(MIB, &[compat, "backing_file=base", "backing_fmt=qcow2"]);
        let mut bytes = vec![0; image.length().unwrap() as usize];
        image.read(Purpose::Header, 0, &mut [std::io::IoSliceMut::new(&mut bytes)]).unwrap();
        let at =
            bytes.windows(4).position(|w| w == [0xe2, 0x79, 0x2a, 0xca]).expect("the format's extension");
        put(&mut bytes, at, &[0x11, 0x11, 0x11, 0x11]);
        let base = memory(vec![0; 4096]);
        let refused = open_over(&memory(bytes), Some(&base), READ_ONLY, &[]).map(drop).unwrap_err();
        assert!(refused.to_string().contains("not probed"), "{refused}");
    }
}

/// `data-file` named a host file, and `info` on a foreign image read it.
#[test]
fn security_data_file_is_never_opened() {
    let bench = Bench::new();
    bench.write("secret", b"a secret");
    for name in ["secret", "/etc/hostname", "json:{\"driver\":\"file\"}", "nbd://localhost/x"] {
        let mut bytes = new_image(MIB, &[]).contents();
        bytes[79] |= 4;
        let mut extension = vec![0x44, 0x41, 0x54, 0x41, 0, 0, 0, name.len() as u8];
        extension.extend(name.bytes());
        extension.resize(extension.len().next_multiple_of(8) + 8, 0);
        let at = be32(&bytes, 100) as usize;
        put(&mut bytes, at, &extension);
        bench.write("image", &bytes);
        for read_only in [false, true] {
            let flags = OpenFlags { read_only, ..WRITABLE };
            let refused = open_file(&bench.path("image"), flags, &[]).map(drop).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::NotAllowed);
            assert!(refused.to_string().contains(&format!("data file '{name}'")), "{refused}");
            for allow_recorded in [false, true] {
                let look = OpenFlags { metadata_only: true, allow_recorded, ..flags };
                open_file(&bench.path("image"), look, &[]).unwrap().close().unwrap();
            }
        }
        // With the permission, too, a name is a file's, letter by letter: these are not there.
        let allowed = OpenFlags { allow_recorded: true, ..READ_ONLY };
        let opened = open_file(&bench.path("image"), allowed, &[]).map(drop);
        assert!(
            !name.contains(':') || opened.is_err_and(|e| e.kind() == ErrorKind::Host(libc::ENOENT)),
            "{name}"
        );
        assert!(bench.read("image") == bytes);
    }
    assert!(bench.read("secret") == b"a secret");
}

/// Sizes from the header became allocations of gigabytes. Every field and the length of an extension at their
/// extremes, in 256 MiB of address space: an answer each, no abort. (By C, with more values: c-tests/damaged-headers.c.)
#[test]
fn security_huge_fields_cost_no_memory() {
    if !in_bounded_process("security::security_huge_fields_cost_no_memory") {
        return;
    }
    const FIELDS: [(usize, usize); 18] = [
        (4, 4),
        (8, 8),
        (16, 4),
        (20, 4),
        (24, 8),
        (32, 4),
        (36, 4),
        (40, 8),
        (48, 8),
        (56, 4),
        (60, 4),
        (64, 8),
        (72, 8),
        (96, 4),
        (100, 4),
        (104, 1),
        (112, 4),
        (116, 4),
    ];
    let image = new_image(64 * MIB, &[]).contents();
    let (mut refused, mut opened) = (0, 0);
    for (at, bytes) in FIELDS {
        for shift in 0..=bytes * 8 {
            let value = u64::MAX.checked_shr(64 - shift as u32).unwrap_or(0);
            for value in [value, 1u64.checked_shl(shift as u32).unwrap_or(0)] {
                let mut hostile = image.clone();
                put(&mut hostile, at, &value.to_be_bytes()[8 - bytes..]);
                for flags in [READ_ONLY, WRITABLE, OpenFlags { metadata_only: true, ..READ_ONLY }] {
                    let storage = memory(hostile.clone());
                    let none = memory(Vec::new());
                    match open_over(&storage, Some(&none), flags, &[]) {
                        Ok(handle) => {
                            opened += 1;
                            let _ = try_read(&handle, 0, 4096);
                            let _ = check(&*storage, LOOK, None, &mut |_, _| true);
                        }
                        Err(e) => {
                            refused += 1;
                            assert!(
                                e.kind() != ErrorKind::NoMemory && !e.to_string().is_empty(),
                                "{at} {value:#x}: {e}"
                            );
                        }
                    }
                }
            }
        }
    }
    assert!(refused > 1000 && opened > 200, "{refused} {opened}");
}

/// Tables that a small file only names: a bitmap directory of any length, 65,536 snapshots with L1 tables of 32 MiB.
#[test]
fn security_tables_that_are_only_named_cost_no_memory() {
    if !in_bounded_process("security::security_tables_that_are_only_named_cost_no_memory") {
        return;
    }
    let small = new_image(MIB, &["cluster_size=512"]).contents();
    for bytes in [1u64 << 26, 1 << 32, 1 << 50, u64::MAX] {
        let mut hostile = small.clone();
        hostile[95] |= 1; // the bitmaps are in force
        let at = be32(&hostile, 100) as usize;
        put(&mut hostile, at, &[0x23, 0x85, 0x28, 0x75, 0, 0, 0, 24, 0, 0, 0, 1, 0, 0, 0, 0]);
        put(&mut hostile, at + 16, &bytes.to_be_bytes());
        put(&mut hostile, at + 24, &(1u64 << 40).to_be_bytes());
        put(&mut hostile, at + 32, &[0; 8]);
        answers_soon(hostile, &format!("a directory of {bytes} bytes"));
    }
    for (count, l1_entries) in [(65_536u64, 4 << 20), (65_536, 64), (2000, 4 << 20), (65_536, u32::MAX)] {
        let mut hostile = small.clone();
        let table = hostile.len().next_multiple_of(512);
        hostile.resize(table, 0);
        put(&mut hostile, 60, &(count as u32).to_be_bytes());
        put(&mut hostile, 64, &(table as u64).to_be_bytes());
        for index in 0..count {
            let mut entry = vec![0; 64];
            put(&mut entry, 0, &((1 << 30) + index * (32 << 20)).to_be_bytes());
            put(&mut entry, 8, &l1_entries.to_be_bytes());
            put(&mut entry, 12, &[0, 5, 0, 0]); // five bytes of ID
            put(&mut entry, 36, &16u32.to_be_bytes()); // of extra data
            put(&mut entry, 56, format!("{index:05}").as_bytes());
            hostile.extend(entry);
        }
        answers_soon(hostile, &format!("{count} snapshots of {l1_entries} L1 entries"));
    }
}

fn answers_soon(image: Vec<u8>, what: &str) {
    let storage = memory(image);
    for flags in [WRITABLE, READ_ONLY] {
        for options in [&[][..], &["overlap-check=all"], &["overlap-check=none"]] {
            let begun = processor_time();
            match open_over(&storage, None, flags, options) {
                Ok(handle) => assert!(read(&handle, 0, 512) == [0; 512]),
                Err(e) => assert!(e.kind() != ErrorKind::NoMemory, "{what}: {e}"),
            }
            assert!(spent_since(begun) < PATIENCE, "{what}, {options:?}: {:?}", spent_since(begun));
        }
    }
}

/// Missing checks, overflows and null pointers. Random damage to metadata; then open, read, write, check and repair:
/// an answer each, and what a repair calls clean is clean.
#[test]
fn security_damaged_metadata_ends_in_an_answer() {
    let seed = base_seed();
    testkit::tell!("{}", replay_line("lessons", "security_damaged_metadata", seed));
    let mut rng = Rng::new(seed);
    let mut repaired = 0;
    for _ in 0..cases(1500) {
        // Damage to iteration counts is work without an end: `crypto::luks::tests`.
        let setup = random_setup(&mut rng);
        let setup = Setup { prefill: 12, sectors: 400, backing: None, encrypted: None, ..setup };
        let mut bytes = setup.create();
        for _ in 0..1 + rng.below(6) {
            let at = rng.below(bytes.len() as u64 / 8) as usize * 8;
            let word = match rng.below(4) {
                0 => rng.next(),
                1 => be64(&bytes, at) ^ 1 << rng.below(64),
                2 => (rng.below(bytes.len() as u64 / 512) * 512) | (rng.next() & (3 << 62)),
                _ => u64::MAX,
            };
            // Some of the damage is in the header's fields.
            let at = if rng.one_in(5) { at % 112 } else { at };
            put(&mut bytes, at, &word.to_be_bytes());
        }
        let storage = small_host(bytes.clone());
        if let Ok(handle) = open_over(&storage, Some(&memory(Vec::new())), READ_ONLY, &[]) {
            if handle.disk().length() >= 512 * 400 {
                let _ = try_read(&handle, 0, 400 * 512);
            }
        }
        if let Ok(handle) = open_over(&storage, Some(&memory(Vec::new())), WRITABLE, &[]) {
            for op in [Write { sector: 3, count: 90, fua: false }, Discard { sector: 0, count: 50 }, Flush] {
                let Some(op) = op.clipped(handle.disk().length() / 512) else { continue };
                let _ = apply_plain(&handle, &op, 5);
            }
            let _ = handle.close();
        }
        // On what the header does not put out of bounds.
        let storage = small_host(bytes);
        let mut message = |_, _: &str| {};
        let mut quiet = in_words(&mut message);
        let Ok(first) = check(&*storage, REPAIR, Some(&mut quiet), &mut |_, _| true) else { continue };
        let Ok(second) = check(&*storage, LOOK, Some(&mut quiet), &mut |_, _| true) else { continue };
        if first.corruptions + first.check_errors == 0 {
            assert_eq!((second.corruptions, second.leaks), (0, 0), "{setup:?} after {first:?}");
            repaired += u64::from(first.corruptions_fixed > 0);
        }
    }
    assert!(repaired > cases(1500) / 30, "only {repaired} repairs");
}

/// An image that is its own backing file, a cycle of two, a chain of ten thousand: an error, soon.
#[test]
fn security_loops_and_endless_chains_end() {
    let bench = Bench::new();
    for (name, below) in [("self", "self"), ("a", "b"), ("b", "./a")] {
        let words = [format!("backing_file={below}"), "backing_fmt=qcow2".into()];
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        bench.write(name, &new_image(MIB, &words).contents());
    }
    std::fs::hard_link(bench.path("a"), bench.path("alias")).unwrap();
    let flags = OpenFlags { allow_recorded: true, ..READ_ONLY };
    for name in ["self", "a", "b", "alias"] {
        for flags in [flags, OpenFlags { read_only: false, ..flags }, OpenFlags { no_lock: true, ..flags }] {
            let error = open_file(&bench.path(name), flags, &[]).map(drop).unwrap_err();
            assert_eq!((error.kind(), error.errno()), (ErrorKind::Loop, libc::ELOOP), "{name}: {error}");
        }
    }
    let link = new_image(MIB, &["cluster_size=512", "backing_file=next", "backing_fmt=qcow2"]).contents();
    let depth = std::cell::Cell::new(0);
    let mut resolver = |_: &_| {
        depth.set(depth.get() + 1);
        assert!(depth.get() <= 10_000);
        Ok(ResolveAnswer { origin: Origin::Custom(memory(link.clone())), format: None })
    };
    let options = OpenOptions::parse::<&str>(&[]).unwrap();
    let mut opening = Opening {
        flags: READ_ONLY,
        options,
        resolver: Some(&mut resolver),
        messages: None,
        secrets: Default::default(),
    };
    let begun = processor_time();
    let error = opening.open(&Origin::Custom(memory(link.clone()))).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Loop, "{error}");
    assert!(depth.get() < 1000 && spent_since(begun) < PATIENCE, "{} links", depth.get());
}

/// An image with one compressed cluster of 64 KiB, whose stream is `stream`, `said_sectors` long as it says.
fn compressed(kind: u8, stream: &[u8], said_sectors: u64) -> Vec<u8> {
    let memory = new_image(MIB, &["cluster_size=64k"]);
    let storage: Arc<dyn Storage> = memory.clone();
    let handle = open_over(&storage, None, WRITABLE, &[]).unwrap();
    write(&handle, 0, &[1; 65536]);
    handle.close().unwrap();
    let mut bytes = memory.contents();
    let (entry, word) = l2_entries(&bytes)[0];
    let data = word & 0x00ff_ffff_ffff_fe00;
    let end = data as usize + stream.len();
    bytes.resize(bytes.len().max(end), 0);
    put(&mut bytes, data as usize, stream);
    put(&mut bytes, entry, &(1u64 << 62 | (said_sectors - 1) << 54 | data).to_be_bytes());
    if kind != 0 {
        bytes[79] |= 8;
        bytes[104] = kind;
    }
    bytes
}

/// A frame that unpacks `byte` for 128 KiB a block, `blocks` times.
fn zstd_frame(window_log: u32, blocks: usize) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, ((window_log - 10) << 3) as u8];
    for index in 0..blocks {
        let last = u32::from(index + 1 == blocks);
        let header = last | 1 << 1 | (128 << 10) << 3; // run-length block
        frame.extend(&header.to_le_bytes()[..3]);
        frame.push(0x61);
    }
    frame
}

/// A compressed cluster that unpacks to gigabytes, asks for a window of two, has no length, garbage behind it, or
/// lies past the end of the file: memory is bounded by the cluster, and the answer is bytes or an error.
#[test]
fn security_decompression_is_bounded_by_the_cluster() {
    if !in_bounded_process("security::security_decompression_is_bounded_by_the_cluster") {
        return;
    }
    let good = zstd::bulk::compress(&[0x61; 65536], 3).unwrap();
    let deflate = |bytes: &[u8]| {
        let mut packer = libdeflater::Compressor::new(libdeflater::CompressionLvl::new(9).unwrap());
        let mut out = vec![0; packer.deflate_compress_bound(bytes.len())];
        let used = packer.deflate_compress(bytes, &mut out).unwrap();
        out.truncate(used);
        out
    };
    let packed = deflate(&[0x61; 65536]);
    let with_garbage = |stream: &[u8]| [stream, &[0xff; 300]].concat();
    // Kind, stream, sectors that it claims, whether it must be read.
    let cases: [(u8, Vec<u8>, u64, Option<bool>); 14] = [
        (1, good.clone(), 1, Some(true)),
        (1, with_garbage(&good), 2, Some(true)),
        (1, good.clone(), 255, None), // claims to reach past the end of the file
        (1, zstd_frame(31, 20_000), 128, None),
        (1, zstd_frame(41, 1), 1, None),
        (1, zstd_frame(17, 20_000), 128, None),
        (1, vec![0; 512], 1, Some(false)),
        (1, good[..good.len() / 2].to_vec(), 1, Some(false)),
        (0, packed.clone(), 1, Some(true)),
        (0, with_garbage(&packed), 2, Some(true)),
        (0, packed.clone(), 255, None),
        (0, deflate(&vec![0; 24 << 20]), 255, None),
        (0, vec![0xff; 512], 1, Some(false)),
        (0, vec![0; 512], 1, Some(false)),
    ];
    for (number, (kind, stream, sectors, wanted)) in cases.into_iter().enumerate() {
        let image: Arc<dyn Storage> = memory(compressed(kind, &stream, sectors));
        let handle = open_over(&image, None, WRITABLE, &[]).unwrap();
        let begun = processor_time();
        match (try_read(&handle, 0, 65536), wanted) {
            (Ok(bytes), Some(true)) => assert!(bytes == [0x61; 65536], "case {number}"),
            (Ok(bytes), None) => assert!(bytes.iter().all(|b| *b == bytes[0]), "case {number}"),
            (Ok(_), Some(false)) => panic!("case {number} is no stream and was read"),
            (Err(e), Some(true)) => panic!("case {number}: {e}"),
            (Err(e), _) => assert_eq!(e.errno(), libc::EIO, "case {number}: {e}"),
        }
        assert!(spent_since(begun) < PATIENCE, "case {number}");
        // The rest of the disk is not touched by it.
        assert!(read(&handle, 65536, 65536).iter().all(|b| *b == 0), "case {number}");
        write(&handle, 65536, &[3; 65536]);
        handle.close().unwrap();
    }
}

/// How long this thread has had a processor: other programs are none of its business.
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("proc");
    Duration::from_nanos(text.split(' ').next().and_then(|word| word.parse().ok()).expect("nanoseconds"))
}

fn spent_since(begun: Duration) -> Duration {
    processor_time() - begun
}

/// Work in proportion to the virtual size: 64 TiB opens in milliseconds and megabytes.
#[test]
fn security_a_huge_disk_costs_nothing() {
    if !in_bounded_process("security::security_a_huge_disk_costs_nothing") {
        return;
    }
    for words in [&["cluster_size=64k"][..], &["cluster_size=2M"], &["cluster_size=64k", "lazy_refcounts=on"]]
    {
        let image = new_image(64 * TIB, words);
        let storage: Arc<dyn Storage> = image.clone();
        for options in [&[][..], &["l2-cache-size=0"], &["l2-cache-size=100M"]] {
            let begun = processor_time();
            let handle = open_over(&storage, None, WRITABLE, options).unwrap();
            let spent = processor_time() - begun;
            assert!(spent < Duration::from_millis(500), "{words:?}: {spent:?}");
            for at in (0..13).map(|i| i * (5 * TIB + 512)) {
                write(&handle, at, &[5; 512]);
                assert_eq!(read(&handle, at, 512), [5; 512]);
            }
            handle.disk().discard(0, 64 * TIB).unwrap();
            handle.close().unwrap();
            assert!(spent_since(begun) < PATIENCE, "{words:?}: {:?}", spent_since(begun));
        }
        assert_sound(&*image);
    }
}

/// Bytes 72 and on of a version 2 header were read as version 3 fields.
#[test]
fn security_version_2_has_no_version_3_fields() {
    let plain = new_image(MIB, &["compat=0.10"]).contents();
    for fill in [0xffu8, 0x01, 0x80] {
        let mut bytes = plain.clone();
        // Behind an "end" marker, where nothing has a meaning.
        bytes[80..4096].fill(fill);
        let image: Arc<dyn Storage> = memory(bytes.clone());
        let handle = open_over(&image, None, WRITABLE, &[]).unwrap();
        let qcow2 = qcow2::testing::image::Image::find(handle.disk()).unwrap();
        let header = qcow2.core().header();
        assert_eq!((header.version, header.refcount_order, header.header_length), (2, 4, 72));
        assert_eq!(
            (header.incompatible, header.compatible, header.autoclear, header.compression_type),
            (0, 0, 0, 0)
        );
        assert!(!qcow2.core().is_lazy() && !qcow2.core().is_corrupt());
        write(&handle, 1000, &[7; 100_000]);
        handle.close().unwrap();
        assert_sound(&*image);
        let mut after = vec![0; 4096];
        image.read(Purpose::Header, 0, &mut [std::io::IoSliceMut::new(&mut after)]).unwrap();
        assert!(after[72..] == bytes[72..4096], "bytes that nobody owns have changed");
    }
    // A version 3 header that ends before a field does not have that field.
    let mut short = new_image(MIB, &[]).contents();
    let rest = short[be32(&short, 100) as usize..400].to_vec();
    put(&mut short, 104, &rest);
    put(&mut short, 100, &104u32.to_be_bytes());
    let image: Arc<dyn Storage> = memory(short);
    open_over(&image, None, WRITABLE, &[]).unwrap().close().unwrap();
    assert_sound(&*image);
}

/// A program shrank a disk by its header alone, and left entries past the end. Grown again, the disk showed the
/// bytes that had been cut off, or another owner's.
#[test]
fn growing_a_disk_shows_nothing_that_was_left_past_its_end() {
    for lazy in ["lazy_refcounts=off", "lazy_refcounts=on"] {
        let image: Arc<dyn Storage> = new_image(4 * MIB, &["cluster_size=512", lazy]);
        let handle = open_over(&image, None, WRITABLE, &[]).unwrap();
        write(&handle, 0, &pattern(3 * MIB, 1));
        handle.close().unwrap();
        let short = 100 * KIB + 512;
        image.write(Purpose::Header, 24, &[std::io::IoSlice::new(&short.to_be_bytes())]).unwrap();
        let handle = open_over(&image, None, WRITABLE, &[]).unwrap();
        resize(&handle, 4 * MIB, Preallocation::Off).unwrap();
        let wanted = [pattern(3 * MIB, 1)[..short as usize].to_vec(), vec![0; (4 * MIB - short) as usize]];
        assert!(read_all(&handle) == wanted.concat(), "{lazy}: while it is open");
        handle.close().unwrap();
        assert_sound(&*image);
        let again = open_over(&image, None, WRITABLE, &[]).unwrap();
        assert!(read_all(&again) == wanted.concat(), "{lazy}: opened again");
    }
}
