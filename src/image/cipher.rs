//! The key of an open image, and the sectors under it.

use crate::crypto::luks::DIGEST_BYTES;
use crate::crypto::{wipe_after_sectors, Sectors, Spec};
use crate::error::{Error, Result};
use crate::format::{GuestOffset, HostOffset};
use crate::planted::{planted, Plant};
use crate::storage::aligned::Aligned;
use crate::storage::file::KeyPages;
use crate::storage::pool::Pool;
use crate::storage::turns::Turns;

/// By which offset sectors are numbered is the method's: a swapped one does not compile.
pub(super) enum Key {
    /// LUKS.
    ByHost(Sectors<HostOffset>),
    /// The older AES.
    ByGuest(Sectors<GuestOffset>),
}

/// The cipher of an image; it outlives the image's states. It has no `Debug`.
pub struct Cipher {
    key: KeyPages<Key>,
    /// Of the encryption header that the key is from; `None`: the older AES, which has none.
    pub(super) origin: Option<(Spec, [u8; DIGEST_BYTES])>,
    pub(super) turns: Turns,
    /// Where writes encrypt; idle ones hold what was stored.
    pub(super) bounces: Pool<Aligned>,
}

impl Cipher {
    /// With a key that goes to pages of its own.
    pub(super) fn new(key: Key, origin: Option<(Spec, [u8; DIGEST_BYTES])>) -> Result<Cipher> {
        let pages = KeyPages::new(key).map_err(|e| Error::host("memory for a key", &e));
        crate::crypto::wipe_stack();
        Ok(Cipher { key: pages?, origin, turns: Turns::default(), bounces: Pool::default() })
    }

    /// Encrypts whole sectors that the guest has at `guest` and the storage at `host`.
    pub(super) fn encrypt(&self, guest: GuestOffset, host: HostOffset, bytes: &mut [u8]) {
        match &*self.key {
            Key::ByHost(_) if planted(Plant::IvByGuestOffset) => {
                self.encrypt_at(HostOffset(guest.0), guest, bytes)
            }
            _ => self.encrypt_at(host, guest, bytes),
        }
        wipe_after_sectors();
    }

    fn encrypt_at(&self, host: HostOffset, guest: GuestOffset, bytes: &mut [u8]) {
        match &*self.key {
            Key::ByHost(sectors) => sectors.encrypt(host, bytes),
            Key::ByGuest(sectors) => sectors.encrypt(guest, bytes),
        }
    }

    /// Decrypts whole sectors.
    pub(super) fn decrypt(&self, guest: GuestOffset, host: HostOffset, bytes: &mut [u8]) {
        match &*self.key {
            Key::ByHost(sectors) => sectors.decrypt(host, bytes),
            Key::ByGuest(sectors) => sectors.decrypt(guest, bytes),
        }
        wipe_after_sectors();
    }
}
