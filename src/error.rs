//! The one error type: a frozen kind (one errno each), a text that names structure, index, value and
//! rule, and nothing else. Used by every layer; turned into `-errno` and `qcow2_last_error()` by `capi`.

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
            ErrorKind::Loop => libc::ELOOP,
            ErrorKind::Host(errno) => errno,
        }
    }
}

/// An error with its kind and a complete sentence for the user.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", told.text)]
pub struct Error {
    kind: ErrorKind,
    /// In a box of its own: results are passed up through many functions, errors are rare.
    told: Box<Told>,
}

#[derive(Clone, Debug)]
struct Told {
    text: Box<str>,
    failed_sync: bool,
}

impl Error {
    /// An error of `kind` with the text for the user.
    pub fn new(kind: ErrorKind, text: impl Into<String>) -> Self {
        Error { kind, told: Box::new(Told { text: text.into().into_boxed_str(), failed_sync: false }) }
    }

    /// A broken rule of the format: which structure, where in it, what it holds, what it should.
    pub fn corrupt(
        structure: impl fmt::Display,
        index: impl fmt::Display,
        value: u64,
        rule: impl fmt::Display,
    ) -> Self {
        Error::new(ErrorKind::Corrupt, format!("{structure} {index}: value {value:#x}: {rule}"))
    }

    /// An option or argument outside its range.
    pub fn invalid(text: impl Into<String>) -> Self {
        Error::new(ErrorKind::Invalid, text)
    }

    /// Something this build or image cannot do.
    pub fn unsupported(text: impl Into<String>) -> Self {
        Error::new(ErrorKind::Unsupported, text)
    }

    /// A host error while doing `what`.
    pub fn host(what: impl fmt::Display, error: &io::Error) -> Self {
        // Said by the storage itself.
        if let (Some(own), io::ErrorKind::InvalidInput) = (error.get_ref(), error.kind()) {
            return Error::new(ErrorKind::Host(libc::EINVAL), format!("{what}: {own}"));
        }
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        let name = io::Error::from_raw_os_error(errno);
        let name = name.to_string();
        let name = name.split(" (os error").next().unwrap_or_default();
        Error::new(ErrorKind::Host(errno), format!("{what}: {name}"))
    }

    /// A sync that failed: the host may have dropped what was written before it, and a second one says nothing.
    pub fn failed_sync(what: impl fmt::Display, error: &io::Error) -> Self {
        let mut failed = Error::host(what, error);
        failed.told.failed_sync = true;
        failed
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

    /// The same error with the file that it is about among its details, which stand in brackets at the end.
    pub fn in_file(self, path: impl fmt::Display) -> Self {
        if self.told.text.ends_with("']") && self.told.text.contains("in '") {
            return self; // a file further down
        }
        let text = match self.told.text.strip_suffix(']') {
            Some(text) if text.contains(" [") => format!("{text}, in '{path}']"),
            _ => format!("{} [in '{path}']", self.told.text),
        };
        self.with_text(text)
    }

    /// The same error with `prefix: ` before its text.
    pub fn within(self, prefix: impl fmt::Display) -> Self {
        let text = format!("{prefix}: {}", self.told.text);
        self.with_text(text)
    }

    fn with_text(mut self, text: String) -> Self {
        self.told.text = text.into_boxed_str();
        self
    }
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
