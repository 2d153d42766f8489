//! What a write asks for, held against a state: the next state and what
//! changes, or every reason why not.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use anyport_model::{
    fault::StateFault,
    names::{NodeName, Revision},
    resource::{Kind, Resource, ResourceRef},
    rollout::Rollout,
    state::{Resources, State},
    validate,
};

use super::{deletion::MassDeletion, limits};

/// What a write asks for.
#[derive(Debug, Clone)]
pub enum Intent {
    /// Create or replace these; with `prune`, delete all others.
    Apply {
        request: ApplyRead,
        prune: bool,
    },
    Delete(ResourceRef),
    /// Back to these, which were the state of `revision`.
    Rollback {
        revision: Revision,
        resources: Resources,
    },
    /// All nodes get what some try; whichever that is, or this one.
    Promote(Option<Revision>),
    /// The same state, with its private keys as this replica stores them.
    Reseal,
}

/// The resources of a request, as far as they could be read.
#[derive(Debug, Clone, Default)]
pub struct ApplyRead {
    /// Each with its place in the request.
    pub resources: BTreeMap<ResourceRef, (usize, Resource)>,
    /// Declared too, but not readable.
    pub unreadable: BTreeSet<ResourceRef>,
    /// Stand in for prefixes that are not readable, so that one fault does not
    /// cause many.
    pub stand_ins: Vec<Resource>,
    /// By path in the request.
    pub violations: Vec<Violation>,
}

/// One fault, by its path in the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// `resources[3].app.edge_ips[0]`; `app["mail"].edge_ips[0]` for a resource
    /// that is not in the request.
    pub path: String,
    pub problem: String,
}

/// The state to be, and what that changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub resources: Resources,
    /// By kind and name.
    pub changes: Vec<Change>,
    /// What it deletes without naming it, where that is so much that it may be
    /// an accident.
    pub mass_deletion: Option<MassDeletion>,
}

/// What becomes of one resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Created(Resource),
    Updated { before: Resource, after: Resource },
    Unchanged(ResourceRef),
    Deleted(Resource),
}

/// Why a write is not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{}", count(.0))]
    Invalid(Vec<Violation>),
    #[error("there is no {0}")]
    NotFound(ResourceRef),
    #[error("{resource} is in use: {}", list(.users))]
    InUse {
        resource: ResourceRef,
        users: Vec<User>,
    },
    #[error(
        "this would delete {0}; if that is meant, say so: allow_mass_deletion, in the command --allow-mass-deletion"
    )]
    MassDeletion(MassDeletion),
    #[error(
        "revision {revision} is being tried by {}: promote it, or roll back to {stable}",
        names(edges)
    )]
    OnTrial {
        revision: Revision,
        edges: BTreeSet<NodeName>,
        stable: Revision,
    },
    #[error("no revision is being tried; the latest, {latest}, is for all")]
    NotOnTrial { latest: Revision },
    #[error("revision {asked} is not the one that is being tried, which is {tried}")]
    OtherOnTrial { asked: Revision, tried: Revision },
}

fn names(edges: &BTreeSet<NodeName>) -> String {
    let names: Vec<&str> = edges.iter().map(NodeName::as_str).collect();
    names.join(", ")
}

/// A field that refers to what was to be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub resource: ResourceRef,
    pub field: String,
    /// What the field would lack.
    pub problem: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.problem)
    }
}

/// The first one says what kind of trouble it is; all are in the details.
fn count(violations: &[Violation]) -> String {
    match violations {
        [] => "the request is refused".to_owned(),
        [only] => only.to_string(),
        [first, rest @ ..] => {
            let more = rest.len();
            let faults = if more == 1 { "fault" } else { "faults" };
            format!("{} faults: {first}; and {more} more {faults}", more + 1)
        }
    }
}

fn list(users: &[User]) -> String {
    const SHOWN: usize = 5;
    let shown = users.iter().take(SHOWN);
    let mut text = shown
        .map(|user| format!("{} ({})", user.resource, user.field))
        .collect::<Vec<_>>()
        .join(", ");
    if users.len() > SHOWN {
        text += &format!(" and {} more", users.len() - SHOWN);
    }
    text
}

impl Change {
    pub fn reference(&self) -> ResourceRef {
        match self {
            Change::Created(resource) | Change::Deleted(resource) => resource.reference(),
            Change::Updated { after, .. } => after.reference(),
            Change::Unchanged(reference) => reference.clone(),
        }
    }

    /// Does the state differ by it?
    pub fn is_change(&self) -> bool {
        !matches!(self, Change::Unchanged(_))
    }
}

impl Intent {
    /// Holds the intent against the present state.
    ///
    /// # Errors
    /// [`Refusal`], with every fault there is.
    pub fn plan(&self, present: &Resources) -> Result<Plan, Refusal> {
        match self {
            Intent::Apply { request, prune } => apply(present, request, *prune),
            Intent::Delete(reference) => delete(present, reference),
            Intent::Rollback { resources, .. } => rollback(present, resources),
            Intent::Promote(_) | Intent::Reseal => Ok(plan(present, present.clone(), |_| false)),
        }
    }

    /// The revision whose state is brought back.
    pub fn rollback_of(&self) -> Option<Revision> {
        match self {
            Intent::Rollback { revision, .. } => Some(*revision),
            Intent::Apply { .. } | Intent::Delete(_) | Intent::Promote(_) | Intent::Reseal => None,
        }
    }

    /// What of the present state is to be stored anew, although it stays as it is.
    pub fn stored_anew(&self, present: &Resources) -> Vec<ResourceRef> {
        let is_certificate = |reference: &&ResourceRef| reference.kind() == Kind::Certificate;
        match self {
            Intent::Reseal => present.keys().filter(is_certificate).cloned().collect(),
            Intent::Apply { .. }
            | Intent::Delete(_)
            | Intent::Rollback { .. }
            | Intent::Promote(_) => Vec::new(),
        }
    }

    /// May it be done while nodes try a revision, or not, as it is at `latest`?
    ///
    /// # Errors
    /// [`Refusal`], with what may be done.
    pub fn fits(&self, latest: Revision, rollout: Option<&Rollout>) -> Result<(), Refusal> {
        match (self, rollout) {
            (Intent::Rollback { .. }, _)
            | (Intent::Apply { .. } | Intent::Delete(_) | Intent::Reseal, None)
            | (Intent::Promote(None), Some(_)) => Ok(()),
            (Intent::Apply { .. } | Intent::Delete(_) | Intent::Reseal, Some(rollout)) => {
                Err(Refusal::OnTrial {
                    revision: latest,
                    edges: rollout.canary.edges.clone(),
                    stable: rollout.stable,
                })
            }
            (Intent::Promote(_), None) => Err(Refusal::NotOnTrial { latest }),
            (Intent::Promote(Some(asked)), Some(_)) if *asked != latest => {
                Err(Refusal::OtherOnTrial {
                    asked: *asked,
                    tried: latest,
                })
            }
            (Intent::Promote(Some(_)), Some(_)) => Ok(()),
        }
    }
}

fn apply(present: &Resources, request: &ApplyRead, prune: bool) -> Result<Plan, Refusal> {
    let mut resources = if prune {
        Resources::new()
    } else {
        present.clone()
    };
    for (reference, (_, resource)) in &request.resources {
        resources.insert(reference.clone(), resource.clone());
    }
    let mut violations = request.violations.clone();
    violations.extend(limits::exceeded(request, resources.len()));
    if violations.is_empty() {
        let resources = fitting(resources, |fault| path_in(request, fault))?;
        let named = |reference: &ResourceRef| request.resources.contains_key(reference);
        return Ok(plan(present, resources, named).judged(present));
    }
    // It will be refused; now find the other faults, judging nothing by the old
    // version of what is to be replaced.
    for reference in &request.unreadable {
        resources.remove(reference);
    }
    for resource in &request.stand_ins {
        resources.insert(resource.reference(), resource.clone());
    }
    let faults = validate::faults(&resources, &request.unreadable);
    violations.extend(
        faults
            .iter()
            .map(|fault| violation(path_in(request, fault), fault)),
    );
    Err(Refusal::Invalid(violations))
}

fn delete(present: &Resources, reference: &ResourceRef) -> Result<Plan, Refusal> {
    let mut resources = present.clone();
    if resources.remove(reference).is_none() {
        return Err(Refusal::NotFound(reference.clone()));
    }
    match State::validate(resources) {
        Ok(state) => Ok(plan(present, state.into_resources(), |_| false)),
        Err(faults) => Err(Refusal::InUse {
            resource: reference.clone(),
            users: faults
                .into_iter()
                .map(|StateFault { resource, fault }| User {
                    resource,
                    field: fault.field,
                    problem: fault.problem,
                })
                .collect(),
        }),
    }
}

fn rollback(present: &Resources, target: &Resources) -> Result<Plan, Refusal> {
    let resources = fitting(target.clone(), path_outside)?;
    Ok(plan(present, resources, |_| false).judged(present))
}

/// The resources, if they fit each other.
fn fitting(
    resources: Resources,
    path: impl Fn(&StateFault) -> String,
) -> Result<Resources, Refusal> {
    match State::validate(resources) {
        Ok(state) => Ok(state.into_resources()),
        Err(faults) => Err(Refusal::Invalid(
            faults
                .iter()
                .map(|fault| violation(path(fault), fault))
                .collect(),
        )),
    }
}

fn violation(path: String, fault: &StateFault) -> Violation {
    Violation {
        path,
        problem: fault.fault.problem.clone(),
    }
}

fn plan(present: &Resources, resources: Resources, named: impl Fn(&ResourceRef) -> bool) -> Plan {
    let mut changes: Vec<Change> = resources
        .iter()
        .filter_map(|(reference, after)| match present.get(reference) {
            None => Some(Change::Created(after.clone())),
            Some(before) if before != after => Some(Change::Updated {
                before: before.clone(),
                after: after.clone(),
            }),
            Some(_) => named(reference).then(|| Change::Unchanged(reference.clone())),
        })
        .collect();
    let gone = present
        .iter()
        .filter(|(reference, _)| !resources.contains_key(reference));
    changes.extend(gone.map(|(_, resource)| Change::Deleted(resource.clone())));
    changes.sort_by_key(Change::reference);
    Plan {
        resources,
        changes,
        mass_deletion: None,
    }
}

impl Plan {
    /// Of a write that does not name what it deletes.
    fn judged(self, present: &Resources) -> Self {
        Self {
            mass_deletion: MassDeletion::of(present, &self.resources),
            ..self
        }
    }
}

fn path_in(request: &ApplyRead, fault: &StateFault) -> String {
    match request.resources.get(&fault.resource) {
        Some((index, _)) => path_of(*index, Some(fault.resource.kind()), &fault.fault.field),
        None => path_outside(fault),
    }
}

/// `app["mail"].edge_ips[0]`.
fn path_outside(fault: &StateFault) -> String {
    let StateFault { resource, fault } = fault;
    let this = format!("{}[{:?}]", resource.kind().singular(), resource.name());
    with_field(this, &fault.field)
}

/// `resources[3].app.edge_ips[0]`.
pub(super) fn path_of(index: usize, kind: Option<Kind>, field: &str) -> String {
    let this = match kind {
        Some(kind) => format!("resources[{index}].{}", kind.singular()),
        None => format!("resources[{index}]"),
    };
    with_field(this, field)
}

fn with_field(this: String, field: &str) -> String {
    if field.is_empty() {
        this
    } else {
        format!("{this}.{field}")
    }
}
