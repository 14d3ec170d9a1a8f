//! LUKS headers: what is accepted is kept, and a passphrase is tried with little work.

use super::image::Outcome;
use qcow2::testing::crypto::luks::{unlock, work_with, Header, HEADER_BYTES};
use qcow2::testing::error::{Error, ErrorKind};

/// Questions that a derivation may ask before it is stopped.
const MAX_STEPS: u32 = 2;

pub fn run(input: &[u8]) -> Outcome {
    let Ok(header) = Header::parse(input) else { return Outcome::default() };
    let again = Header::parse(&header.encode()).expect("a header that was accepted is accepted again");
    assert_eq!(again, header);
    let mut steps = 0;
    let mut progress = |done: u64, total: u64| {
        assert!(done <= total);
        steps += 1;
        match steps > MAX_STEPS {
            true => Err(Error::new(ErrorKind::Cancelled, "enough")),
            false => Ok(()),
        }
    };
    let mut read = |at: u64, out: &mut [u8]| {
        // Material is whatever follows the header.
        assert!(at >= HEADER_BYTES as u64);
        out.iter_mut().zip(input[HEADER_BYTES..].iter().cycle()).for_each(|(o, i)| *o = *i);
        Ok(())
    };
    let _ = unlock(&header, b"passphrase", &mut work_with(&[]), &mut read, &mut progress);
    Outcome { opened: true, ..Outcome::default() }
}
