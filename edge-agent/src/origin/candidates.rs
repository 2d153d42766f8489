//! The origins of a target in the order in which they are tried.

use std::{
    net::{IpAddr, SocketAddr},
    sync::atomic::Ordering::Relaxed,
    time::Instant,
};

use anyport_model::{
    pick::{Draw, Wheel},
    target::Forbidden,
};

use crate::table::Target;

/// Chooses one origin after the other, each once.
pub struct Candidates<'a> {
    target: Target<'a>,
    edge_port: u16,
    client: IpAddr,
    tried: Vec<usize>,
}

/// An origin to be tried.
#[derive(Debug, Clone, Copy)]
pub struct Candidate {
    /// Its position in the pool.
    pub index: usize,
    pub address: SocketAddr,
    /// Why nothing may be sent there.
    pub forbidden: Option<Forbidden>,
}

impl<'a> Candidates<'a> {
    /// For a connection of `client` to `edge_port`.
    pub fn new(target: Target<'a>, edge_port: u16, client: IpAddr) -> Self {
        Self {
            target,
            edge_port,
            client,
            tried: Vec::new(),
        }
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
        let index = self.choose(now)?;
        self.tried.push(index);
        let address = self.target.address(index, self.edge_port)?;
        Some(Candidate {
            index,
            address,
            forbidden: self.target.forbidden(address),
        })
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
