//! Key slots of an image's LUKS header, and of a plain LUKS file's.

use crate::crypto::luks::{Header, HEADER_BYTES};
use crate::disk::luks::{header_of, LuksDisk};
use crate::disk::Format;
use crate::error::{Error, ErrorKind, Result};
use crate::format::extensions::EncryptionPointer;
use crate::format::{HostCluster, HostOffset};
use crate::image::{encryption_header, Core, ExclusiveImage};
use crate::ops::handle::Handle;
use crate::ops::owners::{Besides, Owners};
use crate::ops::secrets::Secrets;
use crate::ops::slots::{self, Asking, Prepared, Store};
use crate::options::{AmendOptions, SlotChange};
use crate::storage::{read_exact, write_all, Purpose, Storage};
use std::ffi::OsStr;
use std::sync::Arc;

/// The header in the image that has it.
struct InImage {
    core: Arc<Core>,
    at: u64,
    length: u64,
}

impl InImage {
    fn new(core: Arc<Core>, pointer: &EncryptionPointer) -> InImage {
        InImage { core, at: pointer.offset, length: pointer.bytes }
    }
}

impl Store for InImage {
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let done = self.core.medium().read_table(Purpose::Encryption, self.at + offset, out);
        done.map_err(|e| e.within("encryption header"))
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.core.medium().write_live(Purpose::Encryption, self.at + offset, bytes)
    }

    fn sync(&self) -> Result<()> {
        self.core.medium().sync_step()
    }

    fn length(&self) -> u64 {
        self.length
    }
}

/// What the options ask of the key slots of an image, and the header that they were found in.
pub(super) struct Wanted {
    core: Arc<Core>,
    change: SlotChange,
    pointer: EncryptionPointer,
    header: Header,
}

/// A change of key slots that can be made as long as the header is the one that it was prepared for.
pub(super) struct SlotsOfImage {
    pointer: EncryptionPointer,
    header: Header,
    prepared: Prepared,
    /// Where an image is too damaged to tell who has what, a key that must go can go.
    force: bool,
}

/// What the options ask of the key slots; `None`: nothing.
pub(super) fn look(image: &ExclusiveImage<'_>, options: &AmendOptions) -> Result<Option<Wanted>> {
    let core = image.core();
    if options.names_slots() && core.header().crypt_method != 2 {
        return Err(Error::unsupported("Only LUKS encryption options can be amended"));
    }
    let Some(change) = options.slot_change()? else { return Ok(None) };
    let found = encryption_header(&core.header(), &**core.storage())?;
    Ok(found.map(|(pointer, header)| Wanted { core, change, pointer, header }))
}

impl Wanted {
    /// Asks for secrets and derives keys. Nobody need be kept out: the header is compared before it is changed.
    pub(super) fn prepare(
        self,
        handle: &Handle,
        force: bool,
        secrets: &mut Secrets<'_>,
    ) -> Result<SlotsOfImage> {
        let Wanted { core, change, pointer, header } = self;
        let file = handle.origin().shown();
        let mut asking = Asking { secrets, file, key_option: "encrypt.key-secret", force };
        let prepared = slots::prepare(&header, &InImage::new(core, &pointer), &change, &mut asking)?;
        Ok(SlotsOfImage { pointer, header, prepared, force })
    }
}

/// Fails where the header is no more what a change was prepared for.
fn check_same(is_same: bool) -> Result<()> {
    match is_same {
        true => Ok(()),
        false => {
            Err(Error::new(ErrorKind::Locked, "the LUKS header has changed while the secrets were asked for"))
        }
    }
}

impl SlotsOfImage {
    /// Fails where the change can no more be made.
    pub(super) fn check(&self, image: &ExclusiveImage<'_>) -> Result<()> {
        let core = image.core();
        let now = encryption_header(&core.header(), &**core.storage())?;
        check_same(now.is_some_and(|(pointer, header)| pointer == self.pointer && header == self.header))?;
        // Owners are looked for on the medium.
        image.settle()?;
        self.check_owners(&core)
    }

    /// A damaged pointer or slot may lead to what is somebody else's.
    fn check_owners(&self, core: &Core) -> Result<()> {
        let parts = core.parts()?;
        let cluster = |at: u64| parts.geometry.cluster_index(HostOffset(self.pointer.offset + at)).0;
        let head = (None, cluster(0)..=cluster(HEADER_BYTES as u64 - 1));
        let slots = self.prepared.written();
        let ranges: Vec<_> = std::iter::once(head)
            .chain(slots.map(|(slot, at)| (Some(slot), cluster(at.start)..=cluster(at.end - 1))))
            .collect();
        let clusters = ranges.iter().flat_map(|(_, clusters)| clusters.clone()).collect();
        let owners = match Owners::find(core, &parts, clusters, Besides::Encryption) {
            Err(e) if self.force && e.kind() == ErrorKind::Corrupt => return Ok(()),
            found => found?,
        };
        let Some((taken, _)) = owners.all().find(|(_, used)| *used) else { return Ok(()) };
        let part = match ranges.iter().find(|(_, clusters)| clusters.contains(&taken)) {
            Some((Some(slot), _)) => format!("key material of slot {slot}"),
            _ => "header".to_owned(),
        };
        let rule = "nothing else leads to a cluster of it; a check says what does";
        Err(Error::corrupt(
            "encryption header",
            part,
            parts.geometry.cluster_offset(HostCluster(taken)).0,
            rule,
        ))
    }

    /// Writes what has been prepared.
    pub(super) fn carry_out(&self, image: &ExclusiveImage<'_>) -> Result<()> {
        let core = image.core();
        core.structure_writer()?;
        self.prepared.carry_out(&InImage::new(core, &self.pointer))
    }
}

/// The header at the start of a plain LUKS file.
struct InFile<'a>(&'a dyn Storage);

impl Store for InFile<'_> {
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        read_exact(self.0, Purpose::Encryption, offset, out)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        write_all(self.0, Purpose::Encryption, offset, bytes)
    }

    fn sync(&self) -> Result<()> {
        self.0.sync().map_err(|e| Error::host("sync of the LUKS file", &e))
    }

    /// As far as the header says.
    fn length(&self) -> u64 {
        u64::MAX
    }
}

/// Changes key slots of a plain LUKS file.
pub(super) fn amend_luks(
    disk: &LuksDisk,
    handle: &Handle,
    options: &[impl AsRef<OsStr>],
    force: bool,
    secrets: &mut Secrets<'_>,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<()> {
    let change = SlotChange::parse_luks(options)?;
    if disk.is_read_only() {
        return Err(Error::new(ErrorKind::ReadOnly, "the disk is open read-only"));
    }
    if let Some(change) = &change {
        let _turn = handle.turn_with_slots();
        // Requests go on while secrets are asked for and keys derived.
        let file = disk.storage();
        let header = header_of(&*file)?;
        let mut asking = Asking { secrets, file: handle.origin().shown(), key_option: "key-secret", force };
        let prepared = slots::prepare(&header, &InFile(&*file), change, &mut asking)?;
        disk.exclusive().change_header(|file| {
            check_same(header_of(file)? == header)?;
            prepared.carry_out(&InFile(file))
        })?;
    }
    progress(1, 1);
    Ok(())
}
