//! The kinds of structures in an image file: the one list that the overlap check, its options and the messages follow.

/// A structure other than guest data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Structure {
    /// The header cluster.
    Header,
    /// The active L1 table.
    ActiveL1,
    /// The active L2 tables.
    ActiveL2,
    /// The refcount blocks.
    RefcountBlock,
    /// The refcount table.
    RefcountTable,
    /// The snapshot table.
    SnapshotTable,
    /// The L1 tables of snapshots.
    InactiveL1,
    /// The L2 tables of snapshots.
    InactiveL2,
    /// The bitmap directory.
    BitmapDirectory,
}

impl Structure {
    /// Every structure, each at the place that its number says.
    pub const ALL: [Structure; 9] = [
        Structure::Header,
        Structure::ActiveL1,
        Structure::ActiveL2,
        Structure::RefcountBlock,
        Structure::RefcountTable,
        Structure::SnapshotTable,
        Structure::InactiveL1,
        Structure::InactiveL2,
        Structure::BitmapDirectory,
    ];

    /// What messages call it, in the words of the reference implementation.
    pub const fn name(self) -> &'static str {
        match self {
            Structure::Header => "qcow2_header",
            Structure::ActiveL1 => "active L1 table",
            Structure::ActiveL2 => "active L2 table",
            Structure::RefcountBlock => "refcount block",
            Structure::RefcountTable => "refcount table",
            Structure::SnapshotTable => "snapshot table",
            Structure::InactiveL1 => "inactive L1 table",
            Structure::InactiveL2 => "inactive L2 table",
            Structure::BitmapDirectory => "bitmap directory",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_in_the_order_of_the_numbers() {
        for (place, structure) in Structure::ALL.into_iter().enumerate() {
            assert_eq!(structure as usize, place);
        }
    }
}
