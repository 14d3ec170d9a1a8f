//! Table pages in memory, the one place that writes them, and the guard against writing over them.
//!
//! Called by `alloc` (header, refcount table) and `map` (L1, L2). Knows neither guests nor free clusters.

pub(crate) mod bitmap_directory;
pub mod cache;
mod dirty_list;
pub mod guard;
pub mod header_page;
pub mod page;
mod release;
pub(crate) mod snapshot_table;
mod write_out;

pub use cache::{Access, SliceCache};
pub use dirty_list::InFlight;
pub use guard::OverlapGuard;
pub use header_page::{read_header, HeaderPage};
pub use page::{DirtyPages, Page};
pub use release::Release;
pub use write_out::WriteOut;

use crate::error::Result;
use crate::storage::medium::Ticket;

/// What a page write-out needs from the layer that owns the clusters.
pub trait Settler: Send + Sync {
    /// Makes every ticket taken so far past: writes dirty refcount blocks (eager images) and syncs.
    fn advance(&self) -> Result<()>;
    /// Takes what written pages let go of; counts may fall once `ticket` is past (rule R3).
    fn settle_after(&self, ticket: Ticket, releases: Vec<Release>);
}
