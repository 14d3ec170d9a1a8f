//! Key slots: a passphrase opens one, and another is made.

use super::header::{material_sectors, Header, Slot, DIGEST_BYTES, FIRST_SECTOR, SALT_BYTES, SLOTS, STRIPES};
use super::split::{merge, split};
use crate::crypto::hash::iterations_of;
use crate::crypto::{pbkdf2, wipe_stack, Hash, Sectors, Spec, SECTOR_BYTES};
use crate::error::{room, Result};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Longest key, bytes.
const MAX_KEY_BYTES: usize = 64;
/// Keys and stripes that a slot is opened or made with.
pub const WORK_BYTES: usize = 2 * MAX_KEY_BYTES + MAX_KEY_BYTES * STRIPES as usize;
/// Where that is done: the caller's memory, for it has keys while progress is told. The master key is at its start.
pub type Work = [u8; WORK_BYTES];

/// The key at the start of `work`, that of a slot, and stripes.
fn parts_of<'a>(header: &Header, work: &'a mut Work) -> (&'a mut [u8], &'a mut [u8], &'a mut [u8]) {
    let (key, rest) = work.split_at_mut(MAX_KEY_BYTES);
    let (slot_key, stripes) = rest.split_at_mut(MAX_KEY_BYTES);
    let key_bytes = header.spec.key_bytes;
    (&mut key[..key_bytes], &mut slot_key[..key_bytes], &mut stripes[..header.material_bytes()])
}

/// Told how much is done, of how much; stops the work by an error.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64) -> Result<()>;

/// Derives, with progress that counts from `before` to `total`.
fn derive(
    header: &Header,
    passphrase: &[u8],
    slot: &Slot,
    key: &mut [u8],
    (before, total): (u64, u64),
    progress: Progress<'_>,
) -> Result<()> {
    pbkdf2(header.hash, passphrase, &slot.salt, slot.iterations, key, &mut |done| {
        progress(before + done, total)
    })
}

/// Whether `key` is the master key.
pub fn check_key(header: &Header, key: &[u8], go_on: &mut dyn FnMut(u64) -> Result<()>) -> Result<bool> {
    let mut digest = Zeroizing::new([0u8; DIGEST_BYTES]);
    pbkdf2(header.hash, key, &header.digest_salt, header.digest_iterations, &mut *digest, go_on)?;
    Ok(bool::from(digest[..].ct_eq(&header.digest[..])))
}

/// The slot that `passphrase` opens, with the master key at the start of `work`; `None`: it opens none. `read` fills a
/// buffer from an offset from the header's start. Iteration counts are the header's and may be huge: `progress` may stop it.
pub fn unlock(
    header: &Header,
    passphrase: &[u8],
    work: &mut Work,
    read: &mut dyn FnMut(u64, &mut [u8]) -> Result<()>,
    progress: Progress<'_>,
) -> Result<Option<usize>> {
    let opened = open_slots(header, passphrase, work, read, progress);
    wipe_stack();
    opened
}

fn open_slots(
    header: &Header,
    passphrase: &[u8],
    work: &mut Work,
    read: &mut dyn FnMut(u64, &mut [u8]) -> Result<()>,
    progress: Progress<'_>,
) -> Result<Option<usize>> {
    header.spec.check()?;
    let key_bytes = header.spec.key_bytes;
    let of_digest = iterations_of(header.hash, header.digest_iterations, DIGEST_BYTES);
    let cost = |slot: &Slot| iterations_of(header.hash, slot.iterations, key_bytes) + of_digest;
    let total = header.slots.iter().filter(|slot| slot.active).map(cost).sum();
    let (key, _, material) = parts_of(header, work);
    let mut before = 0;
    for (index, slot) in header.slots.iter().enumerate().filter(|(_, slot)| slot.active) {
        derive(header, passphrase, slot, key, (before, total), progress)?;
        read(header.material_offset(index), material)?;
        Sectors::<u64>::new(&header.spec, key)?.decrypt(0, material);
        merge(header.hash, &material[..key_bytes * STRIPES as usize], key);
        let derived = before + cost(slot) - of_digest;
        if check_key(header, key, &mut |done| progress(derived + done, total))? {
            return Ok(Some(index));
        }
        before += cost(slot);
    }
    Ok(None)
}

/// Whether `passphrase` opens slot `index`.
pub fn unlock_slot(
    header: &Header,
    index: usize,
    passphrase: &[u8],
    work: &mut Work,
    read: &mut dyn FnMut(u64, &mut [u8]) -> Result<()>,
    progress: Progress<'_>,
) -> Result<bool> {
    let mut alone = header.clone();
    alone.slots.iter_mut().enumerate().for_each(|(other, slot)| slot.active &= other == index);
    Ok(unlock(&alone, passphrase, work, read, progress)?.is_some())
}

/// Where a slot of a new header has its material, sectors.
fn slot_at(index: usize, key_bytes: usize) -> u32 {
    FIRST_SECTOR + index as u32 * material_sectors(key_bytes)
}

/// Bytes of a new header with its material.
pub fn new_header_bytes(key_bytes: usize) -> u64 {
    u64::from(slot_at(SLOTS, key_bytes)) * SECTOR_BYTES as u64
}

/// A header without an active slot, for a master key, where slots stand as the reference implementation puts them.
pub fn new_header(
    spec: Spec,
    hash: Hash,
    key: &[u8],
    digest_iterations: u32,
    uuid: String,
    random: &mut dyn FnMut(&mut [u8]) -> Result<()>,
    go_on: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<Header> {
    spec.check()?;
    let empty = |index| Slot {
        active: false,
        iterations: 0,
        salt: [0; SALT_BYTES],
        material_sector: slot_at(index, spec.key_bytes),
    };
    let mut header = Header {
        spec,
        iv_hash: None,
        hash,
        data_sector: slot_at(SLOTS, spec.key_bytes),
        digest: [0; DIGEST_BYTES],
        digest_salt: [0; SALT_BYTES],
        digest_iterations,
        uuid,
        slots: std::array::from_fn(empty),
    };
    random(&mut header.digest_salt)?;
    let derived = pbkdf2(hash, key, &header.digest_salt, digest_iterations, &mut header.digest, go_on);
    wipe_stack();
    derived.map(|()| header)
}

/// Makes slot `index` open by `passphrase`: changes it in `header` and returns its material, which is to be durable before
/// the header is written. The master key is at the start of `work`.
pub fn seal(
    header: &mut Header,
    index: usize,
    work: &mut Work,
    passphrase: &[u8],
    iterations: u32,
    random: &mut dyn FnMut(&mut [u8]) -> Result<()>,
    progress: Progress<'_>,
) -> Result<Vec<u8>> {
    let mut slot = Slot { active: true, iterations, ..header.slots[index] };
    random(&mut slot.salt)?;
    let sealed = seal_slot(header, &slot, work, passphrase, random, progress);
    wipe_stack();
    let material = sealed?;
    header.slots[index] = slot;
    Ok(material)
}

#[inline(never)]
fn seal_slot(
    header: &Header,
    slot: &Slot,
    work: &mut Work,
    passphrase: &[u8],
    random: &mut dyn FnMut(&mut [u8]) -> Result<()>,
    progress: Progress<'_>,
) -> Result<Vec<u8>> {
    let (key, slot_key, material) = parts_of(header, work);
    let mut sealed = room("key material", material.len() as u64)?;
    let total = iterations_of(header.hash, slot.iterations, slot_key.len());
    derive(header, passphrase, slot, slot_key, (0, total), progress)?;
    material.fill(0);
    split(header.hash, key, &mut material[..key.len() * STRIPES as usize], random)?;
    Sectors::<u64>::new(&header.spec, slot_key)?.encrypt(0, material);
    // It leaves this function encrypted.
    sealed.extend_from_slice(material);
    Ok(sealed)
}
