//! Files that only the service's user may read: queues and audit records name customers by digests, which can be tested.

use std::fs::{DirBuilder, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// The mode of a file: read and write for its owner.
pub(crate) const FILE_MODE: u32 = 0o600;

const DIRECTORY_MODE: u32 = 0o700;

/// Creates a directory and its parents, for the owner only. Directories that exist stay as they are.
///
/// # Errors
///
/// The system refuses.
pub(crate) fn create_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path)
}

/// Creates an empty file for the owner only, or takes the rights of others on an existing one away, which is logged.
///
/// # Errors
///
/// The system refuses.
pub(crate) fn create_file(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(FILE_MODE).open(path)?;
    let mode = file.metadata()?.permissions().mode() & 0o777;
    if mode & !FILE_MODE != 0 {
        file.set_permissions(Permissions::from_mode(FILE_MODE))?;
        tracing::warn!(file = %path.display(), mode = format!("{mode:o}"), "others could read a file; now only its owner can");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn what_is_created_is_private_and_existing_files_become_so() {
        let directory = tempfile::tempdir().unwrap();
        let (below, file) = (directory.path().join("data/queue"), directory.path().join("data/queue/file"));
        create_directory(&below).unwrap();
        create_file(&file).unwrap();
        assert_eq!((mode(&directory.path().join("data")), mode(&below), mode(&file)), (0o700, 0o700, 0o600));

        std::fs::write(&file, "kept").unwrap();
        std::fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        create_file(&file).unwrap();
        assert_eq!((mode(&file), std::fs::read_to_string(&file).unwrap().as_str()), (0o600, "kept"));
    }
}
