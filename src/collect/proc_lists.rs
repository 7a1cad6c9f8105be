//! Directories of proc that hold a list per file.

use std::fs;
use std::io::{ErrorKind, Read};
use std::path::Path;

use super::error::{Error, Result};

/// Reads all lists of a directory, at most `most` bytes of each; none where the directory is not there, since the kernel
/// makes it with the first. `parse` gets a list's name, its text, and whether the text was cut.
///
/// Errors: what can't be read, and what `parse` can't.
pub fn read<T>(
    dir: &Path,
    most: u64,
    mut parse: impl FnMut(String, &str, bool) -> Option<T>,
) -> Result<Vec<T>> {
    let failed =
        |path: &Path, error: &std::io::Error| Error::io(format!("read {}", path.display()), error);
    let files = match fs::read_dir(dir) {
        Ok(files) => files,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(dir, &error)),
    };
    let mut lists = Vec::new();
    for file in files {
        let file = file.map_err(|error| failed(dir, &error))?;
        let path = file.path();
        let opened = match fs::File::open(&path) {
            Ok(opened) => opened,
            // Its last rule went meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(&path, &error)),
        };
        let mut text = String::new();
        let read = opened.take(most).read_to_string(&mut text);
        read.map_err(|error| failed(&path, &error))?;
        let cut = u64::try_from(text.len()).is_ok_and(|len| len >= most);
        let name = file.file_name().to_string_lossy().into_owned();
        lists.push(parse(name, &text, cut).ok_or_else(|| {
            Error::malformed(
                format!("read {}", path.display()),
                "a line is not as expected",
            )
        })?);
    }
    Ok(lists)
}
