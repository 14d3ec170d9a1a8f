//! Published test vectors, and sums that OpenSSL 3 has made of 19 sectors in every mode that it has.

use super::cipher::Blocks;
use super::hash::iterations_of;
use super::*;
use crate::error::{Error, ErrorKind};
use crate::format::{GuestOffset, HostOffset};

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap()).collect()
}

#[test]
fn digests_of_abc() {
    let vectors = [
        (Hash::Md5, "900150983cd24fb0d6963f7d28e17f72"),
        (Hash::Sha1, "a9993e364706816aba3e25717850c26c9cd0d89d"),
        (Hash::Sha224, "23097d223405d8228642a477bda255b32aadbce4bda0b3f7e36c9da7"),
        (Hash::Sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        (Hash::Sha384, "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed8086072ba1e7cc2358baeca134c825a7"),
        (Hash::Sha512, "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f"),
        (Hash::Ripemd160, "8eb208f7e05d987a9b044a8e98c6b087f15a0bfc"),
        (Hash::Sm3, "66c7f0f462eeedd9d1f2d46bdc10e4e24167c4875cf2f7a2297da02b8f4ba8e0"),
    ];
    for (hash, expected) in vectors {
        let mut digest = vec![0; hash.bytes()];
        hash.digest(&[b"a", b"", b"bc"], &mut digest);
        assert_eq!(digest, hex(expected), "{}", hash.name());
        assert_eq!(Hash::from_name(hash.name()), Some(hash));
    }
    assert_eq!(Hash::from_name("SHA256"), None);
}

/// RFC 6070, RFC 7914; the 4096 rounds with the other digests are OpenSSL's.
#[test]
fn keys_of_passphrases() {
    let long: (&[u8], &[u8]) = (b"passwordPASSWORDpassword", b"saltSALTsaltSALTsaltSALTsaltSALTsalt");
    type Vector<'a> = (Hash, &'a [u8], &'a [u8], u32, &'a str);
    let vectors: [Vector<'_>; 10] = [
        (Hash::Sha1, b"password", b"salt", 1, "0c60c80f961f0e71f3a9b524af6012062fe037a6"),
        (Hash::Sha1, long.0, long.1, 4096, "3d2eec4fe41c849b80c8d83662c0e44a8b291a964cf2f07038"),
        (Hash::Sha256, b"passwd", b"salt", 1, "55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc49ca9cccf179b645991664b39d77ef317c71b845b1e30bd509112041d3a19783"),
        (Hash::Md5, long.0, long.1, 4096, "8d5d0aad94d14420429fbc7e5b087d7a5527e65dfd0d486a31"),
        (Hash::Sha224, long.0, long.1, 4096, "056c4ba438ded91fc14e0594e6f52b87e1f3690c0dc0fbc057"),
        (Hash::Sha256, long.0, long.1, 4096, "348c89dbcbd32b2f32d814b8116e84cf2b17347ebc1800181c"),
        (Hash::Sha384, long.0, long.1, 4096, "819143ad66df9a552559b9e131c52ae6c5c1b0eed18f4d283b"),
        (Hash::Sha512, long.0, long.1, 4096, "8c0511f4c6e597c6ac6315d8f0362e225f3c501495ba23b868"),
        (Hash::Ripemd160, long.0, long.1, 4096, "503b9a069633b261b2d3e4f21c5d0cafeb3f5008aec25ed214"),
        (Hash::Sm3, long.0, long.1, 4096, "3b6282ac8519f059e465abff0ea37b0dbfe6c672a76e6b8053"),
    ];
    for (hash, passphrase, salt, iterations, expected) in vectors {
        let expected = hex(expected);
        let mut key = vec![0; expected.len()];
        pbkdf2(hash, passphrase, salt, iterations, &mut key, &mut |_| Ok(())).unwrap();
        assert_eq!(key, expected, "{} {iterations}", hash.name());
    }
}

#[test]
fn a_derivation_tells_how_far_it_is_and_can_be_stopped() {
    let (mut told, mut key) = (Vec::new(), [0; 40]);
    let total = iterations_of(Hash::Sha256, 30_000, key.len());
    pbkdf2(Hash::Sha256, b"a", b"b", 30_000, &mut key, &mut |done| {
        told.push(done);
        Ok(())
    })
    .unwrap();
    assert!(told.len() > 6 && told.windows(2).all(|w| w[0] < w[1]) && told.iter().all(|t| *t < total));
    let stop = &mut |_| Err(Error::new(ErrorKind::Cancelled, "stop"));
    let stopped = pbkdf2(Hash::Sha256, b"a", b"b", u32::MAX, &mut key, stop);
    assert_eq!(stopped.unwrap_err().kind(), ErrorKind::Cancelled);
    assert!(pbkdf2(Hash::Sha256, b"a", b"b", 0, &mut key, &mut |_| Ok(())).is_err());
}

/// FIPS 197, RFC 2144, NESSIE (Serpent), the Twofish paper.
#[test]
fn single_blocks() {
    let counting = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    let text = "00112233445566778899aabbccddeeff";
    let zero = "00000000000000000000000000000000";
    let mut vectors = vec![
        (Algorithm::Aes, counting[..32].to_owned(), text, "69c4e0d86a7b0430d8cdb78070b4c55a"),
        (Algorithm::Aes, counting[..48].to_owned(), text, "dda97ca4864cdfe06eaf70a0ec0d7191"),
        (Algorithm::Aes, counting.to_owned(), text, "8ea2b7ca516745bfeafc49904b496089"),
    ];
    if cfg!(feature = "more-ciphers") {
        let first_bit = format!("80{}", "00".repeat(31));
        vectors.extend([
            (
                Algorithm::Cast5,
                "0123456712345678234567893456789a".into(),
                "0123456789abcdef",
                "238b4fe5847e44b2",
            ),
            (Algorithm::Serpent, first_bit[..32].into(), zero, "264e5481eff42a4606abda06c0bfda3d"),
            (Algorithm::Serpent, first_bit, zero, "a223aa1288463c0e2be38ebd825616c0"),
            (Algorithm::Twofish, zero.into(), zero, "9f589f5cf6122c32b6bfec2f2ae8c35a"),
            (
                Algorithm::Twofish,
                "0123456789abcdeffedcba98765432100011223344556677".into(),
                zero,
                "cfd1d2e5a9be9cdf501f13b892bd2248",
            ),
            (Algorithm::Twofish, zero.repeat(2), zero, "57ff739d4dc92c1bd7fc01700cc8216f"),
        ]);
    }
    for (algorithm, key, plain, encrypted) in vectors {
        let cipher = Blocks::new(algorithm, &hex(&key)).unwrap();
        // Three blocks at once: ciphers do several in one go.
        let mut blocks = hex(plain).repeat(3);
        cipher.encrypt(&mut blocks);
        assert_eq!(blocks, hex(encrypted).repeat(3), "{} {key}", algorithm.name());
        cipher.decrypt(&mut blocks);
        assert_eq!(blocks, hex(plain).repeat(3));
    }
}

fn spec(key_bytes: usize, mode: Mode, iv: IvGenerator) -> Spec {
    Spec { algorithm: Algorithm::Aes, key_bytes, mode, iv }
}

/// IEEE 1619-2007, annex B: vector 1 (the start of its sector) and vector 10.
#[test]
fn xts() {
    let sectors = Sectors::new(&spec(32, Mode::Xts, IvGenerator::Plain64), &[0; 32]).unwrap();
    let mut sector = [0; 512];
    sectors.encrypt(HostOffset(0), &mut sector);
    assert_eq!(sector[..32], hex("917cf69ebd68b2ec9b9fe9a3eadda692cd43d2f59598ed858c02c2652fbf922e"));
    let key = hex("27182818284590452353602874713526624977572470936999595749669676273141592653589793238462643383279502884197169399375105820974944592");
    let sectors = Sectors::new(&spec(64, Mode::Xts, IvGenerator::Plain64), &key).unwrap();
    let plain: Vec<u8> = (0..512).map(|i| i as u8).collect();
    let mut sector = plain.clone();
    sectors.encrypt(HostOffset(0xff * 512), &mut sector);
    assert_eq!(sector[..32], hex("1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b"));
    let mut digest = [0; 32];
    Hash::Sha256.digest(&[&sector], &mut digest);
    assert_eq!(digest[..], hex("e97e974fa393af794f7a4684395814cf820de60a01eaec677d87b452e316b364"));
    sectors.decrypt(HostOffset(0xff * 512), &mut sector);
    assert_eq!(sector[..], plain);
}

/// Key, mode and generator, CRC-32 of what OpenSSL makes of sectors 0x100000005 to 0x100000017.
const OPENSSL: [(usize, &str, u32); 32] = [
    (32, "xts-plain", 0x04dbfdbc),
    (32, "xts-plain64", 0x726ba852),
    (32, "xts-essiv:sha256", 0x47002766),
    (32, "xts-essiv:md5", 0xedc45002),
    (16, "cbc-plain", 0xc0017f2a),
    (16, "cbc-plain64", 0x829e3909),
    (16, "cbc-essiv:sha256", 0x86c42134),
    (16, "cbc-essiv:md5", 0x44a1fd97),
    (16, "ctr-plain", 0xedfc012d),
    (16, "ctr-plain64", 0xbdc5433f),
    (16, "ctr-essiv:sha256", 0xa7c30102),
    (16, "ecb-plain64", 0xf1ec8b69),
    (24, "cbc-plain", 0xa2c456eb),
    (24, "cbc-plain64", 0x512d5d08),
    (24, "cbc-essiv:sha256", 0x51284356),
    (24, "ctr-plain", 0x92b8854b),
    (24, "ctr-plain64", 0x4572bc0b),
    (24, "ctr-essiv:md5", 0x3bbbae8f),
    (24, "ecb-plain64", 0x8a07e11b),
    (64, "xts-plain", 0xfbd4c2e1),
    (64, "xts-plain64", 0xc9063bd6),
    (64, "xts-essiv:sha256", 0x62077a00),
    (64, "xts-essiv:md5", 0x0fe33c7c),
    (32, "cbc-plain", 0xa7215943),
    (32, "cbc-plain64", 0x9634b36d),
    (32, "cbc-essiv:sha256", 0x11a9b610),
    (32, "cbc-essiv:md5", 0x77e6fb30),
    (32, "ctr-plain", 0xee64feb2),
    (32, "ctr-plain64", 0xba1df867),
    (32, "ctr-essiv:sha256", 0xabea1923),
    (32, "ctr-essiv:md5", 0xf5b4bc17),
    (32, "ecb-plain64", 0x5b7994a7),
];

#[test]
fn every_mode_and_generator_makes_what_openssl_makes() {
    const FIRST: u64 = 0x1_0000_0005;
    for (key_bytes, name, expected) in OPENSSL {
        let (mode, iv) = luks::parse_mode(name).unwrap();
        let key: Vec<u8> = (0..key_bytes).map(|i| (i * 7 + 3) as u8).collect();
        let sectors = Sectors::new(&spec(key_bytes, mode, iv), &key).unwrap();
        let plain: Vec<u8> = (0..19 * 512).map(|i| ((i * 31) >> 3) as u8).collect();
        let mut bytes = plain.clone();
        sectors.encrypt(HostOffset(FIRST * 512), &mut bytes);
        assert_eq!(crc32fast::hash(&bytes), expected, "{key_bytes} {name}");
        // Sector by sector it is the same.
        for (index, sector) in bytes.chunks_mut(512).enumerate() {
            sectors.decrypt(HostOffset((FIRST + index as u64) * 512), sector);
        }
        assert_eq!(bytes, plain, "{key_bytes} {name}");
    }
}

/// The rare ciphers in every mode against a slow reading of the modes' definitions.
#[test]
#[cfg(feature = "more-ciphers")]
fn rare_ciphers_go_back_and_forth_in_every_mode() {
    for algorithm in [Algorithm::Serpent, Algorithm::Twofish, Algorithm::Cast5] {
        for mode in Mode::ALL {
            let key_bytes = if mode == Mode::Xts { 32 } else { 16 };
            let spec = Spec { algorithm, key_bytes, mode, iv: IvGenerator::Essiv(Hash::Md5) };
            let key: Vec<u8> = (0..key_bytes as u8).collect();
            let Ok(sectors) = Sectors::new(&spec, &key) else {
                assert!(mode == Mode::Xts && algorithm == Algorithm::Cast5);
                continue;
            };
            let mut bytes = vec![7; 5 * 512];
            sectors.encrypt(HostOffset(512), &mut bytes);
            assert!(mode == Mode::Ecb || bytes[..512] != bytes[512..1024]);
            let mut one = vec![7; 512];
            sectors.encrypt(HostOffset(3 * 512), &mut one);
            assert_eq!(one, bytes[1024..1536], "{} {}", algorithm.name(), mode.name());
            sectors.decrypt(HostOffset(512), &mut bytes);
            assert!(bytes.iter().all(|b| *b == 7));
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let refused = |key_bytes, mode, iv| {
        Sectors::<HostOffset>::new(&spec(key_bytes, mode, iv), &vec![0; key_bytes]).err()
    };
    for key_bytes in [0, 1, 8, 15, 17, 31, 33, 63, 65, 128] {
        for mode in Mode::ALL {
            assert!(refused(key_bytes, mode, IvGenerator::Plain).is_some(), "{key_bytes} {}", mode.name());
        }
    }
    for hash in [Hash::Sha1, Hash::Sha384, Hash::Sha512, Hash::Ripemd160] {
        assert!(refused(32, Mode::Cbc, IvGenerator::Essiv(hash)).is_some());
    }
    // SHA-224 is as long as no key; SM3 fits.
    assert!(refused(32, Mode::Cbc, IvGenerator::Essiv(Hash::Sha224)).is_some());
    assert!(refused(32, Mode::Cbc, IvGenerator::Essiv(Hash::Sm3)).is_none());
    assert!(Sectors::<HostOffset>::new(&spec(32, Mode::Cbc, IvGenerator::Plain), &[0; 16]).is_err());
}

/// The key is the start of the passphrase, and the IV the guest's sector.
#[test]
fn the_older_aes() {
    let (old, mut key) = (legacy_aes(b"0123456789abcdefXYZ").unwrap(), [0; 16]);
    key.copy_from_slice(b"0123456789abcdef");
    let new = Sectors::new(&spec(16, Mode::Cbc, IvGenerator::Plain64), &key).unwrap();
    let (mut one, mut other) = ([3; 1024], [3; 1024]);
    old.encrypt(GuestOffset(1 << 45), &mut one);
    new.encrypt(HostOffset(1 << 45), &mut other);
    assert_eq!(one, other);
    let short = legacy_aes(b"abc").unwrap();
    let padded = legacy_aes(b"abc\0\0").unwrap();
    short.encrypt(GuestOffset(0), &mut one);
    padded.encrypt(GuestOffset(0), &mut other);
    assert_eq!(one, other);
}
