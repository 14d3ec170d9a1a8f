//! What is written above an encrypted disk with `snapshot=on`: read back, and not in the temporary file.

use super::*;
use testkit::encrypted::{encrypt, secrets_from, Encrypted};

/// The bytes of files that this process has open and that have no name any more: images only.
fn nameless_images() -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd").unwrap().flatten() {
        // Other tests close theirs meanwhile.
        let Ok(file) = std::fs::File::open(entry.path()) else { continue };
        let Ok(data) = file.metadata() else { continue };
        if !data.is_file() || std::os::unix::fs::MetadataExt::nlink(&data) > 0 {
            continue;
        }
        let mut bytes = vec![0; data.len() as usize];
        if file.read_exact_at(&mut bytes, 0).is_ok() && bytes.starts_with(b"QFI\xfb") {
            found.push(bytes);
        }
    }
    found
}

#[test]
fn a_temporary_image_above_an_encrypted_one_is_encrypted() {
    let folder = tempfile::tempdir().unwrap();
    // Encrypted itself, and a plain one above an encrypted one.
    for (name, plain_above) in [("encrypted", false), ("above", true)] {
        let base = folder.path().join(name);
        let mut image = new_image(SIZE, &["cluster_size=4k"]).contents();
        encrypt(&mut image, Encrypted::Luks(0), usize::from(plain_above));
        std::fs::write(&base, image).unwrap();
        let mut top = base.clone();
        if plain_above {
            top = folder.path().join("top");
            let below = format!("backing_file={}", base.display());
            std::fs::write(&top, new_image(SIZE, &[&below, "backing_fmt=qcow2"]).contents()).unwrap();
        }
        let mut source = secrets_from(0);
        let handle = Opening {
            flags: OpenFlags { allow_recorded: true, ..OpenFlags::default() },
            options: OpenOptions::parse(&["snapshot=on"]).unwrap(),
            resolver: None,
            messages: None,
            secrets: Secrets { source: Some(&mut source), progress: None },
        }
        .open(&Origin::Path(top))
        .unwrap();
        for at in [0, 70_000, 1 << 20] {
            let many = CANARY.repeat(100);
            handle.disk().write(at, &[IoSlice::new(&many)], false).unwrap();
            assert!(read(handle.disk(), at, many.len()) == many);
        }
        handle.disk().flush().unwrap();
        let files = nameless_images();
        assert!(!files.is_empty(), "no temporary file is found");
        let has_canary = |bytes: &Vec<u8>| bytes.windows(CANARY.len()).any(|w| w == CANARY);
        assert!(!files.iter().any(has_canary), "{name}: what the guest wrote is in the temporary file");
        handle.close().unwrap();
    }
}
