//! The check of an open image, and the repair of a dirty one before its first request.

use super::check::{check, CheckOptions, CheckReport, Findings};
use crate::disk::Disk;
use crate::error::{Error, ErrorKind, Result};
use crate::format::features::INCOMPAT_DIRTY;
use crate::image::Image;
use crate::meta::read_header;
use crate::storage::Storage;
use std::sync::Arc;

/// Repairs a dirty image. The dirty bit goes last, after the counts.
pub(super) fn repair(
    storage: &dyn Storage,
    options: CheckOptions,
    findings: Option<Findings<'_>>,
) -> Result<CheckReport> {
    sync_before_repair(storage)?;
    let report = check(storage, options, findings, &mut |_, _| true)?;
    let (now, _) = read_header(storage)?;
    if now.incompatible & INCOMPAT_DIRTY != 0 {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!(
                "Could not repair dirty image ({} corruptions, {} check errors left)",
                report.corruptions, report.check_errors
            ),
        ));
    }
    Ok(report)
}

/// Checks an open image, and repairs it when asked. Requests wait; caches are dropped.
pub(super) fn check_image(
    disk: &Disk,
    options: CheckOptions,
    findings: Option<Findings<'_>>,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<CheckReport> {
    let image = Image::of(disk, "checks")?;
    let repairs = options.repair_leaks || options.repair_errors;
    let alone = image.exclusive();
    let core = alone.core();
    core.check_active()?;
    if repairs && core.is_read_only() {
        return Err(Error::new(ErrorKind::ReadOnly, "repairing needs a writable open"));
    }
    match repairs {
        // A repair may change what they are stored in.
        true => {
            alone.settle_with_bitmaps()?;
            alone.forget_bitmaps();
        }
        false => alone.settle()?,
    }
    let storage = Arc::clone(core.storage());
    if !repairs {
        return check(&*storage, options, findings, progress);
    }
    let report = sync_before_repair(&*storage).and_then(|()| check(&*storage, options, findings, progress));
    match report {
        Err(e) if e.is_failed_sync() => Err(core.give_up(e)),
        report => alone.reload_from(storage, core.settings().clone()).and(report),
    }
}

/// What a killed writer left may be in the host's cache only: a repair that reuses clusters because of it must
/// not become durable before it.
fn sync_before_repair(storage: &dyn Storage) -> Result<()> {
    storage.sync().map_err(|e| Error::failed_sync("sync before a repair", &e))
}
