//! libqcow2: qcow2 disk images for programs that are not QEMU, and no worse than QEMU.
//!
//! A Rust engine behind a C ABI (`include/qcow2.h`). A C emulator links `libqcow2.so`, opens an image, and
//! reads and writes it from any thread; images are byte-compatible with QEMU 10. A Rust program calls the
//! same functions ([`capi`]): they are the interface, and everything else is private and may change at any time.
//!
//! # Layers
//!
//! Directories are layers; a file uses its own and lower ones only, and no two files need each other (`tests/layers` reads
//! the `use` lines).
//!
//! ```text
//! error            the one error type
//! sync             locks and atomics: the standard library's (one that is never waited for: spin's), or a model checker's in its
//!                  test build
//! planted          for every layer: mistakes that a test can switch on, and nothing in a library that is installed
//! format, codec    qcow2's bytes <-> values; buffers -> buffers. No I/O, no policy
//! crypto           sectors <-> encrypted sectors; LUKS headers and key slots. Pure, as format is
//! options          one table of options: name, type, help, setter
//! storage          bytes at offsets: file, memory, callbacks; locks; the gate; the clock of syncs
//! disk             a disk of any format: what it can be asked, how it opens and stops; the raw disk
//! meta             table pages in memory, the one place that writes them; header page; overlap guard
//! alloc            who owns which host cluster: refcount table and blocks, the ledger
//! map              guest -> host: L1, L2 slices, resolve, link, claims
//! image            a qcow2 image as a disk: read, write, copy-on-write, zero, discard, flush, backing, stream, VM state. No
//!                  structure work
//! ops              the table of formats; whole-image work: open with its chain, data file and repair, create, check,
//!                  resize, snapshots, amend, rebase, commit, stream, convert, compare, checksum, measure, probe, VM state
//!                  that needs a longer L1 table, bitmaps, inactivate and invalidate
//! capi             conversion to C, nothing else
//! testing, loom    what this project's own tests use; models of two and three threads
//! ```
//!
//! `alloc` knows no guests, `map` no files, `image` no on-disk bytes, `capi` no logic.
//! [`map::Map::resolve`] *describes* where guest bytes are and performs no data I/O: [`image`] does. That is
//! the seam for other I/O engines.
//!
//! # Where what belongs
//!
//! | What | Where |
//! | ---- | ----- |
//! | a request of the guest | one verb, one file in `image`; what a raw disk does with it in `disk/raw.rs` |
//! | work on the whole image (resize, snapshots, amend, bitmaps) | `ops`, by an `ExclusiveImage` and its `Parts` |
//! | what turns guest bytes into stored ones | pure code beside `codec`: a cipher in `crypto`; called by `image/payload.rs` alone, which has the guest's offset of what it stores. Beside it only a raw disk, and the preallocation of an image that nobody has open, store guest bytes |
//! | what must know of every change of the guest's contents | in `Core::begin_change`, which each verb that changes them passes, with its range; what it remembers outlives a state: `image/session.rs` |
//! | requests that complete later | a layer between `ops` and `capi`, over `Disk`. A pin, a claim and a reservation belong to the thread that took them |
//! | another format of disks | a file that implements `disk::Format`, beside `disk/raw.rs`, and a row in `ops/formats`; `format` is qcow2's bytes |
//! | another kind of storage | `storage::Storage`; the address in `ops/open/files.rs`, the names of protocols in `storage/names.rs` |
//! | an option | a row in `options`; where it is used is its reader's |
//! | a function of the C ABI | `capi`, by section; the list of steps is in `capi/mod.rs` |
//!
//! # One read, one allocating write
//!
//! ```text
//! pread    capi -> Disk -> Image::read -> enter the gate (a pin, with the state) -> resolve -> for each extent:
//!            Data: Payload::read    Zero: fill    Hole: backing disk or fill
//!            Compressed: inflate, or copy from what is kept inflated (its rule: `image/inflation.rs`)
//!          no lock that another request waits for is held while data is read
//!
//! pwrite   Disk -> Image::write -> enter the gate -> resolve
//!            Data that nothing else refers to: Payload::write, which checks the overlap; done
//!            otherwise: claim the guest clusters, look at their entries again, own the L2 table,
//!              Reserved: host clusters whose counts have risen
//!              Written:  head, payload and tail by Payload::write
//!              Filled:   Reserved::filled(Written), with the ticket of both
//!              Map::link_run(Filled): the L2 page has the new entry, the ticket it waits for, and what it let go of
//!            only filled clusters can be linked, only a write fills them, and `link_run` owns what a failure leaves: what
//!            is linked stays, the rest goes back
//! ```
//!
//! # Media assumptions
//!
//! A 512-byte sector is written whole or not at all. Writes not yet synced may survive in any subset and
//! order. So may changes of the file's length: each is lost or kept whatever becomes of the writes around it, and
//! what survives of a write past the end brings the length that it needs. After `fdatasync` returned 0 all of
//! this is durable. Bytes outside a write do not change. A process may be killed at any instruction.
//!
//! # Ordering is a value
//!
//! Every sync has a number. A **ticket** ([`storage::medium::Ticket`]) names the next sync not yet started;
//! it is past once that sync has completed. A table page holds, for each changed entry, the ticket that the
//! change waits for, and writes the entry with its *previous* value until then. So a page can be written at
//! any time, and what may not be on disk yet simply is not in the bytes that are written.
//!
//! A **barrier** writes what is ripe, writes dirty refcount blocks (eager images), syncs, writes what the
//! sync has made ripe, and syncs again if there was any of that: one sync when nothing had to wait. Where a refcount
//! block is new, one more comes before the refcount table leads to it (R5). Nothing but a barrier syncs, however much is
//! written: what waits is a bit for each entry that was nothing before (`meta::page::newborn`).
//!
//! | Rule | In words | Carried by |
//! | ---- | -------- | ---------- |
//! | R1 | a pointer is written after the count of its target is durable | the ticket of `Filled`, `Held::after` in a page |
//! | R2 | a pointer is written after its target's contents are durable | `Written`, which only a write gives, `Held::after` |
//! | R3 | a count falls after the page that dropped the pointer is durable | `Held::dropped`, then `Settler::settle_after` with a ticket |
//! | R4 | a cluster is reused after R3 and after every older reader is gone | `Release::epoch` against the gate's oldest pin |
//! | R5 | a new table is written whole before anything points to it | `Map::make_table`, `alloc::grow` |
//! | R6 | a multi-step operation is bracketed by the dirty bit, or leaves only leaks | each file in `ops` |
//! | R7 | a bitmap that is believed covers every write that is on the medium | `Core::begin_change`, the announcement of `image/bitmaps` |
//!
//! Between barriers the count of anything pointed to only rises, so refcount blocks may be written at any
//! time, pointers wait, and a crash can leak clusters but never share or lose them.
//!
//! R2 does not wait where waiting would buy nothing: a cluster past everything that was ever written, inside
//! the durable length of the file, reads as zeroes; if the guest range read as zeroes too, then with any
//! subset of the new data surviving, each sector is old or new. The file therefore grows ahead of the clusters
//! handed out: mostly just before a barrier, whose sync makes the new length durable. Where it had to grow between
//! barriers, the first pointers into the new length wait for a sync.
//!
//! **External data files** hold the guest's clusters at their guest offsets; nothing is counted there (R1, R3) or reused
//! (R4). R2 spans both files: each sync of the clock is one of the data file, where anything has changed there, and then
//! one of the image, and a ticket is past when both have returned. In a raw data file an entry that says zero waits for
//! the zeroes there as one that points waits for its contents (`image/data_file.rs`).
//!
//! **Lazy refcounts** (version 3) are the same code with two differences: a barrier skips refcount blocks, and
//! tickets do not wait for counts. The dirty bit is durable before the first count is outrun, and is cleared
//! (close, or a switch to eager) only after all counts are durable. A writable open of a dirty image starts
//! with a sync, for what a killed writer left may be in the host's cache only, and repairs before the first
//! request.
//!
//! **Refcounts ahead** (`alloc::ahead`) bring an eager image to the same cost without the dirty bit: a barrier
//! that writes counts raises those of the next free clusters in one sector, so that pointers to these need not
//! wait. A crash leaves them as leaks; it begins once barriers with counts come again and again.
//!
//! **Dirty bitmaps** say what the guest has changed. Who changes anything passes `Core::begin_change`, which marks the
//! range in memory, before a byte is written. On the medium a bitmap is believed unless its in-use flag is set: so the
//! flag is durable before the first change of a session, on enabled bitmaps, and goes when the bits are durable, at
//! close, inactivate, reopen and `qcow2_bitmap_sync`. An open that changes nothing leaves them as they are.
//!
//! # Order of waiting
//!
//! Always in this order; each has one owner.
//!
//! 1. How a handle is open (`Handle`): held by whoever reopens, inactivates or invalidates it, across I/O. Beside it the
//!    turn of whoever changes key slots, across secrets that are asked for and keys that are derived; nobody waits for the
//!    one with the other.
//! 2. Gate ([`storage::gate`]): shared for requests, exclusive for structure changes (resize, reopen, check,
//!    snapshots, commit, close). A conversion that is inside its source's gate enters the target's only when it
//!    need not wait; a backing disk is read inside the gate of the disk above it.
//! 3. List of snapshots, while somebody reads it for all who ask: across I/O.
//! 4. Announcement of the first change to the bitmaps (`image/bitmaps`): across a write of flags, a sync, and the header's
//!    lock. Those who hold a claim have announced before.
//! 5. Claim on guest clusters ([`map::Claims`]): requests that change a mapping; held across I/O; one at a time.
//! 6. Birth of an L2 table (`Map::birth`): across I/O.
//! 7. Turn of the barrier (`storage::flusher`): one barrier runs, others wait for the next, which serves them all.
//! 8. Cache set under load (`meta::cache`): a load, and the write-out that makes room for it, is a slot that
//!    others wait on; across I/O.
//! 9. The dirty list's in-flight announcement, then a page's write-out turn (`meta::page`): across the write.
//! 10. Ledger ([`alloc::Ledger`]): choosing clusters, counts; across the I/O of refcount blocks.
//! 11. The header's lock, across its write and two syncs; under the ledger where a refcount table grows.
//! 12. Page lock, and a slot of the L2 cache: copying or changing entries, taking a page; never across I/O.
//! 13. Turns with the sectors of an encrypted disk (`storage/turns.rs`): whoever writes a part of one is alone there to read,
//!     change and write it; across the I/O.
//! 14. Turn of the syncs of one image: across one; in it that of its data file. Of a file: its end ([`storage::end`]),
//!     shared by writes past it, alone to change the length; then, with O_DIRECT, its blocks (`storage/direct.rs`), alone to
//!     read, change and write one; across the call.
//! 15. Owners of the overlap guard, and what waits to be free: for a look or a change of memory, never across a wait.
//!
//! A pin has a place of the gate for itself, where the state is, and publishes the epoch in which its request started:
//! readers wait for nobody there but somebody alone. Readers of table pages take no lock
//! but that of a slot, where the cache does not hold the whole disk. A function that needs a claim takes `&Claim`, used or not: the signature is the rule.
//!
//! # Holes of the host
//!
//! Where a cluster or a raw disk has nothing on the host it reads as zeroes, and need not be read. A host is asked only
//! about what it has seen: a file with writes that no sync has covered counts as data ([`storage::holes`]), and whole-image
//! work syncs its source once before it begins. An answer may cost a walk over the file, so what was said is remembered,
//! a copy-on-write asks one question that walks over no data, and an image file for which the host had taken as much room
//! as it is long is not asked about. A device is never zero because an image was just made on it.
//!
//! # Failure
//!
//! A failed write of guest data is the request's error: its clusters go back and nothing was visible. A failed write
//! of a live table or of refcounts drops nothing: page and block stay dirty, what they let go of is not let go of, and the
//! next barrier tries again. A header that may or may not have been written is written as it was, and synced, before
//! anything depends on it (`HeaderPage`, H1). A structure change that fails goes back; one that is in force and not
//! complete keeps its last steps for the next request (`image/unfinished.rs`, U1). Of what the host does, only the first
//! failed sync closes the **latch** of the image: nothing more is written, and only reopening helps, for the host may have
//! dropped what was not synced. An image that is found to be corrupt closes it, too. Everything
//! read from an image is untrusted until [`mod@format`] has accepted it; an error names structure, index, value
//! and rule. A panic that reaches the C edge breaks the handle in the same way as the latch. A raw disk has
//! a gate and a latch as an image has.

// For those who work on it: cargo doc --document-private-items.
#![allow(rustdoc::private_intra_doc_links)]

mod alloc;
pub mod capi;
mod codec;
mod crypto;
mod disk;
mod error;
mod format;
mod image;
#[cfg(all(loom, test))]
mod loom;
mod map;
mod meta;
mod ops;
mod options;
mod planted;
mod storage;
mod sync;
#[doc(hidden)]
pub mod testing;
