//! Network namespaces: files that stand for them, and the only thread that enters them.
//!
//! `setns(2)` works per thread, so one thread of its own hops from namespace to namespace, opens
//! sockets and reads `/proc/thread-self/net` and `/proc/sys/net` there, and returns home after each job.
//! What it opened is then used from any thread: a socket stays in the namespace it was born in.

use std::any::Any;
use std::fs::File;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::fstatfs;

use super::error::{Error, Result};
use crate::model::NetNsId;

/// NSFS_MAGIC, include/uapi/linux/magic.h
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// An open namespace file. Holding it keeps the namespace alive.
#[derive(Clone, Debug)]
pub struct NsFile {
    file: Arc<File>,
    id: NetNsId,
}

impl NsFile {
    /// Opens a file and makes sure that it is a namespace's. Stale plain files in `/run/netns` are
    /// refused here.
    pub fn open(path: &Path) -> Result<Self> {
        let operation = || format!("open namespace {}", path.display());
        let file = File::options()
            .read(true)
            // A FIFO put in the directory must not block.
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(|error| Error::io(operation(), &error))?;
        let magic = fstatfs(&file)
            .map_err(|errno| Error::nix(operation(), errno))?
            .filesystem_type()
            .0;
        if magic != NSFS_MAGIC {
            return Err(Error::malformed(operation(), "it is no namespace file"));
        }
        let meta = file
            .metadata()
            .map_err(|error| Error::io(operation(), &error))?;
        let id = NetNsId {
            dev: meta.dev(),
            ino: meta.ino(),
        };
        Ok(Self {
            file: Arc::new(file),
            id,
        })
    }

    /// Identity.
    pub fn id(&self) -> NetNsId {
        self.id
    }

    /// The descriptor, for RTM_GETNSID.
    pub fn file(&self) -> &File {
        &self.file
    }
}

type Job = Box<dyn FnOnce(&NsFile) + Send>;

/// The thread that enters namespaces.
pub struct Hopper {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Hopper {
    /// Starts the thread. It waits in the namespace of the caller.
    pub fn start() -> Result<Self> {
        let operation = "start the thread that enters namespaces";
        let home = NsFile::open(Path::new("/proc/thread-self/ns/net"))?;
        let (jobs, queue) = channel::<Job>();
        let thread = std::thread::Builder::new()
            .name("netns".to_owned())
            .spawn(move || {
                for job in queue {
                    job(&home);
                }
            })
            .map_err(|error| Error::io(operation, &error))?;
        Ok(Self {
            jobs: Some(jobs),
            thread: Some(thread),
        })
    }

    /// Runs `work` inside a namespace and waits for it.
    pub fn run<T: Send + 'static>(
        &self,
        ns: &NsFile,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        let mut work = Some(work);
        let mut results = self.run_each(vec![ns.clone()], move |_| {
            // Called once, since there is one namespace.
            work.take().map(|work| work())
        })?;
        match results.pop() {
            Some(Ok(Some(value))) => Ok(value),
            Some(Err(error)) => Err(error),
            _ => Err(Error::malformed(operation(ns), "the work was not done")),
        }
    }

    /// Runs `work` inside one namespace after the other, with its position, and waits for all. Waking
    /// the thread costs far more than entering a namespace.
    pub fn run_each<T: Send + 'static>(
        &self,
        namespaces: Vec<NsFile>,
        mut work: impl FnMut(usize) -> T + Send + 'static,
    ) -> Result<Vec<Result<T>>> {
        let gone = || {
            let operation = "enter network namespaces";
            Error::malformed(operation, "the thread that enters namespaces ended")
        };
        let (answer, wait) = channel();
        let job: Job = Box::new(move |home| {
            let mut results = Vec::with_capacity(namespaces.len());
            let mut away = false;
            for (at, ns) in namespaces.iter().enumerate() {
                // Staying at home takes no right.
                let entered = if ns.id == home.id && !away {
                    Ok(())
                } else {
                    setns(&*ns.file, CloneFlags::CLONE_NEWNET)
                };
                away |= entered.is_ok() && ns.id != home.id;
                results.push(match entered {
                    Err(errno) => Err(Error::nix(operation(ns), errno)),
                    Ok(()) => catch_unwind(AssertUnwindSafe(|| work(at)))
                        .map_err(|panic| Error::malformed(operation(ns), panic_text(&*panic))),
                });
            }
            // Staying would keep a deleted pod's namespace alive.
            let back = if away {
                setns(&*home.file, CloneFlags::CLONE_NEWNET)
            } else {
                Ok(())
            };
            // The caller waits for exactly this answer; it can't have gone.
            let _ = answer.send((results, back));
        });
        let jobs = self.jobs.as_ref().ok_or_else(gone)?;
        jobs.send(job).map_err(|_| gone())?;
        let (results, back) = wait.recv().map_err(|_| gone())?;
        back.map_err(|errno| Error::nix("return to the helper's own namespace", errno))?;
        Ok(results)
    }
}

fn operation(ns: &NsFile) -> String {
    format!("enter network namespace net:[{}]", ns.id.ino)
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    format!(
        "the work inside panicked: {}",
        text.unwrap_or_else(|| "(no text)".to_owned())
    )
}

impl Drop for Hopper {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was already reported by the job that met it.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_files_are_no_namespaces() {
        let error = NsFile::open(Path::new("/proc/self/status")).expect_err("not a namespace");
        assert!(error.to_string().contains("no namespace file"), "{error}");
        let own = NsFile::open(Path::new("/proc/self/ns/net")).expect("own namespace");
        assert_ne!(own.id().ino, 0);
    }
}
