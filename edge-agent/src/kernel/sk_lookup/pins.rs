//! Where everything is kept that is to outlive the agent: a directory of the
//! BPF file system for each network namespace, `/sys/fs/bpf/anyport/INODE`.
//!
//! ```text
//! link              keeps the program attached to the namespace
//! sockets counters  the maps that all programs share
//! claims-DIGEST     the attached program, named by what it steers
//! ```
//!
//! An agent holds a shared lock on the directory while it runs: a link that was
//! detached looks like one of a namespace that is gone, whose pins any agent of
//! the host may remove. Between looking at a directory and removing it, another
//! may come into its place; so who makes or removes one is [`alone`] meanwhile.

use std::{
    ffi::CString,
    fs::{self, DirBuilder, File},
    io::{self, ErrorKind},
    os::{
        fd::{AsFd, AsRawFd},
        unix::{
            ffi::OsStrExt,
            fs::{DirBuilderExt, MetadataExt},
        },
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use libbpf_rs::{
    ErrorExt, Link, ProgramHandle, Result, libbpf_sys,
    query::{LinkInfo, LinkTypeInfo},
};
use nix::{
    fcntl::{Flock, FlockArg},
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use super::Claims;

/// Where the BPF file system is by custom; systemd mounts it there at boot.
const BPF_FS: &str = "/sys/fs/bpf";

/// Of all namespaces.
const OURS: &str = "/sys/fs/bpf/anyport";

const LINK: &str = "link";
const CLAIMS: &str = "claims-";
const TRIAL: &str = "trial";

/// For who makes or removes a directory.
const PATIENCE: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_millis(2);

/// The directory of one namespace.
#[derive(Debug)]
pub(super) struct Pins {
    /// The namespace's number, as `ls -i` and the kernel name it.
    inode: u32,
    directory: PathBuf,
    held: Option<Flock<File>>,
}

impl Pins {
    pub(super) fn of_namespace(inode: u32) -> Self {
        Self {
            inode,
            directory: Path::new(OURS).join(inode.to_string()),
            held: None,
        }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub(super) fn link(&self) -> PathBuf {
        self.path(LINK)
    }

    pub(super) fn claims(&self, digest: &str) -> PathBuf {
        self.path(&format!("{CLAIMS}{digest}"))
    }

    pub(super) fn exist(&self) -> bool {
        self.directory.exists()
    }

    /// Makes the directory where it is not there.
    fn make(&self, _alone: &Alone) -> Result<()> {
        if self.exist() {
            return Ok(());
        }
        let mut builder = DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(&self.directory);
        made.with_context(|| format!("making {}", self.directory.display()))
    }

    /// Makes the directory and keeps others from taking it for a dead
    /// namespace's.
    pub(super) fn hold(&mut self) -> Result<()> {
        if self.is_held() {
            return Ok(());
        }
        let alone = alone()?;
        remove_of_dead_namespaces(&alone);
        self.make(&alone)?;
        let held = locked(&self.directory, FlockArg::LockShared);
        self.held = Some(held.with_context(|| format!("locking {}", self.directory.display()))?);
        Ok(())
    }

    /// Is the directory that is there now the one that is locked?
    fn is_held(&self) -> bool {
        let number = |found: fs::Metadata| (found.dev(), found.ino());
        let held = self.held.as_ref().and_then(|held| held.metadata().ok());
        let there = fs::metadata(&self.directory).ok();
        held.is_some() && held.map(number) == there.map(number)
    }

    /// Pins `object` for a moment, and leaves nothing.
    pub(super) fn try_out(&self, object: &impl AsFd) -> Result<()> {
        let alone = alone()?;
        self.make(&alone)?;
        let path = self.path(TRIAL);
        pin(object, &path)?;
        fs::remove_file(&path).with_context(|| format!("unpinning {}", path.display()))?;
        // An agent may be about to pin here.
        if let Ok(_lock) = locked(&self.directory, FlockArg::LockExclusiveNonblock) {
            // As long as there are other pins, these are refused.
            let _ = fs::remove_dir(&self.directory);
            let _ = fs::remove_dir(OURS);
        }
        Ok(())
    }

    /// The pinned link, if it is still attached to our namespace. Numbers of
    /// namespaces are given again, so it may be a dead one's.
    pub(super) fn attached_link(&self) -> Option<Link> {
        Link::open(self.link())
            .ok()
            .filter(|link| self.is_attached(link).is_some())
    }

    /// What the link runs in our namespace, if anything.
    pub(super) fn is_attached(&self, link: &Link) -> Option<LinkInfo> {
        let info = link.info().ok()?;
        match &info.info {
            LinkTypeInfo::NetNs(namespace) if namespace.ino == self.inode => Some(info),
            _ => None,
        }
    }

    /// The program of this number and what it steers, by the name of its pin.
    pub(super) fn claims_of(&self, program: u32) -> Option<Claims> {
        let pinned = self.all_claims().into_iter().filter_map(|digest| {
            let program = ProgramHandle::from_pinned_path(self.claims(&digest)).ok()?;
            Some(Claims { program, digest })
        });
        pinned
            .into_iter()
            .find(|claims| claims.program.id() == program)
    }

    /// Unpins all programs but the one that steers `digest`.
    pub(super) fn keep_claims(&self, digest: &str) {
        for other in self.all_claims().iter().filter(|other| *other != digest) {
            let _ = fs::remove_file(self.claims(other));
        }
    }

    fn all_claims(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.directory)
            .into_iter()
            .flatten()
            .flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names
            .filter_map(|name| Some(name.strip_prefix(CLAIMS)?.to_owned()))
            .collect()
    }

    /// Detaches the program and removes every pin. Returns whether there was
    /// anything.
    pub(super) fn remove(&self) -> Result<bool> {
        if !self.exist() {
            return Ok(false);
        }
        let _alone = alone()?;
        if let Some(link) = self.attached_link() {
            // Another process may hold it, so unpinning may not end it.
            link.detach().context("detaching the sk_lookup program")?;
        }
        match fs::remove_dir_all(&self.directory) {
            // Another may have come first.
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error)
                    .with_context(|| format!("removing {}", self.directory.display()));
            }
            _ => {}
        }
        // As long as other namespaces have theirs, this is refused.
        let _ = fs::remove_dir(OURS);
        Ok(true)
    }
}

/// Pins at `path` in place of what is there.
pub(super) fn pin(object: &impl AsFd, path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("unpinning {}", path.display()));
        }
        _ => {}
    }
    let name = c_path(path)?;
    // SAFETY: `name` is a string that ends with NUL and lives long enough.
    let result = unsafe { libbpf_sys::bpf_obj_pin(object.as_fd().as_raw_fd(), name.as_ptr()) };
    checked(result).with_context(|| format!("pinning {}", path.display()))?;
    Ok(())
}

/// libbpf's functions return the error's number, negated.
fn checked(result: i32) -> io::Result<i32> {
    if result < 0 {
        Err(io::Error::from_raw_os_error(-result))
    } else {
        Ok(result)
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

pub(crate) fn has_bpf_fs() -> bool {
    statfs(BPF_FS).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}

/// What keeps all others of the host from making and removing directories of
/// pins, for as long as it lives.
struct Alone(
    /// None where it could not be had.
    #[expect(dead_code, reason = "held for its lock")]
    Option<Flock<File>>,
);

/// Waits for those who are at it, which they are for a moment. Mounts the BPF
/// file system where nobody has.
fn alone() -> Result<Alone> {
    mount_bpf_fs()?;
    let lock = lock_bpf_fs();
    // Who has the lock may be no agent, or one that stands still, and the directory
    // one that may not be read. What may happen without it is that something
    // fails, and is done again.
    if let Err(error) = &lock {
        tracing::warn!(%error, "pins are made and removed without a lock");
    }
    Ok(Alone(lock.ok()))
}

/// Whichever file system is there.
fn lock_bpf_fs() -> Result<Flock<File>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match locked(Path::new(BPF_FS), FlockArg::LockExclusiveNonblock) {
            Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {
                thread::sleep(AGAIN);
            }
            locked => return locked.with_context(|| format!("locking {BPF_FS}")),
        }
    }
}

fn locked(directory: &Path, how: FlockArg) -> io::Result<Flock<File>> {
    Flock::lock(File::open(directory)?, how).map_err(|(_, error)| error.into())
}

/// As systemd does.
fn mount_bpf_fs() -> Result<()> {
    if has_bpf_fs() {
        return Ok(());
    }
    // Two agents that start together must not hide one's pins by the other's
    // mount.
    let _lock = lock_bpf_fs()?;
    if has_bpf_fs() {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), BPF_FS, Some("bpf"), flags, Some("mode=0700"))
        .map_err(io::Error::from)
        .context("mounting the BPF file system at /sys/fs/bpf")?;
    tracing::info!("mounted the BPF file system at {BPF_FS}");
    Ok(())
}

/// A pin outlives its namespace, with nothing left to do.
fn remove_of_dead_namespaces(_alone: &Alone) {
    for entry in fs::read_dir(OURS).into_iter().flatten().flatten() {
        let directory = entry.path();
        if is_of_the_dead(&directory.join(LINK))
            && let Ok(_lock) = locked(&directory, FlockArg::LockExclusiveNonblock)
        {
            let _ = fs::remove_dir_all(directory);
        }
    }
}

/// Is the namespace of the link gone, or the link detached?
fn is_of_the_dead(link: &Path) -> bool {
    Link::open(link).is_ok_and(|link| {
        let info = link.info().map(|info| info.info);
        matches!(info, Ok(LinkTypeInfo::NetNs(namespace)) if namespace.ino == 0)
    })
}
