//! Lazy refcounts, 7: a dirty image with everything else that an image can hold.

use crate::repair::{assert_clean, KINDS};
use qcow2::testing::ops::open::OpenFlags;
use testkit::images::*;

/// A killed lazy session of the stock tool on an image of each kind: the repair keeps every other thing in it.
#[test]
fn lazy_07_beside_everything_else_that_an_image_holds() {
    let Some(bench) = Bench::with_stock_tools("lazy_07") else { return };
    for kind in &KINDS {
        let _ = std::fs::remove_file(bench.path("disk"));
        (kind.make)(&bench, "lazy_refcounts=on");
        if kind.serves {
            bench.io_and_die("disk", &["write -P 0x5a 4M 500k", "write -P 0x5b 100 3000", "flush"]);
        } else {
            // The tool asks for the secret before it writes; the bit and lost counts are set by hand.
            let mut bytes = bench.read("disk");
            make_dirty(&mut bytes);
            scramble_counts(&mut bytes, || 0);
            bench.write("disk", &bytes);
        }
        let dirty = bench.read("disk");
        assert_eq!(dirty[79] & 1, 1, "{}: not dirty", kind.name);
        let extra = |bytes: &[u8]| bytes[104..4096.min(1 << bytes[23])].to_vec();
        if !kind.serves {
            let flags = OpenFlags { metadata_only: true, ..WRITABLE };
            let handle = open_file(&bench.path("disk"), flags, &[]).unwrap();
            let report = handle.check(REPAIR, None, &mut |_, _| true).unwrap();
            assert!(report.corruptions_fixed > 0, "{}: {report:?}", kind.name);
            handle.close().unwrap();
            assert_clean(&bench, kind);
            assert!(extra(&bench.read("disk")) == extra(&dirty));
            continue;
        }
        // What must be read, by the stock tool, from a copy that it repairs itself.
        bench.write("copy", &dirty);
        bench.img(&["check", "-q", "-f", "qcow2", "-r", "all", "copy"]);
        bench.img(&["convert", "-f", "qcow2", "-O", "raw", "copy", "wanted"]);
        let handle = open_file(&bench.path("disk"), WRITABLE, &[]).unwrap();
        assert!(handle.repaired().is_some(), "{}", kind.name);
        assert!(read_all(&handle) == bench.read("wanted"), "{}: the contents have changed", kind.name);
        handle.close().unwrap();
        let clean = bench.read("disk");
        assert_eq!(clean[79] & 1, 0, "{}", kind.name);
        assert!(extra(&clean) == extra(&dirty), "{}: extensions have changed", kind.name);
        bench.assert_clean("disk");
        if kind.name == "snapshots" {
            for name in ["one", "two"] {
                let view = |image| {
                    let select = format!("snapshot.name={name}");
                    bench.img(&["convert", "-f", "qcow2", "-O", "raw", "-l", &select, image, "view"]);
                    bench.read("view")
                };
                assert!(view("disk") == view("copy"), "snapshot {name}");
            }
        }
        // And on: a lazy session of ours that dies as well.
        let handle = open_file(&bench.path("disk"), WRITABLE, &[]).unwrap();
        write(&handle, 6 * MIB, &vec![0x66; 300_000]);
        handle.disk().flush().unwrap();
        drop(handle);
        assert_eq!(bench.read("disk")[79] & 1, 1, "{}", kind.name);
        bench.io("disk", &["read -P 0x66 6M 300000", "read -P 0x5a 4M 500k"]);
        bench.img(&["check", "-q", "-f", "qcow2", "-r", "all", "disk"]);
        bench.assert_clean("disk");
    }
}

/// The bit and the counts are the image's, the data are beside it.
#[test]
fn lazy_07_beside_an_external_data_file() {
    let Some(bench) = Bench::with_stock_tools("lazy_07, external data file") else { return };
    bench.img(&["create", "-q", "-f", "qcow2", "-o", "lazy_refcounts=on,data_file=data", "disk", "8M"]);
    bench.io_and_die("disk", &["write -P 0x5a 4M 500k", "flush"]);
    let (dirty, data) = (bench.read("disk"), bench.read("data"));
    assert_eq!(dirty[79] & 1, 1);
    let option = format!("data-file={}", bench.path("data").display());
    let handle = open_file(&bench.path("disk"), WRITABLE, &[&option]).unwrap();
    assert!(handle.repaired().is_some_and(|r| r.corruptions == 0));
    assert!(bench.read("data") == data, "the data file has changed");
    // And the other way round: nothing is counted for clusters beside the image, so it need not be dirty.
    write(&handle, 6 * MIB, &vec![0x66; 300_000]);
    handle.disk().flush().unwrap();
    drop(handle);
    assert_eq!(bench.read("disk")[79] & 1, 0);
    bench.io("disk", &["read -P 0x66 6M 300000", "read -P 0x5a 4M 500k"]);
    bench.assert_clean("disk");
}
