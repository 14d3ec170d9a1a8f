//! AES-256-CBC with padding, under which programs keep secrets.

use super::cipher::{Algorithm, Blocks};
use crate::error::{Error, Result};

const KEY_BYTES: usize = 32;
const BLOCK_BYTES: usize = 16;

/// A key and an IV. It has no `Debug`.
pub struct AesCbc {
    blocks: Blocks,
    iv: [u8; BLOCK_BYTES],
}

impl AesCbc {
    /// Of the two lengths that there are.
    pub fn new(key: &[u8], iv: &[u8]) -> Result<AesCbc> {
        if key.len() != KEY_BYTES {
            return Err(Error::invalid(format!("Key should be {KEY_BYTES} bytes in length")));
        }
        let length = iv.len();
        let iv = iv.try_into().map_err(|_| {
            Error::invalid(format!("IV should be {BLOCK_BYTES} bytes in length not {length}"))
        })?;
        Ok(AesCbc { blocks: Blocks::new(Algorithm::Aes, key)?, iv })
    }

    /// Decrypts whole blocks.
    pub fn decrypt(&self, data: &mut [u8]) -> Result<()> {
        if data.len() % BLOCK_BYTES != 0 {
            let text = format!("Length {} must be a multiple of block size {BLOCK_BYTES}", data.len());
            return Err(Error::invalid(text));
        }
        let mut before = self.iv;
        for block in data.chunks_exact_mut(BLOCK_BYTES) {
            let mut encrypted = [0; BLOCK_BYTES];
            encrypted.copy_from_slice(block);
            self.blocks.decrypt(block);
            block.iter_mut().zip(before).for_each(|(byte, other)| *byte ^= other);
            before = encrypted;
        }
        Ok(())
    }
}

/// How long data is without what fills its last block: bytes that say how many they are. Only the last one is looked at.
pub fn unpad(data: &[u8]) -> Result<usize> {
    let Some(last) = data.last() else { return Ok(0) };
    data.len().checked_sub(usize::from(*last)).filter(|_| usize::from(*last) <= BLOCK_BYTES).ok_or_else(
        || Error::invalid(format!("Incorrect number of padding bytes ({last}) found on decrypted data")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// NIST SP 800-38A, F.2.6.
    #[test]
    fn decrypts_the_published_vectors() {
        let key: Vec<u8> = hex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4");
        let iv = hex("000102030405060708090a0b0c0d0e0f");
        let mut data = hex("f58c4c04d6e5f1ba779eabfb5f7bfbd69cfc4e967edb808d679f777bc6702c7d");
        AesCbc::new(&key, &iv).unwrap().decrypt(&mut data).unwrap();
        assert_eq!(data, hex("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"));
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let text = |result: Result<usize>| result.unwrap_err().to_string();
        let made = |key: usize, iv: usize| AesCbc::new(&vec![0; key], &vec![0; iv]).map(|_| 0);
        assert_eq!(text(made(31, 16)), "Key should be 32 bytes in length");
        assert_eq!(text(made(32, 3)), "IV should be 16 bytes in length not 3");
        let odd = AesCbc::new(&[0; 32], &[0; 16]).unwrap().decrypt(&mut [0; 7]).map(|()| 0);
        assert_eq!(text(odd), "Length 7 must be a multiple of block size 16");
        let last = |byte: u8| unpad(&[[0u8; 15].as_slice(), &[byte]].concat());
        assert_eq!([last(0), last(9), last(16)].map(|l| l.unwrap()), [16, 7, 0]);
        assert_eq!(text(last(17)), "Incorrect number of padding bytes (17) found on decrypted data");
        assert_eq!(unpad(&[]).unwrap(), 0);
    }

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }
}
