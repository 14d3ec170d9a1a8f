//! Encrypted images that no other tool has made: a plain image is told that it is one. What LUKS adds is put behind it, and
//! counted by a repair.
//!
//! The header is as cheap as a valid one can be: one iteration, one slot that has room, and seven that nobody uses so far
//! out that their ends wrap to the start, which is as good as nowhere.

use crate::images::{checked, put, REPAIR};
use crate::oracle::{be32, be64, Head};
use crate::rng::Rng;
use crate::rules::Trace;
use crate::SECTOR;
use qcow2::testing::crypto::luks::{new_header, parse_mode, seal, work_with, HEADER_BYTES};
use qcow2::testing::crypto::{Algorithm, Hash, Spec};
use qcow2::testing::error::Result;
use qcow2::testing::ops::open::SecretRequest;
use qcow2::testing::storage::memory::Memory;

/// The header extension that names the LUKS header, with its length.
const POINTER: u64 = 0x0537_be77_0000_0010;
/// Sectors of a LUKS header without its key slots.
const FIRST_SECTOR: u32 = 8;

/// How guest data is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encrypted {
    /// Legacy AES, sectors numbered at the guest.
    Aes,
    /// LUKS with this row of `CIPHERS`, sectors numbered at the host.
    Luks(usize),
}

/// Cipher, bytes of its key, mode with IV generator, and hash.
pub const CIPHERS: [(Algorithm, usize, &str, Hash); 13] = [
    (Algorithm::Aes, 32, "xts-plain64", Hash::Sha256),
    (Algorithm::Aes, 16, "cbc-plain64", Hash::Sha1),
    (Algorithm::Aes, 16, "cbc-essiv:md5", Hash::Md5),
    (Algorithm::Aes, 16, "ctr-plain", Hash::Ripemd160),
    (Algorithm::Aes, 64, "xts-plain64", Hash::Sha512),
    (Algorithm::Aes, 32, "cbc-essiv:sha256", Hash::Sm3),
    (Algorithm::Aes, 16, "ecb-plain64", Hash::Sha224),
    (Algorithm::Aes, 48, "xts-essiv:sha256", Hash::Sha384),
    (Algorithm::Serpent, 32, "xts-plain64", Hash::Sha256),
    (Algorithm::Serpent, 16, "ctr-plain64", Hash::Sha1),
    (Algorithm::Twofish, 32, "xts-plain", Hash::Sha1),
    (Algorithm::Twofish, 16, "cbc-plain64", Hash::Sha256),
    (Algorithm::Cast5, 16, "cbc-plain64", Hash::Sha1),
];

impl Encrypted {
    /// A random way, of those that this build has.
    pub fn random(rng: &mut Rng) -> Encrypted {
        match rng.one_in(3) {
            true => Encrypted::any_luks(rng),
            false => Encrypted::Aes,
        }
    }

    /// A random way of LUKS.
    pub fn any_luks(rng: &mut Rng) -> Encrypted {
        loop {
            let row = rng.below(CIPHERS.len() as u64) as usize;
            if CIPHERS[row].0.is_served() {
                return Encrypted::Luks(row);
            }
        }
    }
}

/// The secret of the disk at this depth of a chain. Each has its own, and the older AES looks at 16 bytes.
pub fn secret_at(depth: usize) -> String {
    format!("{depth} is how deep it is")
}

/// Answers for a chain whose top is at `depth`.
pub fn secrets_from(depth: usize) -> impl FnMut(&SecretRequest, &mut [u8]) -> Result<Option<usize>> {
    move |request, room| {
        let secret = secret_at(depth + request.depth);
        room[..secret.len()].copy_from_slice(secret.as_bytes());
        Ok(Some(secret.len()))
    }
}

/// Has `image`, which holds no data, encrypt what it will hold; its disk is at `depth` of a chain.
pub fn encrypt(image: &mut Vec<u8>, how: Encrypted, depth: usize) {
    let Encrypted::Luks(row) = how else { return put(image, 32, &1u32.to_be_bytes()) };
    put(image, 32, &2u32.to_be_bytes());
    let cluster = Head::fields(&*image).cluster_bytes() as usize;
    let (header, material, slot_at) = header_of(row, depth);
    let at = image.len().next_multiple_of(cluster);
    image.resize(at + (slot_at + material.len()).next_multiple_of(cluster), 0);
    put(image, at, &header);
    put(image, at + slot_at, &material);
    name_header(image, at as u64, (slot_at + material.len()) as u64, cluster);
    let storage = Memory::new(std::mem::take(image));
    let (report, texts) = checked(&storage, REPAIR);
    assert_eq!((report.corruptions, report.check_errors), (0, 0), "{texts:?}");
    *image = storage.contents();
}

/// A LUKS header, the material of its slot, and where that starts.
fn header_of(row: usize, depth: usize) -> ([u8; HEADER_BYTES], Vec<u8>, usize) {
    let (algorithm, key_bytes, mode, hash) = CIPHERS[row];
    let (mode, iv) = parse_mode(mode).expect("a mode");
    let spec = Spec { algorithm, key_bytes, mode, iv };
    let mut rng = Rng::new(((row as u64) << 8) + depth as u64);
    let mut random = |out: &mut [u8]| {
        out.iter_mut().for_each(|byte| *byte = rng.next() as u8);
        Ok(())
    };
    let mut key = vec![0; key_bytes];
    random(&mut key).expect("a key");
    let header = new_header(spec, hash, &key, 1, "kit".into(), &mut random, &mut |_| Ok(()));
    let mut header = header.expect("a header");
    let used = depth % header.slots.len();
    let sectors = (header.material_bytes() as u32).div_ceil(512).next_multiple_of(FIRST_SECTOR);
    for (index, slot) in header.slots.iter_mut().enumerate() {
        slot.material_sector = if index == used { FIRST_SECTOR } else { u32::MAX - sectors / 2 };
    }
    header.data_sector = FIRST_SECTOR + sectors;
    let secret = secret_at(depth);
    let material =
        seal(&mut header, used, &mut work_with(&key), secret.as_bytes(), 1, &mut random, &mut |_, _| Ok(()));
    let mut material = material.expect("a key slot");
    material.resize(sectors as usize * 512, 0);
    (header.encode(), material, FIRST_SECTOR as usize * 512)
}

/// Adds the extension behind the others; the backing file's name moves on.
fn name_header(image: &mut [u8], at: u64, length: u64, cluster: usize) {
    let (name_at, name_bytes) = (be64(image, 8) as usize, be32(image, 16) as usize);
    let name = image[name_at..name_at + name_bytes].to_vec();
    let mut end = if be32(image, 4) >= 3 { be32(image, 100) as usize } else { 72 };
    while be32(image, end) != 0 {
        end += 8 + (be32(image, end + 4) as usize).next_multiple_of(8);
    }
    put(image, end, &[POINTER, at, length, 0].map(u64::to_be_bytes).concat());
    if !name.is_empty() {
        put(image, end + 32, &name);
        put(image, 8, &(end as u64 + 32).to_be_bytes());
    }
    assert!(end + 32 + name.len() <= cluster, "the header has no room for its extensions");
}

impl Trace<'_> {
    /// R2 of an encrypted image: each sector that the entry shows has been written. What is encrypted is not all zeroes.
    pub(crate) fn was_encrypted(&self, start: u64, end: u64) -> std::result::Result<(), String> {
        let bare = |at: &u64| {
            let sector = self.durable.get(*at as usize..(*at + SECTOR) as usize).unwrap_or_default();
            sector.iter().all(|b| *b == 0)
        };
        match (start..end).step_by(SECTOR as usize).find(bare) {
            Some(at) => Err(format!("R2: the sector at {at:#x} was never encrypted")),
            None => Ok(()),
        }
    }
}
