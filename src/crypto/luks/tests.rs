//! Headers made here and by the stock tool; damage.

use super::*;
use crate::crypto::{Algorithm, Hash, IvGenerator, Mode, Spec};
use crate::error::{Error, ErrorKind, Result};
use std::process::Command;

/// Numbers that look random and are the same each time.
fn chance(seed: u64) -> impl FnMut(&mut [u8]) -> Result<()> {
    let mut state = seed | 1;
    move |bytes| {
        for byte in bytes {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = state as u8;
        }
        Ok(())
    }
}

fn spec(key_bytes: usize, mode: Mode, iv: IvGenerator) -> Spec {
    Spec { algorithm: Algorithm::Aes, key_bytes, mode, iv }
}

/// A volume with `passphrases` in slots from 0 on.
fn volume(spec: Spec, hash: Hash, key: &[u8], passphrases: &[&[u8]]) -> Vec<u8> {
    let mut random = chance(7);
    let mut header = new_header(spec, hash, key, 1000, "0-1-2".into(), &mut random, &mut |_| Ok(())).unwrap();
    let mut bytes = vec![0; header.data_offset() as usize];
    let mut work = Box::new([0; WORK_BYTES]);
    work[..key.len()].copy_from_slice(key);
    for (index, passphrase) in passphrases.iter().enumerate() {
        let material =
            seal(&mut header, index, &mut work, passphrase, 1000, &mut random, &mut |_, _| Ok(())).unwrap();
        let at = header.material_offset(index) as usize;
        bytes[at..at + material.len()].copy_from_slice(&material);
    }
    bytes[..HEADER_BYTES].copy_from_slice(&header.encode());
    bytes
}

/// The slot and the key that a passphrase opens.
fn open(volume: &[u8], passphrase: &[u8]) -> Result<Option<(usize, Vec<u8>)>> {
    let header = Header::parse(volume)?;
    let mut read = |at: u64, out: &mut [u8]| {
        let there = volume.get(at as usize..at as usize + out.len());
        out.copy_from_slice(there.ok_or_else(|| Error::invalid("past the end"))?);
        Ok(())
    };
    let mut work = Box::new([0; WORK_BYTES]);
    let opened = unlock(&header, passphrase, &mut work, &mut read, &mut |_, _| Ok(()))?;
    Ok(opened.map(|slot| (slot, work[..header.spec.key_bytes].to_vec())))
}

#[test]
fn a_split_key_needs_every_stripe() {
    for (hash, length) in [(Hash::Sha256, 64), (Hash::Sha512, 16), (Hash::Sha1, 24), (Hash::Md5, 33)] {
        let key: Vec<u8> = (0..length as u8).collect();
        let mut stripes = vec![0; length * 20];
        split(hash, &key, &mut stripes, &mut chance(3)).unwrap();
        let mut back = vec![9; length];
        merge(hash, &stripes, &mut back);
        assert_eq!(back, key);
        for at in [0, length * 7, length * 20 - 1] {
            stripes[at] ^= 1;
            merge(hash, &stripes, &mut back);
            assert_ne!(back, key, "byte {at}");
            stripes[at] ^= 1;
        }
    }
}

#[test]
fn a_passphrase_opens_its_slot_and_others_none() {
    let cases = [
        (spec(64, Mode::Xts, IvGenerator::Plain64), Hash::Sha256, 2_068_480),
        (spec(32, Mode::Cbc, IvGenerator::Essiv(Hash::Sha256)), Hash::Sha1, 1_052_672),
        // Its material ends inside a sector.
        (spec(24, Mode::Cbc, IvGenerator::Plain), Hash::Ripemd160, 4096 + 8 * 98304),
    ];
    for (spec, hash, length) in cases {
        let key: Vec<u8> = (1..=spec.key_bytes as u8).collect();
        let volume = volume(spec, hash, &key, &[b"first", b"", b"third"]);
        assert_eq!(volume.len(), length);
        for (slot, passphrase) in [&b"first"[..], b"", b"third"].iter().enumerate() {
            assert_eq!(open(&volume, passphrase).unwrap(), Some((slot, key.clone())));
        }
        assert_eq!(open(&volume, b"First").unwrap(), None);
        let header = Header::parse(&volume).unwrap();
        assert_eq!(header.encode()[..], volume[..HEADER_BYTES], "a header is written as it was read");
    }
}

#[test]
fn unlocking_can_be_stopped() {
    let mut bytes = volume(spec(32, Mode::Xts, IvGenerator::Plain64), Hash::Sha256, &[5; 32], &[b"a"]);
    bytes[208 + 4..208 + 8].fill(0xff);
    let header = Header::parse(&bytes).unwrap();
    let mut asked = 0;
    let mut work = Box::new([0; WORK_BYTES]);
    let stopped = unlock(&header, b"a", &mut work, &mut |_, _| Ok(()), &mut |done, total| {
        assert!(done <= total && total > u64::from(u32::MAX));
        asked += 1;
        match asked {
            3 => Err(Error::new(ErrorKind::Cancelled, "stop")),
            _ => Ok(()),
        }
    });
    assert_eq!(stopped.err().map(|e| e.kind()), Some(ErrorKind::Cancelled));
    assert_eq!(asked, 3);
}

/// Where, what, and whether the stock tool's header with it is still a header (`qemu-io` 10.0.2, each once).
fn damages() -> Vec<(usize, Vec<u8>, bool)> {
    let number = |at: usize, value: u32, fine: bool| (at, value.to_be_bytes().to_vec(), fine);
    let text = |at: usize, text: &str, fine: bool| (at, text.as_bytes().to_vec(), fine);
    let slot = |index: usize, field: usize| 208 + index * 48 + field;
    vec![
        text(0, "lUKS", false),
        (6, vec![0, 0], false),
        (6, vec![0, 2], false),
        text(8, "AES\0", false),
        text(8, "cast5\0", false),
        text(8, &"a".repeat(32), false),
        (8, vec![0xff, 0], false),
        text(40, "xts\0", false),
        text(40, "xts-\0", false),
        text(40, "xts-plain\0", true),
        text(40, "xts-plain64:md5\0", true),
        text(40, "xts-plain64:foo\0", false),
        text(40, "-plain64\0", false),
        text(40, "xts-essiv\0", false),
        text(40, "xts-essiv:\0", false),
        text(40, "xts-essiv:sha256\0", true),
        text(40, "xts-essiv:sha1\0", false),
        text(40, "xts-plain64be\0", false),
        text(40, "cbc-plain64\0", false),
        text(40, &"x".repeat(32), false),
        text(72, "whirlpool\0", false),
        text(72, "sm3\0", true),
        text(72, &"h".repeat(32), false),
        number(104, 0, false),
        number(104, 8, false),
        number(104, 4039, false),
        number(104, 4041, true),
        number(104, u32::MAX, true),
        number(108, 0, false),
        number(108, 16, false),
        number(108, 32, true),
        number(108, 48, true),
        number(108, 63, false),
        number(108, 65, false),
        number(108, u32::MAX, false),
        number(164, 0, false),
        (168, vec![b'u'; 40], true),
        number(slot(0, 0), 1, false),
        number(slot(0, 0), 0xdead, true),
        number(slot(0, 4), 0, false),
        number(slot(3, 4), 0, true),
        number(slot(3, 0), 0x00ac_71f3, false),
        number(slot(0, 40), 0, false),
        number(slot(0, 40), 7, false),
        number(slot(0, 40), 9, false),
        number(slot(0, 40), 4000, false),
        number(slot(0, 40), u32::MAX, true),
        number(slot(1, 40), 511, false),
        number(slot(1, 40), 513, false),
        number(slot(1, 40), u32::MAX, true),
        number(slot(0, 44), 3999, false),
        number(slot(3, 44), u32::MAX, false),
    ]
}

#[test]
fn a_damaged_header_is_judged_as_the_stock_tool_judges_it() {
    let whole = volume(spec(64, Mode::Xts, IvGenerator::Plain64), Hash::Sha256, &[5; 64], &[b"a"]);
    for (at, bytes, fine) in damages() {
        let mut damaged = whole[..HEADER_BYTES].to_vec();
        damaged[at..at + bytes.len()].copy_from_slice(&bytes);
        let parsed = Header::parse(&damaged);
        assert_eq!(parsed.is_ok(), fine, "{at} {bytes:?}: {:?}", parsed.err().map(|e| e.to_string()));
    }
    for length in [0, 5, 8, 300, 591] {
        assert!(Header::parse(&whole[..length]).is_err());
    }
}

#[test]
fn no_byte_of_a_header_makes_a_panic() {
    let whole = volume(spec(32, Mode::Xts, IvGenerator::Plain64), Hash::Sha256, &[5; 32], &[b"a"]);
    let mut header = whole[..HEADER_BYTES].to_vec();
    for at in 0..HEADER_BYTES {
        let old = header[at];
        for value in [0, 1, 0x7f, 0x80, 0xff, old ^ 1] {
            header[at] = value;
            if let Ok(parsed) = Header::parse(&header) {
                // What is accepted is kept, but for what follows a name's end.
                assert_eq!(Header::parse(&parsed.encode()).unwrap(), parsed, "byte {at}");
            }
        }
        header[at] = old;
    }
}

/// Volumes of the stock tool: cipher, mode, generator, its hash, hash. Few, for it takes seconds to make one.
const STOCK: &[(&str, &str, &str, Option<&str>, &str)] = &[
    ("aes-256", "xts", "plain64", None, "sha256"),
    ("aes-128", "cbc", "essiv", Some("sha256"), "sm3"),
    ("serpent-256", "xts", "plain64", None, "sha384"),
    ("twofish-192", "xts", "essiv", Some("md5"), "sha1"),
    ("cast5-128", "ctr", "plain", None, "ripemd160"),
];

/// A passphrase opens a slot only where hash, split, cipher, mode and generator are all the stock tool's.
#[test]
fn volumes_of_the_stock_tool_open() {
    if Command::new("qemu-img").arg("--version").output().is_err() {
        println!("skip: qemu-img is missing");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("volume");
    for (cipher, mode, generator, iv_hash, hash) in STOCK {
        let mut options = format!("key-secret=s,iter-time=10,cipher-alg={cipher},cipher-mode={mode},ivgen-alg={generator},hash-alg={hash}");
        if let Some(iv_hash) = iv_hash {
            options += &format!(",ivgen-hash-alg={iv_hash}");
        }
        let made = Command::new("qemu-img")
            .args(["create", "-q", "--object", "secret,id=s,data=hunter2", "-f", "luks", "-o", &options])
            .arg(&path)
            .arg("1M")
            .output()
            .unwrap();
        assert!(made.status.success(), "{options}: {}", String::from_utf8_lossy(&made.stderr));
        let bytes = std::fs::read(&path).unwrap();
        let header = Header::parse(&bytes).unwrap();
        assert_eq!(header.encode()[..], bytes[..HEADER_BYTES], "{options}");
        if !header.spec.algorithm.is_served() {
            let refused = open(&bytes, b"hunter2").unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Unsupported);
            assert!(refused.to_string().contains(cipher), "{refused}");
            continue;
        }
        let (slot, key) =
            open(&bytes, b"hunter2").unwrap().unwrap_or_else(|| panic!("{options}: no slot opens"));
        assert_eq!((slot, key.len()), (0, header.spec.key_bytes));
        assert_eq!(open(&bytes, b"hunter3").unwrap(), None);
    }
}
