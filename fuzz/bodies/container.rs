//! The form of an `image` input: a script, and an image file without its holes.
//!
//! ```text
//! byte 0  how images are opened    1  number of requests, modulo 17   then 6 bytes for each request
//!      4 bytes  length of the file in sectors       then records up to the end of the input:
//!      4 bytes  offset, 2 bytes length, bytes       what is cut off is not there
//! ```
//!
//! A sparse image of 64 KiB clusters so is a few hundred bytes, nearly each of which matters.

use super::medium::Contents;
use super::script::{Request, REQUEST_BYTES};

/// What an input asks for.
pub struct Container {
    pub manner: u8,
    pub requests: Vec<Request>,
    pub contents: Contents,
}

/// Takes `count` bytes from the front; zeroes for what is missing.
pub fn take<const COUNT: usize>(input: &mut &[u8]) -> [u8; COUNT] {
    let mut out = [0; COUNT];
    let count = COUNT.min(input.len());
    out[..count].copy_from_slice(&input[..count]);
    *input = &input[count..];
    out
}

/// Every input is some container.
pub fn decode(mut input: &[u8]) -> Container {
    let [manner, count] = take(&mut input);
    let requests = (0..count % 17).map(|_| Request::decode(take::<REQUEST_BYTES>(&mut input))).collect();
    let mut contents = Contents::default();
    let length = u64::from(u32::from_le_bytes(take(&mut input))) * 512;
    while !input.is_empty() {
        let offset = u32::from_le_bytes(take(&mut input));
        let bytes = usize::from(u16::from_le_bytes(take(&mut input))).min(input.len());
        contents.write(u64::from(offset), &input[..bytes]);
        input = &input[bytes..];
    }
    if length > contents.length {
        contents.set_length(length);
    }
    Container { manner, requests, contents }
}
