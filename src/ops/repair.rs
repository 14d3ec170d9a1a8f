//! The repair of a dirty image before its first request.

use super::check::{check, CheckOptions, CheckReport, Messages};
use crate::error::{Error, ErrorKind, Result};
use crate::format::features::INCOMPAT_DIRTY;
use crate::meta::read_header;
use crate::storage::Storage;

/// Repairs a dirty image. The dirty bit goes last, after the counts.
pub(super) fn repair(
    storage: &dyn Storage,
    options: CheckOptions,
    messages: Option<Messages<'_>>,
) -> Result<CheckReport> {
    sync_before_repair(storage)?;
    let report = check(storage, options, messages, &mut |_, _| true)?;
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

/// What a killed writer left may be in the host's cache only: a repair that reuses clusters because of it must
/// not become durable before it.
pub(super) fn sync_before_repair(storage: &dyn Storage) -> Result<()> {
    storage.sync().map_err(|e| Error::failed_sync("sync before a repair", &e))
}
