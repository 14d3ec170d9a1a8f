//! Random lists of work on bitmaps and of writes, each step by the stock tools or by us, against a model of the dirty
//! granules. After each step both must say the same of each bitmap: we by what we read, the stock tools by what `qemu-nbd`
//! shows in the end. Skipped where they are missing.

use qcow2::testing::disk::ZeroFlags;
use qcow2::testing::error::Result;
use qcow2::testing::ops::bitmaps as ours;
use qcow2::testing::ops::handle::Handle;
use qcow2::testing::ops::resize::resize;
use qcow2::testing::options::Preallocation;
use std::collections::{BTreeMap, BTreeSet};
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use testkit::bitmaps::bitmaps;
use testkit::images::{open_file, WRITABLE};
use testkit::rng::{base_seed, cases, replay_line, Rng};
use testkit::sweep::check_clean;

const MIB: u64 = 1 << 20;

#[derive(Clone, Debug)]
enum Step {
    Add { name: &'static str, granularity: u64, enabled: bool },
    Remove { name: &'static str },
    Clear { name: &'static str },
    Enable { name: &'static str, on: bool },
    Merge { into: &'static str, from: &'static str },
    Write { offset: u64, length: u64 },
    Zero { offset: u64, length: u64, unmap: bool },
    Discard { offset: u64, length: u64 },
    Resize { size: u64 },
}

use Step::*;

#[derive(Clone, Default)]
struct Modelled {
    granularity: u64,
    enabled: bool,
    dirty: BTreeSet<u64>,
}

#[derive(Default)]
struct Model {
    size: u64,
    bitmaps: BTreeMap<&'static str, Modelled>,
}

impl Modelled {
    fn mark(&mut self, from: u64, to: u64) {
        self.dirty.extend(from / self.granularity..to.div_ceil(self.granularity));
    }
}

impl Model {
    /// Whether the step can be done; then it is.
    fn apply(&mut self, step: &Step) -> bool {
        let size = self.size;
        match *step {
            Add { name, granularity, enabled } => {
                let new = Modelled { granularity, enabled, dirty: BTreeSet::new() };
                let free = !self.bitmaps.contains_key(name);
                self.bitmaps.entry(name).or_insert(new);
                free
            }
            Remove { name } => self.bitmaps.remove(name).is_some(),
            Clear { name } => self.bitmaps.get_mut(name).map(|b| b.dirty.clear()).is_some(),
            Enable { name, on } => self.bitmaps.get_mut(name).map(|b| b.enabled = on).is_some(),
            Merge { into, from } => {
                let (Some(source), true) = (self.bitmaps.get(from).cloned(), self.bitmaps.contains_key(into))
                else {
                    return false;
                };
                let target = self.bitmaps.get_mut(into).unwrap();
                for granule in source.dirty {
                    let at = granule * source.granularity;
                    target.mark(at, (at + source.granularity).min(size));
                }
                true
            }
            Write { offset, length } | Zero { offset, length, .. } | Discard { offset, length } => {
                let enabled = self.bitmaps.values_mut().filter(|b| b.enabled);
                enabled.for_each(|b| b.mark(offset, offset + length));
                true
            }
            Resize { size } => {
                self.size = size;
                self.bitmaps.values_mut().for_each(|b| {
                    let end = size.div_ceil(b.granularity);
                    b.dirty.retain(|granule| *granule < end);
                });
                true
            }
        }
    }
}

fn random_step(rng: &mut Rng, size: u64) -> Step {
    let mut name = || *rng.pick(&["a", "b", "backup of the week", "d"]);
    let (name, other) = (name(), name());
    let offset = rng.below(size / 512) * 512;
    let most = if rng.one_in(4) { size / 512 } else { 300 };
    let length = ((1 + rng.below(most)) * 512).min(size - offset);
    match rng.below(16) {
        0..=2 => Add { name, granularity: 512 << rng.below(12), enabled: !rng.one_in(4) },
        3 => Remove { name },
        4 => Clear { name },
        5 => Enable { name, on: rng.one_in(2) },
        6..=7 => Merge { into: name, from: other },
        8..=11 => Write { offset, length },
        12 => Zero { offset, length, unmap: rng.one_in(2) },
        13..=14 => Discard { offset, length },
        _ => Resize { size: (1 + rng.below(8 * MIB / 512)) * 512 },
    }
}

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
        Write { offset, length } => io(format!("write -P 7 {offset} {length}")),
        Zero { offset, length, unmap } => {
            io(format!("write -z {} {offset} {length}", if unmap { "-u" } else { "" }))
        }
        Discard { offset, length } => io(format!("discard {offset} {length}")),
        Resize { size } => {
            run("qemu-img", &["resize", "-q", "--shrink", "-f", "qcow2", path, &size.to_string()])
        }
    }
}

fn by_us(handle: &Handle, step: &Step) -> Result<()> {
    match *step {
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

fn scene(rng: &mut Rng, size: u64) -> Scene {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.qcow2");
    let cluster = *rng.pick(&["512", "4096", "65536"]);
    let lazy = *rng.pick(&["on", "off"]);
    let options = format!("cluster_size={cluster},lazy_refcounts={lazy}");
    let shown = path.to_str().unwrap();
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &options, shown, &size.to_string()]).unwrap();
    Scene { _directory: directory, path }
}

fn run_list(rng: &mut Rng) -> std::result::Result<usize, String> {
    let mut model = Model { size: (1 + rng.below(6 * MIB / 512)) * 512, ..Model::default() };
    let scene = scene(rng, model.size);
    let path = scene.path.to_str().unwrap();
    let (mut told, mut steps) = (Vec::new(), 0);
    let mut handle: Option<Handle> = None;
    for number in 0..14 {
        let mut step = random_step(rng, model.size);
        if number == 0 {
            step = Add { name: "a", granularity: 512 << rng.below(8), enabled: true };
        }
        // A handle of ours stays open for some steps, so that its marks wait in memory.
        let we = rng.one_in(2);
        told.push(format!("{} {step:?}", if we { "ours" } else { "stock" }));
        let context = |e: String| format!("{e}\nafter:\n{}", told.join("\n"));
        let doable = model.apply(&step);
        let answer = if we {
            let open = match handle.take() {
                Some(open) => open,
                None => open_file(&scene.path, WRITABLE, &[]).map_err(|e| context(e.to_string()))?,
            };
            let answer = by_us(&open, &step).map_err(|e| e.to_string());
            handle = Some(open);
            answer
        } else {
            if let Some(open) = handle.take() {
                open.close().map_err(|e| context(e.to_string()))?;
            }
            stock(path, &step)
        };
        if answer.is_ok() != doable {
            return Err(context(format!("{answer:?}, doable: {doable}")));
        }
        if let Some(open) = &handle {
            compare_ours(open, &model).map_err(context)?;
            if rng.one_in(3) {
                ours::sync(open).map_err(|e| context(e.to_string()))?;
                compare_stored(&std::fs::read(path).unwrap(), &model).map_err(context)?;
            }
        } else {
            compare_stored(&std::fs::read(path).unwrap(), &model).map_err(context)?;
        }
        steps += 1;
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
    Ok(steps)
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
