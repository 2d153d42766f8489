//! The origins of a target in the order in which they are tried.

use std::{
    net::{IpAddr, SocketAddr},
    sync::atomic::Ordering::Relaxed,
    time::Instant,
};

use anyport_model::{
    outcome::Status,
    pick::{Draw, Wheel},
};

use super::{NoOrigin, nothing_to_try};
use crate::table::Target;

/// Chooses one origin after the other, each once, and passes over what must
/// not be dialled.
pub struct Candidates<'a> {
    target: Target<'a>,
    edge_port: u16,
    client: IpAddr,
    shown: Option<SocketAddr>,
    tried: Vec<usize>,
    failed: Option<NoOrigin>,
}

/// An origin to be tried.
#[derive(Debug, Clone, Copy)]
pub struct Candidate {
    /// Its position in the pool.
    pub index: usize,
    pub address: SocketAddr,
}

impl<'a> Candidates<'a> {
    /// For a connection of `client` to `edge_port`.
    pub fn new(target: Target<'a>, edge_port: u16, client: IpAddr) -> Self {
        Self {
            target,
            edge_port,
            client,
            shown: None,
            tried: Vec::new(),
            failed: None,
        }
    }

    /// Where there is one, the address that the origin is to see as its peer's:
    /// only origins of its family then.
    #[must_use]
    pub fn showing(mut self, shown: Option<SocketAddr>) -> Self {
        self.shown = shown;
        self
    }

    /// Not these, by position.
    #[must_use]
    pub fn without(mut self, tried: impl Iterator<Item = usize>) -> Self {
        self.tried.extend(tried);
        self
    }

    /// How many were not tried yet, at most.
    pub fn left(&self) -> usize {
        let all = self.target.pool.origins.len();
        all.saturating_sub(self.tried.len())
    }

    /// The next origin: a healthy one that did not refuse lately, else a
    /// healthy one, else any.
    pub fn next(&mut self, now: Instant) -> Option<Candidate> {
        loop {
            let index = self.choose(now)?;
            self.tried.push(index);
            let address = self.target.address(index, self.edge_port)?;
            if let Some(client) = self.shown.filter(|client| !same_family(*client, address)) {
                self.failed.get_or_insert_with(|| other_family(client));
                continue;
            }
            // Asked of the very address that is dialled: what a name stands for
            // may be another one each time.
            if let Some(why) = self.target.forbidden(address) {
                self.target.app.stats.blocked(why);
                self.failed(Status::Blocked, format!("{address} {why}"));
                continue;
            }
            return Some(Candidate { index, address });
        }
    }

    /// The one that was tried last did not do.
    pub fn failed(&mut self, status: Status, reason: String) {
        self.failed = Some(NoOrigin { status, reason });
    }

    /// Why there is no origin, when none is left: the last failure, or that
    /// there was nothing to try.
    pub fn why_none(&mut self) -> NoOrigin {
        let failed = self.failed.take();
        failed.unwrap_or_else(|| nothing_to_try(self.target))
    }

    fn choose(&self, now: Instant) -> Option<usize> {
        let pool = self.target.pool;
        let draw = Draw {
            turn: pool.stats.turn.fetch_add(1, Relaxed),
            random: rand::random(),
            client: self.client,
        };
        let resting =
            (0..pool.origins.len()).filter(|&index| pool.origins[index].stats.is_resting(now));
        let avoided: Vec<usize> = resting.chain(self.tried.iter().copied()).collect();
        let load = |index: usize| match pool.origins.get(index) {
            Some(origin) => origin.stats.load(now),
            None => Default::default(),
        };
        let chosen = |wheel: &Wheel, tried: &[usize]| wheel.choose(draw, load, tried);
        let healthy = || std::iter::once(&pool.wheel).chain(&pool.later);
        healthy()
            .find_map(|wheel| chosen(wheel, &avoided))
            .or_else(|| healthy().find_map(|wheel| chosen(wheel, &self.tried)))
            .or_else(|| chosen(&pool.last_resort, &self.tried))
    }
}

fn same_family(client: SocketAddr, origin: SocketAddr) -> bool {
    client.is_ipv4() == origin.ip().to_canonical().is_ipv4()
}

fn other_family(client: SocketAddr) -> NoOrigin {
    let family = if client.is_ipv4() { "IPv4" } else { "IPv6" };
    NoOrigin {
        status: Status::NoOrigin,
        reason: format!(
            "client_ip is transparent, and no origin of the pool has an {family} address"
        ),
    }
}
