//! Names by which images record other files, as in the reference implementation.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What names a file whatever follows, relative to the working directory.
const FILE: &[u8] = b"file:";

/// The protocol of a name that is no file's: what is before a colon that comes before any slash ("nbd:...",
/// "json:{...}").
pub fn protocol(name: &OsStr) -> Option<&OsStr> {
    let bytes = name.as_bytes();
    let mark = bytes.iter().position(|b| matches!(b, b':' | b'/'))?;
    (bytes[mark] == b':').then(|| OsStr::from_bytes(&bytes[..mark]))
}

/// The name of something that is not a file: with a protocol that is not "file:".
pub fn is_remote(name: &OsStr) -> bool {
    protocol(name).is_some() && !name.as_bytes().starts_with(FILE)
}

/// The path that a recorded name stands for in the image at `image`: relative to the image's directory, but
/// relative to the working directory after "file:".
pub fn resolve(name: &OsStr, image: Option<&Path>) -> Option<PathBuf> {
    if let Some(rest) = name.as_bytes().strip_prefix(FILE) {
        let rest = OsStr::from_bytes(rest);
        return match (rest.is_empty(), protocol(rest)) {
            (true, _) => None,
            // What is left is a file's name, whatever it begins with.
            (_, Some(_)) => Some(Path::new(".").join(rest)),
            (_, None) => Some(rest.into()),
        };
    }
    if name.is_empty() || protocol(name).is_some() {
        return None;
    }
    let path = Path::new(name);
    match image {
        _ if path.is_absolute() => Some(path.to_owned()),
        Some(image) => Some(image.parent().unwrap_or(Path::new("")).join(path)),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_relative_to_the_image() {
        let image = Some(Path::new("/a/b/top.qcow2"));
        let resolve = |name: &str, image| resolve(OsStr::new(name), image);
        assert_eq!(resolve("base", image), Some("/a/b/base".into()));
        assert_eq!(resolve("/c/base", image), Some("/c/base".into()));
        assert_eq!(resolve("file:x/base", image), Some("x/base".into()));
        assert_eq!(resolve("file:a:b", image), Some("./a:b".into()));
        assert_eq!(resolve("file:/c/a:b", image), Some("/c/a:b".into()));
        assert_eq!(resolve("file:base", None), Some("base".into()));
        assert_eq!(resolve("file:", image), None);
        assert_eq!(resolve("C:\\x", image), None);
        assert_eq!(resolve(":x", image), None);
        assert_eq!(resolve("", image), None);
        assert_eq!(resolve("nbd://host/x", image), None);
        assert_eq!(resolve("json:{\"a\": 1}", image), None);
        assert_eq!(resolve("./a:b", image), Some("/a/b/./a:b".into()));
        assert_eq!(resolve("base", None), None);
    }

    #[test]
    fn a_file_is_not_remote() {
        let remote = |name: &str| is_remote(OsStr::new(name));
        assert!(remote("nbd://host/x") && remote("json:{}") && remote(":x"));
        assert!(!remote("file:x") && !remote("./a:b") && !remote("/a:b") && !remote(""));
        assert_eq!(protocol(OsStr::new("nbd://host/x")), Some(OsStr::new("nbd")));
    }
}
