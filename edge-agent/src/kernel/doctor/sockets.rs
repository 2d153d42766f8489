//! Which programs listen on every address of the host, and so on every
//! address of an owned prefix.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{BufRead, BufReader},
    path::Path,
};

use super::facts::Fact;

/// A TCP listener on the unspecified address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Listener {
    pub(super) port: u16,
    pub(super) v6: bool,
    /// Name of the program, where it may be known.
    pub(super) program: Option<String>,
}

/// State `TCP_LISTEN`, as /proc/net/tcp has it.
const LISTEN: &str = "0A";

pub(super) fn on_every_address() -> Fact<Vec<Listener>> {
    let mut found = Vec::new();
    for (file, v6) in [("tcp", false), ("tcp6", true)] {
        let path = format!("/proc/thread-self/net/{file}");
        // Without IPv6 there is no second file.
        let Ok(table) = File::open(&path) else {
            if v6 {
                continue;
            }
            return Err(format!("{path} cannot be opened"));
        };
        for line in BufReader::new(table).lines().skip(1) {
            let line = line.map_err(|error| format!("{path}: {error}"))?;
            match parse(&line) {
                Some(socket) if socket.listens => {
                    if socket.unspecified {
                        found.push((socket.port, v6, socket.inode));
                    }
                }
                // Listeners come first; after them, there may be millions of
                // connections.
                _ => break,
            }
        }
    }
    let programs = programs();
    let mut listeners: Vec<_> = found
        .into_iter()
        .map(|(port, v6, inode)| Listener {
            port,
            v6,
            program: programs.get(&inode).cloned(),
        })
        .collect();
    listeners.sort();
    listeners.dedup();
    Ok(listeners)
}

struct Socket {
    port: u16,
    unspecified: bool,
    listens: bool,
    inode: u64,
}

/// `  0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1234 …`
fn parse(line: &str) -> Option<Socket> {
    let mut fields = line.split_whitespace();
    let (address, port) = fields.nth(1)?.split_once(':')?;
    let state = fields.nth(1)?;
    let inode = fields.nth(5)?;
    Some(Socket {
        port: u16::from_str_radix(port, 16).ok()?,
        unspecified: address.bytes().all(|digit| digit == b'0'),
        listens: state == LISTEN,
        inode: inode.parse().ok()?,
    })
}

/// Names of programs by the inodes of the sockets that they hold, as far as
/// this process may look.
fn programs() -> HashMap<u64, String> {
    let mut programs = HashMap::new();
    for process in entries(Path::new("/proc")) {
        let Ok(name) = fs::read_to_string(process.join("comm")) else {
            continue;
        };
        for descriptor in entries(&process.join("fd")) {
            let target = fs::read_link(descriptor).unwrap_or_default();
            let target = target.to_string_lossy();
            let inode = target
                .strip_prefix("socket:[")
                .and_then(|t| t.strip_suffix(']'));
            if let Some(inode) = inode.and_then(|inode| inode.parse().ok()) {
                // The oldest, by its number, and not a child that is about to be
                // another program.
                let of_oldest = programs.entry(inode);
                of_oldest.or_insert_with(|| name.trim().to_owned());
            }
        }
    }
    programs
}

fn entries(directory: &Path) -> impl Iterator<Item = std::path::PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_proc_net_tcp() {
        let line = "   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0000000000000000 100 0 0 10 0";
        let socket = parse(line).expect("a socket");
        assert_eq!((socket.port, socket.inode), (22, 4711));
        assert!(socket.unspecified && socket.listens);

        let bound = line.replace("00000000:0016", "0100007F:0016");
        assert!(!parse(&bound).expect("a socket").unspecified);
        let established = line.replace(" 0A ", " 01 ");
        assert!(!parse(&established).expect("a socket").listens);
    }

    #[test]
    fn lines_that_are_no_sockets_are_passed_over() {
        for line in ["", "x", "0: 00000000 0 0A", "0: 0:zz 0:0 0A 0 0 0 0 0 1"] {
            assert!(parse(line).is_none(), "{line:?}");
        }
    }
}
