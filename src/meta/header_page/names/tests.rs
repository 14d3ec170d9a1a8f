//! Every cut of a change of names, with every subset of the sectors of the write that it interrupts.

use super::*;

fn header(cluster_bits: u32, unknown_bytes: usize) -> Header {
    let mut start = vec![0u8; 512];
    start[..4].copy_from_slice(&0x5146_49fbu32.to_be_bytes());
    start[4..8].copy_from_slice(&3u32.to_be_bytes());
    start[20..24].copy_from_slice(&cluster_bits.to_be_bytes());
    start[96..100].copy_from_slice(&4u32.to_be_bytes());
    start[100..104].copy_from_slice(&112u32.to_be_bytes());
    let mut extensions = Vec::new();
    if cluster_bits > 9 {
        extensions.push(Extension { kind: extensions::FEATURE_NAMES, data: vec![7; 384], offset: 0 });
    }
    if unknown_bytes > 0 {
        let data = (0..unknown_bytes).map(|b| b as u8).collect();
        extensions.push(Extension { kind: 0x1234, data, offset: 0 });
    }
    Header { extensions, ..Header::parse(&start).expect("a header") }
}

type Shown = (Option<Vec<u8>>, Vec<(u32, Vec<u8>)>);

/// What a reader sees, apart from the feature name table and what fills.
fn shown(cluster: &[u8]) -> Shown {
    let header = Header::parse(cluster).expect("the header opens");
    let kept = |e: &Extension| e.kind != extensions::FEATURE_NAMES && e.kind != extensions::FILLER;
    let extensions = header.extensions.into_iter().filter(kept).map(|e| (e.kind, e.data)).collect();
    (header.backing_file, extensions)
}

/// Goes from one header to the next; how many states a cut could leave.
fn walk(cluster: &mut [u8], next: Header) -> Result<usize> {
    let old = shown(cluster);
    let steps = plan(cluster, next.clone())?;
    let mut states = 0;
    let mut new = None;
    for step in &steps {
        let sectors = step.tail.len().div_ceil(SECTOR);
        assert!(sectors <= 8, "too many subsets");
        for survivors in 0..1u32 << sectors {
            let mut cut = cluster.to_vec();
            for (i, part) in step.tail.chunks(SECTOR).enumerate().filter(|(i, _)| survivors >> i & 1 != 0) {
                let at = step.tail_at + i * SECTOR;
                cut[at..at + part.len()].copy_from_slice(part);
            }
            states += 1;
            assert!(shown(&cut) == *new.as_ref().unwrap_or(&old), "a torn tail shows");
        }
        cluster[step.tail_at..step.tail_at + step.tail.len()].copy_from_slice(&step.tail);
        cluster[..SECTOR].copy_from_slice(&step.sector);
        let now = shown(cluster);
        assert_eq!(now.0, next.backing_file);
        assert!(new.is_none_or(|new| new == now), "the last state differs from the one between");
        new = Some(now);
    }
    let last = Header::parse(cluster).expect("a header");
    let list = |h: &Header| h.extensions.iter().map(|e| (e.kind, e.data.clone())).collect::<Vec<_>>();
    assert_eq!(list(&last), list(&next));
    Ok(states)
}

#[test]
fn a_cut_shows_the_old_names_or_the_new_ones() {
    let names: [Option<&[u8]>; 5] =
        [None, Some(b"a"), Some(&[b'b'; 60]), Some(&[b'c'; 500]), Some(&[b'd'; 1000])];
    let (mut changed, mut refused, mut by_tails) = (0, 0, 0);
    for cluster_bits in [9, 10, 11, 12, 16] {
        for unknown in [0, 13, 400] {
            let base = header(cluster_bits, unknown);
            for (from, to) in (0..25).map(|i| (names[i / 5], names[i % 5])) {
                let mut cluster = vec![0; 1 << cluster_bits];
                let old_format = from.map(|_| &b"raw"[..]);
                let Ok(bytes) = with_backing(&base, from, old_format).encode() else { continue };
                cluster[..bytes.len()].copy_from_slice(&bytes);
                let parsed = Header::parse(&cluster).unwrap();
                let next = with_backing(&parsed, to, to.map(|_| &b"some_longer_format"[..]));
                match walk(&mut cluster, next) {
                    Ok(states) => {
                        changed += 1;
                        by_tails += usize::from(states > 2);
                    }
                    Err(e) => {
                        assert_eq!(e.kind(), ErrorKind::Host(libc::ENOSPC));
                        assert!(cluster_bits < 13, "refused with room to spare");
                        refused += 1;
                    }
                }
            }
        }
    }
    assert!(changed > 100 && refused > 10 && by_tails > 50, "{changed} {refused} {by_tails}");
}

#[test]
fn what_a_cut_left_between_is_gone_after_the_next_change() {
    let base = with_backing(&header(12, 13), Some(b"old"), Some(b"raw"));
    let mut cluster = vec![0; 4096];
    let bytes = base.clone().encode().unwrap();
    cluster[..bytes.len()].copy_from_slice(&bytes);
    let steps = plan(&cluster, with_backing(&base, Some(b"new"), Some(b"some_longer_format"))).unwrap();
    assert_eq!(steps.len(), 2);
    let first = &steps[0];
    cluster[first.tail_at..first.tail_at + first.tail.len()].copy_from_slice(&first.tail);
    cluster[..SECTOR].copy_from_slice(&first.sector);
    let between = Header::parse(&cluster).unwrap();
    assert!(between.extension(extensions::FILLER).is_some());
    let next = with_backing(&between, Some(b"newer"), Some(b"qcow2"));
    walk(&mut cluster, next).unwrap();
    let last = Header::parse(&cluster).unwrap();
    assert!(last.extension(extensions::FILLER).is_none() && last.extension(0x1234).is_some());
}
