//! A cipher in its mode with its IV generator: sectors of 512 bytes.
//!
//! Every sector is encrypted for itself, with an IV made of its number; which offset numbers it is a type, for LUKS goes by
//! the host's and the older AES by the guest's. Several sectors are done at once, so that a cipher gets enough blocks in
//! one call: tweaks or IVs of all of them first, then the blocks.

use super::cipher::{Algorithm, Blocks, MAX_BLOCK_BYTES};
use super::hash::Hash;
use crate::error::{Error, Result};
use crate::format::Offset;
use std::marker::PhantomData;
use zeroize::Zeroizing;

/// Bytes of a sector.
pub const SECTOR_BYTES: usize = 512;
/// Sectors that are done at once.
const LANES: usize = 8;
const CHUNK_BYTES: usize = LANES * SECTOR_BYTES;

/// How blocks of a sector hang together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// IEEE 1619, with a key for the blocks and one for the tweaks.
    Xts,
    /// Each block is mixed with the encrypted one before it.
    Cbc,
    /// Blocks of a counter are encrypted and mixed with the data.
    Ctr,
    /// Each block for itself: equal blocks stay equal.
    Ecb,
}

impl Mode {
    /// All of them.
    pub const ALL: [Mode; 4] = [Mode::Xts, Mode::Cbc, Mode::Ctr, Mode::Ecb];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Xts => "xts",
            Mode::Cbc => "cbc",
            Mode::Ctr => "ctr",
            Mode::Ecb => "ecb",
        }
    }

    /// The one of a name.
    pub fn from_name(name: &str) -> Option<Mode> {
        Mode::ALL.into_iter().find(|mode| mode.name() == name)
    }
}

/// What makes an IV of a sector's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IvGenerator {
    /// Its low 32 bits, little-endian.
    Plain,
    /// The number, little-endian.
    Plain64,
    /// The number, encrypted with the key's digest.
    Essiv(Hash),
}

impl IvGenerator {
    /// Its name, without the hash.
    pub fn name(self) -> &'static str {
        match self {
            IvGenerator::Plain => "plain",
            IvGenerator::Plain64 => "plain64",
            IvGenerator::Essiv(_) => "essiv",
        }
    }
}

/// How sectors are encrypted, but for the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    /// The block cipher.
    pub algorithm: Algorithm,
    /// Length of the whole key: in XTS mode that of two.
    pub key_bytes: usize,
    /// The mode.
    pub mode: Mode,
    /// The IV generator.
    pub iv: IvGenerator,
}

impl Spec {
    /// Length of the cipher's key.
    pub fn cipher_key_bytes(&self) -> usize {
        match self.mode {
            Mode::Xts => self.key_bytes / 2,
            _ => self.key_bytes,
        }
    }

    /// Fails where the parts do not fit each other.
    pub fn check_sizes(&self) -> Result<()> {
        let Spec { algorithm, mode, key_bytes, .. } = *self;
        let odd = mode == Mode::Xts && key_bytes % 2 != 0;
        if odd || !algorithm.key_sizes().contains(&self.cipher_key_bytes()) {
            let (name, bytes) = (algorithm.name(), self.cipher_key_bytes());
            return Err(Error::unsupported(format!(
                "Algorithm '{name}' with key size {bytes} bytes not supported"
            )));
        }
        match self.iv {
            IvGenerator::Essiv(hash) if !algorithm.key_sizes().contains(&hash.bytes()) => {
                Err(Error::unsupported(algorithm.no_cipher_for(hash.bytes())))
            }
            _ => Ok(()),
        }
    }

    /// Fails where the parts do not fit each other, or this build lacks one.
    pub fn check(&self) -> Result<()> {
        self.check_sizes()?;
        if self.mode == Mode::Xts && self.algorithm.block_bytes() != 16 {
            return Err(Error::unsupported(format!("Unsupported cipher mode {}", self.mode.name())));
        }
        match self.algorithm.is_served() {
            true => Ok(()),
            false => Err(self.algorithm.not_served(self.cipher_key_bytes())),
        }
    }
}

/// Sectors under one key, numbered by offsets of one kind.
pub struct Sectors<O> {
    mode: Mode,
    block_bytes: usize,
    data: Blocks,
    /// Of XTS.
    tweak: Option<Blocks>,
    /// Of ESSIV.
    iv_cipher: Option<Blocks>,
    narrow_iv: bool,
    numbered_by: PhantomData<fn(O)>,
}

impl<O: Offset> Sectors<O> {
    /// Sectors under `key`.
    pub fn new(spec: &Spec, key: &[u8]) -> Result<Sectors<O>> {
        spec.check()?;
        if key.len() != spec.key_bytes {
            return Err(Error::invalid(format!(
                "a key of {} bytes where {} are needed",
                key.len(),
                spec.key_bytes
            )));
        }
        let (first, second) = key.split_at(spec.cipher_key_bytes());
        let iv_cipher = match spec.iv {
            IvGenerator::Essiv(hash) => {
                let mut salt = Zeroizing::new([0u8; Hash::MAX_BYTES]);
                let salt = &mut salt[..hash.bytes()];
                hash.digest(&[key], salt);
                Some(Blocks::new(spec.algorithm, salt)?)
            }
            _ => None,
        };
        Ok(Sectors {
            mode: spec.mode,
            block_bytes: spec.algorithm.block_bytes(),
            data: Blocks::new(spec.algorithm, first)?,
            tweak: if spec.mode == Mode::Xts { Some(Blocks::new(spec.algorithm, second)?) } else { None },
            iv_cipher,
            narrow_iv: spec.iv == IvGenerator::Plain,
            numbered_by: PhantomData,
        })
    }

    /// Encrypts whole sectors; `at` is where the first one is.
    pub fn encrypt(&self, at: O, bytes: &mut [u8]) {
        self.each_chunk(at, bytes, |sector, chunk| match self.mode {
            Mode::Xts => self.xts(sector, chunk, |chunk| self.data.encrypt(chunk)),
            Mode::Cbc => self.encrypt_cbc(sector, chunk),
            Mode::Ctr => self.ctr(sector, chunk),
            Mode::Ecb => self.data.encrypt(chunk),
        });
    }

    /// Decrypts whole sectors; `at` is where the first one is.
    pub fn decrypt(&self, at: O, bytes: &mut [u8]) {
        self.each_chunk(at, bytes, |sector, chunk| match self.mode {
            Mode::Xts => self.xts(sector, chunk, |chunk| self.data.decrypt(chunk)),
            Mode::Cbc => self.decrypt_cbc(sector, chunk),
            Mode::Ctr => self.ctr(sector, chunk),
            Mode::Ecb => self.data.decrypt(chunk),
        });
    }

    fn each_chunk(&self, at: O, bytes: &mut [u8], mut run: impl FnMut(u64, &mut [u8])) {
        let whole = at.bytes() % SECTOR_BYTES as u64 == 0 && bytes.len() % SECTOR_BYTES == 0;
        assert!(whole, "part of a sector would be encrypted");
        let mut sector = at.bytes() / SECTOR_BYTES as u64;
        for chunk in bytes.chunks_mut(CHUNK_BYTES) {
            run(sector, chunk);
            sector += LANES as u64;
        }
    }

    /// The IVs of sectors from `first` on, one after the other.
    fn fill_ivs(&self, first: u64, ivs: &mut [u8]) {
        for (sector, iv) in (first..).zip(ivs.chunks_exact_mut(self.block_bytes)) {
            let number = if self.narrow_iv { u64::from(sector as u32) } else { sector };
            iv.fill(0);
            iv[..8].copy_from_slice(&number.to_le_bytes());
        }
        if let Some(cipher) = &self.iv_cipher {
            cipher.encrypt(ivs);
        }
    }

    fn xts(&self, first: u64, chunk: &mut [u8], run: impl FnOnce(&mut [u8])) {
        let mut starts = [0u8; LANES * MAX_BLOCK_BYTES];
        let starts = &mut starts[..chunk.len() / SECTOR_BYTES * MAX_BLOCK_BYTES];
        self.fill_ivs(first, starts);
        if let Some(tweak) = &self.tweak {
            tweak.encrypt(starts);
        }
        let mut tweaks = [0u8; CHUNK_BYTES];
        let tweaks = &mut tweaks[..chunk.len()];
        let mut starts = starts.chunks_exact(4 * MAX_BLOCK_BYTES);
        let mut sectors = tweaks.chunks_exact_mut(4 * SECTOR_BYTES);
        // One after the other each step waits for the one before; four at a time do not wait for each other.
        for (starts, sectors) in starts.by_ref().zip(sectors.by_ref()) {
            fill_tweaks::<4>(starts, sectors);
        }
        let rest = starts.remainder().chunks_exact(MAX_BLOCK_BYTES);
        for (start, sector) in rest.zip(sectors.into_remainder().chunks_exact_mut(SECTOR_BYTES)) {
            fill_tweaks::<1>(start, sector);
        }
        mix(chunk, tweaks);
        run(chunk);
        mix(chunk, tweaks);
    }

    fn ctr(&self, first: u64, chunk: &mut [u8]) {
        let mut ivs = [0u8; LANES * MAX_BLOCK_BYTES];
        let ivs = &mut ivs[..chunk.len() / SECTOR_BYTES * self.block_bytes];
        self.fill_ivs(first, ivs);
        let mut stream = [0u8; CHUNK_BYTES];
        let stream = &mut stream[..chunk.len()];
        for (iv, sector) in ivs.chunks_exact(self.block_bytes).zip(stream.chunks_exact_mut(SECTOR_BYTES)) {
            let mut wide = [0u8; MAX_BLOCK_BYTES];
            wide[MAX_BLOCK_BYTES - iv.len()..].copy_from_slice(iv);
            // A block of 8 bytes wraps within them.
            let mut counter = u128::from_be_bytes(wide);
            for block in sector.chunks_exact_mut(iv.len()) {
                block.copy_from_slice(&counter.to_be_bytes()[MAX_BLOCK_BYTES - iv.len()..]);
                counter = counter.wrapping_add(1);
            }
        }
        self.data.encrypt(stream);
        mix(chunk, stream);
    }

    /// One block of every sector at a time: within a sector each waits for the one before.
    fn encrypt_cbc(&self, first: u64, chunk: &mut [u8]) {
        let block = self.block_bytes;
        let lanes = chunk.len() / SECTOR_BYTES;
        let mut before = [0u8; LANES * MAX_BLOCK_BYTES];
        let before = &mut before[..lanes * block];
        self.fill_ivs(first, before);
        for at in (0..SECTOR_BYTES).step_by(block) {
            for (lane, sector) in before.chunks_exact_mut(block).zip(chunk.chunks_exact(SECTOR_BYTES)) {
                mix(lane, &sector[at..at + block]);
            }
            self.data.encrypt(before);
            for (lane, sector) in before.chunks_exact(block).zip(chunk.chunks_exact_mut(SECTOR_BYTES)) {
                sector[at..at + block].copy_from_slice(lane);
            }
        }
    }

    fn decrypt_cbc(&self, first: u64, chunk: &mut [u8]) {
        let block = self.block_bytes;
        let mut ivs = [0u8; LANES * MAX_BLOCK_BYTES];
        let ivs = &mut ivs[..chunk.len() / SECTOR_BYTES * block];
        self.fill_ivs(first, ivs);
        let mut before = [0u8; CHUNK_BYTES];
        let before = &mut before[..chunk.len()];
        for ((iv, sector), before) in ivs
            .chunks_exact(block)
            .zip(chunk.chunks_exact(SECTOR_BYTES))
            .zip(before.chunks_exact_mut(SECTOR_BYTES))
        {
            before[..block].copy_from_slice(iv);
            before[block..].copy_from_slice(&sector[..SECTOR_BYTES - block]);
        }
        self.data.decrypt(chunk);
        mix(chunk, before);
    }
}

/// The tweaks of the blocks of so many sectors, from those of their first ones.
#[inline(always)]
fn fill_tweaks<const COUNT: usize>(starts: &[u8], sectors: &mut [u8]) {
    let mut tweaks = [0u128; COUNT];
    for (tweak, start) in tweaks.iter_mut().zip(starts.chunks_exact(MAX_BLOCK_BYTES)) {
        *tweak = u128::from_le_bytes(start.try_into().unwrap_or_default());
    }
    for block in (0..SECTOR_BYTES).step_by(MAX_BLOCK_BYTES) {
        for (tweak, sector) in tweaks.iter_mut().zip(sectors.chunks_exact_mut(SECTOR_BYTES)) {
            sector[block..block + MAX_BLOCK_BYTES].copy_from_slice(&tweak.to_le_bytes());
            // Times x in the field of 2^128 elements: what falls out comes back as 0x87.
            let carry = ((*tweak as i128) >> 127) as u128 & 0x87;
            *tweak = (*tweak << 1) ^ carry;
        }
    }
}

/// Exclusive or of two ranges of the same length.
#[inline]
fn mix(bytes: &mut [u8], with: &[u8]) {
    bytes.iter_mut().zip(with).for_each(|(byte, other)| *byte ^= other);
}
