//! Random requests of any alignment against an array of bytes, over every geometry; and many threads whose
//! history is judged sector by sector. In the end the image is clean, for our check and for the stock tool.

use qcow2::testing::disk::ZeroFlags;
use qcow2::testing::error::ErrorKind;
use qcow2::testing::image::SnapshotRef;
use qcow2::testing::ops::check::CheckOptions;
use qcow2::testing::ops::handle::Handle;
use qcow2::testing::ops::resize::resize;
use qcow2::testing::ops::snapshot;
use qcow2::testing::options::Preallocation;
use std::io::{IoSlice, IoSliceMut};
use std::process::Command;
use std::sync::Arc;
use testkit::encrypted::{secret_at, Encrypted};
use testkit::history::{Did, History};
use testkit::ops::Op;
use testkit::recorder::Recorder;
use testkit::rng::{base_seed, cases, replay_line, Rng};
use testkit::runner::{apply_plain, apply_recorded, resized_bytes};
use testkit::setup::{self, Mode, Setup};
use testkit::sweep::check_clean;
use testkit::SECTOR;

fn any_setup(rng: &mut Rng) -> Setup {
    let version = if rng.one_in(5) { 2 } else { 3 };
    let cluster_bits = *rng.pick(&[9, 9, 10, 11, 12, 14, 16, 18, 21]);
    let sectors = 40 + rng.below(if cluster_bits < 12 { 3000 } else { 20000 });
    Setup {
        version,
        cluster_bits,
        refcount_order: if version == 2 { 4 } else { rng.below(7) as u32 },
        lazy: version == 3 && rng.one_in(2),
        mode: *rng.pick(&[Mode::Writeback, Mode::Writethrough, Mode::MetadataWritethrough]),
        sectors,
        backing: rng.one_in(2).then(|| rng.below(sectors) + 1),
        tiny_cache: rng.one_in(2),
        prefill: 0,
        extended: version == 3 && cluster_bits >= 14 && rng.one_in(2),
        ahead: rng.one_in(2),
        snapshots: false,
        amends: false,
        data_file: None,
        bitmaps: version == 3 && rng.one_in(3),
        encrypted: rng.one_in(5).then(|| Encrypted::random(rng)),
        encrypted_backing: rng.one_in(5),
        depth: 0,
    }
}

/// The disk as an array.
struct Model {
    bytes: Vec<u8>,
    step: u64,
}

fn fill_random(rng: &mut Rng, bytes: &mut [u8]) {
    let zero = rng.one_in(12);
    bytes.chunks_mut(8).for_each(|c| {
        let word = if zero { 0 } else { rng.next() };
        c.copy_from_slice(&word.to_le_bytes()[..c.len()]);
    });
}

/// The buffer in up to four parts.
fn parts(rng: &mut Rng, length: usize) -> Vec<usize> {
    let mut ends: Vec<usize> = (0..rng.below(4)).map(|_| rng.below(length as u64 + 1) as usize).collect();
    ends.extend([0, length]);
    ends.sort_unstable();
    ends
}

impl Model {
    fn range(&self, rng: &mut Rng, setup: &Setup) -> (usize, usize) {
        let size = self.bytes.len() as u64;
        let cluster = 1 << setup.cluster_bits;
        let unit = *rng.pick(&[1, 1, 512, 512, cluster]);
        let at = (rng.below(size) / unit * unit).min(size - 1);
        let most = if rng.one_in(10) { size } else { 3 * cluster.min(1 << 17) };
        let length = (1 + rng.below(most)).div_ceil(unit) * unit;
        (at as usize, length.min(size - at) as usize)
    }

    fn step(
        &mut self,
        recorder: &Recorder,
        handle: &Handle,
        setup: &Setup,
        rng: &mut Rng,
    ) -> Result<(), String> {
        self.step += 1;
        let (at, length) = self.range(rng, setup);
        let disk = handle.disk();
        let told = |e: qcow2::testing::error::Error| e.to_string();
        let bytes = Some((at as u64, (at + length) as u64));
        match rng.below(20) {
            0..=7 => {
                let mut data = vec![0; length];
                fill_random(rng, &mut data);
                let ends = parts(rng, length);
                let list: Vec<_> = ends.windows(2).map(|w| IoSlice::new(&data[w[0]..w[1]])).collect();
                let fua = rng.one_in(8);
                recorder.request(bytes, None, || disk.write(at as u64, &list, fua)).map_err(told)?;
                self.bytes[at..at + length].copy_from_slice(&data);
            }
            8..=9 => {
                let flags = ZeroFlags { unmap: rng.one_in(2), no_fallback: false };
                let fua = rng.one_in(8);
                let zero = || disk.write_zeroes(at as u64, length as u64, flags, fua);
                recorder.request(bytes, bytes, zero).map_err(told)?;
                self.bytes[at..at + length].fill(0);
            }
            10..=11 => {
                recorder.request(bytes, bytes, || disk.discard(at as u64, length as u64)).map_err(told)?;
                self.adopt_discarded(handle, at, length)?;
            }
            12 => disk.flush().map_err(told)?,
            13 => self.resize(recorder, handle, setup, rng)?,
            _ => self.compare(handle, at, length, rng)?,
        }
        Ok(())
    }

    fn adopt_discarded(&mut self, handle: &Handle, at: usize, length: usize) -> Result<(), String> {
        let mut now = vec![0; length];
        let list = &mut [IoSliceMut::new(&mut now)];
        handle.disk().read(at as u64, list).map_err(|e| e.to_string())?;
        for (i, byte) in now.iter().enumerate() {
            if *byte != 0 && *byte != self.bytes[at + i] {
                return Err(format!("discarded byte {} is {byte:#x}, was {:#x}", at + i, self.bytes[at + i]));
            }
        }
        self.bytes[at..at + length].copy_from_slice(&now);
        Ok(())
    }

    fn resize(
        &mut self,
        recorder: &Recorder,
        handle: &Handle,
        setup: &Setup,
        rng: &mut Rng,
    ) -> Result<(), String> {
        let size = ((rng.below(2 * setup.sectors) + 1) * SECTOR) as usize;
        let old = self.bytes.len();
        let (bytes, zeroes) = resized_bytes(old as u64, size as u64);
        let modes = [
            Preallocation::Off,
            Preallocation::Off,
            Preallocation::Metadata,
            Preallocation::Falloc,
            Preallocation::Full,
        ];
        // Zeroes of an encrypted image are flags, which version 2 has not.
        let plain = size <= old || setup.encrypted.is_some() && setup.version == 2;
        let mode = if plain { Preallocation::Off } else { *rng.pick(&modes) };
        let grow_or_cut = || resize(handle, size as u64, mode);
        recorder.request(bytes, zeroes, grow_or_cut).map_err(|e| e.to_string())?;
        self.bytes.resize(size, 0);
        self.compare(handle, old.min(size) / 2, size - old.min(size) / 2, rng)
            .map_err(|e| format!("resized from {old} to {size}, preallocation {mode:?}: {e}"))
    }

    fn compare(&self, handle: &Handle, at: usize, length: usize, rng: &mut Rng) -> Result<(), String> {
        let mut data = vec![0xee; length];
        let ends = parts(rng, length);
        let mut list = Vec::new();
        let mut rest = &mut data[..];
        for window in ends.windows(2) {
            let (part, after) = rest.split_at_mut(window[1] - window[0]);
            list.push(IoSliceMut::new(part));
            rest = after;
        }
        handle.disk().read(at as u64, &mut list).map_err(|e| e.to_string())?;
        match data.iter().zip(&self.bytes[at..]).position(|(a, b)| a != b) {
            None => Ok(()),
            Some(i) => Err(format!("byte {} is {:#x}, must be {:#x}", at + i, data[i], self.bytes[at + i])),
        }
    }
}

fn initial_bytes(setup: &Setup) -> Vec<u8> {
    let mut bytes = vec![0; (setup.sectors * SECTOR) as usize];
    for (sector, tag) in setup.initial().into_iter().enumerate() {
        let at = sector * SECTOR as usize;
        setup::fill(&mut bytes[at..at + SECTOR as usize], sector as u64, tag);
    }
    bytes
}

fn run_model(setup: &Setup, seed: u64, steps: u64) -> Result<(Vec<u8>, Vec<u8>), String> {
    let recorder = setup.recorder();
    let end = run_recorded(setup, &recorder, seed, steps).and_then(|both| recorder.judge().map(|()| both));
    if end.is_err() {
        recorder.leave_unjudged("the list has failed, and is told how to replay");
    }
    end
}

fn run_recorded(
    setup: &Setup,
    recorder: &Arc<Recorder>,
    seed: u64,
    steps: u64,
) -> Result<(Vec<u8>, Vec<u8>), String> {
    let mut rng = Rng::new(seed);
    let mut handle = setup.open(recorder.clone()).map_err(|e| e.to_string())?;
    let mut model = Model { bytes: initial_bytes(setup), step: 0 };
    for _ in 0..steps {
        let number = model.step;
        model.step(recorder, &handle, setup, &mut rng).map_err(|e| format!("step {number}: {e}"))?;
        if rng.one_in(25) {
            handle.close().map_err(|e| format!("close: {e}"))?;
            let leaks = check_clean(&**recorder).map_err(|e| format!("closed after step {number}: {e}"))?;
            if leaks > 0 {
                return Err(format!("closed after step {number}: {leaks} leaks"));
            }
            handle = setup.open(recorder.clone()).map_err(|e| e.to_string())?;
            model.compare(&handle, 0, model.bytes.len(), &mut rng)?;
        }
    }
    handle.close().map_err(|e| format!("close: {e}"))?;
    match check_clean(&**recorder)? {
        0 => Ok((recorder.contents(), model.bytes)),
        leaks => Err(format!("{leaks} leaks after the last close")),
    }
}

/// `qemu-img check` of an image and `qemu-img compare` with what it must hold; `None` without the tool.
fn stock_check(setup: &Setup, image: &[u8], disk: &[u8]) -> Option<String> {
    // The kit's small LUKS headers have no place for the slots that are not in use, which the stock tools ask for.
    if matches!(setup.encrypted, Some(Encrypted::Luks(_))) {
        return None;
    }
    let place = tempfile::tempdir().expect("temporary directory");
    let at = |name: &str| place.path().join(name);
    std::fs::write(at("image"), image).expect("write");
    std::fs::write(at("disk"), disk).expect("write");
    std::fs::write(at("base"), setup.backing_file()).expect("write");
    let run = |words: &[&str]| {
        let out = Command::new("qemu-img").args(words).current_dir(place.path()).output().ok()?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        Some(if out.status.success() { String::new() } else { text })
    };
    let secrets = [0, 1].map(|depth| format!("secret,id=s{depth},data={}", secret_at(depth)));
    let secrets = secrets.iter().flat_map(|secret| ["--object", secret]).collect::<Vec<_>>();
    let mut image = "driver=qcow2,file.filename=image".to_owned();
    if setup.encrypted.is_some() {
        image += ",encrypt.key-secret=s0";
    }
    if setup.backing.is_some() && setup.encrypted_backing {
        image += ",backing.encrypt.key-secret=s1";
    }
    let on_image = |command, more: &[&str]| {
        let words = [&[command], &secrets[..], &["--image-opts", &image], more].concat();
        run(&words)
    };
    let checked = on_image("check", &[])?;
    Some(checked + &on_image("compare", &["driver=raw,file.filename=disk"])?)
}

#[test]
fn random_requests_behave_like_an_array() {
    let seed = base_seed();
    let mut rng = Rng::new(seed);
    let replay = replay_line("model", "random_requests_behave_like_an_array", seed);
    let mut stock = 0;
    for case in 0..cases(150) {
        let (setup, case_seed) = (any_setup(&mut rng), rng.next());
        let (image, disk) = match run_model(&setup, case_seed, 120) {
            Ok(both) => both,
            Err(e) => {
                // The fewest steps that still fail.
                let fails = |steps: &u64| run_model(&setup, case_seed, *steps).is_err();
                let steps = (1..=120).find(fails).unwrap_or(120);
                let e = run_model(&setup, case_seed, steps).err().unwrap_or(e);
                panic!("case {case}: {e}\n{setup:?}\nrun_model(&setup, {case_seed}, {steps})\n{replay}");
            }
        };
        if case % 5 == 0 {
            if let Some(text) = stock_check(&setup, &image, &disk) {
                let told = format!("{setup:?}\nrun_model(&setup, {case_seed}, 120)\n{replay}");
                assert_eq!(text, "", "case {case}: {told}");
                stock += 1;
            }
        }
    }
    testkit::tell!("{} lists of 120 requests, {stock} of the images checked by the stock tool", cases(150));
}

fn one_request(recorder: &Recorder, handle: &Handle, history: &History, rng: &mut Rng, tag: u32, size: u64) {
    let sector = if rng.one_in(2) { rng.below(size) } else { rng.below(16) };
    let count = (1 + rng.below(6)).min(size - sector);
    let start = history.now();
    let all = |did: Did| (0..count).map(move |_| did);
    let (unmap, fua) = (rng.one_in(2), rng.one_in(16));
    let (op, did) = match rng.below(16) {
        0..=5 => (Op::Write { sector, count, fua }, Did::Gave(tag)),
        6..=7 => (Op::Zero { sector, count, unmap, fua }, Did::Gave(0)),
        8..=9 => (Op::Discard { sector, count }, Did::MayZero),
        10 if rng.one_in(40) => {
            // What is cut off is gone; what is added later reads as zeroes.
            let least = size / 2 + 1;
            let sectors = least + rng.below(size / 2);
            // Others resize too: the disk may be as short as that when this one's turn comes.
            let (range, zeroes) = resized_bytes(least * SECTOR, sectors * SECTOR);
            recorder.request(range, zeroes, || apply_plain(handle, &Op::Resize { sectors }, tag)).unwrap();
            return history.note(start, sectors, (sectors..size).map(|_| Did::Gave(0)));
        }
        _ => return other_request(handle, history, rng, tag, (sector, count)),
    };
    match apply_recorded(recorder, handle, &op, tag) {
        // Somebody has made the disk shorter.
        Err(e) if e.kind() == ErrorKind::PastEnd => {}
        done => {
            done.unwrap();
            history.note(start, sector, all(did));
        }
    }
}

fn other_request(handle: &Handle, history: &History, rng: &mut Rng, tag: u32, place: (u64, u64)) {
    let start = history.now();
    match 10 + rng.below(6) {
        10 if rng.one_in(3) => handle.disk().flush().unwrap(),
        11 if rng.one_in(40) => handle.reopen(false, false, &[], None).unwrap(),
        12 if rng.one_in(40) => {
            let report = handle.check(CheckOptions::default(), None, &mut |_, _| true).unwrap();
            assert_eq!(report.corruptions + report.check_errors, 0, "{report:?}");
        }
        13 if rng.one_in(40) => {
            let name = tag.to_string().into_bytes();
            let wanted = SnapshotRef { id: None, name: Some(&name) };
            match snapshot::create(handle, &setup::snapshot_named(&name)) {
                // Narrow refcounts hold few snapshots.
                Err(e) if e.kind() == ErrorKind::Invalid => return,
                done => done.unwrap(),
            }
            if rng.one_in(2) {
                snapshot::delete(handle, wanted).unwrap();
            }
        }
        _ => match setup::read(handle, place.0, place.1) {
            Err(e) if e.kind() == ErrorKind::PastEnd => {}
            tags => history.note(start, place.0, tags.unwrap().into_iter().map(Did::Saw)),
        },
    }
}

#[test]
fn many_threads_see_a_possible_history() {
    let seed = base_seed();
    let mut rng = Rng::new(seed ^ 0x7472);
    let mut reads = 0;
    for case in 0..cases(30) {
        let backing = rng.one_in(2).then_some(90);
        let encrypted = (case % 5 == 4).then(|| Encrypted::random(&mut rng));
        let setup = Setup {
            cluster_bits: *rng.pick(&[9, 9, 10, 12]),
            refcount_order: rng.below(7) as u32,
            lazy: rng.one_in(2),
            tiny_cache: !rng.one_in(3),
            sectors: 200,
            backing,
            encrypted,
            encrypted_backing: encrypted.is_some() && rng.one_in(2),
            mode: *rng.pick(&[
                Mode::Writeback,
                Mode::Writeback,
                Mode::Writethrough,
                Mode::MetadataWritethrough,
            ]),
            ..Setup::default()
        };
        let recorder = setup.recorder();
        let handle = setup.open(recorder.clone()).unwrap();
        let history = History::new(&setup.initial());
        let case_seed = rng.next();
        std::thread::scope(|scope| {
            for thread in 0..4u32 {
                let (recorder, handle, history) = (&*recorder, &handle, &history);
                let mut rng = Rng::new(case_seed ^ u64::from(thread));
                scope.spawn(move || {
                    for step in 0..400 {
                        let tag = (thread + 1) << 16 | (step + 1);
                        one_request(recorder, handle, history, &mut rng, tag, 200);
                    }
                });
            }
        });
        finish(&setup, &recorder, handle, &history, &mut reads).unwrap_or_else(|e| {
            panic!("case {case}: {e}\n{setup:?}\n{}", replay_line("model", "many_threads", seed))
        });
    }
    testkit::tell!("{reads} sector reads judged");
}

fn finish(
    setup: &Setup,
    recorder: &Arc<Recorder>,
    handle: Handle,
    history: &History,
    reads: &mut u64,
) -> Result<(), String> {
    let start = history.now();
    let tags = setup::read_all(&handle).map_err(|e| e.to_string())?;
    history.note(start, 0, tags.iter().copied().map(Did::Saw));
    *reads += history.judge()?;
    handle.close().map_err(|e| format!("close: {e}"))?;
    let leaks = check_clean(&**recorder)?;
    if leaks > 0 {
        return Err(format!("{leaks} leaks"));
    }
    recorder.judge()?;
    let handle = setup.open(recorder.clone()).map_err(|e| e.to_string())?;
    let again = setup::read_all(&handle).map_err(|e| e.to_string())?;
    if again != tags {
        return Err("closing has changed what is read".into());
    }
    Ok(())
}
