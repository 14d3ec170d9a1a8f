//! Races made exact: threads that each run one operation, parked at one of their I/Os, let go in a given order.
//! What they read, what is left in the end, and what each had promised when it returned must fit some order
//! of the operations that agrees with when each began and ended.

mod judge;

use crate::recorder::{act_as, Recorder};
use crate::rows::{self, Gives, Promise, Row, GROWN, SHRUNK, SIZE};
use crate::setup::{self, Mode, Setup};
use crate::sweep::{check_clean, mend_flags};
use crate::{oracle, split, SECTOR};
use qcow2::testing::error::ErrorKind;
use qcow2::testing::image::Image;
use qcow2::testing::ops::handle::Handle;
use qcow2::testing::storage::memory::Memory;
use qcow2::testing::storage::{Purpose, Storage};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// After this long nothing moves any more.
const DEADLOCK: Duration = Duration::from_secs(30);
/// Looks at a sleeping thread, and the time between them, until it counts as waiting for somebody.
const LOOKS: u32 = 3;
const BETWEEN_LOOKS: Duration = Duration::from_micros(60);
/// Whoever has nobody to wait for and is neither parked nor done after this long waits all the same.
const PATIENCE: Duration = Duration::from_secs(10);
/// Sectors that are compared: a grown disk is zero past them.
const COMPARED: u64 = SIZE + 8;
/// What was on its way to the medium when the race began: in place, and in new clusters.
const EARLIER: [(u64, u64, u32); 2] = [(41, 2, 9), (60, 2, 10)];

/// An image on which races run, prepared once.
pub struct Scene {
    pub setup: Setup,
    /// It has an internal snapshot of what it holds.
    pub snapshot: bool,
    files: Files,
    base: Vec<u8>,
    /// What each compared sector holds, before and after the write that is under way when a race begins.
    initial: Vec<u32>,
    before: Vec<u32>,
}

/// The bytes of an image and of its external data file.
#[derive(Clone)]
struct Files {
    image: Vec<u8>,
    data: Option<Vec<u8>>,
}

/// A storage whose calls can be parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    Image,
    Backing,
    DataFile,
}

/// Where an operation is parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    pub device: Device,
    /// Only writes with this purpose count.
    pub purpose: Option<Purpose>,
    pub call: u64,
    /// When the call is done, not before.
    pub after: bool,
}

/// One operation of a race.
#[derive(Clone, Copy)]
pub struct Part {
    pub row: &'static Row,
    pub point: Option<Point>,
}

/// What the threads of a race use.
struct Stage {
    handle: Handle,
    recorder: Arc<Recorder>,
    base: Arc<Recorder>,
    clock: AtomicU64,
}

/// One operation as it ran.
struct Ran {
    row: &'static Row,
    tag: u32,
    began: u64,
    ended: u64,
    /// Sectors and the tags that it read there.
    seen: Vec<(u64, u32)>,
    /// What the media held for sure when it returned, if it promised something.
    promised: Option<Files>,
    /// Its range was past the end: it did nothing.
    refused: bool,
}

#[derive(Default)]
struct Actor {
    /// Its thread in `/proc`.
    task: Mutex<Option<PathBuf>>,
    done: AtomicBool,
}

/// How a race went.
#[derive(Clone, Copy, Debug, Default)]
pub struct Played {
    /// The parts that were parked, one bit each.
    pub parked: u32,
    /// The parts that were done while an earlier one was parked.
    pub beside: u32,
    /// The parts whose range was past the end, or whose image was another.
    pub refused: u32,
}

impl Scene {
    pub fn new(setup: Setup, snapshot: bool) -> Scene {
        let setup = Setup { sectors: SIZE, prefill: 52, ..setup };
        let (image, data) = setup.create_files();
        let storage = Arc::new(Memory::new(image));
        let data = setup.data_file.map(|_| Arc::new(Memory::new(data)));
        let base = setup.backing_file();
        let below = Arc::new(Memory::new(base.clone()));
        let handle = setup.open_files(storage.clone(), below, data.clone().map(|d| d as _)).expect("open");
        rows::prepare(&handle, snapshot).expect("prepare");
        let initial = setup::read_all(&handle).expect("read");
        handle.close().expect("close");
        let grow = |mut tags: Vec<u32>| {
            tags.resize(COMPARED as usize, 0);
            tags
        };
        let mut before = initial.clone();
        EARLIER.iter().for_each(|(s, n, tag)| before[*s as usize..][..*n as usize].fill(*tag));
        let files = Files { image: storage.contents(), data: data.map(|d| d.contents()) };
        Scene { setup, snapshot, files, base, initial: grow(initial), before: grow(before) }
    }

    /// The storages that there are.
    pub fn devices(&self) -> impl Iterator<Item = Device> {
        let backing = self.setup.backing.map(|_| Device::Backing);
        let data = self.setup.data_file.map(|_| Device::DataFile);
        [Some(Device::Image), backing, data].into_iter().flatten()
    }

    fn read(&self, handle: &Handle) -> Result<Vec<u32>, String> {
        let count = (handle.disk().length() / SECTOR).min(COMPARED);
        setup::read(handle, 0, count).map_err(|e| format!("reading: {e}"))
    }

    /// What a power cut or the end of the process leaves of `files` after recovery: what the disk shows, and what a raw
    /// data file shows by itself.
    fn recover(&self, files: Files, base: Vec<u8>) -> Result<Vec<Vec<u32>>, String> {
        let dirty = oracle::is_dirty(&files.image);
        let is_raw = oracle::Head::parse(&files.image).is_some_and(|head| head.has_raw_data_file());
        let storage = Arc::new(Memory::new(files.image));
        let data = files.data.map(|bytes| Arc::new(Memory::new(bytes)));
        let below = Arc::new(Memory::new(base));
        let open = || {
            let handle = self.setup.open_files(storage.clone(), below.clone(), data.clone().map(|d| d as _));
            handle.map_err(|e| format!("open: {e}"))
        };
        let handle = open()?;
        let (handle, leaks) = match check_clean(&*storage) {
            // A snapshot began when the image had become one of version 2.
            Err(e) if oracle::is_version_2(&storage.contents()) => {
                let leaks = mend_flags(handle, &*storage, e)?;
                (open()?, leaks)
            }
            leaks => (handle, leaks?),
        };
        if dirty && leaks > 0 {
            return Err(format!("{leaks} leaks after a repair"));
        }
        let disk = self.read(&handle)?;
        let alone = data.filter(|_| is_raw).map(|d| split::tags_of(d.contents(), disk.len() as u64));
        Ok([disk].into_iter().chain(alone).collect())
    }

    /// Starts the parts one after the other, each when the one before is parked, done or waiting; then lets them
    /// go on in the order of `release`.
    pub fn play(&self, parts: &[Part], release: &[usize]) -> Result<Played, String> {
        let (recorder, base) = (Recorder::new(self.files.image.clone()), Recorder::new(self.base.clone()));
        let data = self.files.data.clone().map(Recorder::new);
        data.iter().for_each(|d| recorder.set_data_file(d.clone()));
        let handle = self.setup.open_files(
            recorder.clone(),
            base.clone(),
            data.clone().map(|d| d as Arc<dyn Storage>),
        );
        let handle = handle.map_err(|e| e.to_string())?;
        for (sector, count, tag) in EARLIER {
            let bytes = Some((sector * SECTOR, (sector + count) * SECTOR));
            let write = || setup::write(&handle, sector, count, tag, false);
            recorder.request(bytes, None, write).map_err(|e| e.to_string())?;
        }
        if self.setup.encrypted_backing {
            // Its tables are in memory, too, for those who have nobody to wait for.
            let (first, count) = SHOWN_BELOW;
            setup::read(&handle, first, count).map_err(|e| e.to_string())?;
        }
        parts.iter().for_each(|part| (part.row.tell)(&recorder));
        let stage = Stage { handle, recorder, base, clock: AtomicU64::new(1) };
        let (ran, mut played) = self.run(&stage, &data, parts, release);
        let ran = ran.into_iter().collect::<Result<Vec<Ran>, String>>()?;
        let refused = |(index, one): (usize, &Ran)| u32::from(one.refused) << index;
        played.refused = ran.iter().enumerate().map(refused).sum();
        self.judge(stage, &ran)?;
        Ok(played)
    }

    fn run(
        &self,
        stage: &Stage,
        data: &Option<Arc<Recorder>>,
        parts: &[Part],
        release: &[usize],
    ) -> (Vec<Result<Ran, String>>, Played) {
        let actors: Vec<Actor> = parts.iter().map(|_| Actor::default()).collect();
        let mut played = Played::default();
        let ran = std::thread::scope(|scope| {
            let mut threads = Vec::new();
            let mut holds = Vec::new();
            for (index, part) in parts.iter().enumerate() {
                let hold = part.point.map(|p| {
                    let device = match p.device {
                        Device::Image => &stage.recorder,
                        Device::Backing => &stage.base,
                        Device::DataFile => data.as_ref().expect("a scene with a data file"),
                    };
                    (device, device.hold_call(index as u32 + 1, p.purpose, p.call, p.after))
                });
                holds.push(hold);
                let actor = &actors[index];
                threads.push(scope.spawn(move || self.act(stage, actor, index, part.row)));
                let parked = || hold.is_some_and(|(d, id)| d.is_parked(id));
                settle(actor, parts, !must_pass(parts, index), parked);
                played.parked |= u32::from(parked()) << index;
                let done = actor.done.load(Ordering::SeqCst) && played.parked & ((1 << index) - 1) != 0;
                played.beside |= u32::from(done) << index;
            }
            for index in release.iter().copied().chain(0..parts.len()) {
                let Some((device, id)) = holds[index].take() else { continue };
                device.release(id);
                if holds.iter().any(Option::is_some) {
                    settle(&actors[index], parts, true, || false);
                }
            }
            for (index, actor) in actors.iter().enumerate() {
                let started = Instant::now();
                while !actor.done.load(Ordering::SeqCst) && !threads[index].is_finished() {
                    deadlocked(started, parts);
                    std::thread::sleep(Duration::from_micros(30));
                }
            }
            threads.into_iter().map(|t| t.join().map_err(|_| "panic".to_string())?).collect::<Vec<_>>()
        });
        (ran, played)
    }

    fn act(&self, stage: &Stage, actor: &Actor, index: usize, row: &'static Row) -> Result<Ran, String> {
        let _done = Done(&actor.done);
        *actor.task.lock().unwrap() = std::fs::read_link("/proc/thread-self").ok();
        act_as(index as u32 + 1);
        let tag = index as u32 + 1;
        let ends = |(s, n): &(u64, u64)| [s * SECTOR, (s + n) * SECTOR];
        let bytes = row.ranges.iter().flat_map(ends);
        let range = match row.drops {
            _ if row.past_end => Some((SHRUNK * SECTOR, u64::MAX)),
            // A commit writes what it then drops to the file below.
            Some(from) => Some((from * SECTOR, u64::MAX)),
            None => bytes.clone().min().zip(bytes.max()),
        };
        let zeroes = match (row.drops, row.gives) {
            (Some(from), _) => Some((from * SECTOR, u64::MAX)),
            (None, Gives::Zero | Gives::MayZero) => range,
            _ => None,
        };
        let began = stage.clock.fetch_add(1, Ordering::SeqCst);
        let answer = stage.recorder.request(range, zeroes, || (row.run)(&stage.handle, row, tag));
        // The last one: the image has been given away.
        let gone = [ErrorKind::PastEnd, ErrorKind::NotFound, ErrorKind::Occupied, ErrorKind::NotAllowed];
        let other_name = Image::find(stage.handle.disk()).is_some_and(|image| !image.is_chain_kept());
        let refuses = |kind| gone.contains(&kind) || other_name && kind == ErrorKind::Invalid;
        let refused = matches!(&answer, Err(e) if refuses(e.kind()));
        let mut seen = Vec::new();
        let told = |e| format!("{}: {e}", row.name);
        answer.or_else(|e| if refused { Ok(()) } else { Err(e) }).map_err(told)?;
        for (first, count) in row.reads {
            match setup::read(&stage.handle, *first, *count) {
                Err(e) if gone.contains(&e.kind()) => {}
                tags => seen.extend((*first..).zip(tags.map_err(told)?)),
            }
        }
        let promised = match (self.promise(row), self.setup.mode) {
            (Promise::Nothing, _) => None,
            (Promise::Own, Mode::MetadataWritethrough) if row.promise == Promise::Nothing => {
                Some(Files::of(&stage.recorder, Recorder::contents))
            }
            _ => Some(Files::of(&stage.recorder, Recorder::durable_contents)),
        };
        let ended = stage.clock.fetch_add(1, Ordering::SeqCst);
        Ok(Ran { row, tag, began, ended, seen, promised, refused })
    }

    /// What the row promises in this cache mode.
    fn promise(&self, row: &Row) -> Promise {
        match row.promise {
            Promise::Nothing if row.ranges.is_empty() || self.setup.mode == Mode::Writeback => {
                Promise::Nothing
            }
            Promise::Nothing => Promise::Own,
            more => more,
        }
    }
}

impl Files {
    /// `view` of an image and of its data file, both at one moment.
    fn of(image: &Recorder, view: fn(&Recorder) -> Vec<u8>) -> Files {
        loop {
            let events = image.events();
            let files = Files { image: view(image), data: image.data_file().map(|data| view(&data)) };
            if image.events() == events {
                return files;
            }
        }
    }
}

struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Waits until the actor is parked or done, or, where it may wait for somebody else, sleeps: on a busy machine any thread
/// sleeps for a moment.
fn settle(actor: &Actor, parts: &[Part], may_wait: bool, parked: impl Fn() -> bool) {
    let started = Instant::now();
    let mut asleep = 0;
    while asleep < LOOKS && !actor.done.load(Ordering::SeqCst) && !parked() {
        deadlocked(started, parts);
        if !may_wait && started.elapsed() < PATIENCE {
            std::thread::sleep(BETWEEN_LOOKS);
            continue;
        }
        let task = actor.task.lock().unwrap().clone();
        let stat =
            task.and_then(|t| std::fs::read_to_string(PathBuf::from("/proc").join(t).join("stat")).ok());
        let sleeps = stat.is_some_and(|s| s.rsplit(") ").next().is_some_and(|rest| rest.starts_with('S')));
        asleep = if sleeps { asleep + 1 } else { 0 };
        std::thread::sleep(BETWEEN_LOOKS);
    }
}

/// Whether a part has nobody to wait for: the first one, and a look at a table that is in memory beside one that is parked.
pub fn must_pass(parts: &[Part], index: usize) -> bool {
    // Those afar may be under load.
    index == 0 || index == 1 && parts[1].row.name == "read" && !parts[0].row.alone && !parts[0].row.loads
}

/// Nothing can be undone once threads wait for each other: the whole run ends here.
fn deadlocked(started: Instant, parts: &[Part]) {
    if started.elapsed() > DEADLOCK {
        crate::tell!("deadlock: {}", describe(parts));
        std::process::abort();
    }
}

/// The parts of a race in words.
pub fn describe(parts: &[Part]) -> String {
    let one = |p: &Part| match p.point {
        None => p.row.name.to_string(),
        Some(Point { device, purpose, call, after }) => {
            let when = if after { "after" } else { "before" };
            let device = match device {
                Device::Image => "",
                Device::Backing => "backing ",
                Device::DataFile => "data file's ",
            };
            let what = purpose.map_or("call".to_string(), |p| format!("{p:?} write"));
            format!("{} parked {when} its {device}{what} {call}", p.row.name)
        }
    };
    parts.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// Points at which one operation is parked, in turn, until `play` says that it was not.
pub fn at_each_call(
    device: Device,
    purpose: Option<Purpose>,
    mut play: impl FnMut(Point) -> Result<bool, String>,
) -> Result<u64, String> {
    let mut parked = 0;
    for call in 0.. {
        for after in [false, true] {
            if !play(Point { device, purpose, call, after })? {
                return Ok(parked);
            }
            parked += 1;
        }
    }
    Ok(parked)
}

/// Sectors that show an image below, from each of its tables.
const SHOWN_BELOW: (u64, u64) = (62, 6);

/// A grown disk is in the allowed sizes.
const _: () = assert!(GROWN > COMPARED);
