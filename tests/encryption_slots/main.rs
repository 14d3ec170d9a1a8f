//! Key slots through power cuts, kills and failures: after each event of an amend, with any choice of the sectors that
//! have survived, the secret that opened the image before opens it, or the one that opens it afterwards.

mod meanwhile;

use qcow2::testing::crypto::luks::{unlock_slot, work_with, Header, SLOTS};
use qcow2::testing::error::Result;
use qcow2::testing::ops::amend::amend_with;
use qcow2::testing::ops::create::{create_with, NewKeys};
use qcow2::testing::ops::formats::Driver;
use qcow2::testing::ops::handle::Handle;
use qcow2::testing::ops::open::{OpenFlags, Opening, Origin, SecretKind, SecretRequest, Secrets};
use qcow2::testing::options::{CreateOptions, OpenOptions};
use qcow2::testing::storage::memory::Memory;
use qcow2::testing::storage::{HostRun, Purpose, Storage, Traits};
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::{Arc, Mutex};
use testkit::rng::{base_seed, cases, Rng};

const SECTOR: usize = 512;
const SIZE: u64 = 1 << 20;

enum Event {
    Write(usize, Vec<u8>),
    Sync,
}

/// A storage in memory that notes what is done, and fails at the event of a number.
#[derive(Default)]
struct Noted {
    memory: Memory,
    events: Mutex<Vec<Event>>,
    fails_at: Option<usize>,
}

impl Noted {
    fn new(bytes: Vec<u8>, fails_at: Option<usize>) -> Arc<Noted> {
        Arc::new(Noted { memory: Memory::new(bytes), events: Mutex::default(), fails_at })
    }

    fn note(&self, event: Event) -> io::Result<()> {
        let mut events = self.events.lock().unwrap();
        events.push(event);
        match self.fails_at == Some(events.len() - 1) {
            true => Err(io::Error::from_raw_os_error(libc::EIO)),
            false => Ok(()),
        }
    }
}

impl Storage for Noted {
    fn read(&self, purpose: Purpose, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        self.memory.read(purpose, offset, buffers)
    }
    fn write(&self, purpose: Purpose, offset: u64, buffers: &[IoSlice<'_>]) -> io::Result<()> {
        let bytes = buffers.iter().flat_map(|b| b.iter().copied()).collect();
        self.note(Event::Write(offset as usize, bytes))?;
        self.memory.write(purpose, offset, buffers)
    }
    fn sync(&self) -> io::Result<()> {
        self.note(Event::Sync)
    }
    fn length(&self) -> io::Result<u64> {
        self.memory.length()
    }
    fn set_length(&self, length: u64) -> io::Result<()> {
        self.memory.set_length(length)
    }
    fn write_zeroes(&self, _: Purpose, _: u64, _: u64) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }
    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }
    fn preallocate(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
    }
    fn host_run(&self, offset: u64) -> io::Result<HostRun> {
        self.memory.host_run(offset)
    }
    fn traits(&self) -> Traits {
        self.memory.traits()
    }
}

fn with_secrets<T>(current: &str, new: &str, old: &str, run: impl FnOnce(&mut Secrets<'_>) -> T) -> T {
    let mut source = |request: &SecretRequest, room: &mut [u8]| {
        let secret = match request.kind {
            SecretKind::Current => current,
            SecretKind::New => new,
            SecretKind::Old => old,
        };
        room[..secret.len()].copy_from_slice(secret.as_bytes());
        Ok(Some(secret.len()))
    };
    run(&mut Secrets { source: Some(&mut source), progress: None })
}

fn open(storage: Arc<dyn Storage>, secret: &str) -> Result<Handle> {
    with_secrets(secret, "", "", |secrets| {
        let (flags, options) = (OpenFlags::default(), OpenOptions::default());
        let secrets = std::mem::take(secrets);
        Opening { flags, options, resolver: None, messages: None, secrets }.open(&Origin::Custom(storage))
    })
}

fn new_image(options: &[&str]) -> Vec<u8> {
    let options = CreateOptions::parse(options).unwrap();
    let memory = Memory::default();
    let encryption = options.encryption.as_ref().unwrap();
    let keys = with_secrets("", "first", "", |secrets| NewKeys::make(encryption, "here", secrets)).unwrap();
    create_with(&memory, None, SIZE, &options, Some(&keys)).unwrap();
    let image = open(Arc::new(Memory::new(memory.contents())), "first").unwrap();
    image.close().unwrap();
    memory.contents()
}

/// An amend of an image: its options, the secret that opens it before, the new and the old one, what opens it afterwards,
/// and whether to force.
struct Case {
    options: &'static [&'static str],
    secrets: [&'static str; 3],
    after: &'static str,
    force: bool,
}

const fn case(
    options: &'static [&'static str],
    secrets: [&'static str; 3],
    after: &'static str,
    force: bool,
) -> Case {
    Case { options, secrets, after, force }
}

/// All secrets that are used.
const ALL: [&str; 5] = ["first", "second", "third", "fourth", "last"];

/// Each begins with what the one before has left.
const CASES: [Case; 7] = [
    case(&["encrypt.state=active", "encrypt.new-secret=n"], ["first", "second", ""], "second", false),
    case(
        &["encrypt.state=active", "encrypt.new-secret=n", "encrypt.keyslot=6"],
        ["second", "third", ""],
        "third",
        false,
    ),
    case(
        &["encrypt.state=active", "encrypt.new-secret=n", "encrypt.keyslot=7"],
        ["third", "fourth", ""],
        "fourth",
        false,
    ),
    case(&["encrypt.state=inactive", "encrypt.old-secret=o"], ["first", "", "fourth"], "first", false),
    case(&["encrypt.state=inactive", "encrypt.keyslot=6"], ["first", "", ""], "first", false),
    case(&["encrypt.state=inactive", "encrypt.keyslot=1"], ["first", "", ""], "first", false),
    // The only one is made anew in its place.
    case(
        &["encrypt.state=active", "encrypt.new-secret=n", "encrypt.keyslot=0"],
        ["first", "last", ""],
        "last",
        true,
    ),
];

fn amend(storage: &Arc<Noted>, case: &Case) -> Result<()> {
    let [current, new, old] = case.secrets;
    let handle = open(Arc::clone(storage) as Arc<dyn Storage>, current)?;
    storage.events.lock().unwrap().clear();
    let mut options = case.options.to_vec();
    if !new.is_empty() {
        options.push("encrypt.iter-time=0");
    }
    let done = with_secrets(current, new, old, |secrets| {
        amend_with(&handle, &options, case.force, secrets, &mut |_, _| true)
    });
    let closed = handle.close();
    done.and(closed)
}

fn put(bytes: &mut Vec<u8>, at: usize, data: &[u8]) {
    bytes.resize(bytes.len().max(at + data.len()), 0);
    bytes[at..at + data.len()].copy_from_slice(data);
}

fn must_open(bytes: Vec<u8>, case: &Case, what: &str) {
    let opens = |secret: &str| {
        open(Arc::new(Memory::new(bytes.clone())), secret).and_then(Handle::close).map_err(|e| e.to_string())
    };
    let (before, after) = (opens(case.secrets[0]), opens(case.after));
    assert!(before.is_ok() || after.is_ok(), "{:?} {what}: {before:?}, {after:?}", case.options);
    // A slot that counts holds what one of the secrets opens.
    let at = bytes.windows(6).position(|w| w == b"LUKS\xba\xbe").unwrap();
    let header = Header::parse(&bytes[at..]).unwrap();
    let mut read = |offset: u64, out: &mut [u8]| {
        out.copy_from_slice(&bytes[at + offset as usize..][..out.len()]);
        Ok(())
    };
    for index in (0..SLOTS).filter(|index| header.slots[*index].active) {
        let mut opens = |secret: &&str| {
            unlock_slot(&header, index, secret.as_bytes(), &mut work_with(&[]), &mut read, &mut |_, _| Ok(()))
                .unwrap()
        };
        assert!(
            ALL.iter().any(&mut opens),
            "{:?} {what}: slot {index} counts, and nothing opens it",
            case.options
        );
    }
}

/// The states that the medium may have after the first `count` events: no sector of what was not synced, all, halves, some.
fn cut(start: &[u8], events: &[Event], count: usize, rng: &mut Rng, case: &Case) {
    let synced = events[..count].iter().rposition(|e| matches!(e, Event::Sync)).map_or(0, |at| at + 1);
    let mut durable = start.to_vec();
    let mut open_sectors = Vec::new();
    for (index, event) in events[..count].iter().enumerate() {
        let Event::Write(at, data) = event else { continue };
        match index < synced {
            true => put(&mut durable, *at, data),
            false => data.chunks(SECTOR).enumerate().for_each(|(number, sector)| {
                open_sectors.push((at + number * SECTOR, sector));
            }),
        }
    }
    let state = |what: &str, survives: &mut dyn FnMut(usize) -> bool| {
        let mut bytes = durable.clone();
        for (number, (at, sector)) in open_sectors.iter().enumerate() {
            if survives(number) {
                put(&mut bytes, *at, sector);
            }
        }
        must_open(bytes, case, &format!("{count} events, {what}"));
    };
    state("none survives", &mut |_| false);
    if open_sectors.is_empty() {
        return;
    }
    let half = open_sectors.len() / 2;
    state("all survive", &mut |_| true);
    state("the first half survives", &mut |number| number < half);
    state("the second half survives", &mut |number| number >= half);
    for _ in 0..cases(4) {
        let mut chance = Rng::new(rng.next());
        state("some survive", &mut |_| chance.below(2) == 0);
    }
}

const IMAGES: [&[&str]; 2] = [
    &["encrypt.format=luks", "encrypt.iter-time=0", "encrypt.cipher-alg=aes-128", "cluster_size=4k"],
    &["encrypt.format=luks", "encrypt.iter-time=0", "lazy_refcounts=on", "encrypt.hash-alg=sha1"],
];

#[test]
fn a_power_cut_leaves_the_old_secrets_or_the_new_ones() {
    let mut rng = Rng::new(base_seed());
    for options in IMAGES {
        let mut image = new_image(options);
        for case in &CASES {
            let storage = Noted::new(image.clone(), None);
            amend(&storage, case).unwrap();
            let events = std::mem::take(&mut *storage.events.lock().unwrap());
            assert!(events.iter().any(|e| matches!(e, Event::Write(..))));
            for count in 0..=events.len() {
                cut(&image, &events, count, &mut rng, case);
            }
            image = storage.memory.contents();
            open(Arc::new(Memory::new(image.clone())), case.after).unwrap().close().unwrap();
        }
    }
}

#[test]
fn a_failure_leaves_the_old_secrets_or_the_new_ones() {
    let mut image = new_image(IMAGES[0]);
    for case in &CASES {
        let whole = Noted::new(image.clone(), None);
        amend(&whole, case).unwrap();
        let count = whole.events.lock().unwrap().len();
        for fails_at in 0..count {
            // The events before the amend are those of the open, which makes none.
            let storage = Noted::new(image.clone(), Some(fails_at));
            let done = amend(&storage, case);
            assert!(done.is_err(), "{:?}: event {fails_at} fails and nobody says so", case.options);
            must_open(storage.memory.contents(), case, &format!("event {fails_at} fails"));
        }
        image = whole.memory.contents();
    }
}

/// A creation in the file that somebody has used before: with keys that are made once.
fn make(storage: &Noted, format: Driver, options: &CreateOptions, keys: &NewKeys) -> Result<()> {
    format.create(storage, None, SIZE, options, Some(keys))
}

fn opens(format: Driver, bytes: Vec<u8>) -> Result<()> {
    with_secrets("first", "", "", |secrets| {
        let flags = OpenFlags { format, ..OpenFlags::default() };
        let (options, secrets) = (OpenOptions::default(), std::mem::take(secrets));
        let origin = Origin::Custom(Arc::new(Memory::new(bytes)));
        Opening { flags, options, resolver: None, messages: None, secrets }.open(&origin)?.close()
    })
}

/// What a creation has done when it fails, or is cut, is a disk that the secret opens, or none at all.
#[test]
fn a_creation_is_whole_or_nothing() {
    let image = CreateOptions::parse(IMAGES[0]).unwrap();
    let luks = CreateOptions::parse_luks(&["iter-time=0", "cipher-alg=aes-128"]).unwrap();
    let mut rng = Rng::new(base_seed());
    for (format, options) in [(Driver::QCOW2, image), (Driver::LUKS, luks)] {
        let encryption = options.encryption.as_ref().unwrap();
        let keys = with_secrets("", "first", "", |s| NewKeys::make(encryption, "here", s)).unwrap();
        let used = vec![0xa5; 1 << 16];
        let whole = Noted::new(used.clone(), None);
        make(&whole, format, &options, &keys).unwrap();
        opens(format, whole.memory.contents()).unwrap();
        let events = std::mem::take(&mut *whole.events.lock().unwrap());
        for fails_at in 0..events.len() {
            let storage = Noted::new(used.clone(), Some(fails_at));
            let failed = make(&storage, format, &options, &keys);
            assert!(failed.is_err(), "{format:?}: event {fails_at} fails and nobody says so");
            // Only a sync that fails after the last write has a disk before it.
            let is_last = fails_at + 1 == events.len();
            assert!(opens(format, storage.memory.contents()).is_err() || is_last);
        }
        for count in 0..=events.len() {
            let synced =
                events[..count].iter().rposition(|e| matches!(e, Event::Sync)).map_or(0, |at| at + 1);
            for round in 0..cases(4) {
                // The length is that of the finished file, whatever the rest is.
                let mut bytes = vec![0; whole.memory.contents().len()];
                for (index, event) in events[..count].iter().enumerate() {
                    let Event::Write(at, data) = event else { continue };
                    for (number, sector) in data.chunks(SECTOR).enumerate() {
                        if index < synced || (round > 0 && rng.below(2) == 0) {
                            put(&mut bytes, at + number * SECTOR, sector);
                        }
                    }
                }
                let begins = Driver::by_start(&bytes) == Some(format);
                let done = opens(format, bytes);
                assert_eq!(done.is_ok(), begins, "{format:?}: {count} events: {done:?}");
            }
        }
    }
}

#[test]
fn an_erased_slot_holds_nothing_of_its_key() {
    let image = new_image(IMAGES[0]);
    let storage = Noted::new(image, None);
    for case in &CASES[..2] {
        amend(&storage, case).unwrap();
    }
    let filled = storage.memory.contents();
    let erase =
        case(&["encrypt.state=inactive", "encrypt.old-secret=o"], ["first", "", "third"], "first", false);
    amend(&storage, &erase).unwrap();
    let erased = storage.memory.contents();
    // The LUKS header is where the extension says; slot 6 of a key of 32 bytes is 6 strides of 0x20000 further.
    let at = filled.windows(6).position(|w| w == b"LUKS\xba\xbe").unwrap() + 0x1000 + 6 * 0x20000;
    let same = (at..at + 128_000).filter(|at| filled[*at] == erased[*at]).count();
    assert!(same < 2000, "{same} bytes of the material are as they were");
    let opened = open(Arc::new(Memory::new(erased)), "third").map(drop);
    assert!(opened.is_err());
}

/// A slot that nobody uses may stand anywhere, but nothing is written there.
#[test]
fn a_slot_outside_of_the_header_is_refused() {
    let image = new_image(IMAGES[0]);
    let at = image.windows(6).position(|w| w == b"LUKS\xba\xbe").unwrap();
    let fill = &["encrypt.state=active", "encrypt.new-secret=n"];
    let erase = case(&["encrypt.state=inactive", "encrypt.keyslot=1"], ["first", "", ""], "first", true);
    // Slot 1 is the first free one. Ends that wrap at 32 bits, and one behind all slots.
    for sector in [0xffff_fff8_u32, 0xffff_ff00, 0x8000_0000] {
        let mut bytes = image.clone();
        bytes[at + 208 + 48 + 40..][..4].copy_from_slice(&sector.to_be_bytes());
        for case in [case(fill, ["first", "second", ""], "second", false), Case { ..erase }] {
            let storage = Noted::new(bytes.clone(), None);
            // A slot that does not wrap is refused when the image is opened.
            let refused = amend(&storage, &case).unwrap_err().to_string();
            let expected = match sector {
                0x8000_0000 => "Keyslot 1 is overlapping with the encrypted payload",
                _ => "Keyslot 1 is outside of the LUKS header",
            };
            assert!(refused.contains(expected), "{sector:#x}: {refused}");
            assert!(storage.memory.contents() == bytes, "{sector:#x}: something was written");
        }
    }
}

/// An entry of a table that leads to where key material goes: whose the cluster is nobody knows, so nothing is written.
#[test]
fn clusters_that_have_another_owner_are_not_written() {
    let storage = Arc::new(Memory::new(new_image(IMAGES[0])));
    let handle = open(storage.clone(), "first").unwrap();
    handle.disk().write(0, &[IoSlice::new(&[5; 4096])], false).unwrap();
    handle.close().unwrap();
    let bytes = storage.contents();
    let number = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let at = bytes.windows(6).position(|w| w == b"LUKS\xba\xbe").unwrap();
    let l2 = (number(number(40) as usize) & 0x00ff_ffff_ffff_fe00) as usize;
    // Slot 1 is the first free one; its material begins in a later cluster than the header.
    let sector = u32::from_be_bytes(bytes[at + 208 + 48 + 40..][..4].try_into().unwrap());
    let cluster_bits = u32::from_be_bytes(bytes[20..24].try_into().unwrap());
    let cluster = (at as u64 + u64::from(sector) * 512) >> cluster_bits << cluster_bits;
    let mut poked = bytes.clone();
    put(&mut poked, l2, &(1 << 63 | cluster).to_be_bytes());
    let fill =
        case(&["encrypt.state=active", "encrypt.new-secret=n"], ["first", "second", ""], "second", false);
    for (bytes, refused) in [(bytes, false), (poked, true)] {
        let storage = Noted::new(bytes.clone(), None);
        match amend(&storage, &fill) {
            Ok(()) => assert!(!refused, "nobody looks who has the cluster"),
            Err(e) => {
                assert!(refused, "{e}");
                assert!(e.to_string().contains("encryption header key material of slot 1"), "{e}");
                assert!(storage.memory.contents() == bytes, "something was written");
            }
        }
    }
}

/// An image too damaged to tell who has what: its key slots change by force only.
#[test]
fn damage_elsewhere_keeps_key_slots_unless_by_force() {
    let storage = Arc::new(Memory::new(new_image(IMAGES[0])));
    let handle = open(storage.clone(), "first").unwrap();
    handle.disk().write(0, &[IoSlice::new(&[5; 4096])], false).unwrap();
    handle.close().unwrap();
    let mut bytes = storage.contents();
    let number = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let l2 = (number(number(40) as usize) & 0x00ff_ffff_ffff_fe00) as usize;
    // An offset that no cluster begins at.
    put(&mut bytes, l2 + 8, &(1_u64 << 63 | 0x200).to_be_bytes());
    const FILL: &[&str] = &["encrypt.state=active", "encrypt.new-secret=n"];
    for force in [false, true] {
        let storage = Noted::new(bytes.clone(), None);
        let asked = Case { options: FILL, secrets: ["first", "second", ""], after: "second", force };
        let done = amend(&storage, &asked);
        assert_eq!(done.is_ok(), force, "{done:?}");
        assert!(force || storage.memory.contents() == bytes, "something was written");
    }
}
