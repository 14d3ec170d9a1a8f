//! The one error type: a frozen kind (one errno each) and the parts of a sentence that names structure, index, value and
//! rule. Nobody takes the sentence apart: who needs a part asks for it. Used by every layer; turned into `-errno`,
//! `qcow2_last_error()` and `qcow2_last_error_detail()` by `capi`.

use std::fmt;
use std::io;

/// Result of every fallible engine call.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, one errno each. Frozen: kinds are added, never changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// An argument or option is outside its range: `EINVAL`.
    Invalid,
    /// The image or the host cannot do this: `ENOTSUP`.
    Unsupported,
    /// The image breaks a rule of the format: `EIO`, as the stock driver answers.
    Corrupt,
    /// The file is not a qcow2 image at all: `EMEDIUMTYPE`.
    NotQcow2,
    /// A guest range ends past the virtual disk: `EIO`, as the stock driver answers.
    PastEnd,
    /// A compressed write would overwrite a cluster: `EIO`, as the stock driver answers.
    Occupied,
    /// The handle is read-only: `EROFS`.
    ReadOnly,
    /// Somebody else holds the image: `EAGAIN`.
    Locked,
    /// The image is dirty and the caller asked not to repair: `EUCLEAN`.
    Dirty,
    /// The corrupt bit is set or has just been set; writes are refused: `EIO`, as the stock driver answers.
    MarkedCorrupt,
    /// An earlier sync failed, or a panic was caught; only reopening helps: `ENOTRECOVERABLE`.
    Latched,
    /// The handle belongs to another process (after `fork`): `EOWNERDEAD`.
    Forked,
    /// A size or table is over its limit: `EFBIG`.
    TooLarge,
    /// No memory for a bounded buffer: `ENOMEM`.
    NoMemory,
    /// A callback asked to stop: `ECANCELED`.
    Cancelled,
    /// The caller did not allow it: `EPERM`.
    NotAllowed,
    /// No such item: `ENOENT`.
    NotFound,
    /// The image is encrypted, and nobody has given a secret: `ENOKEY`.
    NoSecret,
    /// The secret opens no key slot: `EKEYREJECTED`.
    WrongSecret,
    /// A loop or too deep a chain of backing files: `ELOOP`.
    Loop,
    /// The host answered with this errno.
    Host(i32),
}

impl ErrorKind {
    /// The positive errno of this kind.
    pub fn errno(self) -> i32 {
        match self {
            ErrorKind::Invalid => libc::EINVAL,
            ErrorKind::NotQcow2 => libc::EMEDIUMTYPE,
            ErrorKind::Unsupported => libc::ENOTSUP,
            ErrorKind::Corrupt | ErrorKind::PastEnd | ErrorKind::Occupied | ErrorKind::MarkedCorrupt => {
                libc::EIO
            }
            ErrorKind::ReadOnly => libc::EROFS,
            ErrorKind::Locked => libc::EAGAIN,
            ErrorKind::Dirty => libc::EUCLEAN,
            ErrorKind::Latched => libc::ENOTRECOVERABLE,
            ErrorKind::Forked => libc::EOWNERDEAD,
            ErrorKind::TooLarge => libc::EFBIG,
            ErrorKind::NoMemory => libc::ENOMEM,
            ErrorKind::Cancelled => libc::ECANCELED,
            ErrorKind::NotAllowed => libc::EPERM,
            ErrorKind::NotFound => libc::ENOENT,
            ErrorKind::NoSecret => libc::ENOKEY,
            ErrorKind::WrongSecret => libc::EKEYREJECTED,
            ErrorKind::Loop => libc::ELOOP,
            ErrorKind::Host(errno) => errno,
        }
    }
}

/// An error: a kind for decisions, and parts that make a sentence for the user, `summary hint [detail]`.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{told}")]
pub struct Error {
    kind: ErrorKind,
    /// In a box of its own: results are passed up through many functions, errors are rare.
    told: Box<Told>,
}

/// A broken rule of the format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Which structure.
    pub structure: String,
    /// Where in it.
    pub index: String,
    /// What it holds.
    pub value: u64,
    /// What it should.
    pub rule: String,
}

/// What an error was made from.
#[derive(Clone, Debug)]
enum Cause {
    /// What the host said.
    Host(String),
    /// What went wrong below; its sentence is among the details.
    Below(Error),
}

#[derive(Clone, Debug, Default)]
struct Told {
    summary: String,
    hint: String,
    detail: Option<String>,
    broken: Option<Broken>,
    cause: Option<Cause>,
    /// The file that the summary or the hint is about, and names.
    named_file: Option<String>,
    /// The file that has what the error is about; it stands last among the details.
    in_file: Option<String>,
    option: Option<&'static str>,
    failed_sync: bool,
}

impl Told {
    /// What stands in brackets, in order.
    fn details(&self) -> String {
        let below = match &self.cause {
            Some(Cause::Below(error)) => Some(error.to_string()),
            _ => None,
        };
        let file = self.in_file.as_ref().map(|file| format!("in '{file}'"));
        let all: Vec<String> = [self.detail.clone(), below, file].into_iter().flatten().collect();
        all.join(", ")
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.summary, self.hint)?;
        match self.details() {
            details if details.is_empty() => Ok(()),
            details => write!(f, " [{details}]"),
        }
    }
}

impl Error {
    /// An error of `kind`; `summary` is what the stock tools say, where they have such an error.
    pub fn new(kind: ErrorKind, summary: impl Into<String>) -> Self {
        Error { kind, told: Box::new(Told { summary: summary.into(), ..Told::default() }) }
    }

    /// A broken rule of the format: which structure, where in it, what it holds, what it should.
    pub fn corrupt(
        structure: impl fmt::Display,
        index: impl fmt::Display,
        value: u64,
        rule: impl fmt::Display,
    ) -> Self {
        let mut error =
            Error::new(ErrorKind::Corrupt, format!("{structure} {index}: value {value:#x}: {rule}"));
        let (structure, index, rule) = (structure.to_string(), index.to_string(), rule.to_string());
        error.told.broken = Some(Broken { structure, index, value, rule });
        error
    }

    /// The same broken rule in the words that the stock tools have for it; ours go to the details.
    pub fn in_stock_words(mut self, summary: impl Into<String>) -> Self {
        self.told.detail = Some(std::mem::replace(&mut self.told.summary, summary.into()));
        self
    }

    /// An option or argument outside its range.
    pub fn invalid(summary: impl Into<String>) -> Self {
        Error::new(ErrorKind::Invalid, summary)
    }

    /// Something this build or image cannot do.
    pub fn unsupported(summary: impl Into<String>) -> Self {
        Error::new(ErrorKind::Unsupported, summary)
    }

    /// A host error while doing `what`.
    pub fn host(what: impl fmt::Display, error: &io::Error) -> Self {
        let (errno, said) = match (error.get_ref(), error.kind()) {
            // Said by the storage itself.
            (Some(own), io::ErrorKind::InvalidInput) => (libc::EINVAL, own.to_string()),
            _ => {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                (errno, errno_text(errno))
            }
        };
        let mut failed = Error::new(ErrorKind::Host(errno), format!("{what}: {said}"));
        failed.told.cause = Some(Cause::Host(said));
        failed
    }

    /// A sync that failed: the host may have dropped what was written before it, and a second one says nothing.
    pub fn failed_sync(what: impl fmt::Display, error: &io::Error) -> Self {
        let mut failed = Error::host(what, error);
        failed.told.failed_sync = true;
        failed
    }

    /// What may help: it follows the summary at once, as a line of its own ("\n...") or in parentheses (" (...)").
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.told.hint = hint.into();
        self
    }

    /// What the stock tools do not say: where, what is there, what the limit is.
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.told.detail = Some(detail.into());
        self
    }

    /// What went wrong below, in the words that it had there.
    pub fn because(mut self, below: Error) -> Self {
        self.told.cause = Some(Cause::Below(below));
        self
    }

    /// The file that the summary or the hint names.
    pub fn about_file(mut self, path: impl fmt::Display) -> Self {
        self.told.named_file = Some(path.to_string());
        self
    }

    /// The option that it is about.
    pub fn about_option(mut self, name: &'static str) -> Self {
        self.told.option.get_or_insert(name);
        self
    }

    /// Says among the details which file the error is about, unless it is one further down.
    pub fn in_file(mut self, path: impl fmt::Display) -> Self {
        self.told.in_file.get_or_insert_with(|| path.to_string());
        self
    }

    /// The same error with `prefix: ` before its summary.
    pub fn within(mut self, prefix: impl fmt::Display) -> Self {
        self.told.summary = format!("{prefix}: {}", self.told.summary);
        self
    }

    /// What this error means further up: another kind and summary, the same parts.
    pub fn restated(mut self, kind: ErrorKind, restate: impl FnOnce(&str) -> String) -> Self {
        self.kind = kind;
        self.told.summary = restate(&self.told.summary);
        self.told.failed_sync = false;
        self
    }

    /// Whether it is a sync that failed.
    pub fn is_failed_sync(&self) -> bool {
        self.told.failed_sync
    }

    /// The kind, for decisions.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The positive errno.
    pub fn errno(&self) -> i32 {
        self.kind.errno()
    }

    /// The parts, for who shows them one by one.
    pub fn parts(&self) -> Parts<'_> {
        let told = &*self.told;
        Parts {
            summary: &told.summary,
            hint: &told.hint,
            detail: told.details(),
            file: told.named_file.as_deref().or(told.in_file.as_deref()),
            cause: told.cause.as_ref().map(|cause| match cause {
                Cause::Host(said) => said.clone(),
                Cause::Below(error) => error.to_string(),
            }),
            option: told.option,
            broken: told.broken.as_ref(),
        }
    }
}

/// The parts of an error's sentence. It is `summary`, `hint` and, in brackets, `detail`.
#[derive(Clone, Debug)]
pub struct Parts<'a> {
    /// What the stock tools say, where they have such an error.
    pub summary: &'a str,
    /// What may help, from its line break or parenthesis on; "" if nothing is known.
    pub hint: &'a str,
    /// What stands in brackets; "" if nothing.
    pub detail: String,
    /// The file that the error is about.
    pub file: Option<&'a str>,
    /// What the host said, or the sentence of the error below.
    pub cause: Option<String>,
    /// The option that is refused.
    pub option: Option<&'static str>,
    /// The rule of the format that is broken.
    pub broken: Option<&'a Broken>,
}

/// A number as the stock tools print it in hexadecimal: 0 is plain.
pub(crate) fn stock_hex(value: u64) -> String {
    match value {
        0 => "0".into(),
        _ => format!("{value:#x}"),
    }
}

/// The host's words for an errno.
fn errno_text(errno: i32) -> String {
    let name = io::Error::from_raw_os_error(errno).to_string();
    name.split(" (os error").next().unwrap_or_default().to_owned()
}

/// An empty vector with room for `items` items: what an image sizes and there is no memory for is an error, not the end
/// of the process. `what` is the structure that they are.
pub(crate) fn room<T>(what: impl fmt::Display, items: u64) -> Result<Vec<T>> {
    let mut room = Vec::new();
    let wanted = usize::try_from(items).unwrap_or(usize::MAX);
    room.try_reserve_exact(wanted).map_err(|_| {
        let bytes = items.saturating_mul(std::mem::size_of::<T>() as u64);
        Error::new(ErrorKind::NoMemory, format!("{what} of {bytes} bytes: no memory"))
    })?;
    Ok(room)
}

/// As `room`, filled with `bytes` zero bytes.
pub(crate) fn zeroed(what: impl fmt::Display, bytes: u64) -> Result<Vec<u8>> {
    let mut zeroes = room(what, bytes)?;
    zeroes.resize(bytes as usize, 0);
    Ok(zeroes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_stays_small() {
        assert!(std::mem::size_of::<Result<()>>() <= 16);
    }

    #[test]
    fn a_sentence_has_its_parts_in_order() {
        let error = Error::invalid("L1 table is too small").detail("l1_size 0, 1 needed");
        assert_eq!(error.to_string(), "L1 table is too small [l1_size 0, 1 needed]");
        let placed = error.clone().in_file("a").within("Could not open backing file");
        let sentence = "Could not open backing file: L1 table is too small [l1_size 0, 1 needed, in 'a']";
        assert_eq!(placed.to_string(), sentence);
        assert_eq!(placed.in_file("b").to_string(), sentence, "the file further down");
        let above = Error::new(ErrorKind::TooLarge, "File too large").because(error).in_file("x]");
        assert_eq!(
            above.to_string(),
            "File too large [L1 table is too small [l1_size 0, 1 needed], in 'x]']"
        );
        let asked =
            Error::new(ErrorKind::Locked, "no lock").hint("\nWho has it?").about_file("a").in_file("b");
        assert_eq!(asked.to_string(), "no lock\nWho has it? [in 'b']");
        assert_eq!(asked.parts().file, Some("a"));
    }

    #[test]
    fn a_restated_error_keeps_its_parts() {
        let host = io::Error::from_raw_os_error(libc::ENOSPC);
        let first = Error::failed_sync("sync", &host).detail("here");
        let later = first.restated(ErrorKind::Latched, |first| format!("no more: {first}"));
        assert_eq!(later.to_string(), "no more: sync: No space left on device [here]");
        assert_eq!(later.parts().cause.as_deref(), Some("No space left on device"));
        assert!(!later.is_failed_sync());
        let corrupt = Error::corrupt("L2 entry", 5, 0x10, "reserved bits are set").in_file("a");
        assert_eq!(corrupt.to_string(), "L2 entry 5: value 0x10: reserved bits are set [in 'a']");
        let broken = corrupt.parts().broken.unwrap().clone();
        assert_eq!((&*broken.structure, &*broken.index, broken.value), ("L2 entry", "5", 0x10));
    }
}
