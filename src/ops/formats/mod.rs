//! The formats that a disk can have: how a file of each is recognised, opened, made, repaired and given another size.
//!
//! A further format is a file that implements [`crate::disk::Format`] and [`Draft`], and a row here, among `ALL`.

use super::check::{CheckOptions, CheckReport, Findings};
use super::create::create_with;
use super::create::luks::create_luks;
use super::keys::NewKeys;
use super::measure::{measure, measure_luks, Measured};
use super::repair::{check_image, repair};
use super::resize::image::resize_image as resize_image_to;
use crate::disk::luks::LuksDisk;
use crate::disk::raw::RawDisk;
use crate::disk::{Disk, Draft, Settings};
use crate::error::{Error, Result};
use crate::image::Image;
use crate::options::{CreateOptions, Preallocation};
use crate::storage::Storage;
use std::ffi::OsStr;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// Reads what a file says of itself, and refuses one that is not of the format or not fit for the settings.
pub type Look = fn(Arc<dyn Storage>, Settings) -> Result<Box<dyn Draft>>;
/// Gives a disk another size, in bytes.
pub type Resize = fn(&Disk, u64, Preallocation) -> Result<()>;
/// Makes an empty disk of a size, in bytes, in a file and, where the options say so, in a data file.
pub type Create = fn(&dyn Storage, Option<&dyn Storage>, u64, &CreateOptions, Option<&NewKeys>) -> Result<()>;
/// Measures a file of a disk of a size, in bytes; with a source, one that takes its data.
pub type Measure = fn(u64, &CreateOptions, Option<&Disk>) -> Result<Measured>;
/// Options of a new disk from `key=value` strings.
pub type CreateOptionsOf = fn(&[&OsStr]) -> Result<CreateOptions>;
/// Checks an open disk, and repairs it when asked. The last parameter is told what is done, and of how much.
pub type Check =
    fn(&Disk, CheckOptions, Option<Findings<'_>>, &mut dyn FnMut(u64, u64) -> bool) -> Result<CheckReport>;
/// Makes a dirty file fit for writing.
pub type Repair = fn(&dyn Storage, CheckOptions, Option<Findings<'_>>) -> Result<CheckReport>;

/// What is known of a format.
pub struct Row {
    /// As images record it and users give it.
    pub name: &'static str,
    /// Whether a file that begins so has the format; `None`: it is never found by its bytes.
    pub begins_with: Option<fn(start: &[u8]) -> bool>,
    /// Looks at a file that is to be opened.
    pub draft: Look,
    /// `None`: none is made here.
    pub create: Option<Create>,
    /// How long the file of a new one gets; `None`: none is made here.
    pub measure: Option<Measure>,
    /// What the options of a new one say.
    pub create_options: CreateOptionsOf,
    /// `None`: nothing is there to check.
    pub check: Option<Check>,
    /// `None`: no file of it is ever dirty.
    pub repair: Option<Repair>,
    /// `None`: its size stays.
    pub resize: Option<Resize>,
}

static QCOW2: Row = Row {
    name: Image::NAME,
    begins_with: Some(Image::begins_with),
    draft: Image::draft,
    create: Some(create_with),
    measure: Some(measure),
    create_options: |list| CreateOptions::parse(list),
    check: Some(check_image),
    repair: Some(repair),
    resize: Some(resize_image),
};

static RAW: Row = Row {
    name: RawDisk::NAME,
    begins_with: None,
    draft: RawDisk::draft,
    create: None,
    measure: None,
    create_options: |list| CreateOptions::parse(list),
    check: None,
    repair: None,
    resize: Some(resize_raw),
};

static LUKS: Row = Row {
    name: LuksDisk::NAME,
    begins_with: Some(LuksDisk::begins_with),
    draft: LuksDisk::draft,
    create: Some(create_luks),
    measure: Some(measure_luks),
    create_options: |list| CreateOptions::parse_luks(list),
    check: None,
    repair: None,
    resize: Some(resize_luks),
};

/// A format.
#[derive(Clone, Copy)]
pub struct Driver(&'static Row);

impl Driver {
    /// The image format.
    pub const QCOW2: Driver = Driver(&QCOW2);
    /// A file whose bytes are the disk's.
    pub const RAW: Driver = Driver(&RAW);
    /// A plain LUKS1 file.
    pub const LUKS: Driver = Driver(&LUKS);
    /// Bytes at the start of a file that are enough to recognise any format.
    pub const START_BYTES: usize = Image::MAGIC_BYTES;
    const ALL: [Driver; 3] = [Driver::QCOW2, Driver::RAW, Driver::LUKS];

    /// A format of the caller's own.
    pub const fn new(row: &'static Row) -> Driver {
        Driver(row)
    }

    /// The format of this name.
    pub fn by_name(name: &str) -> Result<Driver> {
        let found = Driver::ALL.into_iter().find(|driver| driver.name == name);
        found.ok_or_else(|| Error::unsupported(format!("Unknown driver '{name}'")))
    }

    /// Makes an empty disk of a size, in bytes.
    pub fn create(
        self,
        storage: &dyn Storage,
        data_file: Option<&dyn Storage>,
        virtual_size: u64,
        options: &CreateOptions,
        keys: Option<&NewKeys>,
    ) -> Result<()> {
        match self.0.create {
            Some(create) => create(storage, data_file, virtual_size, options, keys),
            None => Err(Error::unsupported(format!(
                "Format driver '{}' does not support image creation",
                self.name
            ))),
        }
    }

    /// The format of a file that begins so, where its bytes tell.
    pub fn by_start(start: &[u8]) -> Option<Driver> {
        Driver::ALL
            .into_iter()
            .find(|driver| driver.begins_with.is_some_and(|begins_with| begins_with(start)))
    }
}

impl Deref for Driver {
    type Target = Row;

    fn deref(&self) -> &Row {
        self.0
    }
}

impl Default for Driver {
    fn default() -> Driver {
        Driver::QCOW2
    }
}

impl PartialEq for Driver {
    fn eq(&self, other: &Driver) -> bool {
        std::ptr::eq(self.0, other.0)
    }
}

impl Eq for Driver {}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

fn resize_image(disk: &Disk, size: u64, preallocation: Preallocation) -> Result<()> {
    if size % 512 != 0 {
        return Err(Error::invalid("The new size must be a multiple of 512"));
    }
    resize_image_to(&Image::of(disk, "size of its own")?.exclusive(), size, preallocation)
}

fn resize_raw(disk: &Disk, size: u64, preallocation: Preallocation) -> Result<()> {
    disk.need::<RawDisk>("size of its own")?.exclusive().resize(size, preallocation)
}

fn resize_luks(disk: &Disk, size: u64, preallocation: Preallocation) -> Result<()> {
    disk.need::<LuksDisk>("size of its own")?.exclusive().resize(size, preallocation)
}

#[cfg(test)]
mod tests;
