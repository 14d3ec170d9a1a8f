//! An image and its external data file, each on a storage double: power cuts with both files losing their own unsynced
//! events, and the rules that span both traces.

use crate::cut::{CrashState, Cutter, Keep};
use crate::expect::{Contents, Expect};
use crate::ops::Op;
use crate::oracle::{self, be64, Head, OFFSET};
use crate::overlay::Overlay;
use crate::pair::survivors;
use crate::recorder::{Event, Kept, Recorder, What, Zeroed};
use crate::rng::Rng;
use crate::runner::Runner;
use crate::setup::{self, Setup, BAD_TAG};
use crate::sweep::{check_clean, tries_cuts, Count};
use crate::SECTOR;
use qcow2::testing::ops::handle::Handle;
use qcow2::testing::storage::Purpose;
use std::collections::HashSet;
use std::sync::Arc;

/// One state in so many is also written to after its recovery.
const WRITTEN_STATES: u64 = 16;

/// Runs a list and looks at every state that a power cut may leave behind.
pub fn sweep_split(setup: &Setup, ops: &[Op], rng: &mut Rng) -> Result<Count, String> {
    let mut runner = Runner::new(setup)?;
    let (image, data) = (runner.recorder.clone(), runner.recorder.data_file().expect("a data file"));
    for op in ops {
        if let Some(e) = runner.run(*op)? {
            return Err(format!("{op:?} failed: {e}"));
        }
    }
    runner.check_live()?;
    image.judge()?;
    if !tries_cuts() {
        return Ok(Count { enumerated: 1, opened: 1, ..Count::default() });
    }
    let logs = [image.log(), data.log()];
    let bases = [image.base(), data.base()];
    let mut cutters = [0, 1].map(|i| Cutter::new(bases[i], &logs[i]));
    let (mut count, mut seen) = (Count::default(), HashSet::new());
    loop {
        let cut = cutters[0].cut + cutters[1].cut;
        let stage_at = runner.stages.iter().rposition(|s| s.first <= cut).unwrap_or(0);
        let expect = &runner.stages[stage_at].expect;
        survivors(&mut cutters, rng, &mut |cutters, keeps| {
            count.enumerated += 1;
            let states = [cutters[0].state(&keeps[0]), cutters[1].state(&keeps[1])];
            let killed = states.iter().all(|s| s.killed);
            if !seen.insert((states[0].hash, states[1].hash, stage_at, killed)) {
                return Ok(());
            }
            count.opened += 1;
            count.repaired += u64::from(oracle::is_dirty(&cutters[0].medium(&states[0]).start()));
            judge(setup, cutters, &states, expect).map_err(|e| describe(cutters, keeps, e))
        })?;
        count.cuts += 1;
        // The file whose next event came first goes on.
        let next = |i: usize| logs[i].get(cutters[i].cut).map_or(u64::MAX, |e| e.stamp);
        if !cutters[usize::from(next(1) < next(0))].step() {
            return Ok(count);
        }
    }
}

fn describe(cutters: &[Cutter<'_>; 2], keeps: &[Vec<Keep>; 2], what: String) -> String {
    let cuts = [cutters[0].cut, cutters[1].cut];
    format!("cut after {cuts:?} events (image, data file), of the unsynced ones survive {keeps:?}: {what}")
}

fn judge(
    setup: &Setup,
    cutters: &[Cutter<'_>; 2],
    states: &[CrashState; 2],
    expect: &Expect,
) -> Result<(), String> {
    let (image, data) = (cutters[0].medium(&states[0]), cutters[1].medium(&states[1]));
    let alone = data.contents();
    let (handle, disk) = recover(setup, &image, &data)?;
    let sectors = disk.disk.len() as u64;
    expect.check(&disk, states.iter().all(|s| s.killed))?;
    if setup.data_file == Some(true) && !expect.killed {
        expect.check(&whole(tags_of(alone, sectors))?, false).map_err(|e| format!("the raw file: {e}"))?;
    }
    if states[0].hash.wrapping_add(states[1].hash) % WRITTEN_STATES != 0 {
        return Ok(());
    }
    let told = |e| format!("after recovery: {e}");
    setup::write(&handle, 0, sectors, 0x777, false).map_err(told)?;
    handle.close().map_err(told)?;
    check_clean(&*image)?;
    let handle = setup.open_split(image, data.clone()).map_err(told)?;
    let again = setup::read_all(&handle).map_err(told)?;
    // What is encrypted says nothing alone.
    let alone = if setup.encrypted.is_some() { Vec::new() } else { tags_of(data.contents(), sectors) };
    match again.iter().chain(&alone).all(|t| *t == 0x777) {
        true => Ok(()),
        false => Err("after recovery: a write is lost".into()),
    }
}

/// Opens a state, checks it and reads everything.
pub fn recover(
    setup: &Setup,
    image: &Arc<Overlay>,
    data: &Arc<Overlay>,
) -> Result<(Handle, Contents), String> {
    let handle = setup.open_split(image.clone(), data.clone()).map_err(|e| format!("open: {e}"))?;
    check_clean(&**image)?;
    let disk = setup::read_all(&handle).map_err(|e| format!("reading: {e}"))?;
    Ok((handle, whole(disk)?))
}

fn whole(disk: Vec<u32>) -> Result<Contents, String> {
    match disk.iter().position(|t| *t == BAD_TAG) {
        Some(sector) => Err(format!("sector {sector} holds what nobody wrote")),
        None => Ok(Contents { disk, snapshots: Vec::new(), bitmaps: Vec::new() }),
    }
}

/// What a reader of the data file alone finds on a disk of `sectors`.
pub(crate) fn tags_of(mut bytes: Vec<u8>, sectors: u64) -> Vec<u32> {
    bytes.resize((sectors * SECTOR) as usize, 0);
    let sectors = bytes.chunks_exact(SECTOR as usize).zip(0..);
    sectors.map(|(bytes, sector)| setup::tag_of(bytes, sector)).collect()
}

/// Judges what the traces of an image and its data file say together.
pub(crate) fn check_traces(image: &Recorder, data: &Recorder) -> Result<(), String> {
    let (log, before, data) = (image.log(), data.base(), data.log());
    let mut tables = image.base().to_vec();
    let Some(head) = Head::parse(&tables).filter(|h| h.has_data_file()) else { return Ok(()) };
    let (zeroed, kept) = (&image.zeroed()[..], &image.all_kept()[..]);
    let mut entries = Entries { head, before, data: &data, zeroed, kept };
    for event in &log {
        let told = |e| format!("the image's write of {:?} at {:#x}: {e}", event.purpose, event.offset);
        match (event.what, event.purpose) {
            (What::Write | What::Zeroes, Purpose::Data) => {
                return Err(told("guest data in the image".into()))
            }
            (What::Write, Purpose::L2) => entries.written(&tables, event).map_err(told)?,
            _ => {}
        }
        crate::cut::apply(&mut tables, event);
        // It may be told that the data file need not be raw any more.
        entries.head.autoclear &= Head::parse(&tables).map_or(u64::MAX, |h| h.autoclear);
    }
    data.iter().try_for_each(|e| in_its_place(head, e))
}

/// C13 for a data file: guest data is at its guest offset.
fn in_its_place(head: Head, event: &Event) -> Result<(), String> {
    let Some((from, to)) = event.request.and_then(|r| r.guest) else { return Ok(()) };
    let floor = from >> head.cluster_bits << head.cluster_bits;
    let ceil = to.checked_next_multiple_of(head.cluster_bytes()).unwrap_or(u64::MAX);
    let end = event.offset + event.length;
    match event.what {
        What::Write | What::Zeroes | What::Discard if event.offset < floor || end > ceil => Err(format!(
            "C13: {:#x}..{end:#x} of the data file for guest bytes {from:#x}..{to:#x}",
            event.offset
        )),
        _ => Ok(()),
    }
}

/// What the entries of an image say about its data file.
struct Entries<'a> {
    head: Head,
    /// The data file when the recording began.
    before: &'a [u8],
    data: &'a [Event],
    zeroed: &'a [Zeroed],
    kept: &'a [Kept],
}

impl Entries<'_> {
    /// R2 over two files: an entry that begins to count its bytes in the data file, or in a raw one that they are zero,
    /// is written after what they are has been synced there.
    fn written(&mut self, tables: &[u8], event: &Event) -> Result<(), String> {
        let step = self.head.entry_bytes as usize;
        for (index, new) in event.bytes.chunks_exact(step).enumerate() {
            let at = event.offset as usize + index * step;
            let mut old = tables.get(at..at + step).unwrap_or_default().to_vec();
            old.resize(step, 0);
            if old == new {
                continue;
            }
            let (old, new) = (Said::of(&old), Said::of(new));
            let Some(place) = self.place(tables, at) else { continue };
            let sub_bytes = self.head.cluster_bytes() / Said::parts(step);
            for part in 0..Said::parts(step) {
                let (before, now) = (old.part(part), new.part(part));
                let from = place + part * sub_bytes;
                let to = from + sub_bytes;
                // Where the disk ends inside, that is as far as a request goes.
                let end = to.min(Head::parse(tables).map_or(0, |h| h.size).max(from + 1));
                let since = if now.0 && !before.0 {
                    self.given_up(from, end, event.stamp)
                } else if self.head.has_raw_data_file() && now.1 && before.0 {
                    self.zeroed(from, end, event.stamp).map(|z| z.stamps.0).max().unwrap_or(0)
                } else {
                    continue;
                };
                self.durable(from, to, since, event.stamp)?;
                if self.head.is_encrypted() && now.0 && !before.0 {
                    self.encrypted(from, end, event.stamp)?;
                }
            }
        }
        Ok(())
    }

    /// The guest offset of the entry at `at`.
    fn place(&self, tables: &[u8], at: usize) -> Option<u64> {
        let (cluster, head) = (self.head.cluster_bytes(), Head::parse(tables)?);
        let table = at as u64 / cluster * cluster;
        let l1 =
            (0..head.l1_size).find(|i| be64(tables, (head.l1_offset + i * 8) as usize) & OFFSET == table)?;
        let in_table = (at as u64 - table) / self.head.entry_bytes;
        Some((l1 * (cluster / self.head.entry_bytes) + in_table) << self.head.cluster_bits)
    }

    /// The requests to zero or drop all of guest bytes `[from, to)` that started before `now`.
    fn zeroed(&self, from: u64, to: u64, now: u64) -> impl Iterator<Item = &Zeroed> {
        self.zeroed.iter().filter(move |z| z.from <= from && to <= z.to && z.stamps.0 < now)
    }

    /// When the last of these began that had to be durable before `now`: what guest bytes `[from, to)` held before must
    /// not show again. (When their entry was written says nothing: it has an older value until it may show what it has.)
    fn given_up(&self, from: u64, to: u64, now: u64) -> u64 {
        let kept = |k: &&Kept| k.stamp < now && k.from <= from && to <= k.to;
        let last = self.kept.iter().filter(kept).map(|k| k.stamp).max().unwrap_or(0);
        let lasting = self.zeroed(from, to, now).filter(|z| z.stamps.1 < last);
        lasting.map(|z| z.stamps.0).max().unwrap_or(0)
    }

    /// Nothing of `[from, to)` in the data file waits for a sync at `now`, but what has come over durable zeroes, or over
    /// a durable version that is younger than `since`.
    fn durable(&self, from: u64, to: u64, since: u64, now: u64) -> Result<(), String> {
        let before = &self.data[..self.data.partition_point(|e| e.stamp < now)];
        let covered = before.iter().map(|e| if let What::Sync { covers } = e.what { covers } else { 0 });
        let (durable, waiting) = before.split_at(covered.max().unwrap_or(0));
        let touches = |e: &&Event| {
            let written = !matches!(e.what, What::Sync { .. } | What::SetLength);
            written && e.offset < to && from < e.offset + e.length
        };
        let last = durable.iter().rfind(touches);
        let zeroes_do = !self.head.is_encrypted();
        match waiting.iter().find(touches) {
            Some(e) if !last.is_some_and(|e| e.stamp > since || zeroes_do && e.what != What::Write) => Err(format!(
                "R2: the entry of guest bytes {from:#x}..{to:#x} comes before a sync of {:?} at {:#x} of the data file",
                e.what, e.offset
            )),
            _ => Ok(()),
        }
    }
}

impl Entries<'_> {
    /// R2 of an encrypted data file: each sector of `[from, to)` has been written, durably.
    fn encrypted(&self, from: u64, to: u64, now: u64) -> Result<(), String> {
        let issued = &self.data[..self.data.partition_point(|e| e.stamp < now)];
        let covered = issued.iter().map(|e| if let What::Sync { covers } = e.what { covers } else { 0 });
        let durable = &issued[..covered.max().unwrap_or(0)];
        let bare = |at: &u64| {
            let has =
                |e: &Event| e.what == What::Write && e.offset <= *at && *at + SECTOR <= e.offset + e.length;
            let before = self.before.get(*at as usize..(*at + SECTOR) as usize).unwrap_or_default();
            before.iter().all(|b| *b == 0) && !durable.iter().any(has)
        };
        match (from..to).step_by(SECTOR as usize).find(bare) {
            Some(at) => Err(format!("R2: the sector at {at:#x} of the data file was never encrypted")),
            None => Ok(()),
        }
    }
}

/// An L2 entry of an image with an external data file.
struct Said {
    descriptor: u64,
    bitmap: Option<u64>,
}

impl Said {
    fn of(bytes: &[u8]) -> Said {
        Said { descriptor: be64(bytes, 0), bitmap: (bytes.len() == 16).then(|| be64(bytes, 8)) }
    }

    fn parts(entry_bytes: usize) -> u64 {
        if entry_bytes == 16 {
            32
        } else {
            1
        }
    }

    /// Whether the bytes of a part count, and whether it is zero.
    fn part(&self, part: u64) -> (bool, bool) {
        match self.bitmap {
            Some(bitmap) => (bitmap >> part & 1 != 0, bitmap >> (32 + part) & 1 != 0),
            None => {
                let (there, zero) = (self.descriptor & !1 != 0, self.descriptor & 1 != 0);
                (there && !zero, zero)
            }
        }
    }
}
