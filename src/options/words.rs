//! The words that are values of open options, and what they mean.

use crate::error::{Error, Result};
use crate::format::Structure;

/// What stands between a write and the disk, in the stock tools' words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheMode {
    /// Host page cache; durable after a flush.
    #[default]
    Writeback,
    /// Host page cache; every write is durable when it returns.
    Writethrough,
    /// No host page cache (O_DIRECT); durable after a flush.
    None,
    /// No host page cache; every write is durable when it returns.
    DirectSync,
    /// Host page cache; flushes do nothing.
    Unsafe,
}

impl CacheMode {
    /// The mode called `word`.
    pub fn parse(word: &str) -> Result<CacheMode> {
        match word {
            "writeback" => Ok(CacheMode::Writeback),
            "writethrough" => Ok(CacheMode::Writethrough),
            "none" | "off" => Ok(CacheMode::None),
            "directsync" => Ok(CacheMode::DirectSync),
            "unsafe" => Ok(CacheMode::Unsafe),
            _ => Err(Error::invalid(format!("Invalid cache option: {word}"))),
        }
    }

    /// Files are opened with O_DIRECT.
    pub fn direct(self) -> bool {
        matches!(self, CacheMode::None | CacheMode::DirectSync)
    }

    /// Every write carries a flush.
    pub fn sync_each_write(self) -> bool {
        matches!(self, CacheMode::Writethrough | CacheMode::DirectSync)
    }

    /// Syncs are left out.
    pub fn no_sync(self) -> bool {
        self == CacheMode::Unsafe
    }
}

/// What a guest's discard does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Discard {
    /// Nothing.
    Ignore,
    /// Unmaps guest clusters.
    #[default]
    Unmap,
}

impl Discard {
    /// The mode called `word`.
    pub fn parse(word: &str) -> Result<Discard> {
        match word {
            "unmap" | "on" => Ok(Discard::Unmap),
            "ignore" | "off" => Ok(Discard::Ignore),
            _ => Err(Error::invalid("Invalid discard option")),
        }
    }
}

/// When an eager image raises refcounts before they are needed, so that a flush after an allocating write costs
/// what it costs in a lazy one. A handle that is killed then leaves up to one sector of counts as leaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RefcountsAhead {
    /// Never.
    Off,
    /// From the first flush on.
    On,
    /// Once the handle has flushed allocating writes a few times.
    #[default]
    Auto,
}

impl RefcountsAhead {
    /// The mode called `word`.
    pub fn parse(word: &str) -> Result<RefcountsAhead> {
        match word {
            "off" => Ok(RefcountsAhead::Off),
            "on" => Ok(RefcountsAhead::On),
            "auto" => Ok(RefcountsAhead::Auto),
            _ => Err(Error::invalid(format!("refcounts-ahead is '{word}': one of off, on, auto"))),
        }
    }

    /// Flushes with counts to write before counts are raised ahead; `None`: never.
    pub fn flushes_before(self) -> Option<u32> {
        match self {
            RefcountsAhead::Off => None,
            RefcountsAhead::On => Some(0),
            RefcountsAhead::Auto => Some(8),
        }
    }
}

/// What a write of zero bytes becomes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DetectZeroes {
    /// A write.
    #[default]
    Off,
    /// A write-zeroes request.
    On,
    /// A write-zeroes request that may give the host clusters back.
    Unmap,
}

impl DetectZeroes {
    /// The mode called `word`.
    pub fn parse(word: &str) -> Result<DetectZeroes> {
        match word {
            "off" => Ok(DetectZeroes::Off),
            "on" => Ok(DetectZeroes::On),
            "unmap" => Ok(DetectZeroes::Unmap),
            _ => Err(Error::invalid(format!("invalid parameter value: {word}"))),
        }
    }
}

/// A named set of overlap checks; each has the checks of those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum OverlapTemplate {
    /// No check.
    None,
    /// Checks in constant time.
    Constant,
    /// Checks that read nothing from the disk.
    #[default]
    Cached,
    /// Every check.
    All,
}

impl OverlapTemplate {
    /// The cheapest one that checks writes against `structure`.
    pub(super) fn least_with(structure: Structure) -> OverlapTemplate {
        match structure {
            Structure::Header
            | Structure::ActiveL1
            | Structure::RefcountTable
            | Structure::SnapshotTable
            | Structure::BitmapDirectory => OverlapTemplate::Constant,
            Structure::ActiveL2 | Structure::RefcountBlock | Structure::InactiveL1 => OverlapTemplate::Cached,
            Structure::InactiveL2 => OverlapTemplate::All,
        }
    }

    /// The template called `word`.
    pub fn parse(word: &str) -> Result<OverlapTemplate> {
        match word {
            "none" => Ok(OverlapTemplate::None),
            "constant" => Ok(OverlapTemplate::Constant),
            "cached" => Ok(OverlapTemplate::Cached),
            "all" => Ok(OverlapTemplate::All),
            _ => Err(Error::invalid(format!(
                "Unsupported value '{word}' for qcow2 option 'overlap-check'. \
                 Allowed are any of the following: none, constant, cached, all"
            ))),
        }
    }

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            OverlapTemplate::None => "none",
            OverlapTemplate::Constant => "constant",
            OverlapTemplate::Cached => "cached",
            OverlapTemplate::All => "all",
        }
    }
}

/// The structures that are checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OverlapSet(u16);

impl OverlapSet {
    /// The structures for which `checked` says yes.
    pub(super) fn of(checked: impl Fn(Structure) -> bool) -> OverlapSet {
        let bits = Structure::ALL.into_iter().filter(|p| checked(*p)).map(|p| 1 << p as u8);
        OverlapSet(bits.fold(0, |set, bit| set | bit))
    }

    /// Whether writes are checked against `structure`.
    pub fn contains(self, structure: Structure) -> bool {
        self.0 & (1 << structure as u8) != 0
    }

    /// Whether nothing is checked.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}
