//! Random lists of work on bitmaps and of writes, each step by the stock tools or by us, against a model of the dirty
//! granules. After each step both must say the same of each bitmap: we by what we read, the stock tools by what `qemu-nbd`
//! shows in the end. Skipped where they are missing.

mod model;

use model::{random_step, Model, Step, Step::*, MIB, OVERLAY_CLUSTER};
use qcow2::testing::disk::ZeroFlags;
use qcow2::testing::error::Result;
use qcow2::testing::ops::bitmaps as ours;
use qcow2::testing::ops::commit::commit;
use qcow2::testing::ops::handle::Handle;
use qcow2::testing::ops::open::OpenFlags;
use qcow2::testing::ops::resize::resize;
use qcow2::testing::ops::snapshot::{self, SnapshotRef};
use qcow2::testing::options::Preallocation;
use std::collections::BTreeSet;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use testkit::bitmaps::bitmaps;
use testkit::images::{open_file, READ_ONLY, WRITABLE};
use testkit::rng::{base_seed, cases, replay_line, Rng};
use testkit::setup::snapshot_named;
use testkit::sweep::check_clean;

fn run(program: &str, arguments: &[&str]) -> std::result::Result<(), String> {
    let output = Command::new(program).args(arguments).output().map_err(|e| e.to_string())?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let failed = !output.status.success() || said.contains("failed");
    if failed {
        Err(said)
    } else {
        Ok(())
    }
}

fn stock(path: &str, step: &Step) -> std::result::Result<(), String> {
    let bitmap = |arguments: &[&str]| run("qemu-img", &[&["bitmap", "-f", "qcow2"], arguments].concat());
    let io = |command: String| run("qemu-io", &["-f", "qcow2", "-c", &command, path]);
    match *step {
        Add { name, granularity, enabled } => {
            let granularity = granularity.to_string();
            let mut list = vec!["--add", "-g", &granularity];
            list.extend((!enabled).then_some("--disable"));
            bitmap(&[&list[..], &[path, name]].concat())
        }
        Remove { name } => bitmap(&["--remove", path, name]),
        Clear { name } => bitmap(&["--clear", path, name]),
        Enable { name, on } => bitmap(&[if on { "--enable" } else { "--disable" }, path, name]),
        Merge { into, from } => bitmap(&["--merge", from, path, into]),
        MergeFile { into, granularity, offset, length } => {
            let source = other_file(path, granularity, offset, length);
            bitmap(&["--merge", "source", "-b", &source, "-F", "qcow2", path, into])
        }
        Write { offset, length } => io(format!("write -P 7 {offset} {length}")),
        Zero { offset, length, unmap } => {
            io(format!("write -z {} {offset} {length}", if unmap { "-u" } else { "" }))
        }
        Discard { offset, length } => io(format!("discard {offset} {length}")),
        Compressed { offset, length } => io(format!("write -c -P 9 {offset} {length}")),
        Commit { offset, length } => {
            run("qemu-img", &["commit", "-q", "-f", "qcow2", &overlay(path, offset, length)])
        }
        Snapshot { number } => run("qemu-img", &["snapshot", "-q", "-c", &format!("s{number}"), path]),
        Apply { number } => run("qemu-img", &["snapshot", "-q", "-a", &format!("s{number}"), path]),
        Resize { size } => {
            run("qemu-img", &["resize", "-q", "--shrink", "-f", "qcow2", path, &size.to_string()])
        }
    }
}

/// Another file as large as `path`, with a bitmap that says that one range has changed.
fn other_file(path: &str, granularity: u64, offset: u64, length: u64) -> String {
    let source = format!("{path}.source");
    let _ = std::fs::remove_file(&source);
    let size = testkit::oracle::be64(&std::fs::read(path).unwrap(), 24).to_string();
    run("qemu-img", &["create", "-q", "-f", "qcow2", &source, &size]).unwrap();
    let granularity = granularity.to_string();
    run("qemu-img", &["bitmap", "-f", "qcow2", "--add", "-g", &granularity, &source, "source"]).unwrap();
    run("qemu-io", &["-f", "qcow2", "-c", &format!("write {offset} {length}"), &source]).unwrap();
    source
}

/// An overlay of `path` that has one range.
fn overlay(path: &str, offset: u64, length: u64) -> String {
    let overlay = format!("{path}.overlay");
    let _ = std::fs::remove_file(&overlay);
    let options = format!("cluster_size={OVERLAY_CLUSTER}");
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", path, "-F", "qcow2", "-o", &options, &overlay])
        .unwrap();
    run("qemu-io", &["-f", "qcow2", "-c", &format!("write -P 11 {offset} {length}"), &overlay]).unwrap();
    overlay
}

/// A step of ours that opens the file itself.
fn commit_by_us(path: &str, offset: u64, length: u64) -> Result<()> {
    let handle = open_file(Path::new(&overlay(path, offset, length)), RECORDED, &[])?;
    commit(&handle, false, None, &mut |_, _| true)?;
    handle.close()
}

const RECORDED: OpenFlags = OpenFlags { allow_recorded: true, ..WRITABLE };

fn by_us(handle: &Handle, path: &str, step: &Step) -> Result<()> {
    match *step {
        MergeFile { into, granularity, offset, length } => {
            let source = other_file(path, granularity, offset, length);
            let source = open_file(Path::new(&source), READ_ONLY, &[])?;
            ours::merge(handle, into.as_bytes(), Some(&source), b"source")
        }
        Compressed { offset, length } => {
            handle.disk().write_compressed(offset, &[IoSlice::new(&vec![9; length as usize])], false)
        }
        Commit { .. } => unreachable!("it opens the file itself"),
        Snapshot { number } => snapshot::create(handle, &snapshot_named(format!("s{number}").as_bytes())),
        Apply { number } => {
            snapshot::apply(handle, SnapshotRef { id: None, name: Some(format!("s{number}").as_bytes()) })
        }
        Add { name, granularity, enabled } => ours::add(handle, name.as_bytes(), Some(granularity), enabled),
        Remove { name } => ours::remove(handle, name.as_bytes()),
        Clear { name } => ours::clear(handle, name.as_bytes()),
        Enable { name, on } => ours::set_enabled(handle, name.as_bytes(), on),
        Merge { into, from } => ours::merge(handle, into.as_bytes(), None, from.as_bytes()),
        Write { offset, length } => {
            handle.disk().write(offset, &[IoSlice::new(&vec![5; length as usize])], false)
        }
        Zero { offset, length, unmap } => {
            handle.disk().write_zeroes(offset, length, ZeroFlags { unmap, no_fallback: false }, false)
        }
        Discard { offset, length } => handle.disk().discard(offset, length),
        Resize { size } => resize(handle, size, Preallocation::Off),
    }
}

/// What we say of the bitmaps: by the list, and by the dirty ranges.
fn compare_ours(handle: &Handle, model: &Model) -> std::result::Result<(), String> {
    let list = ours::list(handle).map_err(|e| format!("list: {e}"))?;
    if list.len() != model.bitmaps.len() {
        return Err(format!("{} bitmaps, must be {}", list.len(), model.bitmaps.len()));
    }
    for bitmap in list {
        let name = String::from_utf8(bitmap.name).unwrap();
        let wanted = &model.bitmaps[name.as_str()];
        if (bitmap.granularity, bitmap.enabled, bitmap.inconsistent)
            != (wanted.granularity, wanted.enabled, false)
        {
            return Err(format!("'{name}': granularity, state or flag differ"));
        }
        let (mut dirty, mut at, mut bytes) = (BTreeSet::new(), 0, 0);
        while let Some((from, to)) =
            ours::next_dirty(handle, name.as_bytes(), at).map_err(|e| e.to_string())?
        {
            dirty.extend(from / wanted.granularity..to.div_ceil(wanted.granularity));
            (at, bytes) = (to, bytes + to - from);
        }
        if dirty != wanted.dirty || bytes != bitmap.dirty_bytes {
            let counted = bitmap.dirty_bytes;
            return Err(format!(
                "'{name}': dirty {dirty:?}, must be {:?}; {bytes} bytes, counted {counted}",
                wanted.dirty
            ));
        }
    }
    Ok(())
}

/// What is stored, by the kit's own parser.
fn compare_stored(bytes: &[u8], model: &Model) -> std::result::Result<(), String> {
    for bitmap in bitmaps(bytes) {
        let wanted = &model.bitmaps[bitmap.name.as_str()];
        let granules = bitmap.granules().into_iter().zip(0u64..);
        let dirty: BTreeSet<u64> = granules.filter(|(dirty, _)| *dirty).map(|(_, g)| g).collect();
        if dirty != wanted.dirty || bitmap.in_use || bitmap.enabled != wanted.enabled {
            return Err(format!("stored '{}': {dirty:?}, must be {:?}", bitmap.name, wanted.dirty));
        }
    }
    Ok(())
}

/// What `qemu-nbd` shows of a bitmap.
fn shown(path: &Path, name: &str) -> String {
    let socket = path.with_extension("socket");
    let _ = std::fs::remove_file(&socket);
    let mut server = Command::new("qemu-nbd")
        .args(["-r", "-f", "qcow2", "-A", "-B", name, "-k"])
        .args([&socket, path])
        .stdin(Stdio::null())
        .spawn()
        .expect("qemu-nbd");
    let started = std::time::Instant::now();
    while !socket.exists() && started.elapsed().as_secs() < 20 {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let output = Command::new("nbdinfo")
        .arg(format!("--map=qemu:dirty-bitmap:{name}"))
        .arg(uri)
        .output()
        .expect("nbdinfo");
    let _ = server.wait();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

fn compare_shown(path: &Path, model: &Model) -> std::result::Result<(), String> {
    for (name, wanted) in &model.bitmaps {
        let text = shown(path, name);
        let mut dirty = BTreeSet::new();
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (Some(Ok(at)), Some(Ok(length))) =
                (words.first().map(|w| w.parse::<u64>()), words.get(1).map(|w| w.parse::<u64>()))
            else {
                return Err(format!("nbdinfo of '{name}': {text}"));
            };
            if words.contains(&"dirty") {
                dirty.extend(at / wanted.granularity..(at + length).div_ceil(wanted.granularity));
            }
        }
        if dirty != wanted.dirty {
            return Err(format!("qemu-nbd shows of '{name}' {dirty:?}, must be {:?}", wanted.dirty));
        }
    }
    Ok(())
}

struct Scene {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

const IMAGES: [(u64, &str); 6] = [
    (512, ""),
    (4096, ""),
    (65536, ""),
    (16384, ",extended_l2=on"),
    (4096, ",data_file=disk.data"),
    (65536, ",data_file=disk.data,data_file_raw=on"),
];

fn scene(rng: &mut Rng) -> (Scene, Model) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.qcow2");
    let (cluster, more) = *rng.pick(&IMAGES);
    let size = (1 + rng.below(6 * MIB / 512)) * 512;
    let lazy = *rng.pick(&["on", "off"]);
    let data = directory.path().join("disk.data").display().to_string();
    let options = format!("cluster_size={cluster},lazy_refcounts={lazy}{}", more.replace("disk.data", &data));
    let shown = path.to_str().unwrap();
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &options, shown, &size.to_string()]).unwrap();
    let data_file = more.contains("data_file");
    (Scene { _directory: directory, path }, Model { size, cluster, data_file, ..Model::default() })
}

/// Does a step by one of the sides. A handle of ours stays open for some steps, so that its marks wait in memory.
fn step_by(
    ours: bool,
    open: &mut Option<Handle>,
    path: &str,
    step: &Step,
) -> std::result::Result<(), String> {
    let shown = |e: qcow2::testing::error::Error| e.to_string();
    match (ours, step) {
        (true, Commit { offset, length }) => {
            open.take().map_or(Ok(()), |open| open.close()).map_err(shown)?;
            commit_by_us(path, *offset, *length).map_err(shown)
        }
        (true, _) => {
            let handle = match open.take() {
                Some(open) => open,
                None => open_file(Path::new(path), RECORDED, &[]).map_err(shown)?,
            };
            let answer = by_us(&handle, path, step).map_err(shown);
            *open = Some(handle);
            answer
        }
        (false, _) => {
            open.take().map_or(Ok(()), |open| open.close()).map_err(shown)?;
            stock(path, step)
        }
    }
}

fn compare(
    open: &Option<Handle>,
    path: &str,
    rng: &mut Rng,
    model: &Model,
) -> std::result::Result<(), String> {
    if let Some(open) = open {
        compare_ours(open, model)?;
        if !rng.one_in(3) {
            return Ok(());
        }
        ours::sync(open).map_err(|e| e.to_string())?;
    }
    compare_stored(&std::fs::read(path).unwrap(), model)
}

fn run_list(rng: &mut Rng) -> std::result::Result<usize, String> {
    let (scene, mut model) = scene(rng);
    let path = scene.path.to_str().unwrap();
    let mut told = vec![format!(
        "a disk of {} bytes, clusters of {}, data file: {}",
        model.size, model.cluster, model.data_file
    )];
    let mut handle: Option<Handle> = None;
    for number in 0..14 {
        let mut step = random_step(rng, &model);
        if number == 0 {
            step = Add { name: "a", granularity: 512 << rng.below(8), enabled: true };
        }
        let we = rng.one_in(2);
        told.push(format!("{} {step:?}", if we { "ours" } else { "stock" }));
        let context = |e: String| format!("{e}\nafter:\n{}", told.join("\n"));
        let doable = model.apply(&step);
        let answer = step_by(we, &mut handle, path, &step);
        if answer.is_ok() != doable {
            return Err(context(format!("{answer:?}, doable: {doable}")));
        }
        compare(&handle, path, rng, &model).map_err(context)?;
    }
    let context = |e: String| format!("{e}\nin the end of:\n{}", told.join("\n"));
    if let Some(open) = handle.take() {
        open.close().map_err(|e| context(e.to_string()))?;
    }
    compare_stored(&std::fs::read(path).unwrap(), &model).map_err(context)?;
    compare_shown(&scene.path, &model).map_err(context)?;
    run("qemu-img", &["check", "-q", "-f", "qcow2", path]).map_err(context)?;
    let memory = testkit::images::memory(std::fs::read(path).unwrap());
    let leaks = check_clean(&*memory).map_err(context)?;
    if leaks > 0 {
        return Err(context(format!("{leaks} leaks")));
    }
    Ok(told.len() - 1)
}

#[test]
fn random_lists_of_both_sides_agree_with_a_model() {
    let missing = |program: &&&str| Command::new(program).arg("--version").output().is_err();
    if let Some(program) = ["qemu-img", "qemu-io", "qemu-nbd", "nbdinfo"].iter().find(missing) {
        eprintln!("skipped: no {program}");
        return;
    }
    let seed = base_seed();
    let mut steps = 0;
    for case in 0..cases(12) {
        let mut rng = Rng::new(seed.wrapping_mul(1000) + case);
        steps += run_list(&mut rng).unwrap_or_else(|e| {
            let test = "random_lists_of_both_sides_agree_with_a_model";
            panic!("case {case}: {e}\n{}", replay_line("bitmap_oracle", test, seed))
        });
    }
    testkit::tell!("{steps} steps agree");
}
