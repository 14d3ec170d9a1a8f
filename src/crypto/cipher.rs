//! Block ciphers. A call takes as many blocks as there are, for one at a time costs five times as much.

use crate::error::{Error, Result};
use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use aes::{Aes128, Aes192, Aes256};
#[cfg(feature = "more-ciphers")]
use {cast5::Cast5, serpent::Serpent, twofish::Twofish};

/// Longest block, bytes.
pub(super) const MAX_BLOCK_BYTES: usize = 16;

/// A block cipher, as LUKS names it; the length of its key stands beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// AES.
    Aes,
    /// Serpent.
    Serpent,
    /// Twofish.
    Twofish,
    /// CAST-128.
    Cast5,
}

impl Algorithm {
    /// All of them, whether this build has them or not.
    pub const ALL: [Algorithm; 4] =
        [Algorithm::Aes, Algorithm::Serpent, Algorithm::Twofish, Algorithm::Cast5];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Aes => "aes",
            Algorithm::Serpent => "serpent",
            Algorithm::Twofish => "twofish",
            Algorithm::Cast5 => "cast5",
        }
    }

    /// The one of a name.
    pub fn from_name(name: &str) -> Option<Algorithm> {
        Algorithm::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    /// Lengths of its keys, bytes.
    pub fn key_sizes(self) -> &'static [usize] {
        match self {
            Algorithm::Cast5 => &[16],
            _ => &[16, 24, 32],
        }
    }

    /// Length of its blocks.
    pub fn block_bytes(self) -> usize {
        match self {
            Algorithm::Cast5 => 8,
            _ => 16,
        }
    }

    /// Why it cannot be had with a key of this length.
    pub(super) fn not_served(self, key_bytes: usize) -> Error {
        let text = format!("Algorithm '{}-{}' not supported", self.name(), key_bytes * 8);
        Error::unsupported(text).detail("this build has AES alone")
    }

    /// That an IV generator's hash gives a key of a length which it has none of, as the stock tools put it.
    pub(super) fn no_cipher_for(self, key_bytes: usize) -> String {
        let name = match self {
            Algorithm::Aes => "AES",
            Algorithm::Serpent => "Serpent",
            Algorithm::Twofish => "Twofish",
            Algorithm::Cast5 => return "Cipher cast5-128 not supported with essiv".into(),
        };
        format!("No {name} cipher with key size {key_bytes} available")
    }

    /// Whether this build has it.
    pub fn is_served(self) -> bool {
        self == Algorithm::Aes || cfg!(feature = "more-ciphers")
    }
}

/// A cipher with its key. All in place, so that it can be put where keys belong.
pub(super) enum Blocks {
    Aes128(Aes128),
    Aes192(Aes192),
    Aes256(Aes256),
    #[cfg(feature = "more-ciphers")]
    Serpent(Serpent),
    #[cfg(feature = "more-ciphers")]
    Twofish(Twofish),
    #[cfg(feature = "more-ciphers")]
    Cast5(Cast5),
}

macro_rules! each {
    ($blocks:expr, $cipher:ident => $run:expr) => {
        match $blocks {
            Blocks::Aes128($cipher) => $run,
            Blocks::Aes192($cipher) => $run,
            Blocks::Aes256($cipher) => $run,
            #[cfg(feature = "more-ciphers")]
            Blocks::Serpent($cipher) => $run,
            #[cfg(feature = "more-ciphers")]
            Blocks::Twofish($cipher) => $run,
            #[cfg(feature = "more-ciphers")]
            Blocks::Cast5($cipher) => $run,
        }
    };
}

impl Blocks {
    /// The cipher with a key of one of its lengths.
    pub(super) fn new(algorithm: Algorithm, key: &[u8]) -> Result<Blocks> {
        let refused = || Error::invalid(format!("a {} key of {} bytes", algorithm.name(), key.len()));
        if !algorithm.is_served() {
            return Err(algorithm.not_served(key.len()));
        }
        if !algorithm.key_sizes().contains(&key.len()) {
            return Err(refused());
        }
        let made = match (algorithm, key.len()) {
            (Algorithm::Aes, 16) => Aes128::new_from_slice(key).map(Blocks::Aes128),
            (Algorithm::Aes, 24) => Aes192::new_from_slice(key).map(Blocks::Aes192),
            (Algorithm::Aes, _) => Aes256::new_from_slice(key).map(Blocks::Aes256),
            #[cfg(feature = "more-ciphers")]
            (Algorithm::Serpent, _) => Serpent::new_from_slice(key).map(Blocks::Serpent),
            #[cfg(feature = "more-ciphers")]
            (Algorithm::Twofish, _) => Twofish::new_from_slice(key).map(Blocks::Twofish),
            #[cfg(feature = "more-ciphers")]
            (Algorithm::Cast5, _) => Cast5::new_from_slice(key).map(Blocks::Cast5),
            #[cfg(not(feature = "more-ciphers"))]
            _ => return Err(refused()),
        };
        made.map_err(|_| refused())
    }

    /// Encrypts whole blocks, each for itself.
    pub(super) fn encrypt(&self, bytes: &mut [u8]) {
        each!(self, cipher => cipher.encrypt_blocks(Array::slice_as_chunks_mut(bytes).0));
    }

    /// Decrypts whole blocks, each for itself.
    pub(super) fn decrypt(&self, bytes: &mut [u8]) {
        each!(self, cipher => cipher.decrypt_blocks(Array::slice_as_chunks_mut(bytes).0));
    }
}
