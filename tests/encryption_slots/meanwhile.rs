//! What others do while an amend asks for secrets.

use super::*;

/// A new disk of this format, open, and the options that give it a second secret.
fn new_disk(format: Driver) -> (Arc<Memory>, Handle, [&'static str; 3]) {
    let is_image = format == Driver::QCOW2;
    let names = match is_image {
        true => ["encrypt.state=active", "encrypt.new-secret=n", "encrypt.iter-time=0"],
        false => ["state=active", "new-secret=n", "iter-time=0"],
    };
    let bytes = match is_image {
        true => new_image(IMAGES[0]),
        false => {
            let options = CreateOptions::parse_luks(&["iter-time=0", "cipher-alg=aes-128"]).unwrap();
            let encryption = options.encryption.as_ref().unwrap();
            let keys = with_secrets("", "first", "", |s| NewKeys::make(encryption, "here", s)).unwrap();
            let made = Noted::new(Vec::new(), None);
            make(&made, format, &options, &keys).unwrap();
            made.memory.contents()
        }
    };
    let storage = Arc::new(Memory::new(bytes));
    let handle = with_secrets("first", "", "", |secrets| {
        let flags = OpenFlags { format, ..OpenFlags::default() };
        let (options, secrets) = (OpenOptions::default(), std::mem::take(secrets));
        let origin = Origin::Custom(storage.clone());
        Opening { flags, options, resolver: None, messages: None, secrets }.open(&origin)
    });
    (storage, handle.unwrap(), names)
}

/// An amend, with `meanwhile` run when the new secret is asked for.
fn amend_meanwhile(handle: &Handle, options: &[&str], meanwhile: &mut dyn FnMut()) -> Result<()> {
    let mut source = |request: &SecretRequest, room: &mut [u8]| {
        let new = matches!(request.kind, SecretKind::New);
        if new {
            meanwhile();
        }
        let secret = if new { "second" } else { "first" };
        room[..secret.len()].copy_from_slice(secret.as_bytes());
        Ok(Some(secret.len()))
    };
    let mut secrets = Secrets { source: Some(&mut source), progress: None };
    amend_with(handle, options, false, &mut secrets, &mut |_, _| true)
}

#[test]
fn requests_go_on_while_a_secret_is_asked_for() {
    for format in [Driver::QCOW2, Driver::LUKS] {
        let (_, handle, options) = new_disk(format);
        let mut went_on = false;
        std::thread::scope(|scope| {
            let mut meanwhile = || {
                let (done, told) = std::sync::mpsc::channel();
                let disk = handle.disk();
                scope.spawn(move || {
                    let mut back = [0; 700];
                    disk.write(100, &[IoSlice::new(&[7; 700])], false).unwrap();
                    disk.read(100, &mut [IoSliceMut::new(&mut back)]).unwrap();
                    disk.flush().unwrap();
                    // Nobody listens any more when it took too long.
                    let _ = done.send(back == [7; 700]);
                });
                went_on = told.recv_timeout(std::time::Duration::from_secs(20)) == Ok(true);
            };
            amend_meanwhile(&handle, &options, &mut meanwhile).unwrap();
        });
        assert!(went_on, "{format:?}: a request waits for a secret");
        handle.close().unwrap();
    }
}

#[test]
fn a_header_that_changed_while_a_secret_was_asked_for_is_kept() {
    for format in [Driver::QCOW2, Driver::LUKS] {
        let (storage, handle, options) = new_disk(format);
        let at = storage.contents().windows(6).position(|w| w == b"LUKS\xba\xbe").unwrap() as u64;
        // The iterations of slot 0, as another program may have set them.
        let mut meanwhile = || {
            let changed = [IoSlice::new(&[1, 2, 3, 4])];
            storage.write(Purpose::Encryption, at + 208 + 4, &changed).unwrap();
        };
        let refused = amend_meanwhile(&handle, &options, &mut meanwhile).unwrap_err();
        assert_eq!(refused.errno(), libc::EAGAIN, "{refused}");
        let bytes = storage.contents();
        let slots = &bytes[at as usize + 208..][..2 * 48];
        assert_eq!(slots[4..8], [1, 2, 3, 4]);
        assert_eq!(slots[48..52], 0x0000_dead_u32.to_be_bytes(), "{format:?}: slot 1 is active");
    }
}
