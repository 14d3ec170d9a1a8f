//! Key slots of a LUKS header that is in use: filled and erased, so that a crash at any point leaves the secrets that
//! opened the disk before, or those that open it afterwards.
//!
//! Filling: material, sync, header, sync. Erasing: header, sync, material is overwritten, sync. The header is more than a
//! sector: of a slot that lies in two, the part with its state is written last when it is filled, and first when it is
//! erased. What a secret opens, and whether a change is refused, is found out before the first write.

use super::keys::{check_material, go_on, random};
use super::secrets::{SecretKind, SecretRequest, Secrets};
use crate::crypto::luks::{self, Header, HEADER_BYTES, SLOTS};
use crate::crypto::{wipe_stack, SECTOR_BYTES};
use crate::disk::luks::{work, wrong_secret};
use crate::disk::{Encryption, Secret};
use crate::error::{zeroed, Error, ErrorKind, Result};
use crate::options::SlotChange;
use crate::planted::{planted, Plant};
use crate::storage::file::thread_time;
use std::ops::Range;

/// The sectors that the header lies in.
const SECTORS_BYTES: usize = HEADER_BYTES.next_multiple_of(SECTOR_BYTES);

/// The file that a header is in; offsets are from the header's start.
pub(in crate::ops) trait Store {
    /// Fills `out`.
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()>;
    /// Writes `bytes`.
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()>;
    /// What was written before is durable when it returns.
    fn sync(&self) -> Result<()>;
    /// Bytes from the header's start that are the header's.
    fn length(&self) -> u64;
}

/// What is asked of a caller for a change.
pub(in crate::ops) struct Asking<'a, 'b> {
    /// Has the secrets.
    pub(in crate::ops) secrets: &'a mut Secrets<'b>,
    /// Where the disk was opened.
    pub(in crate::ops) file: String,
    /// The option that names the secret of the disk as it is.
    pub(in crate::ops) key_option: &'static str,
    /// Do what makes the disk unreadable, too.
    pub(in crate::ops) force: bool,
}

/// One slot that changes.
enum Step {
    /// Nothing opens it any more, and what it held is overwritten.
    Erase(usize),
    /// It has this material, and counts as the header says.
    Fill(usize, Vec<u8>),
}

/// A change that can be made.
pub(in crate::ops) struct Prepared(Vec<(Header, Step)>);

impl Asking<'_, '_> {
    fn secret(&mut self, kind: SecretKind, name: Option<&str>) -> Result<Secret> {
        let request = SecretRequest {
            kind,
            encryption: Encryption::Luks,
            depth: 0,
            file: self.file.clone(),
            name: name.map(str::to_owned),
        };
        let secret = Secret::ask(|room| self.secrets.ask(&request, room))?;
        secret.ok_or_else(|| match kind {
            SecretKind::Current => Secret::missing(self.key_option),
            SecretKind::New => Error::new(ErrorKind::NoSecret, "there is no new secret"),
            SecretKind::Old => Error::new(ErrorKind::NoSecret, "there is no old secret"),
        })
    }
}

/// Finds out what `change` does to the slots of `header`, and makes what is to be written.
pub(in crate::ops) fn prepare(
    header: &Header,
    store: &dyn Store,
    change: &SlotChange,
    asking: &mut Asking<'_, '_>,
) -> Result<Prepared> {
    header.spec.check()?;
    let prepared = found_out(header, store, change, asking);
    // Of what failed, too.
    wipe_stack();
    prepared
}

#[inline(never)]
fn found_out(
    header: &Header,
    store: &dyn Store,
    change: &SlotChange,
    asking: &mut Asking<'_, '_>,
) -> Result<Prepared> {
    match change {
        SlotChange::Activate { secret, slot, iter_time_ms } => {
            let index = slot_to_fill(header, *slot, asking.force)?;
            fill(header, store, index, secret, *iter_time_ms, asking)
        }
        SlotChange::Erase { secret, slot } => {
            let slots = slots_to_erase(header, store, secret.as_deref(), *slot, asking)?;
            slots.iter().try_for_each(|index| check_place(header, store, *index))?;
            let mut next = header.clone();
            let steps = slots.into_iter().map(|index| {
                next.clear_slot(index);
                (next.clone(), Step::Erase(index))
            });
            Ok(Prepared(steps.collect()))
        }
    }
}

/// The index of a slot that an option names.
fn checked(slot: u64) -> Result<usize> {
    match usize::try_from(slot) {
        Ok(index) if index < SLOTS => Ok(index),
        // As the stock tools show it.
        _ => Err(Error::invalid(format!(
            "Invalid keyslot {} specified, must be between 0 and {}",
            slot as u32,
            SLOTS - 1
        ))),
    }
}

/// Fails where the material of a slot would be written outside of the header. A slot that nobody uses may stand anywhere.
fn check_place(header: &Header, store: &dyn Store, index: usize) -> Result<()> {
    let (start, room) = (header.material_offset(index), header.data_offset().min(store.length()));
    match start + header.material_bytes() as u64 <= room {
        true => Ok(()),
        false => {
            Err(Error::invalid(format!("Keyslot {index} is outside of the LUKS header")).detail(format!(
                "{} bytes of key material at {start:#x}, there is room up to {room:#x}",
                header.material_bytes()
            )))
        }
    }
}

fn slot_to_fill(header: &Header, slot: Option<u64>, force: bool) -> Result<usize> {
    let Some(slot) = slot else {
        let free = header.slots.iter().position(|slot| !slot.active);
        return free.ok_or_else(|| Error::invalid("Can't add a keyslot - all keyslots are in use"));
    };
    let index = checked(slot)?;
    if header.slots[index].active && !force {
        let text = format!("Refusing to overwrite active keyslot {index} - please erase it first");
        return Err(Error::invalid(text));
    }
    Ok(index)
}

fn fill(
    header: &Header,
    store: &dyn Store,
    index: usize,
    name: &str,
    iter_time_ms: u64,
    asking: &mut Asking<'_, '_>,
) -> Result<Prepared> {
    check_material(&header.spec)?;
    // Where a slot that counts is made anew, another one that the new secret opens stands in meanwhile.
    let stand_in = match header.slots[index].active {
        true => header.slots.iter().position(|slot| !slot.active),
        false => None,
    };
    std::iter::once(index).chain(stand_in).try_for_each(|index| check_place(header, store, index))?;
    let current = asking.secret(SecretKind::Current, None)?;
    let new = asking.secret(SecretKind::New, Some(name))?;
    let mut work = work()?;
    let mut read = |at: u64, out: &mut [u8]| store.read(at, out);
    let opened = luks::unlock(header, &current, &mut work, &mut read, &mut |done, total| {
        go_on(asking.secrets, done, total)
    })?;
    if opened.is_none() {
        return Err(wrong_secret());
    }
    let speed = luks::speed(header.hash, &mut thread_time, &mut |_| go_on(asking.secrets, 0, 1))?;
    let iterations = luks::iterations_for(speed, header.hash, header.spec.key_bytes, iter_time_ms)?;
    let mut next = header.clone();
    let mut steps = Vec::new();
    let mut seal = |next: &mut Header, index| {
        luks::seal(next, index, &mut work, &new, iterations, &mut random, &mut |done, total| {
            go_on(asking.secrets, done, total)
        })
    };
    if let Some(other) = stand_in {
        let material = seal(&mut next, other)?;
        steps.push((next.clone(), Step::Fill(other, material)));
    }
    if next.slots[index].active {
        next.clear_slot(index);
        steps.push((next.clone(), Step::Erase(index)));
    }
    let material = seal(&mut next, index)?;
    steps.push((next.clone(), Step::Fill(index, material)));
    if let Some(other) = stand_in {
        next.clear_slot(other);
        steps.push((next, Step::Erase(other)));
    }
    Ok(Prepared(steps))
}

const IRREVERSIBLE: &str = "erase all the data in the image irreversibly - refusing operation";

fn slots_to_erase(
    header: &Header,
    store: &dyn Store,
    name: Option<&str>,
    slot: Option<u64>,
    asking: &mut Asking<'_, '_>,
) -> Result<Vec<usize>> {
    let old = name.map(|name| asking.secret(SecretKind::Old, Some(name))).transpose()?;
    let mut work = work()?;
    let mut opens = |index: usize, secret: &[u8], asking: &mut Asking<'_, '_>| -> Result<bool> {
        let told = &mut |done, total| go_on(asking.secrets, done, total);
        luks::unlock_slot(header, index, secret, &mut work, &mut |at, out| store.read(at, out), told)
    };
    let active: Vec<usize> = (0..SLOTS).filter(|index| header.slots[*index].active).collect();
    let refused = |text: String| Err(Error::invalid(text));
    match (slot, old) {
        (None, None) => refused(
            "To erase keyslot(s), either explicit keyslot index or the password currently contained in them must be given".into(),
        ),
        (Some(slot), old) => {
            let index = checked(slot)?;
            if let Some(old) = &old {
                if !opens(index, old, asking)? {
                    return refused(format!(
                        "Given keyslot {index} doesn't contain the given old password for erase operation"
                    ));
                }
            }
            if !header.slots[index].active && !asking.force {
                return refused(format!("Given keyslot {index} is already erased (inactive) "));
            }
            if active == [index] && !asking.force {
                return refused(format!(
                    "Attempt to erase the only active keyslot {index} which will {IRREVERSIBLE}"
                ));
            }
            Ok(vec![index])
        }
        (None, Some(old)) => {
            let mut found = Vec::new();
            for index in &active {
                if opens(*index, &old, asking)? {
                    found.push(*index);
                }
            }
            if found.is_empty() {
                return refused("No keyslots match given (old) password for erase operation".into());
            }
            if found == active && !asking.force {
                return refused(format!(
                    "All the active keyslots match the (old) password that was given and erasing them will {IRREVERSIBLE}"
                ));
            }
            Ok(found)
        }
    }
}

impl Prepared {
    /// The slots that it works on, each with where its material is written: bytes from the header's start.
    pub(in crate::ops) fn written(&self) -> impl Iterator<Item = (usize, Range<u64>)> + '_ {
        self.0.iter().map(|(header, step)| {
            let (Step::Fill(index, _) | Step::Erase(index)) = step;
            let start = header.material_offset(*index);
            (*index, start..start + header.material_bytes() as u64)
        })
    }

    /// Makes the change. After a failure the file has the slots before or after one of its steps.
    pub(in crate::ops) fn carry_out(&self, store: &dyn Store) -> Result<()> {
        let mut sectors = [0; SECTORS_BYTES];
        store.read(0, &mut sectors)?;
        for (header, step) in &self.0 {
            let mut put = || match step {
                Step::Fill(index, _) | Step::Erase(index) => put_slot(store, &mut sectors, header, *index),
            };
            let material = || match step {
                Step::Fill(index, material) => put_material(store, header, *index, material),
                Step::Erase(index) => {
                    let mut noise = zeroed("key material", header.material_bytes() as u64)?;
                    random(&mut noise)?;
                    put_material(store, header, *index, &noise)
                }
            };
            if matches!(step, Step::Fill(..)) != planted(Plant::KeySlotOrder) {
                material()?;
                put()?;
            } else {
                put()?;
                material()?;
            }
        }
        Ok(())
    }
}

/// Writes the material of a slot, durably.
fn put_material(store: &dyn Store, header: &Header, index: usize, material: &[u8]) -> Result<()> {
    store.write(header.material_offset(index), material)?;
    store.sync()
}

/// Brings a slot to the file as `header` has it, durably. `sectors` are those of the header as they are there.
fn put_slot(store: &dyn Store, sectors: &mut [u8], header: &Header, index: usize) -> Result<()> {
    let range = Header::slot_range(index);
    let (first, last) = (range.start / SECTOR_BYTES, (range.end - 1) / SECTOR_BYTES);
    header.put_slot(index, sectors);
    // The state is at the start of a slot.
    let order = match header.slots[index].active {
        true => [last, first],
        false => [first, last],
    };
    let writes = if first == last { 1 } else { 2 };
    for sector in &order[..writes] {
        let at = sector * SECTOR_BYTES;
        store.write(at as u64, &sectors[at..at + SECTOR_BYTES])?;
        store.sync()?;
    }
    Ok(())
}
