//! Key slots: a passphrase opens one, and another is made.

use super::header::{material_sectors, Header, Slot, DIGEST_BYTES, FIRST_SECTOR, SALT_BYTES, SLOTS, STRIPES};
use super::split::{merge, split};
use crate::crypto::hash::iterations_of;
use crate::crypto::{pbkdf2, wipe_stack, Hash, Sectors, Spec, SECTOR_BYTES};
use crate::error::{room, Result};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

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

/// The slot that `passphrase` opens and the master key in it; `None`: it opens none. `read` fills a buffer from an offset
/// from the header's start. Iteration counts are the header's and may be huge: `progress` may stop it.
pub fn unlock(
    header: &Header,
    passphrase: &[u8],
    read: &mut dyn FnMut(u64, &mut [u8]) -> Result<()>,
    progress: Progress<'_>,
) -> Result<Option<(usize, Zeroizing<Vec<u8>>)>> {
    let opened = open_slots(header, passphrase, read, progress);
    wipe_stack();
    opened
}

fn open_slots(
    header: &Header,
    passphrase: &[u8],
    read: &mut dyn FnMut(u64, &mut [u8]) -> Result<()>,
    progress: Progress<'_>,
) -> Result<Option<(usize, Zeroizing<Vec<u8>>)>> {
    header.spec.check()?;
    let key_bytes = header.spec.key_bytes;
    let of_digest = iterations_of(header.hash, header.digest_iterations, DIGEST_BYTES);
    let cost = |slot: &Slot| iterations_of(header.hash, slot.iterations, key_bytes) + of_digest;
    let total = header.slots.iter().filter(|slot| slot.active).map(cost).sum();
    let mut key = Zeroizing::new(vec![0u8; key_bytes]);
    let mut material = Zeroizing::new(room("key material", header.material_bytes() as u64)?);
    material.resize(header.material_bytes(), 0);
    let mut before = 0;
    for (index, slot) in header.slots.iter().enumerate().filter(|(_, slot)| slot.active) {
        derive(header, passphrase, slot, &mut key, (before, total), progress)?;
        read(header.material_offset(index), &mut material)?;
        Sectors::<u64>::new(&header.spec, &key)?.decrypt(0, &mut material);
        merge(header.hash, &material[..key_bytes * STRIPES as usize], &mut key);
        let derived = before + cost(slot) - of_digest;
        if check_key(header, &key, &mut |done| progress(derived + done, total))? {
            return Ok(Some((index, key)));
        }
        before += cost(slot);
    }
    Ok(None)
}

/// The master key, where `passphrase` opens slot `index`.
pub fn unlock_slot(
    header: &Header,
    index: usize,
    passphrase: &[u8],
    read: &mut dyn FnMut(u64, &mut [u8]) -> Result<()>,
    progress: Progress<'_>,
) -> Result<Option<Zeroizing<Vec<u8>>>> {
    let mut alone = header.clone();
    alone.slots.iter_mut().enumerate().for_each(|(other, slot)| slot.active &= other == index);
    Ok(unlock(&alone, passphrase, read, progress)?.map(|(_, key)| key))
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
    pbkdf2(hash, key, &header.digest_salt, digest_iterations, &mut header.digest, go_on)?;
    wipe_stack();
    Ok(header)
}

/// Makes slot `index` open by `passphrase`: changes it in `header` and returns its material, which is to be durable before
/// the header is written.
pub fn seal(
    header: &mut Header,
    index: usize,
    key: &[u8],
    passphrase: &[u8],
    iterations: u32,
    random: &mut dyn FnMut(&mut [u8]) -> Result<()>,
    progress: Progress<'_>,
) -> Result<Vec<u8>> {
    let mut slot = Slot { active: true, iterations, ..header.slots[index] };
    random(&mut slot.salt)?;
    let mut slot_key = Zeroizing::new(vec![0u8; header.spec.key_bytes]);
    let total = iterations_of(header.hash, iterations, slot_key.len());
    derive(header, passphrase, &slot, &mut slot_key, (0, total), progress)?;
    // It leaves this function encrypted.
    let mut material = Zeroizing::new(vec![0u8; header.material_bytes()]);
    split(header.hash, key, &mut material[..key.len() * STRIPES as usize], random)?;
    Sectors::<u64>::new(&header.spec, &slot_key)?.encrypt(0, &mut material);
    header.slots[index] = slot;
    wipe_stack();
    Ok(std::mem::take(&mut *material))
}
