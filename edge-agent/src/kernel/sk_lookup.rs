//! Steering by sk_lookup: a BPF program on the network namespace, which the
//! kernel asks for a socket whenever it looks for a listener.
//!
//! The program is `bpf/steer.bpf.c`. A loaded program has its claims in maps of
//! its own that are frozen before it is attached: nobody, root neither, can
//! change them any more. So a change of claims, however large, is a new program
//! put in the old one's place, which the kernel does in one step: every packet
//! meets the old claims as a whole or the new ones. An upgrade of the agent is
//! the same step. What is steered can be told from the running program alone:
//! it is pinned under a digest of its claims and its code.
//!
//! The sockets are in a map that all programs share, so a restart puts its
//! listeners there and leaves the program alone.
//!
//! Everything is pinned (see [`pins`]) and outlives the agent. A claimed port
//! whose socket is gone is not left to the host's other sockets: the program
//! ends the lookup, and the stack answers RST.
//!
//! Nothing of this is announced by the kernel when others change it, so
//! [`SkLookup::is_untouched`] is asked several times a second; it takes some
//! ten short system calls.

mod foreign;
mod image;
mod object;
mod pins;
mod sockets;

use std::{
    collections::BTreeSet,
    fmt::Write,
    fs::File,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
};

use anyport_model::resource::Transport;
use libbpf_rs::{ErrorExt, ErrorKind, Link, MapCore, MapFlags, MapHandle, ProgramHandle, Result};
use sha2::{Digest as _, Sha256};

use self::{
    image::{Image, Steered},
    object::{Loaded, Shared},
    pins::{Pins, pin},
    sockets::{SocketKind, cookie_in},
};
use super::{
    desired::{Element, Goal, Lane, PerLane},
    error::KernelError,
    plan::Amiss,
};
use crate::bpf;

pub(crate) use foreign::foreign_programs;
pub(crate) use pins::has_bpf_fs;
pub use sockets::SteeredSockets;

/// Names of pins.
const SOCKETS: &str = "sockets";
const COUNTERS: &str = "counters";

/// Packets for claimed ports that the program turned away, with the reason:
/// `anyport_dropped_packets_total{reason}`. The kernel counts them also while
/// there is no agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dropped {
    /// No agent, or none that listens in this family.
    NoListener,
    /// The kernel does not take the socket that is there.
    BadListener,
    /// The program's own tables are broken, which cannot happen.
    BrokenClaims,
}

impl Dropped {
    pub const ALL: [Dropped; 3] = [
        Dropped::NoListener,
        Dropped::BadListener,
        Dropped::BrokenClaims,
    ];

    /// The value of the metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            Dropped::NoListener => "no_listener",
            Dropped::BadListener => "bad_listener",
            Dropped::BrokenClaims => "broken_claims",
        }
    }

    /// Index in the map `counters`.
    fn index(self) -> u32 {
        match self {
            Dropped::NoListener => 1,
            Dropped::BadListener => 2,
            Dropped::BrokenClaims => 3,
        }
    }
}

/// What one pass changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) claims_added: usize,
    pub(crate) claims_removed: usize,
    pub(crate) sockets_put: usize,
    pub(crate) attached: bool,
}

/// The kernel's objects of one network namespace.
pub(crate) struct SkLookup {
    namespace: File,
    pins: Pins,
    shared: Option<Shared>,
    link: Option<Link>,
    claims: Option<Claims>,
    /// What the last pass left behind.
    seen: Option<Seen>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    program: Option<u32>,
    sockets: [Option<u64>; SocketKind::ALL.len()],
}

impl SkLookup {
    /// For the network namespace of the calling thread. Changes nothing.
    pub(crate) fn open() -> std::result::Result<Self, KernelError> {
        bpf::quieten();
        let path = "/proc/thread-self/ns/net";
        let opened = File::open(path).and_then(|file| Ok((file.metadata()?.ino(), file)));
        let (inode, namespace) = opened.map_err(|source| KernelError::System {
            doing: "opening the network namespace",
            source,
        })?;
        Ok(Self {
            namespace,
            // The kernel numbers namespaces in 32 bits.
            pins: Pins::of_namespace(u32::try_from(inode).unwrap_or(u32::MAX)),
            shared: None,
            link: None,
            claims: None,
            seen: None,
        })
    }

    /// Loads the program and pins it for a moment, without attaching it: what
    /// the kernel, the privileges or the file system may refuse.
    pub(crate) fn try_out(&self) -> std::result::Result<(), KernelError> {
        let tried = || {
            let loaded = Loaded::load(&Image::of([]), None)?;
            self.pins.try_out(&*loaded.program()?)
        };
        tried().map_err(|error| failed(&error))
    }

    /// Attaches a program without claims to the namespace of the calling
    /// thread, and takes it away again.
    pub(crate) fn trial(&self) -> std::result::Result<(), KernelError> {
        let attached = Loaded::load(&Image::of([]), None)
            .and_then(|loaded| loaded.program()?.attach_netns(self.namespace.as_raw_fd()));
        attached.map(drop).map_err(|error| failed(&error))
    }

    /// Makes the kernel steer as `goal` wants it. Also says what differed from
    /// `before`.
    pub(crate) fn converge(
        &mut self,
        goal: &Goal,
        before: Option<&Goal>,
    ) -> std::result::Result<(Change, Amiss), KernelError> {
        // Whatever becomes of this pass, the one before says nothing more.
        self.seen = None;
        self.pass(goal, before).map_err(|error| failed(&error))
    }

    fn pass(&mut self, goal: &Goal, before: Option<&Goal>) -> Result<(Change, Amiss)> {
        self.pins.hold()?;
        let maps = self.have_shared()?;
        let Some(shared) = &self.shared else {
            return Err(gone());
        };
        let mut amiss = Amiss::default();
        let mut change = Change::default();

        // Sockets first: what is newly steered is served from the start.
        for kind in SocketKind::ALL {
            let cookie = cookie_in(&shared.sockets, kind)?;
            if before.is_some_and(|before| !before.sockets.fits(kind, cookie)) {
                amiss.sockets += 1;
            }
            if !goal.sockets.fits(kind, cookie) {
                let putting = goal.sockets.put(kind, &shared.sockets);
                putting.context("putting a listener into the map of sockets")?;
                change.sockets_put += 1;
            }
        }

        let link_was_pinned = self.have_link()?;
        let running = self
            .link
            .as_ref()
            .and_then(|link| self.pins.is_attached(link));
        let running = running.map(|info| info.prog_id);
        let claims_were_pinned = self.have_claims(running)?;
        let digest = self.claims.as_ref().map(|claims| claims.digest.clone());
        let mut known = None;
        if let Some(before) = before {
            let right = digest == Some(digest_of(&before.elements));
            known = right.then_some(&before.elements);
            let all_pinned = maps == Have::All && link_was_pinned && claims_were_pinned;
            amiss.pins = u64::from(!all_pinned);
            amiss.links = u64::from(running.is_none());
            amiss.programs = u64::from(running.is_some() && !right);
        }

        let wanted = digest_of(&goal.elements);
        // A program that uses other maps than ours finds no sockets.
        if digest.as_ref() != Some(&wanted) || maps == Have::New {
            // What ran before is not known after a restart.
            (change.claims_added, change.claims_removed) = known
                .map_or((count(&goal.elements), 0), |known| {
                    difference(known, &goal.elements)
                });
            self.put_in_place(&Image::of(steered(&goal.elements)), wanted)?;
            change.attached = running.is_none();
        }
        self.seen = Some(self.look()?);
        Ok((change, amiss))
    }

    /// Whether everything is as the last pass left it. Cheap.
    pub(crate) fn is_untouched(&self) -> bool {
        let (Some(seen), Some(claims)) = (&self.seen, &self.claims) else {
            return false;
        };
        let pins = [
            self.pins.link(),
            self.pins.path(SOCKETS),
            self.pins.path(COUNTERS),
            self.pins.claims(&claims.digest),
        ];
        pins.iter().all(|pin| pin.exists()) && self.look().is_ok_and(|now| now == *seen)
    }

    /// What was dropped since the counters were made; none without them.
    pub(crate) fn dropped(&self) -> Option<[(Dropped, u64); 3]> {
        let counters = &self.shared.as_ref()?.counters;
        let count = |dropped: Dropped| {
            let per_processor = counters
                .lookup_percpu(&dropped.index().to_ne_bytes(), MapFlags::ANY)
                .ok()??;
            let counts = per_processor.into_iter();
            let counts = counts.filter_map(|count| count.try_into().ok());
            Some((dropped, counts.map(u64::from_ne_bytes).sum()))
        };
        let [a, b, c] = Dropped::ALL.map(count);
        Some([a?, b?, c?])
    }

    /// Detaches the program and removes everything. Returns whether there was
    /// anything.
    pub(crate) fn remove(&mut self) -> std::result::Result<bool, KernelError> {
        (self.shared, self.link, self.claims, self.seen) = (None, None, None, None);
        self.pins.remove().map_err(|error| failed(&error))
    }

    fn look(&self) -> Result<Seen> {
        let (Some(link), Some(shared)) = (&self.link, &self.shared) else {
            return Err(gone());
        };
        let program = self.pins.is_attached(link).map(|info| info.prog_id);
        let mut sockets = [None; SocketKind::ALL.len()];
        for (kind, cookie) in SocketKind::ALL.into_iter().zip(&mut sockets) {
            *cookie = cookie_in(&shared.sockets, kind)?;
        }
        Ok(Seen { program, sockets })
    }

    /// The maps that we hold, or that are pinned, or new ones; and pins them.
    fn have_shared(&mut self) -> Result<Have> {
        let paths = [self.pins.path(SOCKETS), self.pins.path(COUNTERS)];
        if let Some(Shared { sockets, counters }) = &self.shared {
            let [at_sockets, at_counters] = &paths;
            let is = |map: &MapHandle, path| {
                MapHandle::from_pinned_path(path).is_ok_and(|pinned| id(&pinned) == id(map))
            };
            if is(sockets, at_sockets) && is(counters, at_counters) {
                return Ok(Have::All);
            }
            pin(sockets, at_sockets)?;
            pin(counters, at_counters)?;
            return Ok(Have::Unpinned);
        }
        // In any case the program is tried, so that whoever asks for it knows
        // that it can be had.
        let made = Loaded::load(&Image::of([]), None)?.shared()?;
        let [at_sockets, at_counters] = &paths;
        let pinned = (
            MapHandle::from_pinned_path(at_sockets),
            MapHandle::from_pinned_path(at_counters),
        );
        if let (Ok(sockets), Ok(counters)) = pinned
            && is_alike(&sockets, &made.sockets)
            && is_alike(&counters, &made.counters)
        {
            self.shared = Some(Shared { sockets, counters });
            return Ok(Have::All);
        }
        // Whatever runs uses other maps. Should this process end before it is
        // replaced, the next one must not take it for right.
        self.pins.keep_claims("");
        pin(&made.sockets, at_sockets)?;
        pin(&made.counters, at_counters)?;
        self.shared = Some(made);
        Ok(Have::New)
    }

    /// Takes the pinned link where we hold none that is attached, and pins the
    /// one that we hold. Returns whether that was not needed.
    fn have_link(&mut self) -> Result<bool> {
        let attached = |link: &Link| self.pins.is_attached(link).map(|info| info.id);
        let held = self.link.take().filter(|link| attached(link).is_some());
        let pinned = self.pins.attached_link();
        if let Some(held) = held {
            let pinned = pinned.as_ref().and_then(attached);
            let Some(id) = attached(&held) else {
                // Detached at this very moment: there is none, and nothing is
                // amiss with its pin.
                return Ok(true);
            };
            let right = pinned == Some(id);
            if !right {
                pin(&held, &self.pins.link())?;
            }
            self.link = Some(held);
            return Ok(right);
        }
        self.link = pinned;
        Ok(true)
    }

    /// Finds out what the program that runs steers, and pins it under that.
    /// Returns whether the pin was there, or nothing runs.
    fn have_claims(&mut self, running: Option<u32>) -> Result<bool> {
        let held = self.claims.take();
        let Some(running) = running else {
            return Ok(true);
        };
        self.claims = self.pins.claims_of(running);
        if self.claims.is_some() {
            return Ok(true);
        }
        // One that is not known at all is not ours to pin.
        self.claims = held.filter(|held| held.program.id() == running);
        if let Some(claims) = &self.claims {
            pin(&claims.program, &self.pins.claims(&claims.digest))?;
        }
        Ok(self.claims.is_none())
    }

    /// Has a program with these claims run instead of what runs now.
    fn put_in_place(&mut self, image: &Image, digest: String) -> Result<()> {
        let loaded = Loaded::load(image, self.shared.as_ref())?;
        let program = loaded.program()?;
        let at_pin = self.pins.claims(&digest);
        pin(&*program, &at_pin)?;
        match &mut self.link {
            Some(link) => {
                let replaced = link.update_prog(&program);
                replaced.context("replacing the sk_lookup program")?;
            }
            None => {
                let attached = program.attach_netns(self.namespace.as_raw_fd());
                let link = attached.context("attaching the sk_lookup program")?;
                pin(&link, &self.pins.link())?;
                self.link = Some(link);
            }
        }
        self.pins.keep_claims(&digest);
        let program = ProgramHandle::from_pinned_path(at_pin)?;
        self.claims = Some(Claims { program, digest });
        Ok(())
    }
}

/// A program that is in the kernel, and what it steers.
#[derive(Debug)]
struct Claims {
    program: ProgramHandle,
    digest: String,
}

fn gone() -> libbpf_rs::Error {
    std::io::Error::other("the maps or the link of a pass before are gone").into()
}

/// Where the shared maps were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Have {
    All,
    /// We held them, but they were not pinned any more.
    Unpinned,
    /// Nowhere, so they were made.
    New,
}

fn id(map: &MapHandle) -> Option<u32> {
    map.info().ok().map(|info| info.info.id)
}

fn is_alike(one: &MapHandle, other: &MapHandle) -> bool {
    let shape = |map: &MapHandle| {
        let (keys, values) = (map.key_size(), map.value_size());
        (map.map_type(), keys, values, map.max_entries())
    };
    shape(one) == shape(other)
}

type Elements = PerLane<BTreeSet<Element>>;

fn steered(elements: &Elements) -> impl Iterator<Item = Steered> {
    Lane::ALL.into_iter().flat_map(|lane| {
        // As in the IP header.
        let protocol = match lane.transport {
            Transport::Tcp => 6,
            Transport::Udp => 17,
        };
        let elements = elements.get(lane).iter();
        elements.map(move |element| (protocol, *element))
    })
}

fn count(elements: &Elements) -> usize {
    steered(elements).count()
}

fn difference(before: &Elements, now: &Elements) -> (usize, usize) {
    let lacks = |a: &Elements, b: &Elements| {
        let of = |lane| a.get(lane).difference(b.get(lane)).count();
        Lane::ALL.into_iter().map(of).sum()
    };
    (lacks(now, before), lacks(before, now))
}

/// Of the claims and of the program's code, as far as a file's name needs it.
fn digest_of(elements: &Elements) -> String {
    let mut hash = Sha256::new();
    hash.update(bpf::STEER);
    for (protocol, element) in steered(elements) {
        hash.update([protocol]);
        for address in [element.addresses.0, element.addresses.1] {
            match address {
                std::net::IpAddr::V4(address) => hash.update(address.octets()),
                std::net::IpAddr::V6(address) => hash.update(address.octets()),
            }
        }
        hash.update(element.ports.0.to_be_bytes());
        hash.update(element.ports.1.to_be_bytes());
    }
    let mut text = String::with_capacity(32);
    for byte in &hash.finalize()[..16] {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn failed(error: &libbpf_rs::Error) -> KernelError {
    let hint = match error.kind() {
        ErrorKind::PermissionDenied => {
            "; needs root (CAP_BPF and CAP_NET_ADMIN, and a BPF file system that it may write to)"
        }
        _ => "",
    };
    KernelError::SkLookup(format!("{error:#}{hint}"))
}
