//! Classic mistakes that tests plant on purpose, to see that the test kit catches each of them.
//!
//! They exist with the feature `planted-bugs` only, which nothing that is shipped is built with: without it
//! [`planted`] is the constant `false`, and nothing of this file is left in the library. A process has one plant at
//! most, named by the environment variable `QCOW2_TEST_PLANT`. `tests/planted.rs` runs the kit with each.

use std::sync::atomic::Ordering;

macro_rules! plants {
    ($($(#[$about:meta])+ $name:ident,)+) => {
        /// A mistake that can be planted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Plant {
            $($(#[$about])+ $name,)+
        }

        #[cfg(feature = "planted-bugs")]
        impl Plant {
            /// All of them.
            pub const ALL: &[Plant] = &[$(Plant::$name,)+];
        }
    };
}

plants! {
    /// A pointer is written without a barrier before it.
    NoBarrierBeforePointer,
    /// A pointer does not wait for the contents of its target (R2).
    ContentsNotWaitedFor,
    /// A pointer does not wait for the length of the file.
    LengthNotWaitedFor,
    /// A barrier does not write refcount blocks (R1).
    CountsNotWritten,
    /// A barrier does not sync.
    SyncSkipped,
    /// A sync leaves the data file out (R2).
    DataFileNotSynced,
    /// An entry says zero before a raw data file has the zeroes (R2).
    RawZeroesNotWaitedFor,
    /// A count falls before the page that dropped the pointer is durable (R3).
    CountLoweredAtOnce,
    /// A freed cluster is used again at once, whoever may still read it (R4).
    FreedClusterReusedAtOnce,
    /// An inflated cluster is kept when its place gets a new stream (R4).
    StaleStreamKept,
    /// A freed cluster is punched out after it may have been handed out again (C2).
    PunchedLate,
    /// The dirty bit is set after the first entry that outruns its count.
    DirtyBitAfterEntry,
    /// The dirty bit is cleared before the counts are durable.
    CleanBeforeCounts,
    /// A header is written before what it names is durable (R5).
    HeaderBeforeItsTables,
    /// A changed header is taken for durable: what the old one named is used again at once.
    HeaderNotSynced,
    /// A new refcount block is linked before it is durable (R5).
    NewBlockNotSynced,
    /// Clusters that a snapshot shares are written in place (C5).
    CopiedIgnored,
    /// A discard makes a hole that shows the backing file (C7).
    DiscardShowsBacking,
    /// A header is written anew without the extensions that are not known (C8).
    ExtensionsDropped,
    /// A change is not marked in the bitmaps (R7).
    ChangeNotMarked,
    /// What a write has changed is marked once it has been done (R7).
    MarkedAfterWrite,
    /// Bitmaps are not durably in use before the first change (R7).
    InUseNotDurable,
    /// Bitmaps are no longer in use before their bits are durable (R7).
    BitmapsInUseTooShort,
    /// The error of a failed table write is swallowed.
    FailedWriteForgotten,
    /// A failed sync is tried again.
    SyncRetried,
    /// The clusters of a write that failed for lack of space are linked and free (C3).
    LinkedAfterFailedWrite,
    /// A short write is taken for a whole one.
    ShortWriteTakenForWhole,
    /// Requests on the same guest clusters do not take turns (C1).
    ClaimSkipped,
    /// The overlap check accepts everything.
    OverlapCheckOff,
    /// Sectors are numbered by the guest's offset where the host's is meant.
    IvByGuestOffset,
    /// The rest of a fresh cluster of an encrypted image is left as the host has it.
    FreshClusterNotFilled,
    /// A key slot counts as one before what it holds is durable.
    KeySlotOrder,
    /// A write of a part of a sector has nobody wait, and waits for nobody.
    SectorTurnSkipped,

    /// That a ticket is past orders nothing.
    PastTicketOrdersNothing,
    /// A ticket names the sync under way.
    TicketOfSyncUnderWay,
    /// A ticket is taken with an old value of the clock.
    TicketOfOldClock,
    /// A sync counts as completed when it begins.
    SyncCompletedAtOnce,
    /// A flush joins the barrier that runs already.
    FlushJoinsRunningBarrier,
    /// A flush that ends tells nobody.
    FlushEndsUnannounced,
    /// A pin is not seen by who looks for readers (G1).
    PinNotSeen,
    /// A pin has a later epoch than its request (G2).
    PinDatedLate,
    /// No epoch ends: whoever comes later holds back what was let go of before.
    EpochNotEnded,
    /// Whoever is alone has not taken every place.
    PlaceNotTaken,
    /// A place keeps the state that has been replaced.
    OldStateLeftInPlace,
    /// Claims that begin before another one overlap it.
    ClaimsOverlapFromBelow,
    /// Whether a claim is dropped is looked at before the wait for it.
    ClaimDroppedBeforeWait,
    /// A dropped claim tells nobody.
    ClaimDroppedUnannounced,
    /// Another user of a file comes in between two accesses of one that changes its own.
    AccessChangedInTwoSteps,
    /// A barrier asks what waits when the list is written.
    BarrierAsksLate,
    /// A write-through asks what waits when the list is written.
    WriteThroughAsksLate,
    /// A change of a page makes others of it dirty that have become ripe, and nobody counts these as waiting any more.
    RipenedByAnotherChange,
    /// Whoever makes room asks a page twice whether it needs a sync.
    EvictionAsksTwice,
    /// Nobody waits for pages in hand.
    PagesInHandNotWaitedFor,
    /// Nobody waits for the last page in hand.
    LastPageInHandNotWaitedFor,
    /// A page in hand is evicted.
    PageInHandEvicted,
    /// Write-outs of a page overtake each other.
    WriteOutsOvertake,
    /// A page that could not be written is forgotten.
    UnwrittenPageForgotten,
    /// A flush does not see what comes back unwritten.
    ReturnedPageNotSeen,
    /// An evicted page is changed.
    EvictedPageChanged,
    /// Two threads load into one set of the cache.
    TwoLoadsIntoOneSet,
}

/// `order`, or none where `plant` is this process's mistake.
#[inline(always)]
pub fn ordered(plant: Plant, order: Ordering) -> Ordering {
    if planted(plant) {
        Ordering::Relaxed
    } else {
        order
    }
}

/// Whether `plant` is this process's mistake.
#[cfg(feature = "planted-bugs")]
#[inline]
pub fn planted(plant: Plant) -> bool {
    active::get() == Some(plant) && active::tell(plant)
}

/// Whether `plant` is this process's mistake: there are none.
#[cfg(not(feature = "planted-bugs"))]
#[inline(always)]
pub const fn planted(_: Plant) -> bool {
    false
}

#[cfg(feature = "planted-bugs")]
mod active {
    use super::Plant;
    use std::io::Write;
    use std::sync::{Once, OnceLock};

    pub(super) fn get() -> Option<Plant> {
        static ACTIVE: OnceLock<Option<Plant>> = OnceLock::new();
        *ACTIVE.get_or_init(|| {
            let name = std::env::var("QCOW2_TEST_PLANT").ok().filter(|n| !n.is_empty())?;
            let plant = Plant::ALL.iter().find(|p| format!("{p:?}") == name).copied();
            Some(plant.unwrap_or_else(|| panic!("QCOW2_TEST_PLANT={name}: no such plant")))
        })
    }

    /// Says once that a test has come to where the mistake is; true.
    pub(super) fn tell(plant: Plant) -> bool {
        static TOLD: Once = Once::new();
        TOLD.call_once(|| drop(writeln!(std::io::stderr(), "planted: {plant:?} is reached")));
        true
    }
}
