//! A mount namespace with a BPF file system of its own.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{chdir, getpid};

use crate::error::{Error, Result};
use crate::namespace::on_thread;

/// Where BPF objects are pinned.
const BPF_FS: &str = "/sys/fs/bpf";

/// The calling thread's own namespace.
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/mnt";

/// The longest path that the kernel gives (`PATH_MAX`).
const PATH_MAX: usize = 4096;

/// A view of the host's files in which what is mounted stays inside, and in which nothing is pinned
/// yet. Cloning it is cheap and shares it; it goes away with its last user, and what was pinned in
/// it goes too.
#[derive(Clone, Debug)]
pub struct Mounts {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    namespace: File,
    /// None on a kernel that has no such file system.
    bpf_fs: Option<File>,
}

impl Mounts {
    /// Makes one.
    ///
    /// # Errors
    ///
    /// [`Error::NotPermitted`] without CAP_SYS_ADMIN.
    pub fn new() -> Result<Self> {
        let made = on_thread("mounts", "making them", make)?;
        let inner = made.map_err(|source| Error::system("mounts", "making them", source))?;
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// A path to its BPF file system for those who are elsewhere. Good as long as this handle.
    pub fn bpf_fs(&self) -> Option<PathBuf> {
        let fd = self.inner.bpf_fs.as_ref()?.as_raw_fd();
        Some(PathBuf::from(format!("/proc/{}/fd/{fd}", getpid())))
    }

    /// Takes the calling thread there, whose working directory stays the same by name.
    ///
    /// Allocates nothing, so that a child may call it before it becomes another program.
    pub(crate) fn enter(&self) -> io::Result<()> {
        // Threads share this, and only one that does not can go.
        unshare(CloneFlags::CLONE_FS)?;
        let mut buffer = [0; PATH_MAX];
        // SAFETY: the buffer is as long as is said, and outlives the call.
        let found = unsafe { libc::getcwd(buffer.as_mut_ptr(), buffer.len()) };
        setns(&self.inner.namespace, CloneFlags::CLONE_NEWNS)?;
        if !found.is_null() {
            // SAFETY: getcwd has written a string there, and its end.
            let path = unsafe { std::ffi::CStr::from_ptr(buffer.as_ptr()) };
            chdir(path)?;
        }
        Ok(())
    }
}

fn make() -> io::Result<Inner> {
    const NONE: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS)?;
    // What is mounted outside appears here, and not the other way round.
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_SLAVE, NONE)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let bpf_fs = match mount(Some("bpf"), BPF_FS, Some("bpf"), flags, Some("mode=0700")) {
        Ok(()) => Some(directory(BPF_FS.as_ref())?),
        Err(Errno::ENODEV | Errno::ENOENT) => None,
        Err(error) => return Err(error.into()),
    };
    Ok(Inner {
        namespace: File::open(OWN_NAMESPACE)?,
        bpf_fs,
    })
}

fn directory(path: &Path) -> io::Result<File> {
    let flags = libc::O_DIRECTORY | libc::O_CLOEXEC;
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}
