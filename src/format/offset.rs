//! Offsets and clusters of the guest and of the host: what must not be taken for one another has a type of its own, at no
//! cost.
//!
//! From one to the other goes a [`Geometry`](super::Geometry) call (offset and cluster of one side) or the mapping (guest
//! and host). Lengths and counts are plain numbers: bytes, clusters.

use std::fmt;
use std::ops::{Add, AddAssign, Sub};

/// A place in bytes, with the clusters that divide its space.
pub trait Offset: Copy {
    /// The clusters of the same space.
    type Cluster: Cluster<Offset = Self>;
    /// The place `bytes` bytes from the start.
    fn at(bytes: u64) -> Self;
    /// Bytes from the start.
    fn bytes(self) -> u64;
}

/// A cluster, by its index.
pub trait Cluster: Copy {
    /// Places in the same space.
    type Offset: Offset<Cluster = Self>;
    /// The cluster number `index`.
    fn number(index: u64) -> Self;
    /// Its number.
    fn index(self) -> u64;
}

macro_rules! space {
    ($(#[$offset_doc:meta])* $offset:ident, $(#[$cluster_doc:meta])* $cluster:ident) => {
        space!(@value $(#[$offset_doc])* $offset);
        space!(@value $(#[$cluster_doc])* $cluster);

        impl Offset for $offset {
            type Cluster = $cluster;

            #[inline(always)]
            fn at(bytes: u64) -> Self {
                $offset(bytes)
            }

            #[inline(always)]
            fn bytes(self) -> u64 {
                self.0
            }
        }

        impl Cluster for $cluster {
            type Offset = $offset;

            #[inline(always)]
            fn number(index: u64) -> Self {
                $cluster(index)
            }

            #[inline(always)]
            fn index(self) -> u64 {
                self.0
            }
        }

        impl $cluster {
            /// The clusters from this one to before `end`.
            pub fn to(self, end: $cluster) -> impl Iterator<Item = $cluster> {
                (self.0..end.0).map($cluster)
            }
        }
    };
    (@value $(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl Add<u64> for $name {
            type Output = $name;

            #[inline(always)]
            fn add(self, more: u64) -> $name {
                $name(self.0 + more)
            }
        }

        impl AddAssign<u64> for $name {
            #[inline(always)]
            fn add_assign(&mut self, more: u64) {
                self.0 += more;
            }
        }

        impl Sub for $name {
            type Output = u64;

            #[inline(always)]
            fn sub(self, start: $name) -> u64 {
                self.0 - start.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

space!(
    /// A place of the disk that the guest sees, or past its end of the VM state, bytes.
    GuestOffset,
    /// A cluster of the guest's disk.
    GuestCluster
);
space!(
    /// A place of the image file, or of the data file where guest data is in one, bytes.
    HostOffset,
    /// A cluster of the image file, or of the data file.
    HostCluster
);

impl GuestOffset {
    /// Rounded down to a multiple of `unit` bytes.
    #[inline]
    pub fn floor_to(self, unit: u64) -> GuestOffset {
        GuestOffset(self.0 / unit * unit)
    }

    /// Rounded up to a multiple of `unit` bytes, at most 2^64 - 1.
    #[inline]
    pub fn ceil_to(self, unit: u64) -> GuestOffset {
        GuestOffset(self.0.div_ceil(unit).saturating_mul(unit))
    }
}

/// For code that knows one space only, such as a walk over all host clusters.
impl Offset for u64 {
    type Cluster = u64;

    #[inline(always)]
    fn at(bytes: u64) -> Self {
        bytes
    }

    #[inline(always)]
    fn bytes(self) -> u64 {
        self
    }
}

impl Cluster for u64 {
    type Offset = u64;

    #[inline(always)]
    fn number(index: u64) -> Self {
        index
    }

    #[inline(always)]
    fn index(self) -> u64 {
        self
    }
}
