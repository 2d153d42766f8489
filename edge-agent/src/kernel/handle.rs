//! What the rest of the agent sees of the kernel: a wish goes in, and the
//! answer comes when the kernel really does as wished.

use std::{future::Future, sync::Arc};

use ipnet::IpNet;
use tokio::sync::{Mutex, OwnedMutexGuard, mpsc, oneshot, watch};

use super::{
    desired::Desired,
    error::KernelError,
    plan::{Amiss, Plan, TableStep},
    reconcile::Wish,
    sk_lookup::Change,
};

/// Where the agent's wishes go; the seam at which a test puts a
/// [`FakeKernel`](super::FakeKernel).
pub trait Kernel: Send + Sync + 'static {
    /// Makes the kernel do all of `desired`, and nothing else of ours. Returns
    /// when it does. A wish that is refused stays wanted, and is tried again
    /// until another takes its place.
    fn apply(&self, desired: Desired) -> impl Future<Output = Result<Applied, KernelError>> + Send;

    /// How the kernel stands to the newest wish, now and from now on. What
    /// [`apply`](Self::apply) returned can be seen here before it returns.
    fn standing(&self) -> watch::Receiver<Standing>;
}

/// Takes wishes to the [`Reconciler`](super::Reconciler). Cheap to clone; the
/// reconciler ends with the last of them.
#[derive(Debug, Clone)]
pub struct KernelHandle {
    wishes: mpsc::Sender<Wish>,
    standing: watch::Receiver<Standing>,
    turn: Turn,
}

/// Held by whoever looks at the kernel and changes it.
pub(crate) type Turn = Arc<Mutex<()>>;

impl KernelHandle {
    pub(crate) fn channel() -> (Self, mpsc::Receiver<Wish>, watch::Sender<Standing>, Turn) {
        // Each wish is the whole state, so there is no use in queueing many.
        let (wishes, incoming) = mpsc::channel(1);
        let (stand, standing) = watch::channel(Standing::default());
        let turn = Turn::default();
        let handle = Self {
            wishes,
            standing,
            turn: Arc::clone(&turn),
        };
        (handle, incoming, stand, turn)
    }

    /// Once what is under way is done, the kernel is left as it is, whatever
    /// others change and whatever is wished for, until the guard is dropped.
    pub async fn pause(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.turn).lock_owned().await
    }

    /// Why the kernel is not as wanted, as of the last look at it. `None` as
    /// long as nothing was wished for, too.
    pub fn fault(&self) -> Option<Arc<str>> {
        self.standing.borrow().fault.clone()
    }
}

/// How the kernel stands to the newest wish, as of the last look at it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// Why it is not as wanted; `None` as long as nothing was wished for, too.
    pub fault: Option<Arc<str>>,
    /// What it goes without, by the last pass that had no fault.
    pub conflicts: Vec<Conflict>,
}

/// A prefix that this host does not answer for; everything else was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    pub net: IpNet,
    /// Why, and where there is something to do, what.
    pub reason: String,
}

impl Kernel for KernelHandle {
    /// # Errors
    ///
    /// What the kernel refused. The table is then as it was before; routes may
    /// have been added.
    async fn apply(&self, desired: Desired) -> Result<Applied, KernelError> {
        let (reply, answer) = oneshot::channel();
        let wish = Wish { desired, reply };
        self.wishes
            .send(wish)
            .await
            .map_err(|_| KernelError::Ended)?;
        answer.await.map_err(|_| KernelError::Ended)?
    }

    fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }
}

/// What a wish changed in the kernel; all zero where it was so already.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    pub routes_added: usize,
    pub routes_removed: usize,
    /// Rectangles of addresses and ports that are steered now and were not.
    pub elements_added: usize,
    pub elements_removed: usize,
    /// The rules name another listener port now, or are new.
    pub rules_written: usize,
    /// The whole table was made anew.
    pub table_created: bool,
    /// Kinds of sockets, each TCP or UDP over IPv4 or IPv6, that are others
    /// now in the map of sk_lookup.
    pub sockets_put: usize,
    /// The program of sk_lookup was attached, and was not.
    pub program_attached: bool,
    /// What could not be had.
    pub conflicts: Vec<Conflict>,
}

impl Applied {
    pub(crate) fn new(plan: &Plan, by_sk_lookup: Change) -> Self {
        let mut applied = Self {
            routes_added: plan.add_routes.len(),
            routes_removed: plan.remove_routes.len(),
            elements_added: by_sk_lookup.claims_added,
            elements_removed: by_sk_lookup.claims_removed,
            sockets_put: by_sk_lookup.sockets_put,
            program_attached: by_sk_lookup.attached,
            conflicts: plan.conflicts.clone(),
            ..Self::default()
        };
        for step in &plan.table {
            match step {
                TableStep::CreateTable => applied.table_created = true,
                TableStep::AddElements(_, elements) => applied.elements_added += elements.len(),
                TableStep::RemoveElements(_, elements) => {
                    applied.elements_removed += elements.len()
                }
                TableStep::AddRule(..) | TableStep::ReplaceRule(..) => applied.rules_written += 1,
                TableStep::DeleteTable
                | TableStep::WakeTable
                | TableStep::FlushRules
                | TableStep::DeleteRule(_)
                | TableStep::DeleteChain
                | TableStep::CreateChain
                | TableStep::DeleteSet(_)
                | TableStep::CreateSet(_) => {}
            }
        }
        applied
    }
}

/// What another program had changed and the agent put right: the label `what`
/// of `anyport_kernel_drift_repaired_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Drift {
    /// A local route.
    Route,
    /// The whole table: gone, switched off, or with foreign chains or sets.
    Table,
    /// The chain in which steering is done.
    Chain,
    /// A rule of it, or a foreign one in it.
    Rule,
    /// The content of a set.
    Elements,
    /// The link that keeps the sk_lookup program attached.
    Link,
    /// The sk_lookup program: another one was in its place.
    Program,
    /// A listener in the map from which that program takes them.
    Socket,
    /// What keeps all of that when the agent ends.
    Pin,
    /// The table, rules and routes that bring answers of origins back which
    /// see the client's own address.
    ReturnPath,
}

impl Drift {
    /// Every value, for a metric that shows them from the start.
    pub const ALL: [Drift; 10] = [
        Drift::Route,
        Drift::Table,
        Drift::Chain,
        Drift::Rule,
        Drift::Elements,
        Drift::Link,
        Drift::Program,
        Drift::Socket,
        Drift::Pin,
        Drift::ReturnPath,
    ];

    /// The value of the metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            Drift::Route => "route",
            Drift::Table => "table",
            Drift::Chain => "chain",
            Drift::Rule => "rule",
            Drift::Elements => "elements",
            Drift::Link => "link",
            Drift::Program => "program",
            Drift::Socket => "socket",
            Drift::Pin => "pin",
            Drift::ReturnPath => "return_path",
        }
    }

    /// The kinds that occur in `amiss`, and how often.
    pub(crate) fn of(amiss: Amiss) -> impl Iterator<Item = (Drift, u64)> {
        Self::ALL
            .map(|what| {
                let count = match what {
                    Drift::Route => amiss.routes,
                    Drift::Table => amiss.tables,
                    Drift::Chain => amiss.chains,
                    Drift::Rule => amiss.rules,
                    Drift::Elements => amiss.sets,
                    Drift::Link => amiss.links,
                    Drift::Program => amiss.programs,
                    Drift::Socket => amiss.sockets,
                    Drift::Pin => amiss.pins,
                    Drift::ReturnPath => amiss.return_path,
                };
                (what, count)
            })
            .into_iter()
            .filter(|&(_, count)| count > 0)
    }
}
