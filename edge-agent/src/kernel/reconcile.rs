//! Keeps the kernel as wanted: applies a new wish, and repairs what others
//! change.
//!
//! Everything runs in one task, so nothing is ever changed by two hands of
//! ours. Each pass reads the kernel back, plans the difference, and carries it
//! out; a pass that finds nothing to do changes nothing. Since every pass
//! starts from what the kernel really holds, a crash at any point is repaired
//! by the next start.
//!
//! A pass is started by a wish, by a change that the kernel announces in our
//! routing tables and rules or in our nftables tables, and, since announcements
//! can be lost, every few seconds. What belongs to sk_lookup is announced by
//! nobody and is glanced at several times a second instead. Our own changes are
//! announced as well; the
//! pass that follows finds nothing amiss. Drift is counted by comparing with
//! what was granted *before*, so a wish is never taken for a repair.
//!
//! A prefix that is no longer wanted is not steered at once, and its route goes
//! when the last connection there has ended.
//!
//! A wish that the kernel refuses stays wanted: each pass tries it again, and
//! the edge heals by itself when the reason is gone.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use ipnet::IpNet;
use nlink::{
    Connection, Nftables, Route,
    netlink::{
        EventSource, NetworkEvent, OwnedEventStream, RtnetlinkGroup,
        nftables::{NftablesEvent, NftablesGroup},
    },
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior, interval_at, sleep_until},
};
use tokio_stream::StreamExt;
use tracing::{info, warn};

use super::{
    anyip,
    desired::{Desired, Goal, Steering},
    error::KernelError,
    handle::{Applied, Conflict, Drift, KernelHandle, Standing, Turn},
    observed::Observed,
    open::OpenSockets,
    plan::{Amiss, NotOurTable, Plan, plan, plan_anew},
    return_path,
    sk_lookup::{Dropped, SkLookup},
    table,
};

/// A change is seldom alone: what makes one makes several within a few
/// milliseconds, and all are repaired in one pass.
const SETTLE: Duration = Duration::from_millis(5);

/// Between passes that announcements start, so that a quarrel with another
/// program that writes the same things cannot take a whole processor.
const PAUSE: Duration = Duration::from_millis(50);

/// The full check that does not depend on announcements.
const CHECK_EVERY: Duration = Duration::from_secs(5);

/// Between glances at what the kernel announces no change of.
const GLANCE_EVERY: Duration = Duration::from_millis(250);

/// The next try after a pass that failed.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// How often a pass starts again because others changed what it had read.
pub(crate) const ATTEMPTS: u32 = 10;

/// Announcements that are not read in time are lost; this is room for those
/// of some 10,000 changed elements.
const EVENT_BUFFER: usize = 8 << 20;

pub(crate) struct Wish {
    pub(crate) desired: Desired,
    pub(crate) reply: oneshot::Sender<Result<Applied, KernelError>>,
}

/// The task behind a [`KernelHandle`].
pub struct Reconciler<F> {
    kernel: Netlink,
    sk_lookup: SkLookup,
    wishes: mpsc::Receiver<Wish>,
    standing: watch::Sender<Standing>,
    turn: Turn,
    on_repair: F,
    on_drop: Box<dyn FnMut(Dropped, u64) + Send>,
    needs_return_path: Box<dyn Fn() -> bool + Send>,
    /// The newest wish, granted or not: what every pass works towards.
    wanted: Option<Goal>,
    /// As much of a wish as was granted: what drift is measured by. None after
    /// a wish that failed half way, since what differs may be our own doing.
    granted: Option<Goal>,
    /// As the last pass that succeeded left it, or an earlier agent; also known
    /// while nothing is granted, because open connections need it then as well.
    return_path: return_path::Wanted,
}

impl<F: FnMut(Drift, u64) + Send> Reconciler<F> {
    /// Opens the netlink sockets in the network namespace of the calling
    /// thread; that is where all of the work is done, whichever thread runs
    /// it. Nothing is changed until the first wish.
    ///
    /// `on_repair` is told what was repaired, and how many of it; it must not
    /// block. It is not called for what a wish changes.
    ///
    /// # Errors
    ///
    /// Where a socket cannot be had, as a rule for want of CAP_NET_ADMIN.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn open(on_repair: F) -> Result<(KernelHandle, Self), KernelError> {
        let (handle, wishes, standing, turn) = KernelHandle::channel();
        let reconciler = Self {
            kernel: Netlink::open()?,
            sk_lookup: SkLookup::open()?,
            wishes,
            standing,
            turn,
            on_repair,
            on_drop: Box::new(|_, _| {}),
            needs_return_path: Box::new(|| false),
            wanted: None,
            granted: None,
            return_path: return_path::Wanted::default(),
        };
        Ok((handle, reconciler))
    }

    /// `on_drop` is told, several times a second, of how many packets for
    /// claimed ports the sk_lookup program ever dropped; it must not block.
    #[must_use]
    pub fn on_drop(mut self, on_drop: impl FnMut(Dropped, u64) + Send + 'static) -> Self {
        self.on_drop = Box::new(on_drop);
        self
    }

    /// While `needed` says so, the way back of transparent connections stays
    /// also where it is wanted no more: those that are open go on. Asked on
    /// each pass; it must not block.
    #[must_use]
    pub fn keep_return_path_while(mut self, needed: impl Fn() -> bool + Send + 'static) -> Self {
        self.needs_return_path = Box::new(needed);
        self
    }

    /// Works until the last [`KernelHandle`] is dropped, and leaves the kernel
    /// as it is then: steering outlives the agent on purpose.
    ///
    /// # Errors
    ///
    /// Where the kernel's announcements cannot be subscribed to.
    pub async fn run(mut self) -> Result<(), KernelError> {
        let subscribed = Events::subscribe(&self.kernel).await;
        let mut events = subscribed.inspect_err(|error| self.refused(error))?;
        match return_path::found(&self.kernel).await {
            Ok(found) => self.return_path = found,
            // The first wish meets the same, and says so.
            Err(error) => tracing::debug!(%error, "the way back is not looked at"),
        }
        let mut check = interval_at(Instant::now() + CHECK_EVERY, CHECK_EVERY);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut glance = interval_at(Instant::now() + GLANCE_EVERY, GLANCE_EVERY);
        glance.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last_pass = Instant::now();
        // When to look because something was announced, or did not succeed.
        let mut due: Option<Instant> = None;
        loop {
            let pass_due = async {
                match due {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let succeeded = tokio::select! {
                biased;
                wish = self.wishes.recv() => match wish {
                    None => return Ok(()),
                    Some(wish) => self.grant(wish).await,
                },
                () = pass_due => self.verify().await,
                _ = check.tick() => self.verify().await,
                _ = glance.tick() => {
                    if due.is_some() || self.is_untouched() {
                        continue;
                    }
                    self.verify().await
                }
                () = events.change() => {
                    let at = (Instant::now() + SETTLE).max(last_pass + PAUSE);
                    due = Some(due.map_or(at, |due| due.min(at)));
                    continue;
                }
            };
            last_pass = Instant::now();
            due = (!succeeded).then(|| last_pass + RETRY_AFTER);
        }
    }

    /// Whether the wish was granted. It stays wanted in any case.
    async fn grant(&mut self, wish: Wish) -> bool {
        let goal = self.wanted.insert(Goal::from(&wish.desired)).clone();
        let result = self.pass(goal).await;
        let granted = result.is_ok();
        if !granted {
            self.granted = None;
        }
        // Nobody waits any more: the wish is granted all the same.
        let _ = wish.reply.send(result);
        granted
    }

    /// A glance at what is not announced.
    fn is_untouched(&mut self) -> bool {
        let by_sk_lookup =
            (self.granted.as_ref()).is_some_and(|goal| goal.steering == Steering::SkLookup);
        if !by_sk_lookup {
            return true;
        }
        for (reason, count) in self.sk_lookup.dropped().into_iter().flatten() {
            (self.on_drop)(reason, count);
        }
        self.sk_lookup.is_untouched()
    }

    /// Whether the kernel is now as the newest wish wants it.
    async fn verify(&mut self) -> bool {
        match self.wanted.clone() {
            Some(goal) => self.pass(goal).await.is_ok(),
            None => true,
        }
    }

    async fn pass(&mut self, mut goal: Goal) -> Result<Applied, KernelError> {
        if (self.needs_return_path)() {
            goal.return_path = goal.return_path.and(self.return_path);
        }
        let turn = Arc::clone(&self.turn);
        // Also while it is told: whoever has the turn next goes by what was done.
        let _turn = turn.lock().await;
        match self.converge(&goal).await {
            Ok((applied, lingering, drift)) => {
                goal.lingering = lingering;
                // What could not be had is not drift when it can be had later.
                for conflict in &applied.conflicts {
                    goal.routes.remove(&conflict.net);
                }
                self.return_path = goal.return_path;
                self.granted = Some(goal);
                self.stand(Standing {
                    fault: None,
                    conflicts: applied.conflicts.clone(),
                });
                self.report(drift);
                Ok(applied)
            }
            Err(error) => {
                self.refused(&error);
                Err(error)
            }
        }
    }

    /// What steers comes before what no longer does: in the other order, a
    /// change of the way of steering would refuse connections.
    async fn converge(
        &mut self,
        goal: &Goal,
    ) -> Result<(Applied, BTreeSet<IpNet>, Amiss), KernelError> {
        // Of another way of steering, what differs is no drift.
        let before = self.granted.as_ref();
        let before = before.filter(|before| before.steering == goal.steering);
        let (change, amiss) = match goal.steering {
            Steering::SkLookup => self.sk_lookup.converge(goal, before)?,
            Steering::Tproxy => Default::default(),
        };
        let (plan, drift) = self.kernel.converge(goal, before).await?;
        if goal.steering == Steering::Tproxy {
            self.sk_lookup.remove()?;
        }
        let applied = Applied::new(&plan, change);
        Ok((applied, plan.lingering, drift.and(amiss)))
    }

    fn refused(&self, error: &KernelError) {
        let conflicts = self.standing.borrow().conflicts.clone();
        self.stand(Standing {
            fault: Some(error.to_string().into()),
            conflicts,
        });
    }

    /// Says how things stand, and logs what of it is new.
    fn stand(&self, now: Standing) {
        self.standing.send_if_modified(|standing| {
            if *standing == now {
                return false;
            }
            if let Some(fault) = now.fault.as_deref().filter(|_| standing.fault != now.fault) {
                warn!(error = %fault, "kernel steering is not as wanted");
            }
            for conflict in &now.conflicts {
                if !standing.conflicts.contains(conflict) {
                    warn!(prefix = %conflict.net, reason = conflict.reason, "not answered for");
                }
            }
            *standing = now;
            true
        });
    }

    fn report(&mut self, drift: Amiss) {
        for (what, count) in Drift::of(drift) {
            warn!(
                what = what.as_str(),
                count, "repaired what another program had changed"
            );
            (self.on_repair)(what, count);
        }
    }
}

/// The netlink connections on which the kernel is read and changed.
pub(crate) struct Netlink {
    pub(crate) routes: Connection<Route>,
    pub(crate) nft: Connection<Nftables>,
    /// None where the kernel does not have it.
    sockets: Option<OpenSockets>,
}

impl Netlink {
    pub(crate) fn open() -> Result<Self, KernelError> {
        let opening = |source| KernelError::netlink("opening a routing netlink socket", source);
        let routes = Connection::<Route>::new().map_err(opening)?;
        routes.enable_strict_checking(true).map_err(opening)?;
        let nft = table::connect()?;
        let sockets = OpenSockets::open();
        let sockets = sockets.inspect_err(|error| {
            warn!(%error, "without sock_diag, connections end with their prefix");
        });
        Ok(Self {
            routes,
            nft,
            sockets: sockets.ok(),
        })
    }

    /// The generation of the ruleset that was read, and what was read.
    pub(crate) async fn observe(&self) -> Result<(u32, Observed), KernelError> {
        let routes = anyip::observe(&self.routes).await?;
        let (generation, table) = table::observe(&self.nft).await?;
        Ok((generation, Observed { routes, table }))
    }

    /// Makes the kernel as `goal` wants it. Also says which prefixes linger,
    /// and what differed from `before`.
    async fn converge(
        &self,
        goal: &Goal,
        before: Option<&Goal>,
    ) -> Result<(Plan, Amiss), KernelError> {
        let mut drift = None;
        let mended = self.settle(|observed| {
            if let (None, Some(before)) = (drift, before) {
                drift = Some(plan(before, observed)?.amiss);
            }
            plan(goal, observed)
        });
        let done = match mended.await {
            // Claims that do overlap are refused once more.
            Err(error) if error.is_clash() => {
                self.settle(|observed| plan_anew(goal, observed)).await?
            }
            mended => mended?,
        };
        let mut drift = drift.unwrap_or_default();
        let had = before.map(|before| before.return_path);
        drift.return_path = return_path::converge(self, goal.return_path, had).await?;
        Ok((done, drift))
    }

    /// Reads, plans and carries out until that was one step in which nobody
    /// else changed anything.
    pub(crate) async fn settle(
        &self,
        mut make_plan: impl FnMut(&Observed) -> Result<Plan, NotOurTable>,
    ) -> Result<Plan, KernelError> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            match self.attempt(&mut make_plan).await {
                Err(last) if last.is_stale() && attempts == ATTEMPTS => {
                    let last = Box::new(last);
                    return Err(KernelError::Busy { attempts, last });
                }
                Err(error) if error.is_stale() => {}
                done => return done,
            }
        }
    }

    async fn attempt(
        &self,
        make_plan: &mut impl FnMut(&Observed) -> Result<Plan, NotOurTable>,
    ) -> Result<Plan, KernelError> {
        let (generation, observed) = self.observe().await?;
        let mut plan = make_plan(&observed).map_err(|NotOurTable| KernelError::ForeignTable)?;
        let (refused, lingering) = self.carry_out(&plan, generation).await?;
        plan.go_without(refused);
        plan.linger(lingering);
        Ok(plan)
    }

    /// Routes before the table and after it, so that whatever is steered is
    /// local. Returns prefixes whose route the kernel refused, and those whose
    /// route is not removed yet; the rest is done.
    async fn carry_out(
        &self,
        plan: &Plan,
        generation: u32,
    ) -> Result<(Vec<Conflict>, BTreeSet<IpNet>), KernelError> {
        let mut refused = Vec::new();
        let mut lingering = BTreeSet::new();
        for &step in &plan.add_routes {
            let net = step.net();
            let Err(source) = anyip::add(&self.routes, step).await else {
                continue;
            };
            let error = KernelError::netlink(format!("adding the local route {net}"), source);
            if !error.concerns_one_route() {
                return Err(error);
            }
            let reason = format!("this host cannot answer for it: {error}");
            refused.push(Conflict { net, reason });
        }
        if !plan.table.is_empty() {
            let committed = table::commit(&self.nft, generation, &plan.table).await;
            committed.map_err(|source| {
                KernelError::netlink("changing the nftables table \"inet anyport\"", source)
            })?;
        }
        for route in &plan.remove_routes {
            // Asked now that nothing new is steered there.
            if plan.vacated.contains(&route.net) && self.is_anything_open_in(route.net) {
                lingering.insert(route.net);
                continue;
            }
            let removed = anyip::remove(&self.routes, route).await;
            removed.map_err(|source| {
                KernelError::netlink(format!("removing the local route {}", route.net), source)
            })?;
        }
        Ok((refused, lingering))
    }

    /// A kernel that does not tell is taken to mean no.
    fn is_anything_open_in(&self, net: IpNet) -> bool {
        let asked = self.sockets.as_ref().map(|sockets| sockets.any_in(net));
        match asked {
            Some(Ok(any)) => any,
            Some(Err(error)) => {
                warn!(prefix = %net, %error, "cannot tell whether connections are open there");
                false
            }
            None => false,
        }
    }
}

/// What the kernel announces of the two things that we own.
struct Events {
    routes: Option<OwnedEventStream<Route>>,
    nft: Option<OwnedEventStream<Nftables>>,
}

impl Events {
    /// Subscribes in the namespace of `beside`.
    async fn subscribe(beside: &Netlink) -> Result<Self, KernelError> {
        let subscribing = |source| KernelError::netlink("subscribing to kernel events", source);
        let routes = beside.routes.sibling::<Route>().map_err(subscribing)?;
        routes
            .socket()
            .set_rcvbuf(EVENT_BUFFER)
            .map_err(subscribing)?;
        routes
            .subscribe(&[
                RtnetlinkGroup::Ipv4Route,
                RtnetlinkGroup::Ipv6Route,
                RtnetlinkGroup::Ipv4Rule,
                RtnetlinkGroup::Ipv6Rule,
            ])
            .map_err(subscribing)?;
        let nft = beside.nft.sibling::<Nftables>().map_err(subscribing)?;
        nft.socket().set_rcvbuf(EVENT_BUFFER).map_err(subscribing)?;
        nft.subscribe(&[NftablesGroup::All]).map_err(subscribing)?;
        Ok(Self {
            routes: Some(routes.into_events().await),
            nft: Some(nft.into_events().await),
        })
    }

    /// Returns when something may have changed that we own.
    async fn change(&mut self) {
        loop {
            let concerns_us = tokio::select! {
                event = next(&mut self.routes) => event.is_none_or(|event| in_our_routes(&event)),
                event = next(&mut self.nft) => event.is_none_or(|event| in_our_table(&event)),
            };
            if concerns_us {
                return;
            }
        }
    }
}

/// The next event, or `None` where some were lost. Never returns once the
/// stream has ended; the periodic check remains.
async fn next<P: EventSource>(stream: &mut Option<OwnedEventStream<P>>) -> Option<P::Event> {
    let item = match stream {
        Some(stream) => stream.next().await,
        None => std::future::pending().await,
    };
    match item {
        Some(Ok(event)) => Some(event),
        Some(Err(error)) => {
            info!(error = %error, "missed kernel events; checking everything");
            None
        }
        None => {
            warn!("the kernel's announcements ended; drift is found by the periodic check only");
            *stream = None;
            None
        }
    }
}

fn in_our_routes(event: &NetworkEvent) -> bool {
    match event {
        NetworkEvent::NewRoute(route) | NetworkEvent::DelRoute(route) => {
            let tables = [anyip::LOCAL_TABLE, return_path::ROUTING_TABLE].map(u32::from);
            tables.contains(&route.table_id())
        }
        NetworkEvent::NewRule(rule) | NetworkEvent::DelRule(rule) => {
            rule.protocol() == Some(anyip::ROUTE_PROTOCOL)
        }
        _ => false,
    }
}

fn in_our_table(event: &NftablesEvent) -> bool {
    use NftablesEvent as E;
    let table = match event {
        E::NewTable(table) | E::DelTable(table) => &table.name,
        E::NewChain(chain) | E::DelChain(chain) => &chain.table,
        E::NewRule(rule) | E::DelRule(rule) => &rule.table,
        E::NewSet(set) | E::DelSet(set) => &set.table,
        E::NewSetElements(elements) | E::DelSetElements(elements) => &elements.table,
        _ => return false,
    };
    [table::TABLE, return_path::TABLE].contains(&table.as_str())
}
