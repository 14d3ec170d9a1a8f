//! When counts fall, on an image of four clusters: header, refcount table, its one block, and one to let go of.

use super::*;
use crate::format::{Header, HostCluster};
use crate::storage::gate::Gate;
use crate::storage::memory::Memory;

const CLUSTER_BYTES: usize = 1 << 16;
const DATA_CLUSTER: u64 = 3;

fn image() -> Vec<u8> {
    let mut bytes = vec![0; 4 * CLUSTER_BYTES];
    bytes[..4].copy_from_slice(b"QFI\xfb");
    bytes[4..8].copy_from_slice(&2u32.to_be_bytes());
    bytes[20..24].copy_from_slice(&16u32.to_be_bytes());
    bytes[48..56].copy_from_slice(&(CLUSTER_BYTES as u64).to_be_bytes());
    bytes[56..60].copy_from_slice(&1u32.to_be_bytes());
    bytes[CLUSTER_BYTES..][..8].copy_from_slice(&(2 * CLUSTER_BYTES as u64).to_be_bytes());
    for count in bytes[2 * CLUSTER_BYTES..][..8].chunks_exact_mut(2) {
        count.copy_from_slice(&1u16.to_be_bytes());
    }
    bytes
}

fn allocator() -> (Allocator, Arc<Gate<()>>) {
    let bytes = image();
    let (header, sector) = (Header::parse(&bytes).unwrap(), bytes[..512].to_vec());
    let medium = Arc::new(Medium::new(Arc::new(Memory::new(bytes))));
    let header_page = Arc::new(HeaderPage::new(Arc::clone(&medium), header.clone(), sector));
    let gate = Arc::new(Gate::new(()));
    let readers = Arc::clone(&gate) as Arc<dyn Readers>;
    let shared = Shared { medium, readers, guard: Arc::new(OverlapGuard::off()), header: header_page };
    let pass = Pass { requests: true, snapshots: true, others: true };
    (Allocator::open(shared, false, pass, 4, None).unwrap(), gate)
}

/// Lets go of the data cluster, as a page does whose pointer to it is no more.
fn let_go(allocator: &Allocator) {
    let epoch = allocator.shared.readers.retire();
    let release = Release { epoch, ..Release::new(HostCluster(DATA_CLUSTER), 1, false) };
    allocator.settle_after(Ticket::PAST, vec![release]);
}

#[test]
fn a_count_falls_when_its_readers_have_left() {
    let (allocator, gate) = allocator();
    let reader = gate.enter();
    let_go(&allocator);
    allocator.settle_due().unwrap();
    assert_eq!(allocator.count(DATA_CLUSTER).unwrap(), 1);
    drop(reader);
    allocator.settle_due().unwrap();
    assert_eq!(allocator.count(DATA_CLUSTER).unwrap(), 0);
    assert_eq!(allocator.pending_clusters(), 0);
}

/// Whoever is alone has every place of the gate, and is no reader.
#[test]
fn who_is_alone_holds_no_count_up() {
    let (allocator, gate) = allocator();
    let_go(&allocator);
    let alone = gate.enter_alone();
    allocator.settle_all().unwrap();
    assert_eq!(allocator.count(DATA_CLUSTER).unwrap(), 0);
    assert_eq!(allocator.pending_clusters(), 0);
    drop(alone);
}
