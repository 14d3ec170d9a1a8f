//! The anti-forensic split: a key becomes as many stripes as there are, all of which are needed to have it back, so that a
//! medium that keeps a few old sectors keeps no key. TKS1, section 2.4.

use crate::crypto::hash::Hash;
use crate::error::Result;
use zeroize::Zeroizing;

/// Mixes a block so that every bit depends on all of its part.
fn diffuse(hash: Hash, block: &mut [u8]) {
    for (index, part) in block.chunks_mut(hash.bytes()).enumerate() {
        let mut digest = Zeroizing::new([0u8; Hash::MAX_BYTES]);
        let digest = &mut digest[..part.len()];
        hash.digest(&[&(index as u32).to_be_bytes(), part], digest);
        part.copy_from_slice(digest);
    }
}

fn mix(sum: &mut [u8], stripe: &[u8]) {
    sum.iter_mut().zip(stripe).for_each(|(s, b)| *s ^= b);
}

/// The stripes of `key` to `stripes`, which is as long as all of them; `random` fills what it is given.
pub fn split(
    hash: Hash,
    key: &[u8],
    stripes: &mut [u8],
    random: &mut dyn FnMut(&mut [u8]) -> Result<()>,
) -> Result<()> {
    let (chance, last) = stripes.split_at_mut(stripes.len() - key.len());
    random(chance)?;
    let mut sum = Zeroizing::new(vec![0u8; key.len()]);
    for stripe in chance.chunks_exact(key.len()) {
        mix(&mut sum, stripe);
        diffuse(hash, &mut sum);
    }
    last.copy_from_slice(key);
    mix(last, &sum);
    Ok(())
}

/// The key that was split, to `key`.
pub fn merge(hash: Hash, stripes: &[u8], key: &mut [u8]) {
    key.fill(0);
    let (chance, last) = stripes.split_at(stripes.len() - key.len());
    for stripe in chance.chunks_exact(key.len()) {
        mix(key, stripe);
        diffuse(hash, key);
    }
    mix(key, last);
}
