//! The 592 bytes of a LUKS1 header.
//!
//! ```text
//!   0  magic "LUKS\xba\xbe"           112  digest of the master key, 20
//!   6  version, 16 bits               132  its salt, 32
//!   8  cipher, 32 bytes               164  its iterations
//!  40  mode and IV generator, 32      168  UUID, 40 bytes
//!  72  hash, 32                       208  8 key slots of 48 bytes each:
//! 104  start of data, sectors                0 state   4 iterations   8 salt, 32
//! 108  length of the key, bytes             40 start of material, sectors   44 stripes
//! ```
//!
//! Numbers are big-endian. Names end at their first zero byte, which must be there.

use crate::crypto::{Algorithm, Hash, IvGenerator, Mode, Spec, SECTOR_BYTES};
use crate::error::{Error, Result};
use crate::format::{be16, be32};

/// Length of the header.
pub const HEADER_BYTES: usize = 592;
/// Number of key slots.
pub const SLOTS: usize = 8;
/// Stripes of every slot: the one number in use.
pub const STRIPES: u32 = 4000;
/// Bytes of a salt.
pub const SALT_BYTES: usize = 32;
/// Bytes of the digest of the master key.
pub const DIGEST_BYTES: usize = 20;

const MAGIC: &[u8; 6] = b"LUKS\xba\xbe";
const VERSION: u16 = 1;
const NAME_BYTES: usize = 32;
const UUID_BYTES: usize = 40;
const SLOTS_AT: usize = 208;
const SLOT_BYTES: usize = 48;
/// Room that the header has for itself, sectors: 4 KiB.
pub(super) const FIRST_SECTOR: u32 = 8;
const ACTIVE: u32 = 0x00ac_71f3;
const INACTIVE: u32 = 0x0000_dead;

/// A key slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Whether a passphrase opens it.
    pub active: bool,
    /// Iterations of PBKDF2.
    pub iterations: u32,
    /// Its salt.
    pub salt: [u8; SALT_BYTES],
    /// Where its material starts, sectors from the header's start.
    pub material_sector: u32,
}

/// All fields of a header that has been accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Cipher, mode, IV generator, length of the key.
    pub spec: Spec,
    /// Hash of the IV generator as recorded, with those, too, that do without.
    pub iv_hash: Option<Hash>,
    /// Hash of key derivation and split.
    pub hash: Hash,
    /// Where data starts in a plain LUKS file, sectors.
    pub data_sector: u32,
    /// Digest of the master key.
    pub digest: [u8; DIGEST_BYTES],
    /// Salt of the digest.
    pub digest_salt: [u8; SALT_BYTES],
    /// Iterations of the digest.
    pub digest_iterations: u32,
    /// As text.
    pub uuid: String,
    /// The key slots.
    pub slots: [Slot; SLOTS],
}

fn bad(text: impl Into<String>) -> Error {
    Error::invalid(text)
}

/// A name up to its zero byte.
fn name<'a>(bytes: &'a [u8], at: usize, length: usize, what: &str) -> Result<&'a str> {
    let field = &bytes[at..at + length];
    let end = field.iter().position(|b| *b == 0);
    let text = end.map(|end| std::str::from_utf8(&field[..end]));
    match text {
        Some(Ok(text)) => Ok(text),
        Some(Err(_)) => Err(bad(format!("LUKS header {what} is no text"))),
        None => Err(bad(format!("LUKS header {what} is not NUL terminated"))),
    }
}

fn put_name(out: &mut [u8], at: usize, name: &str) {
    out[at..at + name.len()].copy_from_slice(name.as_bytes());
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

/// Mode and IV generator of a name such as "cbc-essiv:sha256".
pub fn parse_mode(text: &str) -> Result<(Mode, IvGenerator)> {
    mode_and_hash(text).map(|(mode, iv, _)| (mode, iv))
}

fn mode_and_hash(text: &str) -> Result<(Mode, IvGenerator, Option<Hash>)> {
    let Some((mode, generator)) = text.split_once('-') else {
        return Err(bad(format!("Unexpected cipher mode string format '{text}'")));
    };
    let (generator, hash) = match generator.split_once(':') {
        Some((generator, hash)) => (generator, Some(hash)),
        None => (generator, None),
    };
    let hash = match hash {
        Some(name) => {
            Some(Hash::from_name(name).ok_or_else(|| bad(format!("Hash algorithm '{name}' not supported")))?)
        }
        None => None,
    };
    let mode = Mode::from_name(mode).ok_or_else(|| bad(format!("Cipher mode '{mode}' not supported")))?;
    let iv = match (generator, hash) {
        ("plain", _) => IvGenerator::Plain,
        ("plain64", _) => IvGenerator::Plain64,
        ("essiv", Some(hash)) => IvGenerator::Essiv(hash),
        ("essiv", None) => return Err(bad("Missing IV generator hash specification")),
        _ => return Err(bad(format!("IV generator '{generator}' not supported"))),
    };
    Ok((mode, iv, hash))
}

impl Header {
    /// Whether a file begins so.
    pub fn begins_with(start: &[u8]) -> bool {
        start.len() >= 8 && start.starts_with(MAGIC) && be16(start, 6) == VERSION
    }

    /// Parses a header, and checks all of it that can be checked without the key.
    pub fn parse(bytes: &[u8]) -> Result<Header> {
        if bytes.len() < HEADER_BYTES {
            return Err(bad(format!("LUKS header of {} bytes, {HEADER_BYTES} are needed", bytes.len())));
        }
        if !bytes.starts_with(MAGIC) {
            return Err(bad("Volume is not in LUKS format"));
        }
        if be16(bytes, 6) != VERSION {
            return Err(bad(format!("LUKS version {} is not supported", be16(bytes, 6))));
        }
        let cipher = name(bytes, 8, NAME_BYTES, "cipher name")?;
        let mode = name(bytes, 40, NAME_BYTES, "cipher mode")?;
        let hash = name(bytes, 72, NAME_BYTES, "hash spec")?;
        let key_bytes = be32(bytes, 108) as usize;
        let (mode, iv, iv_hash) = mode_and_hash(mode)?;
        let algorithm = Algorithm::from_name(cipher).ok_or_else(|| {
            let bytes = if mode == Mode::Xts { key_bytes / 2 } else { key_bytes };
            Error::unsupported(format!("Algorithm '{cipher}' with key size {bytes} bytes not supported"))
        })?;
        let spec = Spec { algorithm, key_bytes, mode, iv };
        let hash =
            Hash::from_name(hash).ok_or_else(|| bad(format!("Hash algorithm '{hash}' not supported")))?;
        let mut slots =
            [Slot { active: false, iterations: 0, salt: [0; SALT_BYTES], material_sector: 0 }; SLOTS];
        for (index, slot) in slots.iter_mut().enumerate() {
            *slot = parse_slot(bytes, index)?;
        }
        let header = Header {
            spec,
            iv_hash,
            hash,
            data_sector: be32(bytes, 104),
            digest: array(bytes, 112),
            digest_salt: array(bytes, 132),
            digest_iterations: be32(bytes, 164),
            uuid: String::from_utf8_lossy(
                bytes[168..168 + UUID_BYTES].split(|b| *b == 0).next().unwrap_or_default(),
            )
            .into_owned(),
            slots,
        };
        // What this build lacks is no fault of the header, and can be shown.
        spec.check_sizes()?;
        header.check_slots()?;
        Ok(header)
    }

    /// The header as it is stored.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..6].copy_from_slice(MAGIC);
        out[6..8].copy_from_slice(&VERSION.to_be_bytes());
        put_name(&mut out, 8, self.spec.algorithm.name());
        put_name(&mut out, 40, &self.mode_name());
        put_name(&mut out, 72, self.hash.name());
        let mut put32 = |at: usize, value: u32| out[at..at + 4].copy_from_slice(&value.to_be_bytes());
        put32(104, self.data_sector);
        put32(108, self.spec.key_bytes as u32);
        put32(164, self.digest_iterations);
        for (index, slot) in self.slots.iter().enumerate() {
            let at = SLOTS_AT + index * SLOT_BYTES;
            put32(at, if slot.active { ACTIVE } else { INACTIVE });
            put32(at + 4, slot.iterations);
            put32(at + 40, slot.material_sector);
            put32(at + 44, STRIPES);
        }
        out[112..112 + DIGEST_BYTES].copy_from_slice(&self.digest);
        out[132..132 + SALT_BYTES].copy_from_slice(&self.digest_salt);
        let uuid = &self.uuid.as_bytes()[..self.uuid.len().min(UUID_BYTES - 1)];
        out[168..168 + uuid.len()].copy_from_slice(uuid);
        for (index, slot) in self.slots.iter().enumerate() {
            let at = SLOTS_AT + index * SLOT_BYTES + 8;
            out[at..at + SALT_BYTES].copy_from_slice(&slot.salt);
        }
        out
    }

    /// Puts slot `index` as it is here into the header `out`, which keeps everything else.
    pub fn put_slot(&self, index: usize, out: &mut [u8]) {
        let range = Header::slot_range(index);
        out[range.clone()].copy_from_slice(&self.encode()[range]);
    }

    /// Where a slot is in the header.
    pub fn slot_range(index: usize) -> std::ops::Range<usize> {
        let at = SLOTS_AT + index * SLOT_BYTES;
        at..at + SLOT_BYTES
    }

    /// Makes slot `index` one that nothing opens.
    pub fn clear_slot(&mut self, index: usize) {
        let material_sector = self.slots[index].material_sector;
        self.slots[index] = Slot { active: false, iterations: 0, salt: [0; SALT_BYTES], material_sector };
    }

    /// Mode and IV generator as the header names them.
    pub fn mode_name(&self) -> String {
        let (mode, iv) = (self.spec.mode.name(), self.spec.iv.name());
        match (self.spec.iv, self.iv_hash) {
            (IvGenerator::Essiv(hash), _) | (_, Some(hash)) => format!("{mode}-{iv}:{}", hash.name()),
            _ => format!("{mode}-{iv}"),
        }
    }

    /// Bytes of the material of one slot, whole sectors.
    pub fn material_bytes(&self) -> usize {
        (self.spec.key_bytes * STRIPES as usize).next_multiple_of(SECTOR_BYTES)
    }

    /// Where the material of a slot starts, bytes from the header's start.
    pub fn material_offset(&self, slot: usize) -> u64 {
        u64::from(self.slots[slot].material_sector) * SECTOR_BYTES as u64
    }

    /// Where data starts in a plain LUKS file, bytes: the length of header and material.
    pub fn data_offset(&self) -> u64 {
        u64::from(self.data_sector) * SECTOR_BYTES as u64
    }

    /// Material lies between the header and the data, and none in that of another slot. Ends are of 32 bits, as they are
    /// for the reference implementation: a slot that nobody uses may stand anywhere past the data.
    fn check_slots(&self) -> Result<()> {
        if self.digest_iterations == 0 {
            return Err(bad("LUKS key iteration count is zero"));
        }
        if self.data_sector < FIRST_SECTOR {
            return Err(bad("LUKS payload is overlapping with the header"));
        }
        let length = material_sectors(self.spec.key_bytes);
        let range = |slot: &Slot| (slot.material_sector, slot.material_sector.wrapping_add(length));
        for (index, slot) in self.slots.iter().enumerate() {
            let (start, end) = range(slot);
            if start < FIRST_SECTOR {
                return Err(bad(format!("Keyslot {index} is overlapping with the LUKS header")));
            }
            if slot.active && slot.iterations == 0 {
                return Err(bad(format!("Keyslot {index} iteration count is zero")));
            }
            if end > self.data_sector {
                return Err(bad(format!("Keyslot {index} is overlapping with the encrypted payload")));
            }
            for (other, with) in self.slots.iter().enumerate().skip(index + 1) {
                let (other_start, other_end) = range(with);
                if start < other_end && other_start < end {
                    return Err(bad(format!("Keyslots {index} and {other} are overlapping in the header")));
                }
            }
        }
        Ok(())
    }
}

/// Sectors that the material of a slot has for itself: whole pages of 4 KiB.
pub(super) fn material_sectors(key_bytes: usize) -> u32 {
    (key_bytes * STRIPES as usize).div_ceil(SECTOR_BYTES).next_multiple_of(FIRST_SECTOR as usize) as u32
}

fn parse_slot(bytes: &[u8], index: usize) -> Result<Slot> {
    let at = SLOTS_AT + index * SLOT_BYTES;
    let (state, stripes) = (be32(bytes, at), be32(bytes, at + 44));
    if stripes != STRIPES {
        return Err(bad(format!("Keyslot {index} is corrupted (stripes {stripes} != {STRIPES})")));
    }
    if state != ACTIVE && state != INACTIVE {
        return Err(bad(format!("Keyslot {index} state (active/disable) is corrupted")));
    }
    Ok(Slot {
        active: state == ACTIVE,
        iterations: be32(bytes, at + 4),
        salt: array(bytes, at + 8),
        material_sector: be32(bytes, at + 40),
    })
}
