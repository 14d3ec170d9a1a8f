//! The options of encryption: words become a method, a cipher, a mode. Secrets are no options; what an option says in
//! their place is a name by which whoever has the secret knows it.

use crate::crypto::luks::new_header_bytes;
use crate::crypto::{Algorithm, Hash, IvGenerator, Mode, Spec};
use crate::error::{Error, Result};

/// Milliseconds that a key derivation takes where nothing else is said.
const ITER_TIME_MS: u64 = 2000;

/// How guest data of a new image is encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewMethod {
    /// The older AES.
    Aes,
    /// A LUKS header.
    Luks(NewLuks),
}

impl NewMethod {
    /// As the header names it.
    pub fn number(&self) -> u32 {
        match self {
            NewMethod::Aes => 1,
            NewMethod::Luks(_) => 2,
        }
    }
}

/// The encryption of a new image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEncryption {
    /// How.
    pub method: NewMethod,
    /// The name of the secret.
    pub secret: Option<String>,
    /// The option that says it.
    pub secret_option: &'static str,
}

impl NewEncryption {
    /// Bytes of what is stored beside guest data.
    pub fn header_bytes(&self) -> u64 {
        match &self.method {
            NewMethod::Aes => 0,
            NewMethod::Luks(luks) => new_header_bytes(luks.spec.key_bytes),
        }
    }
}

/// What a new LUKS header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewLuks {
    /// Cipher, mode, IV generator.
    pub spec: Spec,
    /// Hash of the IV generator as given: recorded with those, too, that do without.
    pub iv_hash: Option<Hash>,
    /// Hash of key derivation and split.
    pub hash: Hash,
    /// What a derivation is to cost, milliseconds of this machine.
    pub iter_time_ms: u64,
}

/// Words of a LUKS header as given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct LuksWords {
    pub(super) cipher_alg: Option<String>,
    pub(super) cipher_mode: Option<String>,
    pub(super) hash_alg: Option<String>,
    pub(super) iter_time: Option<u64>,
    pub(super) ivgen_alg: Option<String>,
    pub(super) ivgen_hash_alg: Option<String>,
}

/// Ciphers that the stock tools have names for, and never serve.
const UNSERVED: [&str; 3] = ["sm4", "des", "3des"];

/// Cipher and bytes of its key; "aes-256".
fn cipher(word: &str) -> Result<(Algorithm, usize)> {
    let found = word.rsplit_once('-').and_then(|(name, bits)| {
        let algorithm = Algorithm::from_name(name)?;
        algorithm.key_sizes().iter().find(|bytes| (*bytes * 8).to_string() == bits).map(|b| (algorithm, *b))
    });
    found.ok_or_else(|| not_accepted("cipher-alg", word))
}

fn not_accepted(name: &str, value: &str) -> Error {
    Error::invalid(format!("Parameter '{name}' does not accept value '{value}'"))
}

/// The value called `word`, or the default.
fn word<T>(name: &str, word: &Option<String>, default: T, find: impl Fn(&str) -> Option<T>) -> Result<T> {
    match word {
        None => Ok(default),
        Some(word) => find(word).ok_or_else(|| not_accepted(name, word)),
    }
}

impl LuksWords {
    /// The option that was given, if any.
    fn given(&self) -> Option<&'static str> {
        let texts = [
            ("cipher-alg", &self.cipher_alg),
            ("cipher-mode", &self.cipher_mode),
            ("hash-alg", &self.hash_alg),
            ("ivgen-alg", &self.ivgen_alg),
            ("ivgen-hash-alg", &self.ivgen_hash_alg),
        ];
        let text = texts.iter().find(|(_, word)| word.is_some()).map(|(name, _)| *name);
        text.or(self.iter_time.map(|_| "iter-time"))
    }

    /// What they mean. The words are checked first, then whether they fit each other.
    pub(super) fn read(self) -> Result<NewLuks> {
        let cipher_word = self.cipher_alg.as_deref().unwrap_or("aes-256");
        let cipher = match UNSERVED.contains(&cipher_word) {
            true => None,
            false => Some(cipher(cipher_word)?),
        };
        let mode = word("cipher-mode", &self.cipher_mode, Mode::Xts, Mode::from_name)?;
        let generator = self.ivgen_alg.as_deref().unwrap_or("plain64");
        if !["plain", "plain64", "essiv"].contains(&generator) {
            return Err(not_accepted("ivgen-alg", generator));
        }
        let iv_hash = word("ivgen-hash-alg", &self.ivgen_hash_alg, None, |w| Hash::from_name(w).map(Some))?;
        let hash = word("hash-alg", &self.hash_alg, Hash::Sha256, Hash::from_name)?;
        let (algorithm, cipher_key) = match cipher {
            Some(cipher) => cipher,
            None => return Err(Error::unsupported(format!("Algorithm '{cipher_word}' not supported"))),
        };
        let iv = match generator {
            "plain" => IvGenerator::Plain,
            "essiv" => IvGenerator::Essiv(iv_hash.unwrap_or(Hash::Sha256)),
            _ => IvGenerator::Plain64,
        };
        let key_bytes = if mode == Mode::Xts { cipher_key * 2 } else { cipher_key };
        let spec = Spec { algorithm, key_bytes, mode, iv };
        spec.check()?;
        Ok(NewLuks { spec, iv_hash, hash, iter_time_ms: self.iter_time.unwrap_or(ITER_TIME_MS) })
    }
}

/// The options `encrypt.*` of a new image as given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct EncryptionWords {
    pub(super) format: Option<String>,
    /// The older name of `format=aes`.
    pub(super) alias: Option<bool>,
    pub(super) secret: Option<String>,
    pub(super) luks: LuksWords,
}

impl EncryptionWords {
    pub(super) fn read(self) -> Result<Option<NewEncryption>> {
        let format = match (self.format, self.alias) {
            (Some(_), Some(true)) => {
                let text = "'encrypt.format' and its alias 'encryption' can't be used at the same time";
                return Err(Error::invalid(text).about_option("encryption"));
            }
            (None, Some(true)) => Some("aes".to_owned()),
            (format, _) => format,
        };
        let about = |e: Error| e.about_option("encrypt.format");
        let method = match format.as_deref() {
            None if self.secret.is_some() || self.luks.given().is_some() => {
                return Err(about(Error::invalid("Parameter 'encrypt.format' is missing")));
            }
            None => return Ok(None),
            Some("luks") => NewMethod::Luks(self.luks.read()?),
            Some("aes") => match self.luks.given() {
                Some(name) => {
                    return Err(Error::invalid(format!("Parameter 'encrypt.{name}' is unexpected")));
                }
                None => NewMethod::Aes,
            },
            Some(word) => return Err(about(not_accepted("format", word))),
        };
        let secret_option = "encrypt.key-secret";
        Ok(Some(NewEncryption { method, secret: self.secret, secret_option }))
    }
}

/// What is to become of key slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotChange {
    /// A secret opens one from now on.
    Activate {
        /// The name of the secret.
        secret: String,
        /// Which slot; `None`: the first free one.
        slot: Option<u64>,
        /// What a derivation is to cost, milliseconds of this machine.
        iter_time_ms: u64,
    },
    /// What some hold is overwritten.
    Erase {
        /// The name of a secret: those that it opens.
        secret: Option<String>,
        /// Which slot.
        slot: Option<u64>,
    },
}

/// The options of a change of key slots as given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SlotWords {
    pub(super) state: Option<String>,
    pub(super) new_secret: Option<String>,
    pub(super) old_secret: Option<String>,
    pub(super) keyslot: Option<u64>,
    pub(super) iter_time: Option<u64>,
}

impl SlotWords {
    pub(super) fn are_given(&self) -> bool {
        *self != SlotWords::default()
    }

    /// What they ask for, in the order of the stock tools' refusals; `None`: nothing.
    pub(super) fn read(&self) -> Result<Option<SlotChange>> {
        if !self.are_given() {
            return Ok(None);
        }
        let refused = |text: &str| Err(Error::invalid(text));
        match self.state.as_deref() {
            None => refused("Parameter 'state' is missing"),
            Some("active") => match &self.new_secret {
                None => refused("'new-secret' is required to activate a keyslot"),
                Some(_) if self.old_secret.is_some() => {
                    refused("'old-secret' must not be given when activating keyslots")
                }
                Some(secret) => Ok(Some(SlotChange::Activate {
                    secret: secret.clone(),
                    slot: self.keyslot,
                    iter_time_ms: self.iter_time.unwrap_or(ITER_TIME_MS),
                })),
            },
            Some("inactive") if self.new_secret.is_some() => {
                refused("'new-secret' must not be given when erasing keyslots")
            }
            Some("inactive") if self.iter_time.is_some() => {
                refused("'iter-time' must not be given when erasing keyslots")
            }
            Some("inactive") => {
                Ok(Some(SlotChange::Erase { secret: self.old_secret.clone(), slot: self.keyslot }))
            }
            Some(word) => Err(not_accepted("state", word)),
        }
    }
}
