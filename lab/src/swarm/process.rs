//! What the replicas of the control plane take.

use std::fs;
use std::io;
use std::time::Duration;

/// USER_HZ, which is 100 on every architecture that Anyport is built for.
const TICK: Duration = Duration::from_millis(10);

/// Of all replicas together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// Bytes in memory that no file backs.
    pub(super) anonymous: u64,
    /// The most that was resident at once, in bytes, of each since its start, added up.
    pub(super) peak: u64,
    /// Processor time.
    pub(super) cpu: Duration,
}

impl Usage {
    pub(super) fn of(processes: &[u32]) -> io::Result<Self> {
        let mut sum = Self::default();
        for id in processes {
            let status = fs::read_to_string(format!("/proc/{id}/status"))?;
            let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
            let unreadable = || io::Error::other(format!("/proc/{id} is not as proc(5) has it"));
            sum.anonymous += kibibytes(&status, "RssAnon:").ok_or_else(unreadable)? << 10;
            sum.peak += kibibytes(&status, "VmHWM:").ok_or_else(unreadable)? << 10;
            sum.cpu += TICK * ticks(&stat).ok_or_else(unreadable)?;
        }
        Ok(sum)
    }
}

fn kibibytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// User and system time are the 14th and 15th field; the name before can hold anything.
fn ticks(stat: &str) -> Option<u32> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut times = after_name.split_ascii_whitespace().skip(11);
    let mut next = || times.next()?.parse::<u32>().ok();
    next()?.checked_add(next()?)
}
