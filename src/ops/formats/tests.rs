//! A format that only a test knows: an implementation of `Format` and one row are all that it takes.

use super::{Driver, Row};
use crate::disk::{Disk, Draft, Files, Format, Parts, Settings, Status, Stopped, Unlocking};
use crate::error::{Error, ErrorKind, Result};
use crate::image::Image;
use crate::ops::convert::{convert, ConvertOptions};
use crate::ops::create::create;
use crate::ops::handle::Handle;
use crate::ops::inactive::{inactivate, invalidate};
use crate::ops::open::{OpenFlags, Opening, Origin, ResolveAnswer};
use crate::ops::probe::probe;
use crate::ops::resize::resize;
use crate::options::{CreateOptions, OpenOptions, Preallocation};
use crate::storage::memory::Memory;
use crate::storage::{read_exact, Purpose, Storage};
use std::any::Any;
use std::io::IoSliceMut;
use std::sync::Arc;

const MAGIC: &[u8] = b"STRIPES\n";
const LENGTH: u64 = 64 << 10;

/// A disk on which every byte is the one that its file ends with.
struct Stripes {
    storage: Arc<dyn Storage>,
    fill: u8,
}

struct StripesDraft(Stripes);

fn draft(storage: Arc<dyn Storage>, settings: Settings) -> Result<Box<dyn Draft>> {
    if !settings.read_only {
        return Err(Error::new(ErrorKind::ReadOnly, "stripes are only read"));
    }
    let mut bytes = [0; 9];
    read_exact(&*storage, Purpose::Header, 0, &mut bytes)?;
    Ok(Box::new(StripesDraft(Stripes { storage, fill: bytes[8] })))
}

impl Draft for StripesDraft {
    fn open(self: Box<Self>, _: Parts) -> Result<Disk> {
        Ok(Disk::new(self.0))
    }
}

impl Format for Stripes {
    fn name(&self) -> &'static str {
        STRIPES.name
    }
    fn storage(&self) -> Arc<dyn Storage> {
        Arc::clone(&self.storage)
    }
    fn length(&self) -> u64 {
        LENGTH
    }
    fn read(&self, _: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        buffers.iter_mut().for_each(|buffer| buffer.fill(self.fill));
        Ok(())
    }
    fn status(&self, _: u64, length: u64, _: bool) -> Result<Status> {
        let (data, allocated) = (true, true);
        Ok(Status {
            length,
            data,
            zero: false,
            allocated,
            compressed: false,
            host: None,
            in_data_file: false,
            depth: 0,
        })
    }
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn stop(&self) -> Box<dyn Stopped + '_> {
        Box::new(StoppedStripes)
    }
}

struct StoppedStripes;

impl Stopped for StoppedStripes {
    fn settle(&self) -> Result<()> {
        Ok(())
    }
    fn reload(&self, _: Files, _: Settings) -> Result<()> {
        Ok(())
    }
    fn deactivate(&self) {}
    fn activate(&self, _: Files, _: Settings, _: Option<Disk>, _: &mut Unlocking<'_>) -> Result<()> {
        Ok(())
    }
}

static STRIPES: Row = Row {
    name: "stripes",
    begins_with: Some(|start| start.starts_with(MAGIC)),
    draft,
    create: None,
    measure: None,
    create_options: |list| CreateOptions::parse(list),
    check: None,
    repair: None,
    resize: None,
};

const READ_ONLY: OpenFlags = OpenFlags {
    read_only: true,
    no_repair: false,
    force_share: false,
    allow_recorded: false,
    metadata_only: false,
    no_lock: false,
    format: Driver::new(&STRIPES),
    no_backing: false,
    inactive: false,
};

fn stripes(fill: u8) -> Origin {
    Origin::Custom(Arc::new(Memory::new([MAGIC, &[fill]].concat())))
}

fn open(origin: &Origin, flags: OpenFlags) -> Result<Handle> {
    Opening {
        flags,
        options: OpenOptions::default(),
        resolver: None,
        messages: None,
        secrets: Default::default(),
    }
    .open(origin)
}

fn first_byte(disk: &Disk) -> u8 {
    let mut byte = [0];
    disk.read(4096, &mut [IoSliceMut::new(&mut byte)]).unwrap();
    byte[0]
}

#[test]
fn a_format_is_an_implementation_and_a_row() {
    let handle = open(&stripes(7), READ_ONLY).unwrap();
    assert_eq!(first_byte(handle.disk()), 7);
    assert!(Image::find(handle.disk()).is_none());
    inactivate(&handle).unwrap();
    invalidate(&handle, None, None).unwrap();
    handle.reopen(true, false, &[], None).unwrap();
    let refused = handle.disk().write(0, &[], false).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ReadOnly);
    assert_eq!(resize(&handle, 512, Preallocation::Off).unwrap_err().kind(), ErrorKind::ReadOnly);
    let refused = handle.disk().read_vm_state(0, &mut []).unwrap_err();
    assert_eq!(refused.to_string(), "a stripes disk has no VM state");
    let refused = Image::of(handle.disk(), "internal snapshots").map(drop).unwrap_err();
    assert_eq!(refused.to_string(), "a stripes disk has no internal snapshots");
    handle.close().unwrap();
    let writable = open(&stripes(7), OpenFlags { read_only: false, ..READ_ONLY });
    assert_eq!(writable.map(drop).unwrap_err().kind(), ErrorKind::ReadOnly);
}

#[test]
fn it_stands_below_an_image_and_is_converted_from() {
    let file: Arc<dyn Storage> = Arc::new(Memory::default());
    let options = CreateOptions::parse(&["backing_file=x", "backing_fmt=raw"]).unwrap();
    create(&*file, LENGTH, &options).unwrap();
    let format = Some(Driver::new(&STRIPES));
    let mut resolver = |_: &_| Ok(ResolveAnswer { origin: stripes(9), format });
    let (flags, options) = (OpenFlags::default(), OpenOptions::default());
    let mut opening = Opening {
        flags,
        options,
        resolver: Some(&mut resolver),
        messages: None,
        secrets: Default::default(),
    };
    let top = opening.open(&Origin::Custom(file)).unwrap();
    assert_eq!((first_byte(top.disk()), top.disk().backing_depth()), (9, 1));
    let file: Arc<dyn Storage> = Arc::new(Memory::default());
    create(&*file, LENGTH, &CreateOptions::default()).unwrap();
    let target = open(&Origin::Custom(file), OpenFlags::default()).unwrap();
    let below = open(&stripes(9), READ_ONLY).unwrap();
    convert(below.disk(), target.disk(), &ConvertOptions::default(), &mut |_, _| true).unwrap();
    assert_eq!(first_byte(target.disk()), 9);
    assert!(Image::find(target.disk()).is_some());
}

#[test]
fn formats_are_known_by_name_and_by_their_first_bytes() {
    assert_eq!(Driver::by_name("qcow2").unwrap(), Driver::QCOW2);
    assert_eq!(Driver::by_name("raw").unwrap(), Driver::RAW);
    assert_eq!(Driver::by_name("vmdk").unwrap_err().to_string(), "Unknown driver 'vmdk'");
    let begins = |bytes: &[u8]| probe(&Origin::Custom(Arc::new(Memory::new(bytes.to_vec())))).unwrap();
    assert_eq!(begins(b"QFI\xfb\0\0\0\x03"), Some(Driver::QCOW2));
    for other in [&b"QFI\xfb\0\0\0\x01"[..], b"QFI\xfb", b"", b"STRIPES\nx"] {
        assert_eq!(begins(other), None);
    }
}

#[test]
fn a_protocol_that_nothing_opens_is_told() {
    let error = open(&Origin::Uri("nbd://host/x".into()), OpenFlags::default()).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(error.to_string(), "Could not open 'nbd://host/x': nothing here opens protocol 'nbd'");
}
