//! Events on their way from workers to whoever reads them.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Instant, SystemTime},
};

use anyport_model::{limits::Source, names::AppName, outcome::Status};
use prometheus::IntCounter;
use tokio::sync::broadcast::{self, error::RecvError};

use super::{
    connection::Connection,
    shard::{SHARDS, mine},
    told::Told,
};

/// What happened to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// Both legs are up.
    Connect,
    Disconnect,
    /// Turned away by an access rule, a limit, or for its PROXY header.
    ClientFiltered,
    /// The client and the edge did not agree on TLS.
    TlsError,
    /// No origin could be connected to.
    OriginError,
    /// The origin's name could not be resolved.
    ResolveOrigin,
}

/// One thing that happened.
#[derive(Clone)]
pub struct Event {
    pub kind: EventKind,
    pub at: SystemTime,
    /// None for [`EventKind::Connect`].
    pub status: Option<Status>,
    pub connection: Arc<Connection>,
    shard: usize,
    /// Counts the events of its shard, from 1.
    number: u64,
}

/// The events of an agent: the last ones are kept, new ones go to followers.
/// Where nobody follows, an event costs one lock that nobody else holds.
pub struct EventLog {
    shards: [Mutex<Shard>; SHARDS],
    following: AtomicUsize,
    /// None once it is closed.
    sender: RwLock<Option<broadcast::Sender<Event>>>,
    lost: IntCounter,
    /// Connections that were turned away.
    told: Mutex<Told<(AppName, Source)>>,
}

#[derive(Default)]
struct Shard {
    number: u64,
    recent: VecDeque<Event>,
}

/// Kept of each thread's events.
const RECENT: usize = 256;

/// A follower may be this many events behind before it loses some.
const BEHIND: usize = 8192;

/// Who reads events as they come.
pub struct Follower<'a> {
    log: &'a EventLog,
    receiver: broadcast::Receiver<Event>,
    /// What was handed out as recent, by shard.
    seen: [u64; SHARDS],
}

/// What a follower is given.
pub enum Next {
    Event(Event),
    /// So many were lost: the follower was too slow.
    Lost(u64),
    /// The agent has ended.
    End,
}

impl EventLog {
    /// `lost` counts what slow followers did not get.
    pub fn new(lost: IntCounter) -> Self {
        Self {
            shards: Default::default(),
            following: AtomicUsize::new(0),
            sender: RwLock::new(Some(broadcast::Sender::new(BEHIND))),
            lost,
            told: Mutex::default(),
        }
    }

    /// Whether anybody follows: what costs a system call is found out only then.
    pub fn is_followed(&self) -> bool {
        self.following.load(Relaxed) > 0
    }

    pub fn record(&self, kind: EventKind, status: Option<Status>, connection: &Arc<Connection>) {
        let index = mine();
        let mut event = Event {
            kind,
            at: SystemTime::now(),
            status,
            connection: Arc::clone(connection),
            shard: index,
            number: 0,
        };
        let replaced = {
            let mut shard = self.shard(index);
            shard.number += 1;
            event.number = shard.number;
            let full = shard.recent.len() >= RECENT;
            let replaced = if full { shard.recent.pop_front() } else { None };
            shard.recent.push_back(event.clone());
            replaced
        };
        drop(replaced);
        // A follower that is not seen here has yet to look at what is recent,
        // this event among it.
        if self.is_followed() {
            let sender = self.sender.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(sender) = &*sender {
                // That nobody follows any more is no fault.
                let _ = sender.send(event);
            }
        }
    }

    /// Whether to record that `app` turned a connection of `source` away; it is
    /// taken for recorded then. Every connection has a port of its own, so that
    /// the port says nothing of who tries again.
    pub fn is_news(&self, app: &AppName, source: Source, now: Instant) -> bool {
        let told = self.told.lock();
        let mut told = told.unwrap_or_else(PoisonError::into_inner);
        told.is_news(&(app.clone(), source), now)
    }

    /// What is kept, the oldest first.
    pub fn recent(&self) -> Vec<Event> {
        self.look().0
    }

    /// What is kept, and whatever happens from then on. `None` once closed.
    pub fn follow(&self) -> Option<(Vec<Event>, Follower<'_>)> {
        let sender = self.sender.read().unwrap_or_else(PoisonError::into_inner);
        let receiver = sender.as_ref()?.subscribe();
        self.following.fetch_add(1, Relaxed);
        drop(sender);
        let (recent, seen) = self.look();
        let follower = Follower {
            log: self,
            receiver,
            seen,
        };
        Some((recent, follower))
    }

    /// Nothing more will happen: followers get what is on its way, then the
    /// end.
    pub fn close(&self) {
        *self.sender.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn look(&self) -> (Vec<Event>, [u64; SHARDS]) {
        let (mut recent, mut seen) = (Vec::new(), [0; SHARDS]);
        for (index, seen) in seen.iter_mut().enumerate() {
            let shard = self.shard(index);
            *seen = shard.number;
            recent.extend(shard.recent.iter().cloned());
        }
        recent.sort_by_key(|event| event.at);
        (recent, seen)
    }

    fn shard(&self, index: usize) -> std::sync::MutexGuard<'_, Shard> {
        // What is under these locks is valid after every statement.
        let shard = self.shards[index].lock();
        shard.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Follower<'_> {
    /// Safe to drop while it waits.
    pub async fn next(&mut self) -> Next {
        loop {
            let received = self.receiver.recv().await;
            if let Some(next) = self.took(received) {
                return next;
            }
        }
    }

    /// As [`next`](Self::next), for a thread of its own.
    pub fn next_blocking(&mut self) -> Next {
        loop {
            let received = self.receiver.blocking_recv();
            if let Some(next) = self.took(received) {
                return next;
            }
        }
    }

    /// Whether the next one would have to be waited for.
    pub fn has_all(&self) -> bool {
        self.receiver.is_empty()
    }

    fn took(&self, received: Result<Event, RecvError>) -> Option<Next> {
        match received {
            Ok(event) if event.number <= self.seen[event.shard] => None,
            Ok(event) => Some(Next::Event(event)),
            Err(RecvError::Lagged(count)) => {
                self.log.lost.inc_by(count);
                Some(Next::Lost(count))
            }
            Err(RecvError::Closed) => Some(Next::End),
        }
    }
}

impl Drop for Follower<'_> {
    fn drop(&mut self) {
        self.log.following.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::events::Details;
    use anyport_model::{names::Revision, resource::Transport};
    use std::collections::BTreeSet;

    fn log() -> EventLog {
        EventLog::new(IntCounter::new("lost", "lost").unwrap())
    }

    fn connection(id: u64) -> Arc<Connection> {
        let at = "198.51.100.1:80".parse().unwrap();
        let details = Details::new("app".parse().unwrap(), Revision(1), at);
        Arc::new(Connection::new(id, Transport::Tcp, at, details))
    }

    fn open(log: &EventLog, id: u64) {
        log.record(EventKind::Connect, None, &connection(id));
    }

    #[test]
    fn the_last_ones_are_kept_in_order() {
        let log = log();
        (0..RECENT as u64 + 10).for_each(|id| open(&log, id));
        let ids: Vec<u64> = log.recent().iter().map(|e| e.connection.id).collect();
        assert_eq!(ids, (10..RECENT as u64 + 10).collect::<Vec<_>>());
    }

    #[test]
    fn a_follower_gets_each_event_once_however_it_falls_into_its_start() {
        let log = log();
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..2u64)
                .map(|writer| {
                    let log = &log;
                    scope.spawn(move || {
                        (0..100).for_each(|n| open(log, writer * 1000 + n));
                    })
                })
                .collect();
            let (recent, mut follower) = log.follow().unwrap();
            writers.into_iter().for_each(|w| w.join().unwrap());
            log.close();
            let mut got: Vec<u64> = recent.iter().map(|e| e.connection.id).collect();
            loop {
                match follower.next_blocking() {
                    Next::Event(event) => got.push(event.connection.id),
                    Next::Lost(count) => panic!("{count} lost"),
                    Next::End => break,
                }
            }
            assert_eq!(got.len(), 200);
            assert_eq!(got.into_iter().collect::<BTreeSet<_>>().len(), 200);
        });
        assert!(!log.is_followed() && log.follow().is_none());
    }

    #[test]
    fn a_slow_follower_loses_the_oldest_and_is_told_how_many() {
        let log = log();
        let (_, mut follower) = log.follow().unwrap();
        (0..BEHIND as u64 + 100).for_each(|id| open(&log, id));
        let Next::Lost(count) = follower.next_blocking() else {
            panic!("nothing was lost");
        };
        assert_eq!((count, log.lost.get()), (100, 100));
        let Next::Event(event) = follower.next_blocking() else {
            panic!("no event");
        };
        assert_eq!(event.connection.id, 100);
    }
}
