//! What a header must obey: features that are known, and tables that are where and as large as they may be.

use super::{bad, Header, MAX_SNAPSHOTS};
use crate::error::{Error, ErrorKind, Result};
use crate::format::extensions;
use crate::format::features::*;
use crate::format::geometry::*;

fn too_large(summary: &str, detail: String) -> Error {
    Error::new(ErrorKind::TooLarge, summary).detail(detail)
}

impl Header {
    /// Features and values whose meaning we do not know: nobody may interpret such an image.
    pub(super) fn check_features(&self) -> Result<()> {
        let unknown = self.incompatible & !INCOMPAT_KNOWN;
        if unknown != 0 {
            let names = self.extension(extensions::FEATURE_NAMES).unwrap_or_default();
            let text = describe_unknown(unknown, names);
            return Err(Error::unsupported(format!("Unsupported qcow2 feature(s): {text}")));
        }
        if self.refcount_order > 6 {
            return Err(bad(
                "Reference count entry width too large; may not exceed 64 bits",
                format!("refcount_order {}, at most 6", self.refcount_order),
            ));
        }
        if self.compression_type > 1 {
            return Err(Error::unsupported(format!(
                "qcow2: unknown compression type: {}",
                self.compression_type
            )));
        }
        let typed = self.incompatible & INCOMPAT_COMPRESSION != 0;
        if typed != (self.compression_type != 0) {
            let must = if typed { "must not be set" } else { "must be set" };
            return Err(bad(
                format!("qcow2: Compression type incompatible feature bit {must}"),
                format!("compression type {}", self.compression_type),
            ));
        }
        if self.incompatible & INCOMPAT_EXTENDED_L2 != 0 && self.cluster_bits < MIN_EXTENDED_CLUSTER_BITS {
            return Err(bad(
                "extended L2 entries need clusters of at least 16 KiB",
                format!("cluster_bits {}", self.cluster_bits),
            ));
        }
        if self.crypt_method > 2 {
            return Err(Error::unsupported(format!(
                "Unsupported encryption method {}",
                self.crypt_method as i32
            )));
        }
        Ok(())
    }

    /// Checks that tables are where and as large as they may be, in the order of the stock driver. `for_check` leaves out
    /// what a repair can mend.
    pub fn check_tables(&self, for_check: bool) -> Result<()> {
        let geometry = self.geometry();
        let unaligned = |offset: u64| geometry.in_cluster(offset) != 0 || offset >= 1 << 63;
        self.check_refcount_table(&geometry, for_check)?;
        if self.snapshot_count > MAX_SNAPSHOTS && !for_check {
            return Err(too_large(
                "Snapshot table too large",
                format!("nb_snapshots {}, the limit is {MAX_SNAPSHOTS}", self.snapshot_count),
            ));
        }
        if self.snapshot_count > 0
            && (unaligned(self.snapshots_offset) || self.snapshots_offset >= MAX_HOST_OFFSET)
        {
            return Err(bad(
                "Snapshot table offset invalid",
                format!(
                    "snapshots_offset {:#x}, must be a multiple of the cluster size below 2^56",
                    self.snapshots_offset
                ),
            ));
        }
        if u64::from(self.l1_size) * 8 > MAX_L1_BYTES {
            return Err(too_large(
                "Active L1 table too large",
                format!("l1_size {}, the limit is {}", self.l1_size, MAX_L1_BYTES / 8),
            ));
        }
        if unaligned(self.l1_table_offset) || self.l1_table_offset >= MAX_HOST_OFFSET {
            return Err(bad(
                "Active L1 table offset invalid",
                format!(
                    "l1_table_offset {:#x}, must be a multiple of the cluster size below 2^56",
                    self.l1_table_offset
                ),
            ));
        }
        if self.virtual_size > geometry.max_virtual_size() {
            return Err(too_large(
                "Image is too big",
                format!("size {}, the limit is {}", self.virtual_size, geometry.max_virtual_size()),
            ));
        }
        let needed = geometry.l1_entries_for(self.virtual_size);
        if needed > u64::from(self.l1_size) {
            return Err(bad("L1 table is too small", format!("l1_size {}, {needed} needed", self.l1_size)));
        }
        Ok(())
    }

    fn check_refcount_table(&self, geometry: &Geometry, for_check: bool) -> Result<()> {
        let bytes = u64::from(self.refcount_table_clusters) << self.cluster_bits;
        if bytes > MAX_REFCOUNT_TABLE_BYTES {
            return Err(too_large(
                "Reference count table too large",
                format!(
                    "refcount_table_clusters {}, the limit is {MAX_REFCOUNT_TABLE_BYTES} bytes",
                    self.refcount_table_clusters
                ),
            ));
        }
        if self.refcount_table_clusters == 0 && !for_check {
            return Err(bad("Image does not contain a reference count table", "refcount_table_clusters 0"));
        }
        let offset = self.refcount_table_offset;
        if geometry.in_cluster(offset) != 0 || offset >= MAX_HOST_OFFSET {
            return Err(bad(
                "Reference count table offset invalid",
                format!(
                    "refcount_table_offset {offset:#x}, must be a multiple of the cluster size below 2^56"
                ),
            ));
        }
        Ok(())
    }
}
