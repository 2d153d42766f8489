//! Which worker a new connection goes to: of two drawn at random, the one that
//! was given less of late; who has fewer open is given somewhat more. The kernel
//! asks `bpf/spread.bpf.c`, which the workers tell how many connections they have.
//!
//! Without it the kernel goes by a hash of the addresses, so some workers have
//! far more than others, and who is served there waits while another worker
//! sleeps.

use std::{
    io,
    num::NonZeroUsize,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use libbpf_rs::{MapCore, MapFlags, Object, Result};
use nix::sys::mman::{MapFlags as Mapping, ProtFlags, mmap, munmap};

use super::sockets::{WorkerListeners, set_int};
use crate::bpf;

/// Bytes of `struct load` in `bpf/spread.bpf.c`, where the number of open
/// connections comes first.
const LOAD: usize = 64;

/// `ENDED` there: it is given nothing any more while one that has not is drawn
/// beside it, also where its listener is still open, as a successor's may be.
const ENDED: u64 = u64::MAX;

/// How new connections are to be spread over the workers, from a moment on.
#[derive(Debug)]
pub struct Spread {
    /// A listener of each group (SO_REUSEPORT), that is of each family.
    groups: Vec<OwnedFd>,
    /// None where the kernel spreads by hash.
    program: Option<Program>,
}

#[derive(Debug)]
struct Program {
    object: Object,
    /// To be put where it finds them, by index. Only what listens can be.
    listeners: Vec<(u32, OwnedFd)>,
}

impl Spread {
    /// Makes all ready, and gives each worker what to say by how many connections
    /// it has. Without effect until it [begins](Self::begin): another agent may
    /// still accept from these listeners.
    ///
    /// A kernel that does not take the program (Linux before 5.11), or is not
    /// allowed to, goes on by hash, and so it is with one worker.
    pub fn prepare(workers: &[WorkerListeners]) -> io::Result<(Self, Vec<Option<Load>>)> {
        let first = workers.iter().take(1);
        let first = first.flat_map(|of| of.v4.iter().take(1).chain(of.v6.iter().take(1)));
        let groups = first.map(|pair| pair.tcp.as_fd().try_clone_to_owned());
        let groups = groups.collect::<io::Result<_>>()?;
        let none = || workers.iter().map(|_| None).collect();
        let prepared = (workers.len() > 1).then(|| load(workers)).transpose();
        let (program, loads) = match prepared {
            Ok(Some((program, loads))) => (Some(program), loads.into_iter().map(Some).collect()),
            Ok(None) => (None, none()),
            Err(error) => {
                tracing::warn!(
                    %error,
                    "connections are spread over workers by hash, less evenly than with the BPF \
                     program for it, which needs CAP_BPF and Linux 5.11"
                );
                (None, none())
            }
        };
        Ok((Self { groups, program }, loads))
    }

    /// From now on, connections are spread like this, and no longer as another
    /// agent had it.
    ///
    /// All listeners listen by now.
    pub fn begin(self) {
        let program = self.program.as_ref().filter(|program| {
            let filled = program.fill();
            if let Err(error) = &filled {
                tracing::warn!(%error, "connections are spread over workers by hash");
            }
            filled.is_ok()
        });
        for group in &self.groups {
            let begun = match program {
                Some(program) => attach(group, &program.object),
                None => detach(group),
            };
            if let Err(error) = begun {
                tracing::warn!(%error, "connections are spread over workers as before");
            }
        }
    }
}

impl Program {
    fn fill(&self) -> Result<()> {
        let listeners = bpf::map(&self.object, "listeners")?;
        for (index, listener) in &self.listeners {
            let fd = u64::try_from(listener.as_raw_fd()).unwrap_or(u64::MAX);
            listeners.update(&index.to_ne_bytes(), &fd.to_ne_bytes(), MapFlags::ANY)?;
        }
        Ok(())
    }
}

/// The program, in the kernel and not attached, with these workers' listeners.
fn load(workers: &[WorkerListeners]) -> Result<(Program, Vec<Load>)> {
    let count = u32::try_from(workers.len()).unwrap_or(u32::MAX);
    let mut open = bpf::open(bpf::SPREAD)?;
    for mut map in open.maps_mut() {
        match map.name().to_str() {
            Some("loads") => map.set_max_entries(count)?,
            Some("listeners") => map.set_max_entries(count.saturating_mul(2))?,
            // Its constants, which are the number of workers.
            Some(name) if name.ends_with(".rodata") => {
                map.set_initial_value(&count.to_ne_bytes())?;
            }
            _ => {}
        }
    }
    let object = open.load()?;
    let listeners = one_of_each(workers)?;
    let loads = Loads::share(bpf::map(&object, "loads")?.as_fd(), workers.len())?;
    let loads = Arc::new(loads);
    let load = |worker| Load {
        loads: Arc::clone(&loads),
        worker,
    };
    let loads = (0..workers.len()).map(load).collect();
    Ok((Program { object, listeners }, loads))
}

/// A listener of each worker and family, by its index in the program's map. After
/// a hand-over a worker may have several; one is enough to be given connections
/// by.
fn one_of_each(workers: &[WorkerListeners]) -> io::Result<Vec<(u32, OwnedFd)>> {
    let mut listeners = Vec::new();
    for (number, worker) in (0u32..).zip(workers) {
        for (family, pairs) in (0u32..).zip([&worker.v4, &worker.v6]) {
            let Some(pair) = pairs.first() else { continue };
            listeners.push((number * 2 + family, pair.tcp.as_fd().try_clone_to_owned()?));
        }
    }
    Ok(listeners)
}

fn attach(group: &OwnedFd, object: &Object) -> Result<()> {
    let program = bpf::program(object)?.as_fd().as_raw_fd();
    Ok(set_int(
        group,
        libc::SOL_SOCKET,
        libc::SO_ATTACH_REUSEPORT_EBPF,
        program,
    )?)
}

fn detach(group: &OwnedFd) -> Result<()> {
    match set_int(group, libc::SOL_SOCKET, libc::SO_DETACH_REUSEPORT_BPF, 0) {
        // There is none.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        detached => Ok(detached?),
    }
}

/// By which a worker says how many connections it has, and, by dropping it, that
/// it has ended.
#[derive(Debug)]
pub struct Load {
    loads: Arc<Loads>,
    worker: usize,
}

impl Load {
    /// So many connections are open now.
    pub fn is(&self, open: usize) {
        let load = self.loads.of(self.worker);
        load.store(open as u64, Ordering::Relaxed);
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.loads.of(self.worker).store(ENDED, Ordering::Relaxed);
    }
}

/// What all workers have, in memory that the program reads.
#[derive(Debug)]
struct Loads {
    start: NonNull<libc::c_void>,
    workers: usize,
}

// SAFETY: whatever is there is read and written by atomics.
unsafe impl Send for Loads {}
// SAFETY: as above.
unsafe impl Sync for Loads {}

impl Loads {
    fn share(map: BorrowedFd<'_>, workers: usize) -> io::Result<Self> {
        let length = NonZeroUsize::new(workers * LOAD).ok_or(io::ErrorKind::InvalidInput)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a mapping of its own, where the kernel has room for it.
        let start = unsafe { mmap(None, length, access, Mapping::MAP_SHARED, map, 0) }?;
        Ok(Self { start, workers })
    }

    fn of(&self, worker: usize) -> &AtomicU64 {
        assert!(worker < self.workers, "loads are made for all workers");
        // SAFETY: within the mapping, which is aligned to pages and lives as
        // long as self.
        unsafe { self.start.byte_add(worker * LOAD).cast().as_ref() }
    }
}

impl Drop for Loads {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's, and nobody refers to it any more.
        let _ = unsafe { munmap(self.start, self.workers * LOAD) };
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};

    use super::*;
    use crate::{kernel::Steering, listen::Listeners};

    const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

    struct Workers {
        listeners: Listeners,
        loads: Vec<Load>,
    }

    impl Workers {
        fn start(count: usize) -> Self {
            let listeners = Listeners::bind(count, Steering::SkLookup).unwrap();
            let (spread, loads) = Spread::prepare(&listeners.workers).unwrap();
            spread.begin();
            let loads = loads.into_iter().map(Option::unwrap).collect();
            Self { listeners, loads }
        }

        fn at(&self, ip: IpAddr) -> SocketAddr {
            let ports = self.listeners.ports;
            let of = if ip.is_ipv4() {
                ports.v4
            } else {
                ports.v6.unwrap()
            };
            SocketAddr::new(ip, of.tcp.get())
        }

        /// How many of these clients each worker gets, and says that it has.
        fn accept(&self) -> Vec<usize> {
            let count =
                |listener: &TcpListener| std::iter::from_fn(|| listener.accept().ok()).count();
            let workers = &self.listeners.workers;
            let pairs = |of: &WorkerListeners| -> usize {
                of.v4
                    .iter()
                    .chain(&of.v6)
                    .map(|pair| count(&pair.tcp))
                    .sum()
            };
            workers.iter().map(pairs).collect()
        }
    }

    fn connect(at: SocketAddr, count: usize) -> Vec<TcpStream> {
        (0..count)
            .map(|_| TcpStream::connect(at).unwrap())
            .collect()
    }

    #[test]
    fn who_come_at_once_are_shared_evenly_although_none_was_accepted() {
        for ip in [V4, V6] {
            let workers = Workers::start(2);
            let _all = connect(workers.at(ip), 200);
            let got = workers.accept();
            assert_eq!(got.iter().sum::<usize>(), 200);
            // By hash it is 11 on average.
            assert!(got[0].abs_diff(got[1]) <= 3, "{got:?}");
        }
    }

    #[test]
    fn who_has_more_open_is_given_less_and_not_nothing() {
        for ip in [V4, V6] {
            for (open, shares) in [
                ([1000, 0], [7, 9]),
                ([1030, 1000], [7, 9]),
                ([0, 1000], [9, 7]),
                ([1000, 1000], [8, 8]),
            ] {
                let workers = Workers::start(2);
                for (load, open) in workers.loads.iter().zip(open) {
                    load.is(open);
                }
                // Short ones: what is open stays as it is.
                let _all = connect(workers.at(ip), 160);
                let got = workers.accept();
                assert_eq!(got.iter().sum::<usize>(), 160);
                let expected = shares.map(|share| share * 10);
                assert!(got[0].abs_diff(expected[0]) <= 8, "{got:?}, {expected:?}");
            }
        }
    }

    #[test]
    fn of_many_workers_each_gets_a_share() {
        let workers = Workers::start(7);
        let mut open = [0; 7];
        let mut all = Vec::new();
        for _ in 0..50 {
            all.extend(connect(workers.at(V4), 7));
            for (worker, got) in workers.accept().into_iter().enumerate() {
                open[worker] += got;
                workers.loads[worker].is(open[worker]);
            }
        }
        // 50 each; by hash the difference is 18 on average.
        let (least, most) = (open.iter().min().unwrap(), open.iter().max().unwrap());
        assert!(most - least <= 8, "{open:?}");
    }

    #[test]
    fn a_worker_that_has_ended_is_given_nothing() {
        let mut workers = Workers::start(3);
        workers.loads.remove(1);
        let _all = connect(workers.at(V4), 60);
        let got = workers.accept();
        assert_eq!((got[1], got.iter().sum::<usize>()), (0, 60));
        // Nor where its listener alone is gone.
        let mut workers = Workers::start(3);
        workers.listeners.workers[1] = WorkerListeners::default();
        let _all = connect(workers.at(V4), 60);
        let got = workers.accept();
        assert_eq!((got[1], got.iter().sum::<usize>()), (0, 60));
    }

    #[test]
    fn a_successor_spreads_over_its_own_workers_from_when_it_begins() {
        let mut before = Workers::start(2);
        before.loads.remove(0);
        // The same sockets, of which the successor's only worker has both.
        let mut mine = WorkerListeners::default();
        for worker in &mut before.listeners.workers {
            mine.v4.append(&mut worker.v4);
            mine.v6.append(&mut worker.v6);
        }
        let of_v4 = |of: &WorkerListeners| -> Vec<usize> {
            let count =
                |listener: &TcpListener| std::iter::from_fn(|| listener.accept().ok()).count();
            of.v4.iter().map(|pair| count(&pair.tcp)).collect()
        };
        let mine = [mine];
        let (spread, _) = Spread::prepare(&mine).unwrap();
        let _all = connect(before.at(V4), 100);
        assert_eq!(of_v4(&mine[0]), [0, 100], "as the other agent had it");
        spread.begin();
        let _all = connect(before.at(V4), 100);
        let got = of_v4(&mine[0]);
        assert!(got[0] > 20 && got[1] > 20, "by hash, {got:?}");
    }

    #[test]
    fn nothing_is_kept_open_once_it_has_begun() {
        let workers = Workers::start(2);
        let at = workers.at(V4);
        drop(workers);
        assert!(TcpStream::connect(at).is_err());
    }
}
