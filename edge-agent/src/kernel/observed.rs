//! What was read back from the kernel, as far as it is ours or in our way.

use std::{collections::BTreeSet, num::NonZeroU16};

use ipnet::IpNet;

use super::desired::{Element, Lane, PerLane};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Observed {
    /// Every route of the local table that is ours, and those of others.
    pub(crate) routes: Vec<ObservedRoute>,
    pub(crate) table: TableState,
}

/// A route of the local table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ObservedRoute {
    pub(crate) net: IpNet,
    /// Carries our route protocol number.
    pub(crate) ours: bool,
    /// Makes its prefix local.
    pub(crate) local: bool,
    /// Is exactly what we would write.
    pub(crate) right: bool,
    /// Has the metric that ours has, so that writing ours replaces it.
    pub(crate) in_place: bool,
    /// What names it to the kernel when it is deleted.
    pub(crate) key: RouteKey,
}

/// The parts of a route beyond its prefix by which the kernel finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RouteKey {
    pub(crate) kind: u8,
    pub(crate) scope: u8,
    pub(crate) metric: Option<u32>,
    pub(crate) interface: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TableState {
    Absent,
    /// Has our name, but not our mark.
    Foreign,
    Ours(OurTable),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OurTable {
    /// `None`: our mark, in words that this version does not know.
    pub(crate) layout: Option<u32>,
    /// Holds chains or sets that do not belong in it.
    pub(crate) crowded: bool,
    /// Switched off (`flags dormant`).
    pub(crate) asleep: bool,
    pub(crate) chain: Part<()>,
    pub(crate) sets: PerLane<Part<Content>>,
    pub(crate) rules: Vec<ObservedRule>,
}

impl OurTable {
    /// Version of what this module writes into the table. A table of another
    /// version, older or newer, is replaced as a whole.
    pub(crate) const LAYOUT: u32 = 2;

    pub(crate) fn is_other_layout(&self) -> bool {
        self.layout != Some(Self::LAYOUT) || self.crowded
    }
}

/// Something that belongs in the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part<T> {
    Missing,
    /// There, but made in a way that cannot be changed in place.
    Wrong,
    Right(T),
}

pub(crate) type Content = BTreeSet<Element>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ObservedRule {
    pub(crate) handle: u64,
    /// What is steered and to which port, if the rule is one that we would write.
    pub(crate) steers: Option<(Lane, NonZeroU16)>,
}
