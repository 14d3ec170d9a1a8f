//! Races made exact: threads that each run one operation, parked at one of their I/Os, let go in a given order.
//! What they read, what is left in the end, and what each had promised when it returned must fit some order
//! of the operations that agrees with when each began and ended.

use super::{oracle, split, SECTOR};
use crate::recorder::{act_as, Recorder};
use crate::rows::{self, Gives, Promise, Row, GROWN, SHRUNK, SIZE};
use crate::setup::{self, Mode, Setup, BACKING_TAG, BAD_TAG};
use crate::sweep::{check_clean, mend_flags};
use qcow2::error::ErrorKind;
use qcow2::image::Disk;
use qcow2::ops::handle::Handle;
use qcow2::storage::memory::Memory;
use qcow2::storage::{Purpose, Storage};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// After this long nothing moves any more.
const DEADLOCK: Duration = Duration::from_secs(30);
/// Looks at a sleeping thread, and the time between them, until it counts as waiting for somebody.
const LOOKS: u32 = 3;
const BETWEEN_LOOKS: Duration = Duration::from_micros(60);
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
        let base = setup.backing.map(setup::backing_bytes).unwrap_or_default();
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
        let is_raw = oracle::Head::parse(&files.image).is_some_and(|head| head.raw);
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
        parts.iter().for_each(|part| (part.row.tell)(&recorder));
        let stage = Stage { handle, recorder, base, clock: AtomicU64::new(1) };
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
                let (stage, actor) = (&stage, &actors[index]);
                threads.push(scope.spawn(move || self.act(stage, actor, index, part.row)));
                let parked = || hold.is_some_and(|(d, id)| d.is_parked(id));
                settle(actor, parts, parked);
                played.parked |= u32::from(parked()) << index;
                let done = actor.done.load(Ordering::SeqCst) && played.parked & ((1 << index) - 1) != 0;
                played.beside |= u32::from(done) << index;
            }
            for index in release.iter().copied().chain(0..parts.len()) {
                let Some((device, id)) = holds[index].take() else { continue };
                device.release(id);
                if holds.iter().any(Option::is_some) {
                    settle(&actors[index], parts, || false);
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
        let ran = ran.into_iter().collect::<Result<Vec<Ran>, String>>()?;
        let refused = |(index, one): (usize, &Ran)| u32::from(one.refused) << index;
        played.refused = ran.iter().enumerate().map(refused).sum();
        self.judge(stage, &ran)?;
        Ok(played)
    }

    fn act(&self, stage: &Stage, actor: &Actor, index: usize, row: &'static Row) -> Result<Ran, String> {
        let _done = Done(&actor.done);
        *actor.task.lock().unwrap() = std::fs::read_link("/proc/thread-self").ok();
        act_as(index as u32 + 1);
        let tag = index as u32 + 1;
        let ends = |(s, n): &(u64, u64)| [s * SECTOR, (s + n) * SECTOR];
        let bytes = row.ranges.iter().flat_map(ends);
        let range = match row.past_end {
            true => Some((SHRUNK * SECTOR, u64::MAX)),
            false => bytes.clone().min().zip(bytes.max()),
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
        let other_name = matches!(stage.handle.disk(), Disk::Qcow2(image) if !image.is_chain_kept());
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

    fn judge(&self, stage: Stage, ran: &[Ran]) -> Result<(), String> {
        let Stage { handle, recorder, base, .. } = stage;
        for (index, part) in ran.iter().enumerate() {
            self.judge_part(ran, index, &base).map_err(|e| format!("{}: {e}", part.row.name))?;
        }
        let all = (1 << ran.len()) - 1;
        let tags = self.read(&handle)?;
        let places = (0..).zip(tags.iter().copied());
        self.fits(ran, all, all, false, places, &[&self.before])?;
        // The process dies: what is in the file must be whole, with whatever values were on their way.
        let now = || self.recover(Files::of(&recorder, Recorder::contents), base.contents());
        for killed in now().map_err(|e| format!("killed: {e}"))? {
            let fits = self.fits(ran, 0, all, true, (0..).zip(killed), &[&self.before, &self.initial]);
            fits.map_err(|e| format!("killed: {e}"))?;
        }
        handle.close().map_err(|e| format!("close: {e}"))?;
        let leaks = check_clean(&*recorder)?;
        let same = now()?.iter().all(|again| *again == tags);
        if !same || leaks != 0 {
            return Err(format!("after closing: {leaks} leaks, the same contents: {same}"));
        }
        recorder.judge()
    }

    /// What a part has seen, and what it left on the medium when it returned.
    fn judge_part(&self, ran: &[Ran], index: usize, base: &Recorder) -> Result<(), String> {
        let part = &ran[index];
        let (mut before, mut beside) = (0u32, 0u32);
        for (i, other) in ran.iter().enumerate() {
            before |= u32::from(other.ended < part.began) << i;
            beside |= u32::from(other.began < part.ended) << i;
        }
        self.fits(ran, before, beside, false, part.seen.iter().copied(), &[&self.before])?;
        let Some(view) = part.promised.clone().filter(|_| !part.refused) else { return Ok(()) };
        let told = |e: String| format!("what was promised when it returned: {e}");
        let own = self.promise(part.row) == Promise::Own;
        let inside = |s: &u64| part.row.ranges.iter().any(|(f, n)| (*f..f + n).contains(s));
        let starts = [&self.before[..], &self.initial[..]];
        let starts = if own { &starts[..] } else { &starts[..1] };
        for tags in self.recover(view, base.contents()).map_err(told)? {
            let places = (0..).zip(tags).filter(|(s, _)| !own || inside(s));
            self.fits(ran, before | 1 << index, beside, true, places, starts).map_err(told)?;
        }
        Ok(())
    }

    /// Whether the sectors can hold this after all of the parts `must`, some of `may`, in some order.
    /// `crash`: those that are not in `must` may be half done.
    fn fits(
        &self,
        ran: &[Ran],
        must: u32,
        may: u32,
        crash: bool,
        places: impl Iterator<Item = (u64, u32)>,
        starts: &[&[u32]],
    ) -> Result<(), String> {
        let orders = orders(ran, must, may);
        let shrinking = |i: &usize| (may & !must) >> i & 1 != 0 && ran[*i].row.gives == Gives::Shrunk;
        let half_shrunk = crash && (0..ran.len()).any(|i| shrinking(&i));
        for (sector, tag) in places {
            let mut values: Vec<u32> = starts.iter().map(|s| s[sector as usize]).collect();
            if values.contains(&tag) && !ran.iter().any(|r| touches(r, sector)) {
                continue;
            }
            values = orders
                .iter()
                .flat_map(|o| outcomes(ran, o, (sector, self.initial[sector as usize]), values.clone()))
                .collect();
            if half_shrunk && sector >= SHRUNK {
                // Dropped entries show what is below until the size has changed.
                values.push(self.setup.below(sector));
            }
            if tag == BAD_TAG || !values.contains(&tag) {
                return Err(format!("sector {sector} reads {tag:#x}, may be {values:x?}"));
            }
        }
        Ok(())
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

fn touches(part: &Ran, sector: u64) -> bool {
    if part.refused && !matches!(part.row.gives, Gives::Tag | Gives::Zero | Gives::MayZero) {
        return false;
    }
    part.row.ranges.iter().any(|(first, count)| (*first..first + count).contains(&sector))
        || part.row.gives == Gives::Shrunk && sector >= SHRUNK
        || matches!(part.row.gives, Gives::Initial | Gives::Empty | Gives::Unbacked)
}

/// Every order of the parts `must` and of some of `may` that agrees with when they began and ended.
fn orders(ran: &[Ran], must: u32, may: u32) -> Vec<Vec<usize>> {
    let mut found = Vec::new();
    let mut open = vec![Vec::new()];
    while let Some(order) = open.pop() {
        let used = order.iter().fold(0u32, |bits, i: &usize| bits | 1 << i);
        for next in (0..ran.len()).filter(|i| (must | may) & !used & 1 << i != 0) {
            if order.iter().all(|i| ran[*i].began < ran[next].ended) {
                open.push([&order[..], &[next]].concat());
            }
        }
        if must & !used == 0 {
            found.push(order);
        }
    }
    found
}

fn outcomes(ran: &[Ran], order: &[usize], (sector, initial): (u64, u32), mut values: Vec<u32>) -> Vec<u32> {
    for (place, part) in order.iter().map(|i| &ran[*i]).enumerate().filter(|(_, p)| touches(p, sector)) {
        match part.row.gives {
            Gives::Nothing => {}
            // Refused in the middle.
            Gives::Tag if part.refused => values.push(part.tag),
            Gives::Tag => values = vec![part.tag],
            Gives::Zero if part.refused => values.push(0),
            Gives::Zero => values = vec![0],
            Gives::MayZero => values.push(0),
            Gives::Shrunk => values = vec![0],
            Gives::Initial => values = vec![initial],
            Gives::Empty => values = vec![0],
            Gives::Unbacked if place == 0 => {
                values.iter_mut().filter(|v| **v == BACKING_TAG).for_each(|v| *v = 0);
            }
            // What came before may have copied it into the image, or the image's own out of it.
            Gives::Unbacked => values.push(0),
        }
    }
    values
}

struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Waits until the actor is parked or done, or sleeps for somebody else.
fn settle(actor: &Actor, parts: &[Part], parked: impl Fn() -> bool) {
    let started = Instant::now();
    let mut asleep = 0;
    while asleep < LOOKS && !actor.done.load(Ordering::SeqCst) && !parked() {
        deadlocked(started, parts);
        let task = actor.task.lock().unwrap().clone();
        let stat =
            task.and_then(|t| std::fs::read_to_string(PathBuf::from("/proc").join(t).join("stat")).ok());
        let sleeps = stat.is_some_and(|s| s.rsplit(") ").next().is_some_and(|rest| rest.starts_with('S')));
        asleep = if sleeps { asleep + 1 } else { 0 };
        std::thread::sleep(BETWEEN_LOOKS);
    }
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

/// A grown disk is in the allowed sizes.
const _: () = assert!(GROWN > COMPARED);
