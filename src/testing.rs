//! What the tests of this project, their kit, fuzz targets and benches use of the engine. Nobody else's interface: it
//! changes with the engine.
#![allow(missing_docs)]

pub mod crypto {
    pub mod luks {
        pub use crate::crypto::luks::{
            check_key, merge, new_header, parse_mode, seal, split, unlock, unlock_slot, Header, Work,
            HEADER_BYTES, SLOTS, STRIPES, WORK_BYTES,
        };

        /// Room for keys, with this one.
        pub fn work_with(key: &[u8]) -> Box<Work> {
            let mut work = Box::new([0; WORK_BYTES]);
            work[..key.len()].copy_from_slice(key);
            work
        }
    }
    pub use crate::crypto::{legacy_aes, Algorithm, Hash, IvGenerator, Mode, Sectors, Spec};
}
pub mod disk {
    pub use crate::disk::{Disk, ZeroFlags};
}
pub mod error {
    pub use crate::error::{Error, ErrorKind, Result};
}
pub mod format {
    pub use crate::format::{GuestOffset, Header, HostOffset};
}
pub mod image {
    pub use crate::image::{Image, SnapshotRef, StreamScope};
}
pub mod ops {
    pub mod amend {
        pub use crate::ops::amend::{amend, amend_with};
    }
    pub mod backing {
        pub use crate::ops::backing::{change_backing_file, make_empty};
    }
    pub mod bitmaps {
        pub use crate::ops::bitmaps::*;
    }
    pub mod check {
        pub use crate::ops::check::{check, in_words, CheckOptions, CheckReport, MessageKind};
    }
    pub mod checksum {
        pub use crate::ops::checksum::checksum;
    }
    pub mod commit {
        pub use crate::ops::commit::{commit, commit_to};
    }
    pub mod compare {
        pub use crate::ops::compare::{compare, Verdict};
    }
    pub mod measure {
        pub use crate::ops::measure::{measure, Measured};
    }
    pub mod convert {
        pub use crate::ops::convert::{convert, convert_telling, ConvertOptions};
    }
    pub mod create {
        pub use crate::ops::create::{create, create_with, create_with_data_file};
        pub use crate::ops::create_at::create_at;
        pub use crate::ops::keys::NewKeys;
    }
    pub mod formats {
        pub use crate::ops::formats::Driver;
    }
    pub mod handle {
        pub use crate::ops::handle::Handle;
    }
    pub mod inactive {
        pub use crate::ops::inactive::{inactivate, invalidate, invalidate_with};
    }
    pub mod open {
        pub use crate::ops::open::{
            Named, OpenFlags, Opening, Origin, ResolveAnswer, ResolveRequest, SecretKind, SecretRequest,
            Secrets,
        };
    }
    pub mod rebase {
        pub use crate::ops::rebase::rebase;
    }
    pub mod resize {
        pub use crate::ops::resize::resize;
    }
    pub mod snapshot {
        pub use crate::ops::snapshot::{apply, create, delete, NewSnapshot, SnapshotRef};
    }
    pub mod stream {
        pub use crate::ops::stream::stream;
    }
    pub mod vm_state {
        pub use crate::ops::vm_state::write;
    }
}
pub mod options {
    pub use crate::options::{list, CreateOptions, OpenOptions, OptionInfo, Preallocation, Scope};
}
#[cfg(feature = "planted-bugs")]
pub mod planted {
    pub use crate::planted::Plant;
}
pub mod storage {
    pub use crate::storage::{HostRun, Purpose, Storage, Traits};
    pub mod file {
        pub use crate::storage::file::{FileOptions, FileStorage};
    }
    pub mod memory {
        pub use crate::storage::memory::Memory;
    }
}
