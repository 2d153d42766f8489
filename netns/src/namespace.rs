//! A network namespace held by a file descriptor.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpid, getppid};

use crate::error::{Error, Result};
use crate::mounts::Mounts;
use crate::{link, sysctl};

/// The calling thread's own namespace. `/proc/self` would be that of the first thread.
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";

/// A handle on a network namespace; cloning it is cheap and shares the namespace.
///
/// The namespace goes away with the last handle, process and socket that belongs to it.
#[derive(Clone)]
pub struct Namespace {
    inner: Arc<Inner>,
}

struct Inner {
    label: String,
    file: File,
    mounts: Option<Mounts>,
}

impl Namespace {
    /// Makes a namespace in which `lo` is up and IPv6 addresses are usable the moment they are
    /// added.
    ///
    /// `label` appears in errors and thread names, and means nothing to the kernel.
    ///
    /// # Errors
    ///
    /// [`Error::NotPermitted`] without CAP_SYS_ADMIN and CAP_NET_ADMIN.
    pub fn new(label: &str) -> Result<Self> {
        let label = printable(label);
        let made = on_thread(&label, "making it", || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open(OWN_NAMESPACE)
        })?;
        let file = made.map_err(|source| Error::system(&label, "making it", source))?;
        let namespace = Self {
            inner: Arc::new(Inner {
                label,
                file,
                mounts: None,
            }),
        };
        namespace.make_ipv6_usable_at_once()?;
        link::up(&namespace, "lo")?;
        Ok(namespace)
    }

    /// A namespace that somebody else made, by its file: `/proc/PID/ns/net`,
    /// `/run/netns/NAME` or another process's [`path`](Self::path). Nothing in it is changed.
    ///
    /// # Errors
    ///
    /// [`Error::System`] where the file cannot be opened.
    pub fn open(label: &str, path: &Path) -> Result<Self> {
        let label = printable(label);
        let file = File::open(path)
            .map_err(|source| Error::system(&label, format!("opening {path:?}"), source))?;
        Ok(Self {
            inner: Arc::new(Inner {
                label,
                file,
                mounts: None,
            }),
        })
    }

    /// The same namespace; what runs in it by this handle sees these mounts.
    ///
    /// # Errors
    ///
    /// [`Error::System`] where there is no descriptor for it.
    pub fn with_mounts(&self, mounts: &Mounts) -> Result<Self> {
        let file = self.inner.file.try_clone();
        let file =
            file.map_err(|source| Error::system(self.label(), "giving it mounts", source))?;
        Ok(Self {
            inner: Arc::new(Inner {
                label: self.inner.label.clone(),
                file,
                mounts: Some(mounts.clone()),
            }),
        })
    }

    /// The mounts that are seen in it, where those are not the host's.
    pub fn mounts(&self) -> Option<&Mounts> {
        self.inner.mounts.as_ref()
    }

    /// The label it was made with.
    pub fn label(&self) -> &str {
        &self.inner.label
    }

    /// A path by which another process can enter, for example
    /// `nsenter --net=/proc/4711/fd/9`. Good as long as this handle.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!(
            "/proc/{}/fd/{}",
            getpid(),
            self.inner.file.as_raw_fd()
        ))
    }

    /// Runs `work` on a new thread inside the namespace and waits for it.
    ///
    /// The caller's thread is blocked meanwhile. A panic in `work` continues in the caller.
    ///
    /// # Errors
    ///
    /// Where the thread cannot be started or cannot enter the namespace.
    pub fn run<T, F>(&self, work: F) -> Result<T>
    where
        F: FnOnce() -> T + Send,
        T: Send,
    {
        let entered = on_thread(self.label(), "entering it", || {
            self.enter().map(|()| work())
        })?;
        entered.map_err(|source| Error::system(self.label(), "entering it", source))
    }

    /// Like [`run`](Self::run), for asynchronous work: the future is made and driven on the new
    /// thread, by a runtime of its own that ends with it. Sockets that must outlive the call have
    /// to be made with [`run`](Self::run) as `std` sockets, and handed to another runtime.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run), or where the runtime cannot be built.
    pub fn block_on<T, F, Fut>(&self, work: F) -> Result<T>
    where
        F: FnOnce() -> Fut + Send,
        Fut: Future<Output = T>,
        T: Send,
    {
        self.run(|| {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map(|runtime| runtime.block_on(async { work().await }))
        })?
        .map_err(|source| Error::system(self.label(), "building a runtime", source))
    }

    /// Starts a thread that lives inside the namespace. Joining it gives what `work` returned, or
    /// why the thread could not enter; `work` has not been called then.
    ///
    /// # Errors
    ///
    /// Where the thread cannot be started.
    pub fn spawn_thread<T, F>(&self, work: F) -> Result<thread::JoinHandle<Result<T>>>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let namespace = self.clone();
        thread::Builder::new()
            .name(self.label().to_owned())
            .spawn(move || {
                namespace
                    .enter()
                    .map_err(|source| Error::system(namespace.label(), "entering it", source))?;
                Ok(work())
            })
            .map_err(|source| Error::system(self.label(), "starting a thread", source))
    }

    /// A command whose process starts inside the namespace, and is killed when the *thread* that
    /// spawned it ends (the kernel's parent-death signal goes by thread).
    ///
    /// So nothing is left behind when this process dies in whatever way. It also means: spawn it
    /// from a thread that lives as long as the child should, such as a test's own thread or a
    /// runtime worker, not from inside [`run`](Self::run) or `spawn_blocking`.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let namespace = self.clone();
        let parent = getpid();
        // SAFETY: between fork and exec only async-signal-safe system calls are allowed. These are
        // prctl, getppid, unshare, getcwd, setns and chdir, and none of them allocates, locks or
        // unwinds.
        unsafe { command.pre_exec(move || namespace.adopt_child_of(parent)) };
        command
    }

    /// [`command`](Self::command) for a tokio runtime. Spawn it from a worker or a
    /// `current_thread` runtime; the parent-death signal goes by thread.
    pub fn tokio_command(&self, program: impl AsRef<OsStr>) -> tokio::process::Command {
        self.command(program).into()
    }

    fn enter(&self) -> io::Result<()> {
        if let Some(mounts) = &self.inner.mounts {
            mounts.enter()?;
        }
        setns(&self.inner.file, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
    }

    /// The last steps of a child before it becomes the program.
    fn adopt_child_of(&self, parent: Pid) -> io::Result<()> {
        set_pdeathsig(Signal::SIGKILL)?;
        // The parent may have died before the signal was set; then it will never come.
        if getppid() != parent {
            return Err(Errno::ESRCH.into());
        }
        self.enter()
    }

    /// Duplicate address detection would make every address wait for a second or more, and has
    /// nothing to detect here.
    fn make_ipv6_usable_at_once(&self) -> Result<()> {
        for scope in ["all", "default", "lo"] {
            sysctl::set(self, &format!("net/ipv6/conf/{scope}/disable_ipv6"), "0")?;
            sysctl::set(self, &format!("net/ipv6/conf/{scope}/accept_dad"), "0")?;
        }
        Ok(())
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.file.as_fd()
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Namespace")
            .field("label", &self.inner.label)
            .field("path", &self.path())
            .finish()
    }
}

/// A thread name cannot hold a NUL.
fn printable(label: &str) -> String {
    label.replace(char::is_control, " ")
}

/// Runs `work` to its end on a thread of its own, whose namespace dies with it.
pub(crate) fn on_thread<T: Send>(
    label: &str,
    action: &str,
    work: impl FnOnce() -> T + Send,
) -> Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name(label.to_owned())
            .spawn_scoped(scope, work)
            .map_err(|source| {
                Error::system(label, format!("{action}: starting a thread"), source)
            })?;
        Ok(thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })
}
