//! Encrypted images beside the stock tools: what they make is read and written here, and what is written here they read.
//!
//! A list is random requests on an array of bytes and on the image; afterwards the image is opened anew, then the stock
//! tool reads and checks it. It makes some of the images, which costs it seconds for each LUKS header.

mod anew;
mod routes;
mod temporary;
mod turns;

use qcow2::testing::crypto::luks::{new_header, parse_mode, seal, work_with, HEADER_BYTES};
use qcow2::testing::crypto::{Algorithm, Hash, Spec};
use qcow2::testing::disk::{Disk, ZeroFlags};
use qcow2::testing::error::{ErrorKind, Result};
use qcow2::testing::ops::check::CheckOptions;
use qcow2::testing::ops::commit::commit;
use qcow2::testing::ops::handle::Handle;
use qcow2::testing::ops::open::{OpenFlags, Opening, Origin, SecretRequest, Secrets};
use qcow2::testing::ops::snapshot::{self, SnapshotRef};
use qcow2::testing::ops::{amend::amend, amend::amend_with, bitmaps};
use qcow2::testing::options::OpenOptions;
use std::io::IoSlice;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use testkit::images::new_image;
use testkit::rng::{cases, Rng};
use testkit::setup::snapshot_named;
use testkit::stock::{is_there, qemu};

const SECRET: &[u8] = b"hunter2";
const SIZE: u64 = 3 << 20;
/// What a guest writes is found in no file.
const CANARY: [u8; 64] = *b"canary 0123456789abcdefghijklmnopqrstuvwxyz. the guest wrote it!";

/// How images are made, beside a size.
const IMAGES: [(&str, &str); 6] = [
    ("aes", "encrypt.format=aes,cluster_size=512"),
    ("aes-v2", "encrypt.format=aes,compat=0.10"),
    ("aes-sub", "encrypt.format=aes,extended_l2=on,cluster_size=32k,lazy_refcounts=on"),
    ("luks", "encrypt.format=luks,encrypt.iter-time=10"),
    ("luks-sub", "encrypt.format=luks,encrypt.iter-time=10,extended_l2=on,cluster_size=16k"),
    ("luks-cbc", "encrypt.format=luks,encrypt.iter-time=10,cluster_size=2k,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,encrypt.cipher-alg=aes-128"),
];

fn make(folder: &Path, name: &str, options: &str) -> PathBuf {
    let path = folder.join(name);
    let secret = format!("secret,id=s,data={}", String::from_utf8_lossy(SECRET));
    let options = format!("{options},encrypt.key-secret=s");
    let (file, size) = (path.to_str().unwrap(), SIZE.to_string());
    qemu(&["qemu-img", "create", "-q", "--object", &secret, "-f", "qcow2", "-o", &options, file, &size]);
    path
}

/// Opens a chain whose disks have secrets of their own, by depth.
fn open_chain(path: &Path, secrets: &[&[u8]]) -> Result<Handle> {
    let mut source = |request: &SecretRequest, room: &mut [u8]| {
        Ok(secrets.get(request.depth).map(|secret| {
            room[..secret.len()].copy_from_slice(secret);
            secret.len()
        }))
    };
    let secrets = Secrets { source: Some(&mut source), progress: None };
    let flags = OpenFlags { allow_recorded: true, ..OpenFlags::default() };
    let options = OpenOptions::default();
    Opening { flags, options, resolver: None, messages: None, secrets }.open(&Origin::Path(path.to_owned()))
}

fn open_with(path: &Path, flags: OpenFlags, secret: Option<&[u8]>) -> Result<Handle> {
    let mut source = |request: &SecretRequest, room: &mut [u8]| {
        assert!(request.depth == 0 && !request.file.is_empty());
        Ok(secret.map(|secret| {
            room[..secret.len()].copy_from_slice(secret);
            secret.len()
        }))
    };
    let secrets = Secrets { source: Some(&mut source), progress: None };
    let options = OpenOptions::default();
    Opening { flags, options, resolver: None, messages: None, secrets }.open(&Origin::Path(path.to_owned()))
}

fn open(path: &Path) -> Handle {
    open_with(path, OpenFlags::default(), Some(SECRET)).unwrap()
}

fn read(disk: &Disk, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; length];
    disk.read(offset, &mut [std::io::IoSliceMut::new(&mut bytes)]).unwrap();
    bytes
}

/// One random request on both.
fn step(rng: &mut Rng, disk: &Disk, model: &mut [u8]) {
    let length = match rng.below(4) {
        0 => 1 + rng.below(700),
        1 => (1 + rng.below(20)) * 512,
        2 => 1 + rng.below(100_000),
        _ => (1 + rng.below(4)) << 16,
    };
    let align = [1, 512, 4096, 65536][rng.below(4) as usize];
    let at = (rng.below(SIZE - length) / align * align) as usize;
    let range = at..at + length as usize;
    match rng.below(8) {
        0 => {
            let flags = ZeroFlags { unmap: rng.below(2) == 0, no_fallback: false };
            disk.write_zeroes(at as u64, length, flags, false).unwrap();
            model[range].fill(0);
        }
        1 => {
            disk.discard(at as u64, length).unwrap();
            // What was there, or zeroes.
            let now = read(disk, at as u64, length as usize);
            assert!(now.iter().zip(&model[range.clone()]).all(|(n, m)| n == m || *n == 0));
            model[range].copy_from_slice(&now);
        }
        2 => disk.flush().unwrap(),
        3 | 4 => assert!(read(disk, at as u64, length as usize) == model[range], "a read at {at:#x}"),
        _ => {
            let bytes: Vec<u8> = match rng.below(2) {
                0 => CANARY.iter().copied().cycle().take(length as usize).collect(),
                _ => (0..length).map(|_| rng.below(256) as u8).collect(),
            };
            let (first, second) = bytes.split_at(rng.below(length) as usize);
            disk.write(at as u64, &[IoSlice::new(first), IoSlice::new(second)], false).unwrap();
            model[range].copy_from_slice(&bytes);
        }
    }
}

/// How images are made here: options, and of LUKS ones cipher, bytes of the key, mode and generator, hash.
type Own = (&'static [&'static str], Option<(Algorithm, usize, &'static str, Hash)>);

const OWN: [Own; 10] = [
    (&["cluster_size=512"], None),
    (&["compat=0.10"], None),
    (&["extended_l2=on", "cluster_size=16k"], None),
    (&[], Some((Algorithm::Aes, 64, "xts-plain64", Hash::Sha256))),
    (&["cluster_size=512", "lazy_refcounts=on"], Some((Algorithm::Aes, 32, "xts-plain", Hash::Sha512))),
    (&["cluster_size=4k", "compat=0.10"], Some((Algorithm::Aes, 32, "cbc-essiv:sha256", Hash::Sm3))),
    (&["extended_l2=on", "cluster_size=32k"], Some((Algorithm::Aes, 16, "ctr-plain64", Hash::Ripemd160))),
    (&["cluster_size=2M"], Some((Algorithm::Serpent, 64, "xts-plain64", Hash::Sha1))),
    (&["cluster_size=2k"], Some((Algorithm::Twofish, 48, "xts-essiv:md5", Hash::Sha384))),
    (&["cluster_size=8k"], Some((Algorithm::Cast5, 16, "cbc-plain64", Hash::Sha224))),
];

/// An image made here: a plain one is told that it is encrypted. A LUKS header is put behind it, and counted by a repair.
fn make_own(path: &Path, (options, luks): Own) {
    let mut bytes = new_image(SIZE, options).contents();
    bytes[35] = if luks.is_some() { 2 } else { 1 };
    let number = |bytes: &[u8], at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    if let Some((algorithm, key_bytes, mode, hash)) = luks {
        let cluster = 1 << number(&bytes, 20);
        let (mode, iv) = parse_mode(mode).unwrap();
        let key: Vec<u8> = (0..key_bytes as u8).collect();
        let mut rng = Rng::new(9);
        let mut random = |out: &mut [u8]| {
            out.iter_mut().for_each(|byte| *byte = rng.below(256) as u8);
            Ok(())
        };
        let spec = Spec { algorithm, key_bytes, mode, iv };
        let mut header =
            new_header(spec, hash, &key, 1000, "here".into(), &mut random, &mut |_| Ok(())).unwrap();
        let work = &mut work_with(&key);
        let material = seal(&mut header, 3, work, SECRET, 1000, &mut random, &mut |_, _| Ok(())).unwrap();
        let (at, length) = (bytes.len().next_multiple_of(cluster), header.data_offset() as usize);
        bytes.resize(at + length.next_multiple_of(cluster), 0);
        bytes[at..at + HEADER_BYTES].copy_from_slice(&header.encode());
        let material_at = at + header.material_offset(3) as usize;
        bytes[material_at..material_at + material.len()].copy_from_slice(&material);
        let mut end = if bytes[7] == 2 { 72 } else { number(&bytes, 100) };
        while number(&bytes, end) != 0 {
            end += 8 + number(&bytes, end + 4).next_multiple_of(8);
        }
        let pointer = [0x0537_be77_0000_0010, at as u64, length as u64].map(u64::to_be_bytes).concat();
        bytes[end..end + pointer.len()].copy_from_slice(&pointer);
    }
    std::fs::write(path, bytes).unwrap();
    let flags = OpenFlags { metadata_only: true, ..OpenFlags::default() };
    let handle = open_with(path, flags, None).unwrap();
    let repair = CheckOptions { repair_leaks: true, repair_errors: true, ..CheckOptions::default() };
    let report = handle.check(repair, None, &mut |_, _| true).unwrap();
    assert_eq!(report.corruptions, 0);
    handle.close().unwrap();
}

#[test]
fn lists_on_images_made_here_are_what_the_stock_tool_reads() {
    let folder = tempfile::tempdir().unwrap();
    let (path, stock) = (folder.path().join("own"), is_there());
    for (index, own) in OWN.into_iter().enumerate() {
        if own.1.is_some_and(|luks| luks.0 != Algorithm::Aes) && !cfg!(feature = "more-ciphers") {
            continue;
        }
        for seed in 0..cases(4) {
            make_own(&path, own);
            let mut rng = Rng::new(seed);
            let mut model = vec![0; SIZE as usize];
            let what = format!("image {index}, seed {seed}");
            for _ in 0..2 {
                let handle = open(&path);
                (0..30).for_each(|_| step(&mut rng, handle.disk(), &mut model));
                assert!(read(handle.disk(), 0, SIZE as usize) == model, "{what}");
                handle.close().unwrap();
            }
            let handle = open(&path);
            assert!(read(handle.disk(), 0, SIZE as usize) == model, "{what}: after a reopen");
            handle.close().unwrap();
            if stock {
                judge(&path, &model, &what);
            }
        }
    }
}

/// The stock tool finds what the model says, and nothing amiss; nothing of the guest's is in the file.
fn judge(path: &Path, model: &[u8], what: &str) {
    let out = path.with_extension("raw");
    let secret = format!("secret,id=s,data={}", String::from_utf8_lossy(SECRET));
    let source = format!("driver=qcow2,encrypt.key-secret=s,file.filename={}", path.display());
    let out_name = out.to_str().unwrap();
    qemu(&["qemu-img", "convert", "--object", &secret, "--image-opts", &source, "-O", "raw", out_name]);
    assert!(std::fs::read(&out).unwrap() == model, "{what}: the stock tool reads something else");
    qemu(&["qemu-img", "check", "--object", &secret, "--image-opts", &source]);
    let stored = std::fs::read(path).unwrap();
    let seen = stored.windows(CANARY.len()).any(|bytes| bytes == CANARY);
    assert!(!seen, "{what}: what the guest wrote is in the file");
}

#[test]
fn lists_on_encrypted_images_are_what_the_stock_tool_reads() {
    if !is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (name, options) in IMAGES {
        let path = make(folder.path(), name, options);
        let empty = std::fs::read(&path).unwrap();
        for seed in 0..2 {
            std::fs::write(&path, &empty).unwrap();
            let mut rng = Rng::new(seed);
            let mut model = vec![0; SIZE as usize];
            let what = format!("{name}, seed {seed}");
            for _ in 0..3 {
                let handle = open(&path);
                (0..25).for_each(|_| step(&mut rng, handle.disk(), &mut model));
                handle.close().unwrap();
                let handle = open(&path);
                assert!(read(handle.disk(), 0, SIZE as usize) == model, "{what}: after a reopen");
                handle.close().unwrap();
            }
            judge(&path, &model, &what);
        }
    }
}

#[test]
fn what_the_stock_tool_writes_is_read() {
    if !is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (name, options) in [IMAGES[1], IMAGES[2], IMAGES[3]] {
        let path = make(folder.path(), name, options);
        let source = format!("driver=qcow2,encrypt.key-secret=s,file.filename={}", path.display());
        let writes = [
            "write -q -P 5 0 64k",
            "write -q -P 6 100k 3000",
            "write -q -c -P 7 1M 64k",
            "write -q -z 8k 8k",
        ];
        let mut words = vec!["qemu-io", "--object", "secret,id=s,data=hunter2", "--image-opts", &source];
        writes.iter().for_each(|write| words.extend(["-c", write]));
        qemu(&words);
        let mut model = vec![0; SIZE as usize];
        model[..64 << 10].fill(5);
        model[100 << 10..][..3000].fill(6);
        // A compressed cluster is not encrypted; the stock tool's smallest one here is 32 KiB.
        model[1 << 20..][..64 << 10].fill(7);
        model[8 << 10..16 << 10].fill(0);
        let handle = open(&path);
        assert!(read(handle.disk(), 0, SIZE as usize) == model, "{name}");
        handle.close().unwrap();
    }
}

#[test]
fn a_snapshot_keeps_its_contents() {
    if !is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (name, options) in [IMAGES[0], IMAGES[4]] {
        let path = make(folder.path(), name, options);
        let mut rng = Rng::new(5);
        let mut model = vec![0; SIZE as usize];
        let handle = open(&path);
        (0..20).for_each(|_| step(&mut rng, handle.disk(), &mut model));
        snapshot::create(&handle, &snapshot_named(b"s")).unwrap();
        let kept = model.clone();
        (0..20).for_each(|_| step(&mut rng, handle.disk(), &mut model));
        assert!(read(handle.disk(), 0, SIZE as usize) == model);
        handle.close().unwrap();
        judge(&path, &model, name);
        let handle = open(&path);
        snapshot::apply(&handle, SnapshotRef { id: None, name: Some(b"s") }).unwrap();
        assert!(read(handle.disk(), 0, SIZE as usize) == kept);
        handle.close().unwrap();
        judge(&path, &kept, name);
    }
}

#[test]
fn without_the_secret_there_is_no_disk_and_no_change() {
    if !is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = make(folder.path(), "luks", IMAGES[3].1);
    let before = std::fs::read(&path).unwrap();
    let refused = |secret: Option<&[u8]>| {
        let error = open_with(&path, OpenFlags::default(), secret).err().expect("a refusal");
        assert!(!error.to_string().contains("hunter"), "{error}");
        (error.kind(), error.parts().summary.to_owned())
    };
    let none = "Parameter 'encrypt.key-secret' is required for cipher";
    assert_eq!(refused(None), (ErrorKind::NoSecret, none.into()));
    let wrong = "Invalid password, cannot unlock any keyslot";
    assert_eq!(refused(Some(b"hunter3")), (ErrorKind::WrongSecret, wrong.into()));
    assert_eq!(refused(Some(b"")), (ErrorKind::WrongSecret, wrong.into()));
    assert!(std::fs::read(&path).unwrap() == before, "a refused open changed the image");
    // Looks at metadata need none.
    let flags = OpenFlags { metadata_only: true, ..OpenFlags::default() };
    let handle = open_with(&path, flags, None).unwrap();
    let report = handle.check(CheckOptions::default(), None, &mut |_, _| true).unwrap();
    assert_eq!((report.corruptions, report.leaks), (0, 0));
    handle.close().unwrap();
}

#[test]
fn what_an_encrypted_image_cannot_do_is_refused() {
    if !is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = make(folder.path(), "aes", "encrypt.format=aes");
    let handle = open(&path);
    let refused = handle.disk().write_compressed(0, &[IoSlice::new(&[1; 65536])], false).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    assert_eq!(refused.to_string(), "Compression and encryption not supported at the same time");
    handle.disk().write(0, &[IoSlice::new(&[1; 65536])], false).unwrap();
    // Where encrypted bytes are helps nobody, and what the host has says nothing.
    let status = handle.disk().status(0, SIZE, false).unwrap();
    assert_eq!((status.data, status.zero, status.host, status.length), (true, false, None, 65536));
    handle.close().unwrap();
}

#[test]
fn every_disk_of_a_chain_has_a_key_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let (base, top) = (folder.path().join("base"), folder.path().join("top"));
    make_own(&base, OWN[3]);
    let (mut rng, mut model) = (Rng::new(3), vec![0; SIZE as usize]);
    let handle = open(&base);
    (0..20).for_each(|_| step(&mut rng, handle.disk(), &mut model));
    handle.close().unwrap();
    let named = format!("backing_file={}", base.display());
    let mut bytes = new_image(SIZE, &[&named, "backing_fmt=qcow2", "cluster_size=4k"]).contents();
    bytes[35] = 1;
    std::fs::write(&top, bytes).unwrap();
    let handle = open_chain(&top, &[b"another", SECRET]).unwrap();
    assert!(read(handle.disk(), 0, SIZE as usize) == model, "what shows through");
    (0..40).for_each(|_| step(&mut rng, handle.disk(), &mut model));
    assert!(read(handle.disk(), 0, SIZE as usize) == model);
    handle.close().unwrap();
    let refused = open_chain(&top, &[b"another", b"another"]).err().expect("a wrong secret below");
    assert_eq!(refused.kind(), ErrorKind::WrongSecret);
    let handle = open_chain(&top, &[b"another", SECRET]).unwrap();
    commit(&handle, false, None, &mut |_, _| true).unwrap();
    assert!(read(handle.disk(), 0, SIZE as usize) == model);
    handle.close().unwrap();
    let handle = open(&base);
    assert!(read(handle.disk(), 0, SIZE as usize) == model, "what was committed");
    handle.close().unwrap();
}

const SCAN: &str = "QCOW2_TEST_SCAN";

/// Where this process has `key`, given inverted, in memory that a core dump would have.
fn find_in_memory(inverted: &[u8]) -> Option<u64> {
    let memory = std::fs::File::open("/proc/self/mem").unwrap();
    let (mut range, mut scanned) = (0..0, 0);
    for line in std::fs::read_to_string("/proc/self/smaps").unwrap().lines() {
        let first = line.split(' ').next().unwrap_or_default();
        let number = |text: &str| u64::from_str_radix(text, 16).ok();
        if let Some((Some(from), Some(to))) = first.split_once('-').map(|(a, b)| (number(a), number(b))) {
            range = from..to;
        }
        let Some(flags) = line.strip_prefix("VmFlags:") else { continue };
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let dumped = !flags.split(' ').any(|flag| flag == "dd");
        if !dumped || !flags.contains(" wr") || memory.read_exact_at(&mut bytes, range.start).is_err() {
            continue;
        }
        scanned += bytes.len();
        let same = |window: &[u8]| window.iter().zip(inverted).all(|(byte, other)| *byte == !*other);
        if let Some(at) = bytes.windows(inverted.len()).position(same) {
            return Some(range.start + at as u64);
        }
    }
    assert!(scanned > 1 << 16, "only {scanned} bytes of memory were looked at");
    None
}

/// A process of its own opens the image, for this one has made the key.
#[test]
fn the_key_is_in_no_memory_that_a_core_dump_has() {
    let inverted = |bytes: &[u8]| bytes.iter().map(|b| !b).collect::<Vec<u8>>();
    if let Some(path) = std::env::var_os(SCAN) {
        let handle = open(Path::new(&path));
        handle.disk().write(0, &[IoSlice::new(&CANARY)], false).unwrap();
        // Inverted from the start: 0xff, 0xfe and so on.
        let key: Vec<u8> = (0..16u8).map(|i| 0xff - i).collect();
        assert_eq!(find_in_memory(&key), None, "the first round key");
        let (mut told, mut wanted) = (0, |_: &SecretRequest, room: &mut [u8]| {
            room[..SECRET.len()].copy_from_slice(SECRET);
            Ok(Some(SECRET.len()))
        });
        let mut look = |_, _| {
            told += 1;
            assert!(told % 4 > 0 || find_in_memory(&key).is_none(), "while a key slot is made, {told}");
            true
        };
        let mut secrets = Secrets { source: Some(&mut wanted), progress: Some(&mut look) };
        let options = ["encrypt.state=active", "encrypt.new-secret=n", "encrypt.iter-time=0"];
        amend_with(&handle, &options, false, &mut secrets, &mut |_, _| true).unwrap();
        assert!(told > 4);
        handle.close().unwrap();
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("own");
    make_own(&path, OWN[3]);
    let test = "the_key_is_in_no_memory_that_a_core_dump_has";
    let program = std::env::current_exe().unwrap();
    let done = Command::new(program).args([test, "--exact"]).env(SCAN, &path).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
    // The search finds what is there.
    let here = std::hint::black_box(vec![0x5au8; 40]);
    assert!(find_in_memory(&inverted(&here)).is_some());
}

#[test]
fn zeroes_of_an_encrypted_image_stay_flags() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("own");
    make_own(&path, OWN[3]);
    let handle = open(&path);
    handle.disk().write(0, &[IoSlice::new(&[1; 65536])], false).unwrap();
    handle.disk().write_zeroes(0, 65536, ZeroFlags::default(), false).unwrap();
    let before = std::fs::read(&path).unwrap();
    let refused = amend(&handle, &["compat=0.10"], &mut |_, _| true).unwrap_err();
    assert_eq!(refused.to_string(), "Cannot downgrade an encrypted image with clusters of zeroes");
    assert_eq!(read(handle.disk(), 0, 65536), [0; 65536]);
    handle.close().unwrap();
    assert_eq!(before.len(), std::fs::read(&path).unwrap().len());
}

#[test]
fn bitmaps_are_plain_beside_data_that_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("own");
    make_own(&path, OWN[3]);
    let (handle, at) = (open(&path), 3 << 16);
    bitmaps::add(&handle, b"b", Some(512), true).unwrap();
    handle.disk().write(at, &[IoSlice::new(&CANARY.repeat(8))], false).unwrap();
    handle.close().unwrap();
    let bytes = std::fs::read(&path).unwrap();
    assert!(!bytes.windows(CANARY.len()).any(|w| w == CANARY), "guest data is there in plain");
    let stored = &testkit::bitmaps::bitmaps(&bytes[..])[0];
    assert_eq!((stored.in_use, stored.is_dirty(at), stored.is_dirty(at + 512)), (false, true, false));
    assert_eq!(bitmaps::next_dirty(&open(&path), b"b", 0).unwrap(), Some((at, at + 512)));
}
