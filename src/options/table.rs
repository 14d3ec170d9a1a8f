//! Tables of options. A row says an option's name, type, default and help, and how its value reaches its field: a row
//! without its setter does not compile, and no setter knows another row's field.

use super::parse::{parse_bool, parse_number, parse_size};
use crate::error::{Error, Result};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Where an option is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Creating an image.
    Create,
    /// Opening one; with `runtime` also while it is open.
    Open,
    /// Amending one that is open.
    Amend,
    /// Creating a plain LUKS file.
    CreateLuks,
    /// Amending one that is open.
    AmendLuks,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Scope; 5] =
        [Scope::Create, Scope::Open, Scope::Amend, Scope::CreateLuks, Scope::AmendLuks];
}

/// What a value looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Bytes, with suffixes.
    Size,
    /// on or off.
    Bool,
    /// Text, or one word of a list.
    Text,
    /// The name of a file or of a snapshot: any bytes.
    Name,
    /// A whole number.
    Number,
}

impl Kind {
    /// The name that `-o help` prints.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Size => "size",
            Kind::Bool => "bool (on/off)",
            Kind::Text | Kind::Name => "str",
            Kind::Number => "num",
        }
    }
}

/// What a user is told about an option.
#[derive(Clone, Copy, Debug)]
pub struct OptionInfo {
    /// The key.
    pub name: &'static str,
    /// What its value looks like.
    pub kind: Kind,
    /// The value in force when it is not given; `None` when that depends on the image or on other options.
    pub default: Option<&'static str>,
    /// One line for a user.
    pub help: &'static str,
    /// Where it is valid.
    pub scope: Scope,
    /// It may change while the image is open.
    pub runtime: bool,
}

/// Most threads of one request.
const MAX_THREADS: u32 = 64;

/// How a value reaches its field of `T`; it is of the type that the setter takes.
pub(super) enum Set<T> {
    Size(fn(&mut T, u64)),
    Bool(fn(&mut T, bool)),
    /// Negative numbers wrap; every setter has an upper limit that refuses them.
    Number(fn(&mut T, u64) -> Result<()>),
    /// The field of a number from 1 to `MAX_THREADS`.
    Threads(fn(&mut T) -> &mut u32),
    Text(fn(&mut T, &str) -> Result<()>),
    Name(fn(&mut T, &OsStr)),
}

impl<T> Set<T> {
    const fn kind(&self) -> Kind {
        match self {
            Set::Size(_) => Kind::Size,
            Set::Bool(_) => Kind::Bool,
            Set::Number(_) | Set::Threads(_) => Kind::Number,
            Set::Text(_) => Kind::Text,
            Set::Name(_) => Kind::Name,
        }
    }
}

/// One option of `T`.
pub(super) struct Row<T: 'static> {
    pub(super) info: OptionInfo,
    set: Set<T>,
}

/// Options that come from a table, in the order of `-o help`.
pub(super) trait Table: Sized + 'static {
    const ROWS: &'static [Row<Self>];
}

impl<T> Row<T> {
    pub(super) const fn new(
        scope: Scope,
        name: &'static str,
        set: Set<T>,
        default: Option<&'static str>,
        help: &'static str,
    ) -> Self {
        let runtime = !matches!(scope, Scope::Create | Scope::CreateLuks);
        Row { info: OptionInfo { name, kind: set.kind(), default, help, scope, runtime }, set }
    }

    /// An option that stays as it was at open.
    pub(super) const fn fixed(mut self) -> Self {
        self.info.runtime = false;
        self
    }

    fn assign(&self, to: &mut T, value: &[u8]) -> Result<()> {
        let name = self.info.name;
        if let Set::Name(set) = self.set {
            set(to, OsStr::from_bytes(value));
            return Ok(());
        }
        let text = std::str::from_utf8(value)
            .map_err(|_| Error::invalid(format!("Parameter '{name}' is not text")))?;
        match self.set {
            Set::Size(set) => set(to, parse_size(name, text)?),
            Set::Bool(set) => set(to, parse_bool(name, text)?),
            Set::Number(set) => set(to, parse_number(name, text)?)?,
            Set::Threads(field) => *field(to) = threads(name, parse_number(name, text)?)?,
            Set::Text(set) => set(to, text)?,
            Set::Name(set) => set(to, OsStr::new(text)),
        }
        Ok(())
    }
}

fn threads(name: &str, number: u64) -> Result<u32> {
    let fits = u32::try_from(number).ok().filter(|t| (1..=MAX_THREADS).contains(t));
    fits.ok_or_else(|| Error::invalid(format!("{name} is {number}: 1 to {MAX_THREADS}")))
}

/// Whether `T` has an option called `name`.
pub(super) fn has<T: Table>(name: &str) -> bool {
    find::<T>(name).is_some()
}

fn find<T: Table>(name: &str) -> Option<&'static Row<T>> {
    T::ROWS.iter().find(|row| row.info.name == name)
}

/// Gives one option string, `key=value`, to the field that it is for. An unknown key is answered with `unknown(key)`.
pub(super) fn assign<T: Table>(
    to: &mut T,
    option: &OsStr,
    unknown: impl Fn(&str) -> Error,
) -> Result<&'static OptionInfo> {
    let mut parts = option.as_bytes().splitn(2, |b| *b == b'=');
    let key = String::from_utf8_lossy(parts.next().unwrap_or_default());
    let (key, value) = match (parts.next(), key.strip_prefix("no")) {
        (Some(value), _) => (&*key, value),
        (None, Some(rest)) if !has::<T>(&key) && has::<T>(rest) => (rest, &b"off"[..]),
        (None, _) => (&*key, &b"on"[..]),
    };
    let row = find(key).ok_or_else(|| with_hint::<T>(key, unknown(key)))?;
    row.assign(to, value).map_err(|e| e.about_option(row.info.name))?;
    Ok(&row.info)
}

/// Create and amend spell with underscores, open with dashes: who meant the other one is told.
fn with_hint<T: Table>(key: &str, error: Error) -> Error {
    let plain = |name: &str| name.replace('_', "-");
    match T::ROWS.iter().find(|row| plain(row.info.name) == plain(key)) {
        Some(meant) => error.detail(format!("here it is spelled '{}'", meant.info.name)),
        None => error,
    }
}
