//! Options of a new image.

use super::encryption::{EncryptionWords, NewEncryption, NewMethod};
use super::table::{assign, has, Row, Scope, Set, Set::*, Table};
use crate::error::{Error, Result};
use crate::format::geometry::{MAX_CLUSTER_BITS, MIN_CLUSTER_BITS, MIN_EXTENDED_CLUSTER_BITS};
use crate::format::Geometry;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// How much of a new image is allocated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preallocation {
    /// Nothing.
    #[default]
    Off,
    /// Tables for the whole disk, which point to clusters that the host has not allocated.
    Metadata,
    /// Tables, and host space reserved for the clusters.
    Falloc,
    /// Tables, and zeroes written to every cluster.
    Full,
}

impl Preallocation {
    /// The mode called `word`.
    pub fn parse(word: &str) -> Result<Preallocation> {
        match word {
            "off" => Ok(Preallocation::Off),
            "metadata" => Ok(Preallocation::Metadata),
            "falloc" => Ok(Preallocation::Falloc),
            "full" => Ok(Preallocation::Full),
            _ => Err(not_accepted("preallocation", word)),
        }
    }
}

/// What a new image looks like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// Virtual size in bytes, when it is given as an option.
    pub size: Option<u64>,
    /// Header version, 2 or 3.
    pub version: u32,
    /// log2 of the cluster size.
    pub cluster_bits: u32,
    /// log2 of the refcount width in bits.
    pub refcount_order: u32,
    /// Sets the compatible feature bit.
    pub lazy_refcounts: bool,
    /// Compressed clusters are zstd frames, not deflate streams.
    pub zstd: bool,
    /// Extended L2 entries: 32 subclusters to a cluster.
    pub extended_l2: bool,
    /// How much is allocated at once.
    pub preallocation: Preallocation,
    /// Name of the external data file to record.
    pub data_file: Option<OsString>,
    /// The data file shows what the disk shows.
    pub data_file_raw: bool,
    /// Name to record; never opened here.
    pub backing_file: Option<OsString>,
    /// Format to record for it; required with a backing file, because nobody probes it.
    pub backing_format: Option<String>,
    /// How guest data is encrypted.
    pub encryption: Option<NewEncryption>,
}

impl Default for CreateOptions {
    fn default() -> Self {
        CreateOptions {
            size: None,
            version: 3,
            cluster_bits: 16,
            refcount_order: 4,
            lazy_refcounts: false,
            zstd: false,
            extended_l2: false,
            preallocation: Preallocation::Off,
            data_file: None,
            data_file_raw: false,
            backing_file: None,
            backing_format: None,
            encryption: None,
        }
    }
}

/// Drivers of the reference implementation that can stand below a qcow2 image. A misspelt one would make an image
/// that nobody can open.
const BACKING_FORMATS: [&str; 29] = [
    "raw",
    "qcow2",
    "qcow",
    "qed",
    "vmdk",
    "vdi",
    "vpc",
    "vhdx",
    "parallels",
    "bochs",
    "cloop",
    "dmg",
    "luks",
    "vvfat",
    "file",
    "host_device",
    "host_cdrom",
    "nbd",
    "http",
    "https",
    "ftp",
    "ftps",
    "iscsi",
    "nfs",
    "rbd",
    "ssh",
    "gluster",
    "null-co",
    "null-aio",
];

fn not_accepted(name: &str, value: &str) -> Error {
    Error::invalid(format!("Parameter '{name}' does not accept value '{value}'"))
}

fn needs_v3(summary: &str) -> Error {
    Error::invalid(summary).hint(" (use version=v3 or greater)").about_option("compat")
}

/// log2 of a valid cluster size.
fn cluster_bits(bytes: u64) -> Result<u32> {
    let bits = bytes.checked_ilog2().unwrap_or(0);
    if !bytes.is_power_of_two() || !(MIN_CLUSTER_BITS..=MAX_CLUSTER_BITS).contains(&bits) {
        return Err(Error::invalid("Cluster size must be a power of two between 512 and 2048k"));
    }
    Ok(bits)
}

/// log2 of a valid refcount width.
pub(super) fn refcount_order(bits: u64) -> Result<u32> {
    if !bits.is_power_of_two() || bits > 64 {
        return Err(Error::invalid("Refcount width must be a power of two and may not exceed 64 bits"));
    }
    Ok(bits.trailing_zeros())
}

/// What was given. The rules for the values are checked after all have been read, in the order of the stock tool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Given {
    backing_file: Option<OsString>,
    backing_format: Option<String>,
    cluster_size: Option<u64>,
    compat: Option<String>,
    compression_type: Option<String>,
    data_file: Option<OsString>,
    data_file_raw: bool,
    encryption: EncryptionWords,
    extended_l2: bool,
    lazy_refcounts: bool,
    preallocation: Option<String>,
    refcount_bits: Option<u64>,
    size: Option<u64>,
}

const fn row(
    name: &'static str,
    set: Set<Given>,
    default: Option<&'static str>,
    help: &'static str,
) -> Row<Given> {
    Row::new(Scope::Create, name, set, default, help)
}

#[rustfmt::skip]
impl Table for Given {
    const ROWS: &'static [Row<Self>] = &[
        row("backing_file", Name(|o, file| o.backing_file = Some(file.into())), None, "File name of a base image"),
        row("backing_fmt", Text(|o, word| keep(&mut o.backing_format, word)), None, "Image format of the base image"),
        row("cluster_size", Size(|o, bytes| o.cluster_size = Some(bytes)), Some("65536"), "qcow2 cluster size"),
        row("compat", Text(|o, word| keep(&mut o.compat, word)), Some("1.1"), "Compatibility level (v2 [0.10] or v3 [1.1])"),
        row("compression_type", Text(|o, word| keep(&mut o.compression_type, word)), Some("zlib"), "Compression method used for image cluster compression"),
        row("data_file", Name(|o, file| o.data_file = Some(without_prefix(file))), None, "File name of an external data file"),
        row("data_file_raw", Bool(|o, on| o.data_file_raw = on), Some("off"), "The external data file must stay valid as a raw image"),
        row("encrypt.cipher-alg", Text(|o, word| keep(&mut o.encryption.luks.cipher_alg, word)), None, "Name of encryption cipher algorithm"),
        row("encrypt.cipher-mode", Text(|o, word| keep(&mut o.encryption.luks.cipher_mode, word)), None, "Name of encryption cipher mode"),
        row("encrypt.format", Text(|o, word| keep(&mut o.encryption.format, word)), None, "Encrypt the image, format choices: 'aes', 'luks'"),
        row("encrypt.hash-alg", Text(|o, word| keep(&mut o.encryption.luks.hash_alg, word)), None, "Name of encryption hash algorithm"),
        row("encrypt.iter-time", Number(|o, ms| keep(&mut o.encryption.luks.iter_time, ms)), None, "Time to spend in PBKDF in milliseconds"),
        row("encrypt.ivgen-alg", Text(|o, word| keep(&mut o.encryption.luks.ivgen_alg, word)), None, "Name of IV generator algorithm"),
        row("encrypt.ivgen-hash-alg", Text(|o, word| keep(&mut o.encryption.luks.ivgen_hash_alg, word)), None, "Name of IV generator hash algorithm"),
        row("encrypt.key-secret", Text(|o, word| keep(&mut o.encryption.secret, word)), None, "ID of secret providing qcow AES key or LUKS passphrase"),
        row("encryption", Bool(|o, on| o.encryption.alias = Some(on)), Some("off"), "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)"),
        row("extended_l2", Bool(|o, on| o.extended_l2 = on), Some("off"), "Extended L2 tables"),
        row("lazy_refcounts", Bool(|o, on| o.lazy_refcounts = on), Some("off"), "Postpone refcount updates"),
        row("preallocation", Text(|o, word| keep(&mut o.preallocation, word)), Some("off"), "Preallocation mode (allowed values: off, metadata, falloc, full)"),
        row("refcount_bits", Number(|o, bits| keep(&mut o.refcount_bits, bits)), Some("16"), "Width of a reference count entry in bits"),
        row("size", Size(|o, bytes| o.size = Some(bytes)), None, "Virtual disk size"),
    ];
}

/// Keeps a value as given; its rules are checked later.
pub(super) fn keep<V, G: Into<V>>(field: &mut Option<V>, value: G) -> Result<()> {
    *field = Some(value.into());
    Ok(())
}

/// The prefix is the option's, as in the reference implementation: what is recorded is a file's name.
fn without_prefix(file: &OsStr) -> OsString {
    let bytes = file.as_bytes();
    OsStr::from_bytes(bytes.strip_prefix(b"file:").unwrap_or(bytes)).into()
}

/// Whether a new image has an option called `name`.
pub(super) fn is_create_option(name: &str) -> bool {
    has::<Given>(name)
}

impl CreateOptions {
    /// Options from `key=value` strings, checked one by one and together.
    pub fn parse<O: AsRef<OsStr>>(options: &[O]) -> Result<CreateOptions> {
        let mut given = Given::default();
        for option in options {
            let unknown = |key: &str| Error::invalid(format!("Invalid parameter '{key}'"));
            assign(&mut given, option.as_ref(), unknown)?;
        }
        let parsed = CreateOptions::from_given(given)?;
        parsed.validate()?;
        Ok(parsed)
    }

    fn from_given(given: Given) -> Result<CreateOptions> {
        let mut parsed = CreateOptions {
            size: given.size,
            lazy_refcounts: given.lazy_refcounts,
            extended_l2: given.extended_l2,
            data_file: given.data_file,
            data_file_raw: given.data_file_raw,
            backing_file: given.backing_file,
            ..CreateOptions::default()
        };
        match given.compat.as_deref() {
            Some("0.10" | "v2") => parsed.version = 2,
            Some("1.1" | "v3") | None => {}
            Some(word) => return Err(not_accepted("version", word)),
        }
        if let Some(word) = given.backing_format {
            CreateOptions::check_backing_format(&word)?;
            parsed.backing_format = Some(word);
        }
        parsed.encryption = given.encryption.read()?;
        if let Some(word) = given.preallocation {
            parsed.preallocation = Preallocation::parse(&word)?;
        }
        if let Some(bytes) = given.cluster_size {
            parsed.cluster_bits = cluster_bits(bytes)?;
        }
        match given.compression_type.as_deref() {
            Some("zlib") | None => {}
            Some("zstd") => parsed.zstd = true,
            Some(word) => return Err(not_accepted("compression-type", word)),
        }
        // The rules on combinations come before the width, as in the stock tool.
        if let Some(bits) = given.refcount_bits {
            parsed.check_combinations()?;
            parsed.refcount_order = refcount_order(bits)?;
        }
        Ok(parsed)
    }

    fn check_combinations(&self) -> Result<()> {
        if self.backing_file.as_deref().is_some_and(OsStr::is_empty) {
            return Err(Error::invalid("Expected backing file name, got empty string"));
        }
        if self.backing_file.is_some() && self.backing_format.is_none() {
            return Err(Error::invalid("Backing file specified without backing format"));
        }
        if self.backing_file.is_none() && self.backing_format.is_some() {
            return Err(Error::invalid("Backing format cannot be used without backing file"));
        }
        if self.backing_file.is_some() && self.preallocation != Preallocation::Off && !self.extended_l2 {
            return Err(Error::invalid(
                "Backing file and preallocation can only be used at the same time if extended_l2 is on",
            ));
        }
        if self.extended_l2 && self.version < 3 {
            return Err(needs_v3(
                "Extended L2 entries are only supported with compatibility level 1.1 and above",
            ));
        }
        if self.extended_l2 && self.cluster_bits < MIN_EXTENDED_CLUSTER_BITS {
            return Err(Error::invalid(
                "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes",
            ));
        }
        if self.version < 3 && self.lazy_refcounts {
            return Err(needs_v3("Lazy refcounts only supported with compatibility level 1.1 and above"));
        }
        Ok(())
    }

    fn check_data_file(&self) -> Result<()> {
        if self.data_file.is_none() && self.data_file_raw {
            return Err(Error::invalid("data-file-raw requires data-file"));
        }
        if self.data_file_raw && self.backing_file.is_some() {
            return Err(Error::invalid("Backing file and data-file-raw cannot be used at the same time"));
        }
        if self.data_file.is_some() && self.version < 3 {
            return Err(needs_v3(
                "External data files are only supported with compatibility level 1.1 and above",
            ));
        }
        match &self.data_file {
            Some(name) if name.is_empty() => Err(Error::invalid("Expected data file name, got empty string")),
            _ => Ok(()),
        }
    }

    fn check_encryption(&self) -> Result<()> {
        let Some(encryption) = &self.encryption else { return Ok(()) };
        if let NewMethod::Luks(luks) = &encryption.method {
            luks.spec.check()?;
        }
        if self.data_file_raw {
            let text = "data_file_raw=on and encryption: what is stored is not what the disk shows";
            return Err(Error::unsupported(text).about_option("data_file_raw"));
        }
        if self.version < 3 && self.preallocation != Preallocation::Off {
            // Its entries cannot say zero, and zeroes of the host are none.
            let text = "preallocation of an encrypted image needs version 3";
            return Err(Error::unsupported(text).about_option("preallocation"));
        }
        Ok(())
    }

    /// How much is allocated: a raw data file has no holes that only the tables know of.
    pub fn preallocation_in_force(&self) -> Preallocation {
        match self.preallocation {
            Preallocation::Off if self.data_file_raw => Preallocation::Metadata,
            asked => asked,
        }
    }

    /// Fails unless `word` names a format that a header may record.
    pub fn check_backing_format(word: &str) -> Result<()> {
        match BACKING_FORMATS.contains(&word) {
            true => Ok(()),
            false => Err(not_accepted("backing-fmt", word)),
        }
    }

    /// Checks every field, for options that were not parsed but filled in.
    pub fn validate(&self) -> Result<()> {
        if !(2..=3).contains(&self.version) {
            return Err(not_accepted("version", &self.version.to_string()));
        }
        cluster_bits(1u64.checked_shl(self.cluster_bits).unwrap_or(0))?;
        self.check_combinations()?;
        refcount_order(1u64.checked_shl(self.refcount_order).unwrap_or(0))?;
        if self.version < 3 && self.refcount_order != 4 {
            return Err(needs_v3(
                "Different refcount widths than 16 bits require compatibility level 1.1 or above",
            ));
        }
        self.check_data_file()?;
        self.check_encryption()?;
        if self.version < 3 && self.zstd {
            return Err(needs_v3(
                "Non-zlib compression type is only supported with compatibility level 1.1 and above",
            ));
        }
        Ok(())
    }

    /// The geometry of the image to be.
    pub fn geometry(&self) -> Geometry {
        Geometry {
            version: self.version,
            cluster_bits: self.cluster_bits,
            refcount_order: self.refcount_order,
            extended_l2: self.extended_l2,
            external_data: self.data_file.is_some(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(options: &[&str]) -> String {
        CreateOptions::parse(options).unwrap_err().to_string()
    }

    #[test]
    fn options_arrive_in_their_fields() {
        let parsed = CreateOptions::parse(&[
            "size=1G",
            "compat=v3",
            "cluster_size=4k",
            "refcount_bits=1",
            "lazy_refcounts",
            "backing_file=a,b=c.img",
            "backing_fmt=qcow2",
            "extended_l2=off",
            "compression_type=zlib",
        ])
        .unwrap();
        assert_eq!(
            parsed,
            CreateOptions {
                size: Some(1 << 30),
                cluster_bits: 12,
                refcount_order: 0,
                lazy_refcounts: true,
                backing_file: Some("a,b=c.img".into()),
                backing_format: Some("qcow2".into()),
                ..CreateOptions::default()
            }
        );
        assert_eq!(CreateOptions::parse(&["compat=0.10"]).unwrap().version, 2);
        assert!(!CreateOptions::parse(&["lazy_refcounts=on", "nolazy_refcounts"]).unwrap().lazy_refcounts);
        let twice = CreateOptions::parse(&["cluster_size=4k", "cluster_size=8k"]).unwrap();
        assert_eq!(twice.cluster_bits, 13);
    }

    #[test]
    fn refusals_of_encryption_in_the_words_of_the_stock_tool() {
        let cases: &[(&[&str], &str)] = &[
            (&["encrypt.format=foo"], "Parameter 'format' does not accept value 'foo'"),
            (&["encrypt.key-secret=s"], "Parameter 'encrypt.format' is missing"),
            (&["encrypt.iter-time=1"], "Parameter 'encrypt.format' is missing"),
            (&["encrypt.iter-time=x"], "Parameter 'encrypt.iter-time' expects a number"),
            (
                &["encrypt.format=aes", "encrypt.cipher-alg=aes-128"],
                "Parameter 'encrypt.cipher-alg' is unexpected",
            ),
            (
                &["encryption=on", "encrypt.format=aes"],
                "'encrypt.format' and its alias 'encryption' can't be used at the same time",
            ),
        ];
        for (options, text) in cases {
            assert_eq!(refused(options), *text, "{options:?}");
        }
    }

    #[test]
    fn refusals_in_the_words_of_the_stock_tool() {
        let size = "Cluster size must be a power of two between 512 and 2048k";
        let width = "Refcount width must be a power of two and may not exceed 64 bits";
        let cases: &[(&[&str], &str)] = &[
            (&["foo=1"], "Invalid parameter 'foo'"),
            (&["=4"], "Invalid parameter ''"),
            (&["cluster-size=64k"], "Invalid parameter 'cluster-size' [here it is spelled 'cluster_size']"),
            (&["lazy_refcounts=maybe"], "Parameter 'lazy_refcounts' expects 'on' or 'off'"),
            (&["cluster_size=3000"], size),
            (&["cluster_size=0"], size),
            (&["cluster_size=256"], size),
            (&["cluster_size=4M"], size),
            (&["cluster_size=1E"], size),
            (&["refcount_bits=3"], width),
            (&["refcount_bits=0"], width),
            (&["refcount_bits=128"], width),
            (&["refcount_bits=-1"], width),
            (&["compat=0.9"], "Parameter 'version' does not accept value '0.9'"),
            (&["preallocation=foo"], "Parameter 'preallocation' does not accept value 'foo'"),
            (&["backing_file=x"], "Backing file specified without backing format"),
            (&["backing_file="], "Expected backing file name, got empty string"),
            (&["backing_fmt=raw"], "Backing format cannot be used without backing file"),
            (&["backing_fmt="], "Parameter 'backing-fmt' does not accept value ''"),
            (&["backing_file=x", "backing_fmt=foo"], "Parameter 'backing-fmt' does not accept value 'foo'"),
            (
                &["backing_file=x", "backing_fmt=raw", "preallocation=full", "compat=v2", "lazy_refcounts=on"],
                "Backing file and preallocation can only be used at the same time if extended_l2 is on",
            ),
            (
                &["refcount_bits=3", "compat=0.10", "lazy_refcounts=on"],
                "Lazy refcounts only supported with compatibility level 1.1 and above (use version=v3 or greater)",
            ),
            (&["refcount_bits=3", "compat=0.10", "lazy_refcounts=on", "cluster_size=3000"], size),
            (
                &["refcount_bits=8", "compat=0.10"],
                "Different refcount widths than 16 bits require compatibility level 1.1 or above \
                 (use version=v3 or greater)",
            ),
            (&["compression_type=foo"], "Parameter 'compression-type' does not accept value 'foo'"),
            (
                &["extended_l2=on", "cluster_size=8k"],
                "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes",
            ),
        ];
        for (options, text) in cases {
            assert_eq!(refused(options), *text, "{options:?}");
        }
    }
}
