//! Plain LUKS files as disks, beside the stock tools.

use qcow2::testing::crypto::luks::HEADER_BYTES;
use qcow2::testing::error::{ErrorKind, Result};
use qcow2::testing::ops::amend::amend_with;
use qcow2::testing::ops::convert::{convert, ConvertOptions};
use qcow2::testing::ops::create::create_at;
use qcow2::testing::ops::formats::Driver;
use qcow2::testing::ops::handle::Handle;
use qcow2::testing::ops::inactive::{inactivate, invalidate, invalidate_with};
use qcow2::testing::ops::open::{OpenFlags, Opening, Origin, SecretKind, SecretRequest, Secrets};
use qcow2::testing::ops::resize::resize;
use qcow2::testing::options::{CreateOptions, OpenOptions, Preallocation};
use std::io::{IoSlice, IoSliceMut};
use std::path::Path;
use testkit::rng::{base_seed, Rng};
use testkit::stock::{is_there, qemu};

const SIZE: u64 = 3 << 20;

fn with_secrets<T>(current: &str, new: &str, old: &str, run: impl FnOnce(&mut Secrets<'_>) -> T) -> T {
    let mut source = |request: &SecretRequest, room: &mut [u8]| {
        let secret = match request.kind {
            SecretKind::Current => current,
            SecretKind::New => new,
            SecretKind::Old => old,
        };
        room[..secret.len()].copy_from_slice(secret.as_bytes());
        Ok(Some(secret.len()).filter(|length| *length > 0))
    };
    run(&mut Secrets { source: Some(&mut source), progress: None })
}

fn create(path: &Path, options: &[&str], size: u64) -> Result<()> {
    let options = CreateOptions::parse_luks(options)?;
    let origin = Origin::Path(path.into());
    with_secrets("", "hunter2", "", |secrets| create_at(Driver::LUKS, &origin, None, size, &options, secrets))
}

fn open_with(path: &Path, flags: OpenFlags, secret: &str) -> Result<Handle> {
    let flags = OpenFlags { format: Driver::LUKS, ..flags };
    with_secrets(secret, "", "", |secrets| {
        let secrets = std::mem::take(secrets);
        let options = OpenOptions::default();
        Opening { flags, options, resolver: None, messages: None, secrets }.open(&Origin::Path(path.into()))
    })
}

fn open(path: &Path) -> Handle {
    open_with(path, OpenFlags::default(), "hunter2").unwrap()
}

fn read(handle: &Handle, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; length];
    handle.disk().read(offset, &mut [IoSliceMut::new(&mut bytes)]).unwrap();
    bytes
}

const OBJECT: [&str; 2] = ["--object", "secret,id=s,data=hunter2"];

/// What the stock tool reads of a file.
fn stock_contents(path: &Path) -> Vec<u8> {
    let raw = path.with_extension("raw");
    let image = format!("driver=luks,file.filename={},key-secret=s", path.display());
    let raw_name = raw.to_str().unwrap();
    qemu(&["qemu-img", "convert", OBJECT[0], OBJECT[1], "--image-opts", &image, "-O", "raw", raw_name]);
    std::fs::read(raw).unwrap()
}

const FILES: [&[&str]; 4] = [
    &["iter-time=10"],
    &["iter-time=10", "cipher-alg=aes-128", "cipher-mode=cbc", "ivgen-alg=essiv", "preallocation=full"],
    &["iter-time=10", "cipher-alg=aes-256", "cipher-mode=ctr", "hash-alg=sha512", "preallocation=falloc"],
    &["iter-time=10", "cipher-alg=aes-192", "ivgen-hash-alg=sha1", "hash-alg=sha1"],
];

#[test]
fn lists_on_luks_files_are_what_the_stock_tool_reads() {
    if !is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut rng = Rng::new(base_seed());
    for (index, options) in FILES.iter().enumerate() {
        let path = folder.path().join(format!("disk{index}"));
        create(&path, options, SIZE).unwrap();
        let handle = open(&path);
        assert_eq!(handle.disk().length(), SIZE);
        // What a new one holds is anything, and the same for both.
        let mut model = read(&handle, 0, SIZE as usize);
        handle.close().unwrap();
        assert!(model == stock_contents(&path), "{options:?}");
        let handle = open(&path);
        for _ in 0..60 {
            let (longest, unit) = (rng.below(3) as usize, rng.below(2) as usize);
            let length = 1 + rng.below([700, 20_000, 1_500_000][longest]);
            let unit = [1, 512][unit];
            let at = rng.below(SIZE - length) / unit * unit;
            let range = at as usize..(at + length) as usize;
            match rng.below(6) {
                0 => {
                    handle.disk().write_zeroes(at, length, Default::default(), false).unwrap();
                    model[range].fill(0);
                }
                1 => handle.disk().discard(at, length).unwrap(),
                2 => assert!(read(&handle, at, length as usize) == model[range], "a read at {at:#x}"),
                _ => {
                    let bytes: Vec<u8> = (0..length).map(|_| rng.below(256) as u8).collect();
                    let (first, second) = bytes.split_at(rng.below(length) as usize);
                    handle.disk().write(at, &[IoSlice::new(first), IoSlice::new(second)], false).unwrap();
                    model[range].copy_from_slice(&bytes);
                }
            }
        }
        assert!(read(&handle, 0, SIZE as usize) == model);
        handle.disk().flush().unwrap();
        handle.close().unwrap();
        assert!(stock_contents(&path) == model, "{options:?}");
    }
}

/// The lines of `info` that no chance is in.
fn told(path: &Path) -> Vec<String> {
    let said = qemu(&["qemu-img", "info", path.to_str().unwrap()]);
    let chance = ["image:", "filename:", "uuid:", "iters:", "disk size", "Child node"];
    said.lines().filter(|line| !chance.iter().any(|word| line.contains(word))).map(str::to_owned).collect()
}

#[test]
fn files_are_laid_out_as_the_stock_tool_lays_them_out() {
    if !is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (ours, theirs) = (folder.path().join("ours"), folder.path().join("theirs"));
    for (options, size) in FILES.iter().zip([SIZE, 0, 1000, 1 << 30]) {
        create(&ours, options, size).unwrap();
        let list = format!("{},key-secret=s", options.join(","));
        let (file, bytes) = (theirs.to_str().unwrap(), size.to_string());
        qemu(&["qemu-img", "create", "-q", OBJECT[0], OBJECT[1], "-f", "luks", "-o", &list, file, &bytes]);
        assert_eq!(told(&ours), told(&theirs), "{options:?}");
        let start = |path: &Path| {
            let mut bytes = std::fs::read(path).unwrap()[..HEADER_BYTES].to_vec();
            // Digest, salt, iterations, UUID; of the first slot iterations and salt.
            bytes[112..208].fill(0);
            bytes[212..248].fill(0);
            bytes
        };
        if size < 1 << 30 {
            assert_eq!(start(&ours), start(&theirs));
        }
        assert_eq!(std::fs::metadata(&ours).unwrap().len(), std::fs::metadata(&theirs).unwrap().len());
        let said =
            qemu(&["qemu-img", "measure", "-O", "luks", OBJECT[0], OBJECT[1], "-o", &list, "--size", &bytes]);
        let measure = Driver::LUKS.measure.unwrap();
        let measured = measure(size, &CreateOptions::parse_luks(options).unwrap(), None).unwrap();
        let expected = format!(
            "required size: {}\nfully allocated size: {}",
            measured.required_bytes, measured.fully_allocated_bytes
        );
        assert_eq!(said.trim(), expected);
    }
}

#[test]
fn a_file_of_the_stock_tool_is_read_written_and_resized() {
    if !is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stock");
    let file = path.to_str().unwrap();
    let options = "key-secret=s,iter-time=10";
    qemu(&["qemu-img", "create", "-q", OBJECT[0], OBJECT[1], "-f", "luks", "-o", options, file, "1M"]);
    let image = format!("driver=luks,file.filename={file},key-secret=s");
    qemu(&["qemu-io", OBJECT[0], OBJECT[1], "--image-opts", &image, "-c", "write -P 7 0 1M"]);
    let handle = open(&path);
    assert!(read(&handle, 0, 1 << 20).iter().all(|b| *b == 7));
    handle.disk().write(100, &[IoSlice::new(&[9; 5000])], true).unwrap();
    resize(&handle, (2 << 20) + 512, Preallocation::Full).unwrap();
    assert_eq!(handle.disk().length(), (2 << 20) + 512);
    assert!(read(&handle, 1 << 20, 1 << 20).iter().all(|b| *b == 0), "what is written is zeroes");
    handle.close().unwrap();
    let contents = stock_contents(&path);
    assert_eq!(contents.len(), (2 << 20) + 512);
    assert!(contents[100..5100].iter().all(|b| *b == 9) && contents[5100..1 << 20].iter().all(|b| *b == 7));
    let handle = open(&path);
    resize(&handle, 1 << 20, Preallocation::Off).unwrap();
    handle.close().unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), (1 << 20) + 2_068_480);
}

#[test]
fn copies_to_and_from_luks_files_are_whole() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    create(&first, &["iter-time=0"], SIZE).unwrap();
    create(&second, &["iter-time=0", "cipher-alg=aes-128"], SIZE).unwrap();
    let (source, target) = (open(&first), open(&second));
    source.disk().write_zeroes(0, SIZE, Default::default(), false).unwrap();
    source.disk().write(70_000, &[IoSlice::new(&[5; 100_000])], false).unwrap();
    convert(source.disk(), target.disk(), &ConvertOptions::default(), &mut |_, _| true).unwrap();
    assert!(read(&source, 0, SIZE as usize) == read(&target, 0, SIZE as usize));
    let plain = std::fs::read(&second).unwrap();
    assert!(!plain.windows(64).any(|w| w == [5; 64]));
}

#[test]
fn without_the_secret_there_is_no_disk_and_no_change() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("locked");
    create(&path, &["iter-time=0"], SIZE).unwrap();
    let before = std::fs::read(&path).unwrap();
    let refused = open_with(&path, OpenFlags::default(), "").map(drop).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NoSecret);
    assert!(refused.to_string().contains("Parameter 'key-secret' is required for cipher"), "{refused}");
    let refused = open_with(&path, OpenFlags::default(), "wrong").map(drop).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::WrongSecret);
    let handle = open_with(&path, OpenFlags { metadata_only: true, ..OpenFlags::default() }, "").unwrap();
    assert_eq!(handle.disk().length(), SIZE);
    assert!(handle.disk().encryption().unwrap().unwrap().1.is_some());
    assert!(handle.disk().read(0, &mut [IoSliceMut::new(&mut [0; 512])]).is_err());
    assert!(handle.disk().write(0, &[IoSlice::new(&[0; 512])], false).is_err());
    assert!(handle.disk().write_zeroes(0, 512, Default::default(), false).is_err());
    handle.close().unwrap();
    assert!(std::fs::read(&path).unwrap() == before);
    std::fs::File::options().write(true).open(&path).unwrap().set_len(1 << 20).unwrap();
    let refused = open_with(&path, OpenFlags::default(), "hunter2").map(drop).unwrap_err();
    assert!(refused.to_string().contains("Could not refresh total sector count"), "{refused}");
}

#[test]
fn key_slots_change_and_the_disk_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("slots");
    create(&path, &["iter-time=0"], SIZE).unwrap();
    let handle = open(&path);
    handle.disk().write(0, &[IoSlice::new(&[3; 4096])], false).unwrap();
    let amend = |new: &str, old: &str, options: &[&str]| {
        with_secrets("hunter2", new, old, |secrets| {
            amend_with(&handle, options, false, secrets, &mut |_, _| true)
        })
    };
    amend("second", "", &["state=active", "new-secret=n", "iter-time=0"]).unwrap();
    amend("", "hunter2", &["state=inactive", "old-secret=o"]).unwrap();
    let refused = amend("", "", &["state=inactive", "keyslot=1"]).unwrap_err().to_string();
    assert!(refused.starts_with("Attempt to erase the only active keyslot 1"), "{refused}");
    assert!(amend("", "", &["compat=v3"]).is_err());
    assert!(read(&handle, 0, 4096).iter().all(|b| *b == 3));
    handle.close().unwrap();
    assert!(open_with(&path, OpenFlags::default(), "hunter2").is_err());
    let handle = open_with(&path, OpenFlags::default(), "second").unwrap();
    assert!(read(&handle, 0, 4096).iter().all(|b| *b == 3));
    inactivate(&handle).unwrap();
    assert!(handle.disk().read(0, &mut [IoSliceMut::new(&mut [0; 512])]).is_err());
    invalidate(&handle, None, None).unwrap();
    assert!(read(&handle, 0, 4096).iter().all(|b| *b == 3));
    // The other side has made the file anew: another key, another secret.
    inactivate(&handle).unwrap();
    create(&path, &["iter-time=0", "cipher-alg=aes-128"], SIZE).unwrap();
    assert!(invalidate(&handle, None, None).is_err());
    with_secrets("hunter2", "", "", |secrets| {
        invalidate_with(&handle, None, None, std::mem::take(secrets)).unwrap();
    });
    handle.disk().write(0, &[IoSlice::new(&[4; 512])], false).unwrap();
    handle.close().unwrap();
    assert!(read(&open(&path), 0, 512).iter().all(|b| *b == 4));
}

#[test]
fn what_cannot_be_made_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("none");
    assert!(create(&path, &["cipher-alg=foo"], SIZE).is_err());
    assert!(create(&path, &["detached-header=on"], SIZE).is_err());
    assert_eq!(create(&path, &["iter-time=0"], u64::MAX - 1).unwrap_err().kind(), ErrorKind::TooLarge);
    let options = CreateOptions::parse_luks(&["iter-time=0"]).unwrap();
    let none = &mut Secrets::default();
    let refused =
        create_at(Driver::LUKS, &Origin::Path(path.clone()), None, SIZE, &options, none).unwrap_err();
    assert_eq!(refused.to_string(), "Parameter 'key-secret' is required for cipher");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// What is read beside writes of other bytes of its sectors is what is there.
#[test]
fn a_part_of_a_sector_is_read_whole_beside_writes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("parts");
    create(&path, &["iter-time=0"], SIZE).unwrap();
    let handle = open(&path);
    handle.disk().write(0, &[IoSlice::new(&[7; 4096])], false).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let ordering = std::sync::atomic::Ordering::Relaxed;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut byte = 0u8;
            while !stop.load(ordering) {
                byte = byte.wrapping_add(1);
                handle.disk().write(0, &[IoSlice::new(&[byte; 64])], false).unwrap();
            }
        });
        let until = std::time::Instant::now() + std::time::Duration::from_millis(700);
        let mut fine = true;
        while fine && std::time::Instant::now() < until {
            fine = read(&handle, 256, 256) == [7; 256];
        }
        stop.store(true, ordering);
        assert!(fine, "bytes that nobody writes have changed");
    });
    handle.close().unwrap();
}
