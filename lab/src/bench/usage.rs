//! What a process and its descendants use, as `/proc` tells it.

use std::collections::BTreeMap;
use std::time::Duration;
use std::{fs, io};

/// Processor times in `/proc/PID/stat` are in hundredths of a second on every architecture that is
/// run today, whatever the kernel's own tick (proc(5), `USER_HZ`).
const TICK: Duration = Duration::from_millis(10);

/// The kernel's objects of an open TCP connection: its socket with its inode and file, and its
/// registration with epoll.
const SOCKET_OBJECTS: [&str; 4] = ["TCP", "sock_inode_cache", "filp", "eventpoll_epi"];

/// What some processes have used so far, or use now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// Processor time, in user mode and in system calls.
    pub(super) cpu: Duration,
    /// Bytes that no file backs; what processes share is counted once. (A file's pages come with
    /// use, whatever the number of connections.)
    pub(super) memory: u64,
    /// Open files.
    pub(super) descriptors: u64,
}

impl Usage {
    /// Of the process `root`, its children, their children and so on.
    pub(super) fn of_family(root: u32) -> io::Result<Self> {
        let mut sum = Self::default();
        for id in family(root)? {
            sum.cpu += read_stat(id)?.cpu;
            sum.memory += memory(&fs::read_to_string(format!("/proc/{id}/smaps_rollup"))?)
                .ok_or_else(|| unreadable(id, "smaps_rollup"))?;
            sum.descriptors += fs::read_dir(format!("/proc/{id}/fd"))?.count() as u64;
        }
        Ok(sum)
    }
}

/// Bytes that the kernel, on the whole machine, has in objects of open TCP connections. `None` where
/// it does not tell: `/proc/slabinfo` is for root, and not in every kernel.
pub(super) fn kernel_socket_memory() -> Option<u64> {
    socket_objects(&fs::read_to_string("/proc/slabinfo").ok()?)
}

#[derive(Debug, PartialEq, Eq)]
struct Stat {
    parent: u32,
    cpu: Duration,
}

/// `root` and its descendants.
fn family(root: u32) -> io::Result<Vec<u32>> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let Some(id) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // Others come and go meanwhile.
        if let Ok(stat) = read_stat(id) {
            children.entry(stat.parent).or_default().push(id);
        }
    }
    let mut family = vec![root];
    let mut next = 0;
    while let Some(parent) = family.get(next) {
        family.extend(children.remove(parent).unwrap_or_default());
        next += 1;
    }
    Ok(family)
}

fn read_stat(id: u32) -> io::Result<Stat> {
    stat(&fs::read_to_string(format!("/proc/{id}/stat"))?).ok_or_else(|| unreadable(id, "stat"))
}

fn unreadable(id: u32, file: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("/proc/{id}/{file} is not as proc(5) has it"),
    )
}

/// Reads `/proc/PID/stat`: `ID (NAME) STATE PARENT …`, user and system time being the 14th and 15th.
/// The name can hold anything, also a parenthesis.
fn stat(text: &str) -> Option<Stat> {
    let (_, after_name) = text.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace().skip(1);
    let parent = fields.next()?.parse().ok()?;
    let mut times = fields.skip(9).map(|field| field.parse::<u32>().ok());
    let ticks = times.next()??.checked_add(times.next()??)?;
    Some(Stat {
        parent,
        cpu: TICK * ticks,
    })
}

/// Reads `/proc/PID/smaps_rollup`.
fn memory(text: &str) -> Option<u64> {
    let kibibytes = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.parse().ok()
    };
    Some((kibibytes("Pss_Anon:")? + kibibytes("Pss_Shmem:")?) * 1024)
}

/// Reads `/proc/slabinfo`: `NAME ACTIVE_OBJECTS OBJECTS OBJECT_SIZE …`.
fn socket_objects(text: &str) -> Option<u64> {
    let mut sum = None;
    for line in text.lines() {
        let mut fields = line.split_ascii_whitespace();
        if fields
            .next()
            .is_some_and(|name| SOCKET_OBJECTS.contains(&name))
        {
            let objects: u64 = fields.next()?.parse().ok()?;
            let size: u64 = fields.nth(1)?.parse().ok()?;
            *sum.get_or_insert(0) += objects * size;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let rest = "S 17 9 9 0 -1 4194304 127 0 0 0 205 40 3 4 20 0 1 0 387051 2990080 413";
        for name in ["haproxy", "a b", "nginx: worker) R 1 2 (x"] {
            let read = stat(&format!("4711 ({name}) {rest}\n")).unwrap();
            let cpu = Duration::from_millis(2450);
            assert_eq!(read, Stat { parent: 17, cpu });
        }
        for text in [
            "",
            "4711 (x",
            "4711 (x) S",
            "4711 (x) S 17 9 9 0 -1 4194304 127 0",
        ] {
            assert_eq!(stat(text), None, "{text:?}");
        }
    }

    #[test]
    fn shared_memory_counts_and_the_pages_of_files_do_not() {
        let text = "5-7 ---p 0 00:00 0 [rollup]\nRss: 1760 kB\nPss: 201 kB\nPss_Dirty: 9 kB\n\
                    Pss_Anon:   108 kB\nPss_File:   93 kB\nPss_Shmem:   4 kB\n";
        assert_eq!(memory(text), Some(112 * 1024));
        assert_eq!(memory("Rss: 1760 kB\n"), None);
    }

    #[test]
    fn objects_of_sockets_are_added_up() {
        let text = "slabinfo - version: 2.1\n# name <active_objs> <num_objs> <objsize>\n\
                    tw_sock_TCP 9 9 256 16 1 :\nTCP 84 130 2368 13 8 :\nfilp 10 21 192 21 1 :\n";
        assert_eq!(socket_objects(text), Some(84 * 2368 + 10 * 192));
        assert_eq!(socket_objects("slabinfo - version: 2.1\n"), None);
    }

    #[test]
    fn a_process_uses_what_its_children_use() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let own = std::process::id();
        let found = family(own).unwrap();
        let alone = Usage::of_family(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(
            found.contains(&own) && found.contains(&child.id()),
            "{found:?}"
        );
        assert!(alone.unwrap().descriptors >= 3);
    }
}
