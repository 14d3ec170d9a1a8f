//! Encrypted images that are made and amended here: the stock tools open them, and show the same of them as of their own.

use qcow2::testing::crypto::luks::Header;
use qcow2::testing::error::{ErrorKind, Result};
use qcow2::testing::ops::amend::amend_with;
use qcow2::testing::ops::check::CheckOptions;
use qcow2::testing::ops::create::{create_at, create_with, NewKeys};
use qcow2::testing::ops::formats::Driver;
use qcow2::testing::ops::handle::Handle;
use qcow2::testing::ops::measure::measure;
use qcow2::testing::ops::open::{OpenFlags, Opening, Origin, SecretKind, SecretRequest, Secrets};
use qcow2::testing::options::{CreateOptions, OpenOptions};
use qcow2::testing::storage::memory::Memory;
use std::io::{IoSlice, IoSliceMut};
use std::path::{Path, PathBuf};
use testkit::stock::{is_there, qemu, stock};

const SIZE: u64 = 3 << 20;

/// Has a secret of each kind; "" is none.
struct Given {
    current: &'static str,
    new: &'static str,
    old: &'static str,
}

const NONE: Given = Given { current: "", new: "", old: "" };

impl Given {
    fn with<T>(&self, run: impl FnOnce(&mut Secrets<'_>) -> T) -> T {
        let mut source = |request: &SecretRequest, room: &mut [u8]| {
            let secret = match request.kind {
                SecretKind::Current => self.current,
                SecretKind::New => self.new,
                SecretKind::Old => self.old,
            };
            room[..secret.len()].copy_from_slice(secret.as_bytes());
            Ok(Some(secret.len()).filter(|length| *length > 0))
        };
        run(&mut Secrets { source: Some(&mut source), progress: None })
    }
}

fn create(path: &Path, options: &[&str], secret: &'static str) -> Result<()> {
    let options = CreateOptions::parse(options)?;
    let given = Given { new: secret, ..NONE };
    given.with(|secrets| create_at(Driver::QCOW2, &Origin::Path(path.into()), None, SIZE, &options, secrets))
}

fn open(path: &Path, secret: &'static str) -> Result<Handle> {
    let flags = OpenFlags { allow_recorded: true, metadata_only: secret.is_empty(), ..OpenFlags::default() };
    Given { current: secret, ..NONE }.with(|secrets| {
        let secrets = std::mem::take(secrets);
        let options = OpenOptions::default();
        Opening { flags, options, resolver: None, messages: None, secrets }.open(&Origin::Path(path.into()))
    })
}

fn stock_check(path: &Path, secret: &str) {
    let object = format!("secret,id=s,data={secret}");
    let image = format!("driver=qcow2,file.filename={},encrypt.key-secret=s", path.display());
    qemu(&["qemu-img", "check", "-q", "--object", &object, "--image-opts", &image]);
}

/// What the stock tool writes is read here, and the other way round.
fn exchange(path: &Path, secret: &'static str) {
    let object = format!("secret,id=s,data={secret}");
    let image = format!("driver=qcow2,file.filename={},encrypt.key-secret=s", path.display());
    let handle = open(path, secret).unwrap();
    let mut bytes = vec![0xee; 70_000];
    handle.disk().read(0, &mut [IoSliceMut::new(&mut bytes)]).unwrap();
    assert!(bytes.iter().all(|b| *b == 0), "a new image is zeroes");
    handle.disk().write(1000, &[IoSlice::new(&[0xa5; 70_000])], false).unwrap();
    handle.close().unwrap();
    let io = |command: &str| qemu(&["qemu-io", "--object", &object, "--image-opts", &image, "-c", command]);
    let said = io("read -P 0xa5 1000 70000") + &io("read -P 0 0 1000") + &io("read -P 0 71000 100000");
    assert!(!said.contains("failed"), "{said}");
    io("write -P 0x5a 2M 4k");
    stock_check(path, secret);
    let handle = open(path, secret).unwrap();
    let mut bytes = vec![0; 4096];
    handle.disk().read(2 << 20, &mut [IoSliceMut::new(&mut bytes)]).unwrap();
    assert!(bytes.iter().all(|b| *b == 0x5a));
    let found = handle.check(CheckOptions::default(), None, &mut |_, _| true).unwrap();
    assert_eq!((found.corruptions, found.leaks), (0, 0));
    handle.close().unwrap();
}

/// How images are made, beside a secret.
const IMAGES: [&str; 12] = [
    "encrypt.format=luks",
    "encrypt.format=luks cluster_size=512",
    "encrypt.format=luks cluster_size=2M refcount_bits=1",
    "encrypt.format=luks compat=0.10",
    "encrypt.format=luks extended_l2=on cluster_size=16k preallocation=metadata",
    "encrypt.format=luks preallocation=metadata",
    "encrypt.format=luks preallocation=falloc cluster_size=512",
    "encrypt.format=luks preallocation=full cluster_size=4k",
    "encrypt.format=luks encrypt.cipher-alg=aes-128 encrypt.cipher-mode=cbc encrypt.ivgen-alg=essiv",
    "encrypt.format=luks encrypt.hash-alg=sha1 encrypt.ivgen-hash-alg=sha1 encrypt.ivgen-alg=plain",
    "encrypt.format=luks encrypt.cipher-alg=aes-192 encrypt.hash-alg=ripemd160 lazy_refcounts=on",
    "encrypt.format=aes preallocation=metadata",
];

fn words(options: &'static str) -> Vec<&'static str> {
    let quick = options.contains("luks").then_some("encrypt.iter-time=10");
    options.split(' ').chain(quick).collect()
}

#[test]
fn what_is_made_here_is_the_stock_tools_too() {
    if !is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for options in IMAGES {
        println!("{options}");
        let path = folder.path().join("made");
        create(&path, &words(options), "hunter2").unwrap();
        exchange(&path, "hunter2");
    }
}

/// The lines of `info` that no chance is in.
fn told(path: &Path) -> Vec<String> {
    let said = qemu(&["qemu-img", "info", path.to_str().unwrap()]);
    let chance = ["image:", "filename:", "uuid:", "iters:", "disk size", "Child node"];
    said.lines().filter(|line| !chance.iter().any(|word| line.contains(word))).map(str::to_owned).collect()
}

/// The header cluster and the fields of the LUKS header, without what is random.
fn laid_out(path: &Path) -> (Vec<u8>, Option<Header>) {
    let bytes = std::fs::read(path).unwrap();
    let handle = open(path, "").unwrap();
    let luks = handle.disk().encryption().unwrap().unwrap().1;
    let header = luks.map(|luks| {
        let mut header = luks.header;
        header.digest = Default::default();
        header.digest_salt = Default::default();
        (header.digest_iterations, header.uuid) = (1, String::new());
        header.slots.iter_mut().for_each(|slot| (slot.salt, slot.iterations) = (Default::default(), 1));
        header
    });
    (bytes[..512].to_vec(), header)
}

#[test]
fn headers_are_laid_out_as_the_stock_tool_lays_them_out() {
    if !is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (ours, theirs) = (folder.path().join("ours"), folder.path().join("theirs"));
    let alone = |options: &&&str| !options.contains("falloc") && !options.contains("full");
    for options in IMAGES.iter().filter(alone) {
        println!("{options}");
        let words = words(options);
        create(&ours, &words, "hunter2").unwrap();
        let list = format!("{},encrypt.key-secret=s", words.join(","));
        let (file, size) = (theirs.to_str().unwrap(), SIZE.to_string());
        let secret = ["--object", "secret,id=s,data=hunter2"];
        qemu(&["qemu-img", "create", "-q", secret[0], secret[1], "-f", "qcow2", "-o", &list, file, &size]);
        assert_eq!(told(&ours), told(&theirs));
        let (our_bytes, our_header) = laid_out(&ours);
        let (their_bytes, their_header) = laid_out(&theirs);
        assert_eq!(our_header, their_header);
        if !options.contains("prealloc") {
            assert_eq!(our_bytes, their_bytes);
        }
        let said =
            qemu(&["qemu-img", "measure", "-O", "qcow2", secret[0], secret[1], "-o", &list, "--size", &size]);
        let measured = measure(SIZE, &CreateOptions::parse(&words).unwrap(), None).unwrap();
        let expected = format!(
            "required size: {}\nfully allocated size: {}",
            measured.required_bytes, measured.fully_allocated_bytes
        );
        assert_eq!(said.trim(), expected);
    }
}

#[test]
fn what_cannot_be_made_is_refused_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("none");
    let luks = |more: &'static str| ["encrypt.format=luks", more];
    let cases = [
        (luks("encrypt.cipher-alg=foo"), "Parameter 'cipher-alg' does not accept value 'foo'"),
        (luks("encrypt.cipher-mode=foo"), "Parameter 'cipher-mode' does not accept value 'foo'"),
        (luks("encrypt.ivgen-alg=foo"), "Parameter 'ivgen-alg' does not accept value 'foo'"),
        (luks("encrypt.ivgen-hash-alg=foo"), "Parameter 'ivgen-hash-alg' does not accept value 'foo'"),
        (luks("encrypt.hash-alg=foo"), "Parameter 'hash-alg' does not accept value 'foo'"),
        (luks("encrypt.cipher-alg=3des"), "Algorithm '3des' not supported"),
        (luks("encrypt.cipher-alg=cast5-128"), "Unsupported cipher mode xts"),
    ];
    for (options, text) in cases {
        assert_eq!(create(&path, &options, "hunter2").unwrap_err().to_string(), text);
        assert!(!path.exists());
    }
    let odd = ["encrypt.format=luks", "encrypt.cipher-alg=aes-192", "encrypt.cipher-mode=cbc"];
    let refused = create(&path, &odd, "hunter2").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    let unsupported: [&[&str]; 2] = [
        &["encrypt.format=luks", "data_file=d", "data_file_raw=on"],
        &["encrypt.format=aes", "compat=0.10", "preallocation=metadata"],
    ];
    for options in unsupported {
        assert_eq!(create(&path, options, "hunter2").unwrap_err().kind(), ErrorKind::Unsupported);
    }
    for options in ["encrypt.format=luks", "encrypt.format=aes"] {
        let refused = create(&path, &[options], "").unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::NoSecret);
        assert_eq!(refused.to_string(), "Parameter 'encrypt.key-secret' is required for cipher");
    }
    let long = create(&path, &luks("encrypt.iter-time=18446744073709551615"), "s").unwrap_err().to_string();
    assert!(long.contains("too large to scale"), "{long}");
    // A caller who stops it.
    let options = CreateOptions::parse(&["encrypt.format=luks"]).unwrap();
    let mut source = |_: &SecretRequest, _: &mut [u8]| Ok(Some(3));
    let mut stop = |_, _| false;
    let mut secrets = Secrets { source: Some(&mut source), progress: Some(&mut stop) };
    let stopped = create_at(Driver::QCOW2, &Origin::Path(path.clone()), None, SIZE, &options, &mut secrets)
        .unwrap_err();
    assert_eq!(stopped.kind(), ErrorKind::Cancelled);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    // Keys that are not there.
    let memory = Memory::default();
    assert!(create_with(&memory, None, SIZE, &options, None).is_err());
    assert!(memory.contents().is_empty());
    let plain = CreateOptions::default();
    assert!(create_with(&memory, None, SIZE, &plain, Some(&NewKeys::Aes)).is_err());
}

#[test]
fn iterations_follow_the_time_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("timed");
    let iterations = |time: &str| {
        create(&path, &["encrypt.format=luks", time], "hunter2").unwrap();
        let handle = open(&path, "").unwrap();
        let header = handle.disk().encryption().unwrap().unwrap().1.unwrap().header;
        (header.slots[0].iterations, header.digest_iterations)
    };
    assert_eq!(iterations("encrypt.iter-time=0"), (1000, 1000));
    let (short, long) = (iterations("encrypt.iter-time=100"), iterations("encrypt.iter-time=400"));
    let ratio = f64::from(long.0) / f64::from(short.0);
    assert!((2.0..8.0).contains(&ratio), "{short:?} {long:?}");
    // A key of two digests costs twice as much as that of the master key, which has an eighth of the time.
    assert!((f64::from(long.0) / f64::from(long.1) - 4.0).abs() < 0.1, "{long:?}");
}

/// What both say to an amend of the same image.
struct Amending {
    folder: tempfile::TempDir,
}

impl Amending {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Ours and the stock tool's answers to the same options; secrets: n and o. Both images are what they were made.
    fn both(&self, current: &'static str, options: &str, given: &Given, force: bool) -> [String; 2] {
        let options: Vec<&str> = options.split(' ').collect();
        let ours = || -> Result<()> {
            let handle = open(&self.path("ours"), current)?;
            let given = Given { current, ..*given };
            given.with(|secrets| amend_with(&handle, &options, force, secrets, &mut |_, _| true))?;
            handle.close()
        };
        let ours = ours().map_or_else(|e| e.to_string(), |()| String::new());
        let theirs = self.path("theirs");
        let objects: Vec<String> = [("s", current), ("n", given.new), ("o", given.old)]
            .iter()
            .filter(|(_, secret)| !secret.is_empty())
            .flat_map(|(id, secret)| ["--object".to_owned(), format!("secret,id={id},data={secret}")])
            .collect();
        let list = options.join(",");
        let image = format!("driver=qcow2,file.filename={},encrypt.key-secret=s", theirs.display());
        let mut words = vec!["qemu-img", "amend"];
        words.extend(objects.iter().map(String::as_str));
        words.extend(["-o", &list]);
        words.extend(force.then_some("--force"));
        words.extend(["--image-opts", &image]);
        let said = stock(&words).1;
        [ours, said.trim_end_matches('\n').trim_start_matches("qemu-img: ").to_owned()]
    }
}

/// Options, then the current, the new and the old secret, and whether to force.
const AMENDS: [(&str, [&str; 3], bool); 29] = [
    ("encrypt.state=active", ["a", "", ""], false),
    ("encrypt.new-secret=n", ["a", "b", ""], false),
    ("encrypt.state=foo", ["a", "b", ""], false),
    ("encrypt.state=active encrypt.new-secret=n encrypt.old-secret=o", ["a", "b", "a"], false),
    ("encrypt.state=active encrypt.new-secret=n encrypt.keyslot=0", ["a", "b", ""], false),
    ("encrypt.state=active encrypt.new-secret=n encrypt.keyslot=8", ["a", "b", ""], false),
    ("encrypt.state=active encrypt.new-secret=n encrypt.keyslot=-1", ["a", "b", ""], false),
    ("encrypt.state=active encrypt.new-secret=n encrypt.iter-time=1", ["a", "b", ""], false),
    (
        "encrypt.state=active encrypt.new-secret=n encrypt.keyslot=6 encrypt.iter-time=1",
        ["b", "c", ""],
        false,
    ),
    (
        "encrypt.state=active encrypt.new-secret=n encrypt.keyslot=7 encrypt.iter-time=1",
        ["c", "b", ""],
        false,
    ),
    ("encrypt.state=inactive", ["a", "", ""], false),
    ("encrypt.state=inactive encrypt.new-secret=n", ["a", "b", ""], false),
    ("encrypt.state=inactive encrypt.iter-time=1 encrypt.keyslot=6", ["a", "", ""], false),
    ("encrypt.state=inactive encrypt.old-secret=o", ["a", "", "wrong"], false),
    ("encrypt.state=inactive encrypt.keyslot=3", ["a", "", ""], false),
    ("encrypt.state=inactive encrypt.keyslot=9", ["a", "", ""], false),
    ("encrypt.state=inactive encrypt.keyslot=0 encrypt.old-secret=o", ["a", "", "b"], false),
    ("encrypt.state=inactive encrypt.keyslot=3 encrypt.old-secret=o", ["a", "", "a"], false),
    ("encrypt.state=inactive encrypt.keyslot=6 encrypt.old-secret=o", ["a", "", "c"], false),
    ("encrypt.state=inactive encrypt.keyslot=6", ["a", "", ""], false),
    ("encrypt.state=inactive encrypt.keyslot=6", ["a", "", ""], true),
    // Two slots.
    ("encrypt.state=inactive encrypt.old-secret=o", ["a", "", "b"], false),
    ("encrypt.state=inactive encrypt.keyslot=0", ["a", "", ""], false),
    ("encrypt.state=inactive encrypt.old-secret=o", ["a", "", "a"], false),
    ("encrypt.state=active encrypt.new-secret=n compat=0.9", ["a", "b", ""], false),
    ("encrypt.state=active encrypt.new-secret=n encrypt.keyslot=0 encrypt.iter-time=1", ["a", "d", ""], true),
    ("encrypt.state=active encrypt.new-secret=n encrypt.iter-time=1", ["d", "d", ""], false),
    ("encrypt.state=inactive encrypt.old-secret=o", ["d", "", "d"], true),
    ("encrypt.state=active encrypt.new-secret=n", ["d", "d", ""], false),
];

#[test]
fn key_slots_are_amended_as_the_stock_tool_amends_them() {
    if !is_there() {
        return;
    }
    let amending = Amending { folder: tempfile::tempdir().unwrap() };
    create(&amending.path("ours"), &["encrypt.format=luks", "encrypt.iter-time=10"], "a").unwrap();
    std::fs::copy(amending.path("ours"), amending.path("theirs")).unwrap();
    for (options, [current, new, old], force) in AMENDS {
        let given = Given { current, new, old };
        let before = std::fs::read(amending.path("ours")).unwrap();
        let [ours, theirs] = amending.both(current, options, &given, force);
        let theirs = theirs.rsplit("': ").next().unwrap().to_owned();
        // Of an open that fails, each says in its own way which file it is.
        let ours = ours.split(" [in '").next().unwrap().to_owned();
        assert_eq!(ours.trim_end(), theirs.trim_end(), "{options} {current} {new} {old} {force}");
        assert_eq!(told(&amending.path("ours")), told(&amending.path("theirs")), "{options}");
        if !ours.is_empty() {
            assert!(
                std::fs::read(amending.path("ours")).unwrap() == before,
                "{options}: a refusal changes nothing"
            );
        }
        let slots = |name: &str| {
            let (_, header) = laid_out(&amending.path(name));
            header.unwrap().slots.map(|slot| slot.active)
        };
        assert_eq!(slots("ours"), slots("theirs"), "{options}");
    }
}

#[test]
fn all_slots_can_be_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("full");
    create(&path, &["encrypt.format=luks", "encrypt.iter-time=0", "encrypt.cipher-alg=aes-128"], "a")
        .unwrap();
    let handle = open(&path, "a").unwrap();
    let fill = |new: &'static str| {
        let given = Given { current: "a", new, old: "" };
        let options = ["encrypt.state=active", "encrypt.new-secret=n", "encrypt.iter-time=0"];
        given.with(|secrets| amend_with(&handle, &options, false, secrets, &mut |_, _| true))
    };
    for new in ["b", "c", "d", "e", "f", "g", "h"] {
        fill(new).unwrap();
    }
    assert_eq!(fill("i").unwrap_err().to_string(), "Can't add a keyslot - all keyslots are in use");
    handle.close().unwrap();
    for secret in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        open(&path, secret).unwrap().close().unwrap();
    }
    assert_eq!(open(&path, "i").map(drop).unwrap_err().kind(), ErrorKind::WrongSecret);
    if is_there() {
        stock_check(&path, "g");
        stock_check(&path, "h");
    }
}

#[test]
fn without_secrets_key_slots_stay() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kept");
    create(&path, &["encrypt.format=luks", "encrypt.iter-time=0"], "a").unwrap();
    let before = std::fs::read(&path).unwrap();
    let handle = open(&path, "a").unwrap();
    let options = ["encrypt.state=active", "encrypt.new-secret=n", "encrypt.iter-time=0"];
    let cases = [
        (Given { new: "b", ..NONE }, ErrorKind::NoSecret),
        (Given { current: "a", ..NONE }, ErrorKind::NoSecret),
        (Given { current: "b", new: "b", old: "" }, ErrorKind::WrongSecret),
    ];
    for (given, kind) in cases {
        let refused = given.with(|secrets| amend_with(&handle, &options, false, secrets, &mut |_, _| true));
        assert_eq!(refused.unwrap_err().kind(), kind);
    }
    handle.close().unwrap();
    assert!(std::fs::read(&path).unwrap() == before);
}
