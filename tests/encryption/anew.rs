//! Encrypted images that are loaded again, and amended.

use super::*;
use qcow2::testing::ops::backing::change_backing_file;
use qcow2::testing::ops::inactive::{inactivate, invalidate};
use std::os::unix::ffi::OsStrExt;

#[test]
fn an_image_that_comes_back_under_another_key_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("own");
    make_own(&path, OWN[3]);
    let handle = open(&path);
    handle.disk().write(0, &[IoSlice::new(&[1; 65536])], false).unwrap();
    inactivate(&handle).unwrap();
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    // Each key has its own digest, 112 bytes into the header.
    let at = 112 + bytes.windows(6).position(|w| w == b"LUKS\xba\xbe").unwrap() as u64;
    let digest = bytes[at as usize];
    file.write_all_at(&[digest ^ 1], at).unwrap();
    let refused = invalidate(&handle, None, None).unwrap_err().to_string();
    assert_eq!(refused, "the image is encrypted in another way than before: open it anew");
    file.write_all_at(&[digest], at).unwrap();
    // The same key for another cipher: "xts-plain64" and "xts-plain".
    for (what, place, was) in
        [("no method", 35, 2), ("a method", 35, 2), ("another generator", at - 72 + 9, b'6')]
    {
        let other = u8::from(what == "a method");
        file.write_all_at(&[other], place).unwrap();
        let refused = invalidate(&handle, None, None).expect_err(what).to_string();
        let of_method = "CRYPTO header extension only expected with LUKS encryption method";
        let expected = "the image is encrypted in another way than before: open it anew";
        assert!(refused == expected || refused == of_method, "{what}: {refused}");
        assert!(handle.disk().write(0, &[IoSlice::new(&CANARY)], false).is_err(), "{what}");
        file.write_all_at(&[was], place).unwrap();
    }
    invalidate(&handle, None, None).unwrap();
    assert_eq!(read(handle.disk(), 0, 65536), [1; 65536]);
    handle.close().unwrap();
}

#[test]
fn an_image_does_not_go_on_in_plain_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("own");
    for own in [OWN[3], OWN[1]] {
        make_own(&path, own);
        let handle = open(&path);
        inactivate(&handle).unwrap();
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, new_image(SIZE, &[]).contents()).unwrap();
        let refused = invalidate(&handle, None, None).unwrap_err().to_string();
        assert_eq!(refused, "the image is encrypted in another way than before: open it anew");
        assert!(handle.disk().write(0, &[IoSlice::new(&CANARY)], false).is_err());
        std::fs::write(&path, whole).unwrap();
        invalidate(&handle, None, None).unwrap();
        handle.close().unwrap();
    }
}

/// A larger backing file shows through what an image grows by, and a version without a flag for zeroes cannot hide it.
#[test]
fn growth_over_a_backing_file_and_no_flag_for_zeroes() {
    let folder = tempfile::tempdir().unwrap();
    let (base, path) = (folder.path().join("base"), folder.path().join("own"));
    for (length, fits) in [(SIZE + (1 << 20), false), (SIZE, true)] {
        std::fs::write(&base, vec![0x55; length as usize]).unwrap();
        make_own(&path, OWN[3]);
        let handle = open(&path);
        change_backing_file(&handle, Some(base.as_os_str().as_bytes()), Some("raw")).unwrap();
        handle.close().unwrap();
        let handle = open_chain(&path, &[SECRET]).unwrap();
        let size = format!("size={}", SIZE + (1 << 20));
        let done = amend(&handle, &["compat=0.10", &size], &mut |_, _| true);
        assert_eq!(done.is_ok(), fits, "{done:?}");
        if fits {
            assert!(read(handle.disk(), SIZE, 1 << 20).iter().all(|byte| *byte == 0));
        } else {
            assert_eq!(handle.disk().length(), SIZE, "nothing has changed");
        }
        handle.close().unwrap();
    }
}
