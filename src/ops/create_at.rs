//! Creating an image in files: its own, and that of an external data file.
//!
//! Several may do so at one path. A file belongs to who has its lock while it has the name: the winner's image stays,
//! and who fails removes what it has made itself and nothing else.

use super::formats::Driver;
use super::keys::NewKeys;
use super::open::files::storage_at;
use super::open::{OpenFlags, Opening, Origin};
use super::secrets::Secrets;
use crate::error::{Error, Result};
use crate::options::{CreateOptions, OpenOptions};
use crate::storage::access::{Access, Identity};
use crate::storage::file::{FileOptions, FileStorage};
use crate::storage::{names, Storage};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

/// Creates an image at `origin`, in place of whatever is there, and its data file at `data_origin`, or where the options
/// say. The files are locked meanwhile. What an encrypted one needs of `secrets` is asked for before.
pub fn create_at(
    format: Driver,
    origin: &Origin,
    data_origin: Option<&Origin>,
    virtual_size: u64,
    options: &CreateOptions,
    secrets: &mut Secrets<'_>,
) -> Result<()> {
    options.validate()?;
    let named = match (&options.data_file, data_origin) {
        (Some(name), None) if names::protocol(name).is_some() => {
            return Err(Error::unsupported(format!(
                "data file name '{}' is not a file name",
                name.to_string_lossy()
            )));
        }
        (Some(name), None) => Some(Origin::Path(PathBuf::from(name))),
        _ => None,
    };
    let make = |encryption| NewKeys::make(encryption, &origin.shown(), secrets);
    let keys = options.encryption.as_ref().map(make).transpose()?;
    let image = NewFile::open(origin, Access::Write)?;
    let data = data_origin.or(named.as_ref()).map(|at| NewFile::open(at, Access::WriteData)).transpose()?;
    let beside = data.as_ref().map(|d| &*d.storage);
    format.create(&*image.storage, beside, virtual_size, options, keys.as_ref())?;
    image.keep();
    if let Some(data) = data {
        data.keep();
    }
    Ok(())
}

/// The size of a new image at `origin` that is given none: its backing file's, which is opened for that. A writer may
/// have it.
pub fn size_of_new(origin: &Origin, options: &CreateOptions) -> Result<u64> {
    let Some(name) = &options.backing_file else {
        return Err(Error::invalid("no size is given, and no backing file that has one"));
    };
    let Some(path) = names::resolve(name, origin.path()) else {
        let name = name.to_string_lossy();
        return Err(Error::invalid(format!(
            "no size is given, and the backing file '{name}' is none that can be asked"
        )));
    };
    let format = options.backing_format.as_deref().unwrap_or("none");
    let Ok(format) = Driver::by_name(format) else {
        return Err(Error::invalid(format!(
            "no size is given, and the backing file's format is none that can be opened: {format}"
        )));
    };
    let flags =
        OpenFlags { read_only: true, force_share: true, metadata_only: true, format, ..OpenFlags::default() };
    let mut opening = Opening {
        flags,
        options: OpenOptions::default(),
        resolver: None,
        messages: None,
        secrets: Default::default(),
    };
    let below = opening.open(&Origin::Path(path)).map_err(|e| e.within("Could not open backing file"))?;
    Ok(below.disk().length())
}

/// How often an open begins again because somebody beside it has put another file at the name.
const TRIES: usize = 100;

/// A file that is being made; removed when it is dropped, if it was made here.
struct NewFile {
    storage: Arc<dyn Storage>,
    /// Where it was made, and what: nobody else has had it since, for it is locked.
    made: Option<(PathBuf, Identity)>,
}

impl NewFile {
    fn open(origin: &Origin, access: Access) -> Result<NewFile> {
        let shown = origin.shown();
        match origin {
            Origin::Custom(storage) => Ok(NewFile { storage: Arc::clone(storage), made: None }),
            Origin::Descriptor(fd) => {
                let file = FileStorage::from_fd(*fd, WRITABLE).map_err(|e| could_not(&shown, &e))?;
                file.lock(access, &shown)?;
                Ok(NewFile { storage: Arc::new(file), made: None })
            }
            Origin::Uri(_) => Ok(NewFile { storage: storage_at(origin, WRITABLE)?, made: None }),
            Origin::Path(path) => Self::at_path(path, origin, access, &shown),
        }
    }

    fn at_path(path: &Path, origin: &Origin, access: Access, shown: &str) -> Result<NewFile> {
        for _ in 0..TRIES {
            let (file, made) = open_or_make(path).map_err(|e| could_not(shown, &e))?;
            // Who has the lock has the file, whoever made it.
            file.lock(access, shown)?;
            // A create that failed beside this one removes what it made: before it lets go of the lock.
            if file.identity().is_some() && file.identity() == origin.identity() {
                let made = made.zip(file.identity());
                return Ok(NewFile { storage: Arc::new(file), made });
            }
        }
        Err(could_not(shown, &io::Error::from_raw_os_error(libc::ESTALE)))
    }

    fn keep(mut self) {
        self.made = None;
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some((path, identity)) = &self.made {
            remove_only(path, *identity);
        }
    }
}

const WRITABLE: FileOptions = FileOptions { writable: true, create: false, direct: false, no_sync: false };

fn could_not(shown: &str, error: &io::Error) -> Error {
    Error::host(format_args!("Could not create '{shown}'"), error).about_file(shown)
}

/// Opens the file at `path`, or makes one there; with the name that it was made under. Of a link to nothing that is where
/// the link leads.
fn open_or_make(path: &Path) -> io::Result<(FileStorage, Option<PathBuf>)> {
    let mut at = path.to_owned();
    for _ in 0..TRIES {
        match FileStorage::open(&at, WRITABLE) {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
            done => return done.map(|file| (file, None)),
        }
        match FileStorage::create_new(&at, WRITABLE) {
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => {}
            done => return done.map(|file| (file, Some(at))),
        }
        // A link, or somebody was faster.
        if let Ok(leads_to) = std::fs::read_link(&at) {
            at = at.parent().unwrap_or(Path::new("")).join(leads_to);
        }
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP))
}

/// Removes a file by name, and nothing else that may have got the name meanwhile.
fn remove_only(path: &Path, identity: Identity) {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let is_it = |at: &Path| std::fs::symlink_metadata(at).is_ok_and(|m| Identity::of(&m) == identity);
    if !is_it(path) {
        return;
    }
    // There is no "remove if it is this one": between the look and the removal somebody may rename another file to the
    // name. So it gets a name that nobody else uses first, and there is time to look again.
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let aside = path.with_file_name(format!(".qcow2-{}-{number}", std::process::id()));
    if aside.symlink_metadata().is_ok() || std::fs::rename(path, &aside).is_err() {
        return;
    }
    if is_it(&aside) || std::fs::hard_link(&aside, path).is_ok() {
        let _ = std::fs::remove_file(&aside);
    } else if path.symlink_metadata().is_err() {
        let _ = std::fs::rename(&aside, path);
    }
}
