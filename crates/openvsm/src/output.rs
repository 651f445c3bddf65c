//! Files that the user has us write. All are opened before any of them is changed, so that a bad one leaves the others
//! as they were.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::failure::{self, Failure};

/// Files that are open and still hold what they held before. If they are not committed, those that were made for
/// this are removed.
#[derive(Debug, Default)]
pub struct OutputFiles {
    files: Vec<Opened>,
}

#[derive(Debug)]
struct Opened {
    file: Arc<File>,
    path: PathBuf,
    created: bool,
}

impl OutputFiles {
    /// Opens one more. `option` is what named it, as the user would write it before the path.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn open(&mut self, option: &str, path: PathBuf) -> Result<Arc<File>, Failure> {
        let opened = match File::options().write(true).create_new(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                File::options().write(true).open(&path).map(|file| (file, false))
            }
            created => created.map(|file| (file, true)),
        };
        let (file, created) = opened.map_err(|error| {
            let problem = format!("{}; give a file that can be written", failure::plain(&error));
            Failure::bad_input(format!("{option}{}", path.display()), problem)
        })?;
        let file = Arc::new(file);
        self.files.push(Opened { file: Arc::clone(&file), path, created });
        Ok(file)
    }

    /// Drops what the files held before.
    ///
    /// # Errors
    /// If the host refuses.
    pub fn commit(mut self) -> Result<(), Failure> {
        for Opened { file, .. } in std::mem::take(&mut self.files) {
            if file.metadata().is_ok_and(|metadata| metadata.is_file()) {
                file.set_len(0).map_err(Failure::host)?;
            }
        }
        Ok(())
    }
}

impl Drop for OutputFiles {
    fn drop(&mut self) {
        for Opened { path, .. } in self.files.iter().filter(|opened| opened.created) {
            // It is empty; if it cannot be removed, no harm is done.
            let _ = fs::remove_file(path);
        }
    }
}
