# SPDX-License-Identifier: MIT OR Apache-2.0
"""What is on which page. Every public function and type is named on one page of section 3, every constant begins with what
one page claims; the generator fails otherwise and says what has no place."""

from dataclasses import dataclass, field

# Shown at the foot of each page; changed with a release.
DATE = "2026-11-29"


@dataclass
class Page:
    """A page of section 3, made from the header."""
    name: str
    summary: str
    functions: list = field(default_factory=list)
    types: list = field(default_factory=list)
    constants: list = field(default_factory=list)  # what their names begin with
    features: list = field(default_factory=list)  # sections of docs/features.md
    aliases: list = field(default_factory=list)  # other names that people look for
    example: str = ""  # a file whose first C block is shown, with what it says about itself
    see: list = field(default_factory=list)


PAGES = [
    Page("qcow2_open", "open, reopen and close a disk image",
         functions=["qcow2_open", "qcow2_open_fd", "qcow2_open_with", "qcow2_close", "qcow2_reopen"],
         types=["qcow2_image", "qcow2_open_params", "qcow2_resolve_fn", "qcow2_resolve_request", "qcow2_resolve_answer",
                "qcow2_secret_fn", "qcow2_secret_request"],
         constants=["QCOW2_OPEN_", "QCOW2_NODE_", "QCOW2_ENCRYPTION_"],
         features=["Backing chains", "Temporary overlays", "Reopening", "System calls after open"],
         example="README.md",
         see=["qcow2_create(3)", "qcow2_io_ops(3)", "qcow2-options(7)"]),
    Page("qcow2_probe", "tell whether a file begins as a qcow2 image does",
         functions=["qcow2_probe", "qcow2_probe_fd"], see=["qcow2_open(3)"]),
    Page("qcow2_create", "create a disk image",
         functions=["qcow2_create", "qcow2_create_fd", "qcow2_create_io", "qcow2_create_with"],
         types=["qcow2_create_params"], constants=["QCOW2_CREATE_"],
         features=["Subclusters (extended L2 entries)", "External data files"],
         see=["qcow2_open(3)", "qcow2_measure(3)", "qcow2-options(7)"]),
    Page("qcow2_pread", "read, write and flush a disk",
         functions=["qcow2_pread", "qcow2_preadv", "qcow2_pwrite", "qcow2_pwritev", "qcow2_pwritev2", "qcow2_flush"],
         constants=["QCOW2_REQ_"], features=["Compressed clusters", "A full host"],
         aliases=["qcow2_read", "qcow2_write"],
         see=["libqcow2(3)", "qcow2_open(3)", "qcow2_write_zeroes(3)"]),
    Page("qcow2_write_zeroes", "zero and discard parts of a disk",
         functions=["qcow2_write_zeroes", "qcow2_discard", "qcow2_discard2"], features=["Zeroing and discarding"],
         see=["qcow2_pread(3)", "qcow2-options(7)"]),
    Page("qcow2_block_status", "tell where the bytes of a disk come from",
         functions=["qcow2_block_status"], types=["qcow2_extent"], constants=["QCOW2_EXTENT_", "QCOW2_STATUS_"],
         see=["qcow2_get_info(3)", "qcow2-img(1)"]),
    Page("qcow2_truncate", "get and change the size of a disk",
         functions=["qcow2_length", "qcow2_truncate"], constants=["QCOW2_PREALLOC_"], features=["Resizing"],
         see=["qcow2_amend(3)", "qcow2_get_info(3)"]),
    Page("qcow2_get_info", "describe an image",
         functions=["qcow2_get_info", "qcow2_get_node_info", "qcow2_get_header_extension", "qcow2_get_encryption_info"],
         types=["qcow2_info", "qcow2_header_extension", "qcow2_encryption_info", "qcow2_key_slot"],
         constants=["QCOW2_INCOMPATIBLE_", "QCOW2_COMPATIBLE_", "QCOW2_AUTOCLEAR_"],
         features=["Encryption"], see=["qcow2_block_status(3)", "qcow2_snapshot_create(3)"]),
    Page("qcow2_decrypt_secret", "decrypt a secret that is kept under another one",
         functions=["qcow2_decrypt_secret"], see=["qcow2_open(3)", "qcow2-img(1)"]),
    Page("qcow2_check", "check and repair the metadata of an image",
         functions=["qcow2_check", "qcow2_check_findings"],
         types=["qcow2_check_result", "qcow2_message_fn", "qcow2_progress_fn", "qcow2_finding", "qcow2_finding_fn"],
         constants=["QCOW2_CHECK_", "QCOW2_MSG_", "QCOW2_FINDING_"], features=["Checking and repairing"],
         see=["qcow2_open(3)", "qcow2-img(1)"]),
    Page("qcow2_commit", "write an overlay into its backing file, or change the backing file",
         functions=["qcow2_commit", "qcow2_commit_to", "qcow2_rebase", "qcow2_change_backing_file", "qcow2_make_empty"],
         constants=["QCOW2_COMMIT_", "QCOW2_REBASE_"], see=["qcow2_open(3)", "qcow2_stream(3)"]),
    Page("qcow2_stream", "make what the backing files hold the image's own",
         functions=["qcow2_stream"], features=["Stream and copy on read"], see=["qcow2_commit(3)"]),
    Page("qcow2_amend", "change settings of an image",
         functions=["qcow2_amend", "qcow2_amend_with"], types=["qcow2_amend_params"], constants=["QCOW2_AMEND_"],
         features=["Amend"], see=["qcow2_create(3)", "qcow2-options(7)"]),
    Page("qcow2_convert", "copy one disk to another, and tell how long an image gets",
         functions=["qcow2_convert", "qcow2_measure", "qcow2_measure_format"], types=["qcow2_convert_params", "qcow2_measure_result"],
         constants=["QCOW2_CONVERT_"], features=["Measuring, copying, comparing"],
         see=["qcow2_compare(3)", "qcow2_create(3)"]),
    Page("qcow2_compare", "compare two disks, or tell a disk by its checksum",
         functions=["qcow2_compare", "qcow2_checksum"], types=["qcow2_compare_result"], constants=["QCOW2_COMPARE_"],
         see=["qcow2_convert(3)"]),
    Page("qcow2_snapshot_create", "create, apply, delete and list internal snapshots",
         functions=["qcow2_snapshot_create", "qcow2_snapshot_apply", "qcow2_snapshot_delete", "qcow2_get_snapshot"],
         types=["qcow2_snapshot_options", "qcow2_snapshot_info"], constants=["QCOW2_SNAPSHOT_"],
         features=["Internal snapshots"], aliases=["qcow2_snapshot"],
         see=["qcow2_vmstate_write(3)", "qcow2_open(3)"]),
    Page("qcow2_bitmap_add", "track what of a disk changes, by dirty bitmaps",
         functions=["qcow2_bitmap_add", "qcow2_bitmap_remove", "qcow2_bitmap_clear", "qcow2_bitmap_enable", "qcow2_bitmap_disable",
                    "qcow2_bitmap_merge", "qcow2_bitmap_copy", "qcow2_bitmap_rotate", "qcow2_bitmap_recover", "qcow2_bitmap_sync", "qcow2_bitmap_list",
                    "qcow2_bitmap_next_dirty", "qcow2_get_bitmap"],
         types=["qcow2_bitmap_info"], constants=["QCOW2_BITMAP_"], features=["Dirty bitmaps"], aliases=["qcow2_bitmap"],
         see=["qcow2_snapshot_create(3)", "qcow2_get_info(3)", "qcow2-img(1)"]),
    Page("qcow2_vmstate_write", "keep what a machine has beside its disk",
         functions=["qcow2_vmstate_write", "qcow2_vmstate_read"], features=["VM state"],
         aliases=["qcow2_vmstate"], see=["qcow2_snapshot_create(3)"]),
    Page("qcow2_inactivate", "hand an image to another program",
         functions=["qcow2_inactivate", "qcow2_invalidate"],
         features=["Changing hands: inactivate and invalidate"], see=["qcow2_open(3)"]),
    Page("qcow2_clean_caches", "drop cached tables", functions=["qcow2_clean_caches"], see=["qcow2-options(7)"]),
    Page("qcow2_io_ops", "storage of the caller's own", types=["qcow2_io_ops"],
         see=["qcow2_open(3)", "qcow2_create(3)"]),
    Page("qcow2_last_error", "tell why a call failed",
         functions=["qcow2_last_error", "qcow2_last_error_detail"], types=["qcow2_error_detail"],
         constants=["QCOW2_ERROR_"], features=["Errors"], see=["libqcow2(3)"]),
    Page("qcow2_option_list", "list and check options",
         functions=["qcow2_option_list", "qcow2_check_open_option"], types=["qcow2_option_info"],
         constants=["QCOW2_SCOPE_"], see=["qcow2-options(7)"]),
    Page("qcow2_version", "tell the version of the library",
         functions=["qcow2_version"], constants=["QCOW2_VERSION"], see=["libqcow2(3)"]),
]

# Written by hand, docs/man/NAME.SECTION.md.
WRITTEN = ["libqcow2.3", "qcow2-img.1", "qcow2-io.1", "qcow2-options.7",
           "qcow2-run.1", "qcow2-fuse.1", "libqcow2-preload.7", "nbdkit-qcow2-plugin.1"]

# Of clients that are not built yet: these pages are tested as the others are, and neither installed nor linked to.
# A client that is there moves its page to WRITTEN.
DRAFTS = []

# Pages of the site that are no manual pages: source, name, what the index says.
SITE = [
    ("docs/embedding.md", "embedding", "qcow2 disks in an emulator in an afternoon"),
    ("docs/features.md", "features", "one section for each feature"),
    ("docs/layout.md", "layout", "how an image is laid out, with a picture"),
    ("docs/abi.md", "abi", "what stays the same from version to version"),
]
