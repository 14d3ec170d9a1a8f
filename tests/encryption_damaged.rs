//! Damaged encryption headers: every field at its extremes. The verdict is the stock tool's, nothing is changed, and no
//! work is without end.

use qcow2::testing::error::{ErrorKind, Result};
use qcow2::testing::ops::check::CheckOptions;
use qcow2::testing::ops::create::create_at;
use qcow2::testing::ops::formats::Driver;
use qcow2::testing::ops::handle::Handle;
use qcow2::testing::ops::open::{OpenFlags, Opening, Origin, SecretRequest, Secrets};
use qcow2::testing::options::{CreateOptions, OpenOptions};
use std::io::IoSlice;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use testkit::stock::is_there;

const SECRET: &str = "hunter2";
/// Where the LUKS header is in an image with clusters of 64 KiB.
const HEADER_AT: u64 = 0x40000;

/// Whether the stock tool is content, and its last words.
fn stock(words: &[&str]) -> (bool, String) {
    let done = Command::new(words[0]).args(&words[1..]).output().expect("the stock tool runs");
    let said = String::from_utf8_lossy(&done.stderr).trim().to_owned();
    (done.status.success(), said.lines().last().unwrap_or_default().to_owned())
}

fn create(driver: Driver, path: &Path, options: &[&str]) {
    let options = (driver.create_options)(&options.iter().map(AsRef::as_ref).collect::<Vec<_>>()).unwrap();
    let mut source = |_: &SecretRequest, room: &mut [u8]| {
        room[..SECRET.len()].copy_from_slice(SECRET.as_bytes());
        Ok(Some(SECRET.len()))
    };
    let mut secrets = Secrets { source: Some(&mut source), progress: None };
    create_at(driver, &Origin::Path(path.into()), None, 1 << 20, &options, &mut secrets).unwrap();
}

/// Opens with the secret, or for the metadata alone. Whoever waits for a key gives up after a million iterations.
fn open(format: Driver, path: &Path, metadata_only: bool) -> Result<Handle> {
    let mut source = |_: &SecretRequest, room: &mut [u8]| {
        room[..SECRET.len()].copy_from_slice(SECRET.as_bytes());
        Ok(Some(SECRET.len()))
    };
    let mut patience = |done, _| done < 1_000_000;
    let secrets = Secrets { source: Some(&mut source), progress: Some(&mut patience) };
    let flags = OpenFlags { format, metadata_only, read_only: !metadata_only, ..OpenFlags::default() };
    let options = OpenOptions::default();
    Opening { flags, options, resolver: None, messages: None, secrets }.open(&Origin::Path(path.into()))
}

/// Bytes put at an offset of the LUKS header.
fn damages() -> Vec<(String, u64, Vec<u8>)> {
    let mut all = Vec::new();
    let mut put = |what: &str, at: u64, bytes: &[u8]| all.push((what.to_owned(), at, bytes.to_vec()));
    put("magic", 0, b"LUKT");
    for version in [0u16, 2, 3, u16::MAX] {
        put("version", 6, &version.to_be_bytes());
    }
    for (what, at) in [("cipher", 8), ("mode", 40), ("hash", 72)] {
        put(what, at, &[b'x'; 32]);
        put(what, at, &[0; 32]);
        put(what, at, b"odd\0");
    }
    put("cipher", 8, b"twofish\0");
    put("cipher", 8, b"cast5\0");
    for mode in [
        "cbc-plain",
        "xts",
        "xts-",
        "-plain",
        "xts-essiv",
        "xts-essiv:sha1",
        "cbc-essiv:sha256",
        "xts-plain:odd",
    ] {
        put("mode", 40, format!("{mode}\0").as_bytes());
    }
    put("hash", 72, b"sha512\0");
    for sectors in [0u32, 7, 8, 9, 256, 2000, 2055, 2056, 2057, 3000, 4000, u32::MAX - 1, u32::MAX] {
        put("data", 104, &sectors.to_be_bytes());
    }
    for bytes in [0u32, 1, 15, 16, 31, 33, 48, 63, 64, 65, 4096, u32::MAX] {
        put("key bytes", 108, &bytes.to_be_bytes());
    }
    put("digest", 112, &[0; 20]);
    put("digest salt", 132, &[0xff; 32]);
    for iterations in [0u32, 1, u32::MAX] {
        put("digest iterations", 164, &iterations.to_be_bytes());
    }
    put("uuid", 168, &[b'u'; 40]);
    for slot in [0u64, 1, 6, 7] {
        let at = 208 + slot * 48;
        for state in [0u32, 0x00ac_71f3, 0xdead, u32::MAX] {
            put(&format!("state of slot {slot}"), at, &state.to_be_bytes());
        }
        for iterations in [0u32, 1, u32::MAX] {
            put(&format!("iterations of slot {slot}"), at + 4, &iterations.to_be_bytes());
        }
        for sector in [0u32, 7, 8, 9, 1800, 2055, 2056, 1 << 20, u32::MAX - 255, u32::MAX] {
            put(&format!("material of slot {slot}"), at + 40, &sector.to_be_bytes());
        }
        for stripes in [0u32, 1, 3999, 4001, u32::MAX] {
            put(&format!("stripes of slot {slot}"), at + 44, &stripes.to_be_bytes());
        }
    }
    all
}

/// What both say of one file. The stock tool is not asked to derive a key that takes an hour.
struct Judge {
    format: Driver,
    /// In the stock tool's list of options.
    key: &'static str,
}

impl Judge {
    fn compare(&self, path: &Path, what: &str, may_be_long: bool) {
        let before = std::fs::read(path).unwrap();
        let (file, name) = (path.to_str().unwrap(), self.format.name);
        let agree = |ours: Result<Handle>, words: &[&str], way: &str| {
            // Before the stock tool wants its lock.
            let ours = ours.and_then(Handle::close);
            let (fine, said) = stock(words);
            let words = ours.as_ref().map_or_else(|e| e.to_string(), |()| String::new());
            assert_eq!(ours.is_ok(), fine, "{what}, {way}: '{words}', '{said}'");
            // What is wrong is said in the same words, whatever stands around them.
            let theirs = said.rsplit_once("': ").map_or(&*said, |(_, why)| why);
            let theirs = theirs.strip_prefix("qemu-io: can't open: ").unwrap_or(theirs);
            if !fine && !words.contains(theirs) {
                println!("{what}, {way}: '{words}', the stock tool: '{theirs}'");
            }
        };
        agree(open(self.format, path, true), &["qemu-img", "info", "-f", name, file], "metadata");
        let ours = open(self.format, path, false);
        if may_be_long {
            assert!(ours.is_err_and(|e| e.kind() == ErrorKind::Cancelled), "{what}");
        } else {
            let object = format!("secret,id=s,data={SECRET}");
            let image = format!("driver={name},file.filename={file},{}=s", self.key);
            let words = ["qemu-io", "-r", "--object", &object, "--image-opts", &image, "-c", "length"];
            agree(ours, &words, "secret");
        }
        assert!(std::fs::read(path).unwrap() == before, "{what}: an open changes nothing");
    }
}

fn fields(judge: &Judge, path: &Path, header_at: u64) {
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    for (index, (what, at, bytes)) in damages().into_iter().enumerate() {
        let mut kept = vec![0; bytes.len()];
        file.read_exact_at(&mut kept, header_at + at).unwrap();
        file.write_all_at(&bytes, header_at + at).unwrap();
        // More iterations than the stock tool has time for, of a slot that is tried.
        let huge = bytes == u32::MAX.to_be_bytes();
        let long = huge && (what == "iterations of slot 0" || what == "digest iterations");
        judge.compare(path, &format!("{index}: {what} {bytes:x?}"), long);
        file.write_all_at(&kept, header_at + at).unwrap();
    }
}

#[test]
fn fields_of_an_images_header_at_their_extremes() {
    if !is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged");
    create(
        Driver::QCOW2,
        &path,
        &["encrypt.format=luks", "encrypt.iter-time=0", "encrypt.cipher-alg=aes-128"],
    );
    fields(&Judge { format: Driver::QCOW2, key: "encrypt.key-secret" }, &path, HEADER_AT);
}

#[test]
fn fields_of_a_luks_file_at_their_extremes() {
    if !is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged");
    create(Driver::LUKS, &path, &["iter-time=0", "cipher-alg=aes-128"]);
    fields(&Judge { format: Driver::LUKS, key: "key-secret" }, &path, 0);
}

#[test]
fn pointers_to_a_header_at_their_extremes() {
    if !is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged");
    create(
        Driver::QCOW2,
        &path,
        &["encrypt.format=luks", "encrypt.iter-time=0", "encrypt.cipher-alg=aes-128"],
    );
    let whole = std::fs::read(&path).unwrap();
    let at = whole.windows(4).position(|w| w == [0x05, 0x37, 0xbe, 0x77]).unwrap();
    let judge = Judge { format: Driver::QCOW2, key: "encrypt.key-secret" };
    let try_with = |what: &str, at: usize, bytes: &[u8]| {
        let mut damaged = whole.clone();
        damaged[at..at + bytes.len()].copy_from_slice(bytes);
        std::fs::write(&path, damaged).unwrap();
        judge.compare(&path, &format!("{what} {bytes:x?}"), false);
    };
    for offset in [0, 1, 0x10000, 0x40200, 0x50000, 0x1000_0000, 1 << 62, 1 << 63, u64::MAX - 0xffff] {
        try_with("offset", at + 8, &offset.to_be_bytes());
    }
    let length = 1_052_672u64;
    for bytes in [0, 1, 591, 592, 4096, 0x20fff, 0x21000, length - 1, length, length + 1, 1 << 28, u64::MAX] {
        try_with("length", at + 16, &bytes.to_be_bytes());
    }
    for bytes in [0u32, 8, 24] {
        try_with("length of the extension", at + 4, &bytes.to_be_bytes());
    }
    try_with("extension", at, &[0x12, 0x34, 0x56, 0x78]);
    for method in [0u32, 1, 3, u32::MAX] {
        try_with("method", 32, &method.to_be_bytes());
    }
}

#[test]
fn data_over_the_header_is_found_and_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("overlap");
    create(Driver::QCOW2, &path, &["encrypt.format=luks", "encrypt.iter-time=0", "preallocation=metadata"]);
    // The first guest cluster is where the key material is.
    let whole = std::fs::read(&path).unwrap();
    let number = |at: usize| u64::from_be_bytes(whole[at..at + 8].try_into().unwrap());
    let l2 = (number(number(40) as usize) & 0x00ff_ffff_ffff_fe00) as usize;
    let header_at = whole.windows(6).position(|w| w == b"LUKS\xba\xbe").unwrap() as u64;
    let mut damaged = whole.clone();
    damaged[l2..l2 + 8].copy_from_slice(&(1 << 63 | header_at).to_be_bytes());
    std::fs::write(&path, &damaged).unwrap();
    let handle = open(Driver::QCOW2, &path, true).unwrap();
    let found = handle.check(CheckOptions::default(), None, &mut |_, _| true).unwrap();
    handle.close().unwrap();
    assert!(found.corruptions > 0, "{found:?}");
    if is_there() {
        let object = format!("secret,id=s,data={SECRET}");
        let image = format!("driver=qcow2,file.filename={},encrypt.key-secret=s", path.display());
        let words = ["qemu-img", "check", "--output=json", "--object", &object, "--image-opts", &image];
        let said = Command::new(words[0]).args(&words[1..]).output().unwrap();
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(said.contains(&format!("\"corruptions\": {}", found.corruptions)), "{found:?} {said}");
    }
    let mut source = |_: &SecretRequest, room: &mut [u8]| {
        room[..SECRET.len()].copy_from_slice(SECRET.as_bytes());
        Ok(Some(SECRET.len()))
    };
    let secrets = Secrets { source: Some(&mut source), progress: None };
    let (flags, options) = (OpenFlags::default(), OpenOptions::default());
    let handle = Opening { flags, options, resolver: None, messages: None, secrets }
        .open(&Origin::Path(path.clone()))
        .unwrap();
    let refused = handle.disk().write(0, &[IoSlice::new(&[1; 4096])], false).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::MarkedCorrupt, "{refused}");
    assert!(refused.to_string().contains("encryption header"), "{refused}");
    drop(handle);
    let now = std::fs::read(&path).unwrap();
    let header = header_at as usize..header_at as usize + 2_068_480;
    assert!(now[header.clone()] == whole[header], "the header is as it was");
}

#[test]
fn options_of_both_formats_make_the_same_header() {
    let luks = CreateOptions::parse_luks(&["iter-time=3", "cipher-alg=aes-192"]).unwrap();
    let image =
        CreateOptions::parse(&["encrypt.format=luks", "encrypt.iter-time=3", "encrypt.cipher-alg=aes-192"])
            .unwrap();
    assert_eq!(luks.encryption.unwrap().method, image.encryption.unwrap().method);
}
