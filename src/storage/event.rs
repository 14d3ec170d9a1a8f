//! Named points of the engine, for who tests against faults: a storage is told what comes next, and may fail it.
//!
//! Most are told from the [`Purpose`] of a read or a write, by the storage that passes them on; the engine raises the
//! others ([`super::Storage::event`]) at points that are slow anyway. Names are those of the stock driver for faults.

use super::Purpose;
use std::ffi::CStr;

macro_rules! events {
    ($($(#[$about:meta])+ $name:ident = $text:literal,)+) => {
        /// What the engine is about to do.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Event {
            $($(#[$about])+ $name,)+
        }

        impl Event {
            /// Its name.
            pub fn name(self) -> &'static CStr {
                match self {
                    $(Event::$name => $text,)+
                }
            }
        }
    };
}

events! {
    /// Guest data is read.
    ReadData = c"read_aio",
    /// Guest data is written.
    WriteData = c"write_aio",
    /// A part of an L1 table is written.
    L1Update = c"l1_update",
    /// Room for a longer L1 table is looked for.
    L1GrowAlloc = c"l1_grow_alloc_table",
    /// The longer L1 table is written.
    L1GrowWrite = c"l1_grow_write_table",
    /// The header comes to name the longer L1 table.
    L1GrowActivate = c"l1_grow_activate_table",
    /// A part of an L2 table is read.
    L2Load = c"l2_load",
    /// A part of an L2 table is written.
    L2Update = c"l2_update",
    /// A new L2 table gets its contents.
    L2AllocWrite = c"l2_alloc_write",
    /// Clusters are looked for.
    ClusterAlloc = c"cluster_alloc",
    /// Room for compressed clusters is looked for.
    ClusterAllocBytes = c"cluster_alloc_bytes",
    /// Clusters have become free.
    ClusterFree = c"cluster_free",
    /// The refcount table is read.
    RefcountTableLoad = c"reftable_load",
    /// A part of the refcount table is written.
    RefcountTableUpdate = c"reftable_update",
    /// A longer refcount table is made.
    RefcountTableGrow = c"reftable_grow",
    /// A refcount block is read.
    RefcountBlockLoad = c"refblock_load",
    /// A part of a refcount block is written.
    RefcountBlockUpdate = c"refblock_update_part",
    /// A refcount block is missing.
    RefcountBlockAlloc = c"refblock_alloc",
    /// A new refcount block is written.
    RefcountBlockAllocWrite = c"refblock_alloc_write",
    /// The refcount table comes to name a new block.
    RefcountBlockHookup = c"refblock_alloc_hookup",
    /// The blocks of a longer refcount table are written.
    RefcountTableBlocks = c"refblock_alloc_write_blocks",
    /// The longer refcount table is written.
    RefcountTableWrite = c"refblock_alloc_write_table",
    /// The header comes to name the longer refcount table.
    RefcountTableSwitch = c"refblock_alloc_switch_table",
    /// The image lets go of everything that it holds.
    EmptyPrepare = c"empty_image_prepare",
    /// Compressed clusters are read.
    ReadCompressed = c"read_compressed",
    /// Compressed clusters are written.
    WriteCompressed = c"write_compressed",
    /// A flush begins.
    FlushToOs = c"flush_to_os",
    /// What a flush has written is made durable.
    FlushToDisk = c"flush_to_disk",
    /// VM state is read.
    VmStateLoad = c"vmstate_load",
    /// VM state is written.
    VmStateSave = c"vmstate_save",
}

impl Event {
    /// What a read for `purpose` is.
    pub fn of_read(purpose: Purpose) -> Option<Event> {
        match purpose {
            Purpose::Data => Some(Event::ReadData),
            Purpose::L2 => Some(Event::L2Load),
            Purpose::RefcountTable => Some(Event::RefcountTableLoad),
            Purpose::RefcountBlock => Some(Event::RefcountBlockLoad),
            _ => None,
        }
    }

    /// What a write for `purpose` is.
    pub fn of_write(purpose: Purpose) -> Option<Event> {
        match purpose {
            Purpose::Data => Some(Event::WriteData),
            Purpose::L1 => Some(Event::L1Update),
            Purpose::L2 => Some(Event::L2Update),
            Purpose::RefcountTable => Some(Event::RefcountTableUpdate),
            Purpose::RefcountBlock => Some(Event::RefcountBlockUpdate),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_and_a_write_of_one_purpose_are_told_apart() {
        for purpose in [Purpose::Data, Purpose::L2, Purpose::RefcountTable, Purpose::RefcountBlock] {
            let (read, write) = (Event::of_read(purpose), Event::of_write(purpose));
            assert!(read.is_some() && write.is_some() && read != write, "{purpose:?}");
        }
        assert_eq!(Event::of_write(Purpose::L2).map(Event::name), Some(c"l2_update"));
    }
}
