//! Options of a plain LUKS file: those of an image's encryption under shorter names.

use super::amend::only_for_creation;
use super::create::{keep, CreateOptions, Preallocation};
use super::encryption::{LuksWords, NewEncryption, NewMethod, SlotChange, SlotWords};
use super::table::{assign, has, Row, Scope, Set, Set::*, Table};
use crate::error::{Error, Result};
use std::ffi::OsStr;

/// What was given for a new file.
#[derive(Clone, Debug, Default)]
pub(super) struct LuksGiven {
    detached_header: Option<bool>,
    luks: LuksWords,
    preallocation: Option<String>,
    secret: Option<String>,
    size: Option<u64>,
}

const fn row(name: &'static str, set: Set<LuksGiven>, help: &'static str) -> Row<LuksGiven> {
    Row::new(Scope::CreateLuks, name, set, None, help)
}

#[rustfmt::skip]
impl Table for LuksGiven {
    const ROWS: &'static [Row<Self>] = &[
        row("cipher-alg", Text(|o, word| keep(&mut o.luks.cipher_alg, word)), "Name of encryption cipher algorithm"),
        row("cipher-mode", Text(|o, word| keep(&mut o.luks.cipher_mode, word)), "Name of encryption cipher mode"),
        row("detached-header", Bool(|o, on| o.detached_header = Some(on)), "Create a detached LUKS header"),
        row("hash-alg", Text(|o, word| keep(&mut o.luks.hash_alg, word)), "Name of encryption hash algorithm"),
        row("iter-time", Number(|o, ms| keep(&mut o.luks.iter_time, ms)), "Time to spend in PBKDF in milliseconds"),
        row("ivgen-alg", Text(|o, word| keep(&mut o.luks.ivgen_alg, word)), "Name of IV generator algorithm"),
        row("ivgen-hash-alg", Text(|o, word| keep(&mut o.luks.ivgen_hash_alg, word)), "Name of IV generator hash algorithm"),
        row("key-secret", Text(|o, word| keep(&mut o.secret, word)), "ID of the secret that provides the keyslot passphrase"),
        row("preallocation", Text(|o, word| keep(&mut o.preallocation, word)), "Preallocation mode (allowed values: off, metadata, falloc, full)"),
        row("size", Size(|o, bytes| o.size = Some(bytes)), "Virtual disk size"),
    ];
}

impl CreateOptions {
    /// Options of a new LUKS file from `key=value` strings.
    pub fn parse_luks<O: AsRef<OsStr>>(options: &[O]) -> Result<CreateOptions> {
        let mut given = LuksGiven::default();
        for option in options {
            let unknown = |key: &str| Error::invalid(format!("Invalid parameter '{key}'"));
            assign(&mut given, option.as_ref(), unknown)?;
        }
        if given.detached_header.is_some() {
            return Err(Error::invalid("Parameter 'detached-header' is unexpected"));
        }
        let method = NewMethod::Luks(given.luks.read()?);
        let encryption = NewEncryption { method, secret: given.secret, secret_option: "key-secret" };
        let preallocation = given.preallocation.as_deref().map(Preallocation::parse).transpose()?;
        Ok(CreateOptions {
            size: given.size,
            preallocation: preallocation.unwrap_or_default(),
            encryption: Some(encryption),
            ..CreateOptions::default()
        })
    }
}

/// What was given for a file that exists.
#[derive(Clone, Debug, Default)]
pub(super) struct LuksAmend(SlotWords);

const fn amend_row(name: &'static str, set: Set<LuksAmend>, help: &'static str) -> Row<LuksAmend> {
    Row::new(Scope::AmendLuks, name, set, None, help)
}

#[rustfmt::skip]
impl Table for LuksAmend {
    const ROWS: &'static [Row<Self>] = &[
        amend_row("iter-time", Number(|o, ms| keep(&mut o.0.iter_time, ms)), "Time to spend in PBKDF in milliseconds"),
        amend_row("keyslot", Number(|o, slot| keep(&mut o.0.keyslot, slot)), "Select a single keyslot to modify explicitly"),
        amend_row("new-secret", Text(|o, name| keep(&mut o.0.new_secret, name)), "New secret to set in the matching keyslots. Empty string to erase"),
        amend_row("old-secret", Text(|o, name| keep(&mut o.0.old_secret, name)), "Select all keyslots that match this password"),
        amend_row("state", Text(|o, word| keep(&mut o.0.state, word)), "Select new state of affected keyslots (active/inactive)"),
    ];
}

impl SlotChange {
    /// A change of a LUKS file from `key=value` strings; `None`: nothing is asked for.
    pub fn parse_luks<O: AsRef<OsStr>>(options: &[O]) -> Result<Option<SlotChange>> {
        let mut given = LuksAmend::default();
        for option in options {
            let unknown = |key: &str| only_for_creation(key, has::<LuksGiven>(key));
            assign(&mut given, option.as_ref(), unknown)?;
        }
        given.0.read()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_arrive_and_are_refused() {
        let made = CreateOptions::parse_luks(&["size=1M", "key-secret=s", "cipher-alg=aes-128"]).unwrap();
        assert_eq!(made.size, Some(1 << 20));
        let encryption = made.encryption.unwrap();
        assert_eq!(encryption.secret.as_deref(), Some("s"));
        let NewMethod::Luks(luks) = encryption.method else { panic!("it is LUKS") };
        assert_eq!(luks.spec.key_bytes, 32);
        let refused = |words: &[&str]| CreateOptions::parse_luks(words).unwrap_err().to_string();
        assert_eq!(refused(&["cluster_size=4k"]), "Invalid parameter 'cluster_size'");
        assert_eq!(refused(&["detached-header=on"]), "Parameter 'detached-header' is unexpected");
        assert_eq!(refused(&["hash-alg=x"]), "Parameter 'hash-alg' does not accept value 'x'");
        assert_eq!(SlotChange::parse_luks::<&str>(&[]).unwrap(), None);
        let refused = |words: &[&str]| SlotChange::parse_luks(words).unwrap_err().to_string();
        assert_eq!(refused(&["keyslot=1"]), "Parameter 'state' is missing");
        assert!(refused(&["cipher-alg=aes-128"]).contains("only supported for image creation"));
    }
}
