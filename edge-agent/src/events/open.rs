//! The connections that are open now.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    ops::{Bound, Deref},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyport_model::resource::Transport;

use super::{
    connection::{Connection, Details},
    shard::{SHARDS, mine},
};

/// All open connections of an agent.
#[derive(Default)]
pub struct Connections {
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Default)]
struct Shard {
    /// Connections that were ever opened here.
    opened: u64,
    open: BTreeMap<u64, Arc<Connection>>,
}

/// An open connection; listed until this is dropped.
pub struct Open<A: Deref<Target = Connections>> {
    all: A,
    connection: Arc<Connection>,
}

/// Connections that are looked at under one lock, which a worker may wait for.
const LOOK: usize = 512;

impl Connections {
    fn list(&self, transport: Transport, edge: SocketAddr, details: Details) -> Arc<Connection> {
        let index = mine();
        let mut shard = lock(&self.shards[index]);
        let id = shard.opened * SHARDS as u64 + index as u64;
        shard.opened += 1;
        let connection = Arc::new(Connection::new(id, transport, edge, details));
        shard.open.insert(id, Arc::clone(&connection));
        connection
    }

    /// At most `limit` of those that `wanted` picks, after the one that ended
    /// the page before, and the id to go on after, if there may be more.
    pub fn page(
        &self,
        after: Option<u64>,
        limit: usize,
        wanted: impl Fn(&Connection) -> bool,
    ) -> (Vec<Arc<Connection>>, Option<u64>) {
        let mut page = Vec::new();
        let first = after.map_or(0, shard_of);
        let mut after = after;
        for shard in &self.shards[first..] {
            loop {
                let look = lock(shard).after(after);
                for connection in &look {
                    after = Some(connection.id);
                    if wanted(connection) {
                        page.push(Arc::clone(connection));
                    }
                    if page.len() >= limit {
                        return (page, after);
                    }
                }
                if look.len() < LOOK {
                    break;
                }
            }
            after = None;
        }
        (page, None)
    }
}

impl Shard {
    fn after(&self, id: Option<u64>) -> Vec<Arc<Connection>> {
        let from = id.map_or(Bound::Unbounded, Bound::Excluded);
        let rest = self.open.range((from, Bound::Unbounded));
        rest.take(LOOK).map(|(_, open)| Arc::clone(open)).collect()
    }
}

/// Where a connection with this id is.
fn shard_of(id: u64) -> usize {
    (id % SHARDS as u64) as usize
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    // What is under these locks is valid after every statement.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<A: Deref<Target = Connections>> Open<A> {
    /// Lists a connection of `all` from now on.
    pub fn new(all: A, transport: Transport, edge: SocketAddr, details: Details) -> Self {
        let connection = all.list(transport, edge, details);
        Self { all, connection }
    }

    /// For an event, which may outlive it.
    pub fn shared(&self) -> &Arc<Connection> {
        &self.connection
    }
}

impl<A: Deref<Target = Connections>> Deref for Open<A> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl<A: Deref<Target = Connections>> Drop for Open<A> {
    fn drop(&mut self) {
        let mut shard = lock(&self.all.shards[shard_of(self.connection.id)]);
        shard.open.remove(&self.connection.id);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use anyport_model::names::Revision;
    use std::collections::BTreeSet;

    fn open<'a>(all: &'a Connections, app: &str) -> Open<&'a Connections> {
        let client = "203.0.113.1:1000".parse().unwrap();
        let details = Details::new(app.parse().unwrap(), Revision(1), client);
        let edge = "198.51.100.1:80".parse().unwrap();
        Open::new(all, Transport::Tcp, edge, details)
    }

    fn ids(live: &Connections, limit: usize, wanted: impl Fn(&Connection) -> bool) -> Vec<u64> {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let (page, next) = live.page(after, limit, &wanted);
            assert!(page.len() <= limit);
            all.extend(page.iter().map(|connection| connection.id));
            match next {
                Some(next) => after = Some(next),
                None => return all,
            }
        }
    }

    #[test]
    fn pages_hold_each_connection_once_whatever_their_size() {
        let live = Connections::default();
        // Some from other threads, which have parts of their own.
        let held: Vec<Open<_>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..3)
                .map(|_| scope.spawn(|| (0..700).map(|_| open(&live, "a")).collect::<Vec<_>>()))
                .collect();
            threads
                .into_iter()
                .flat_map(|t| t.join().unwrap())
                .collect()
        });
        let expected: BTreeSet<u64> = held.iter().map(|open| open.id).collect();
        assert_eq!(expected.len(), 2100);
        for limit in [1, 7, 500, 700, 5000] {
            let got = ids(&live, limit, |_| true);
            assert_eq!(got.len(), 2100, "{limit}");
            assert_eq!(got.into_iter().collect::<BTreeSet<_>>(), expected);
        }
        drop(held);
        assert!(ids(&live, 10, |_| true).is_empty());
    }

    #[test]
    fn only_what_is_wanted_is_on_a_page() {
        let live = Connections::default();
        let held: Vec<_> = (0..1500)
            .map(|n| open(&live, if n % 100 == 0 { "rare" } else { "common" }))
            .collect();
        let rare = |connection: &Connection| connection.details().app.as_str() == "rare";
        assert_eq!(ids(&live, 4, rare).len(), 15);
        drop(held);
    }
}
