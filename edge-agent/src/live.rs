//! The connections that are open, so that they can be closed when somebody
//! asks for it or when a drain is over.
//!
//! Each worker keeps those of its own, on its own thread. A connection pays
//! with a slot in a vector: no lock, and no allocation once the vector has
//! grown. What is to be closed is told to all workers by message. A connection
//! that is closed is dropped where it stands, and so resets both of its sides:
//! neither can take what it has got for all there is.

mod ordered;

use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use anyport_model::{drain::closing_times, names::AppName, resource::Timeouts};
use prometheus::IntGauge;
use rand::seq::SliceRandom;
use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, JoinSet},
    time::Instant,
};

pub use ordered::{Begins, Drained, NamedWindows, OrderId, Ordered};

use crate::{listen::Load, stats::AppStats};

/// Which app, as long as something of it lives: a connection holds its app's
/// counters, so their address is nobody else's until it is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AppKey(usize);

impl AppKey {
    pub fn of(app: &Arc<AppStats>) -> Self {
        Self(Arc::as_ptr(app) as usize)
    }
}

/// Why a connection was closed by the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closing {
    /// The agent was asked to end or to be out of service, and the time for it
    /// is over.
    Drained,
    /// The user disabled the app, open connections and all.
    Disabled,
}

impl Closing {
    pub fn as_str(self) -> &'static str {
        match self {
            Closing::Drained => "drained: the edge ends or was taken out of service",
            Closing::Disabled => "the app was disabled",
        }
    }
}

/// What is told to every worker.
#[derive(Debug, Clone)]
pub enum Order {
    /// Whatever is open of these apps is closed, at once.
    Close(Arc<HashSet<AppKey>>),
    /// What is open is closed as these windows end.
    Drain(Arc<Windows>),
    /// What a drain has not closed yet goes on.
    Undrain,
}

/// What one worker is told.
pub type Orders = mpsc::UnboundedReceiver<Order>;

/// Reaches the open connections of all workers, and tells those who reach
/// others what is ordered.
#[derive(Debug, Clone)]
pub struct Live {
    workers: Vec<mpsc::UnboundedSender<Order>>,
    ordered: watch::Sender<Ordered>,
}

impl Live {
    /// Of `count` workers, each of which has to [`obey`].
    pub fn of_workers(count: usize) -> (Self, Vec<Orders>) {
        let (workers, orders) = (0..count).map(|_| mpsc::unbounded_channel()).unzip();
        let ordered = watch::Sender::new(Ordered::nothing());
        (Self { workers, ordered }, orders)
    }

    /// Follows all that is ordered.
    pub fn ordered(&self) -> watch::Receiver<Ordered> {
        self.ordered.subscribe()
    }

    /// Closes whatever is open of these apps, at once, and of none else.
    pub fn close(&self, apps: HashMap<AppKey, AppName>) {
        let (keys, names): (HashSet<_>, BTreeSet<_>) = apps.into_iter().unzip();
        self.ordered
            .send_if_modified(|ordered| ordered.close(names));
        if !keys.is_empty() {
            self.order(&Order::Close(Arc::new(keys)));
        }
    }

    /// Closes what is open as its windows end.
    pub fn drain(&self, windows: Windows, named: NamedWindows, begins: Begins) {
        self.ordered
            .send_modify(|ordered| ordered.drain(named, begins));
        self.order(&Order::Drain(Arc::new(windows)));
    }

    /// What a drain has not closed yet goes on.
    pub fn undrain(&self) {
        self.ordered.send_modify(Ordered::undrain);
        self.order(&Order::Undrain);
    }

    fn order(&self, order: &Order) {
        for worker in &self.workers {
            // A worker that has ended has nothing open.
            let _ = worker.send(order.clone());
        }
    }
}

thread_local! {
    static OPEN: RefCell<Slots> = RefCell::default();
}

#[derive(Default)]
struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
    shown: Option<Shown>,
}

/// Where a worker shows how many connections it has open.
#[derive(Debug)]
pub struct Shown {
    /// To people.
    pub metric: IntGauge,
    /// To what gives workers connections.
    pub load: Option<Load>,
}

impl Slots {
    fn take(&mut self) -> u32 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            // Descriptors end long before numbers do.
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        self.show();
        index
    }

    fn give_back(&mut self, index: u32) {
        self.free.push(index);
        self.show();
    }

    fn show(&self) {
        let Some(Shown { metric, load }) = &self.shown else {
            return;
        };
        let open = self.slots.len() - self.free.len();
        metric.set(i64::try_from(open).unwrap_or(i64::MAX));
        if let Some(load) = load {
            load.is(open);
        }
    }
}

/// From now on, it is shown there how many connections this thread has open.
pub fn show(at: Shown) {
    OPEN.with_borrow_mut(|open| {
        open.shown = Some(at);
        open.show();
    });
}

/// One connection of this thread; empty where there is none.
#[derive(Default)]
struct Slot {
    task: Option<AbortHandle>,
    app: Option<AppKey>,
    closing: Option<Closing>,
}

/// A connection's place among those that are open; given back when it is
/// dropped. Of use only on the thread that it was taken on.
#[derive(Debug)]
pub struct Place(u32);

impl Place {
    pub fn take() -> Self {
        Self(OPEN.with_borrow_mut(Slots::take))
    }

    /// Runs the connection as a task of its own, which closing ends.
    pub fn spawn<F>(self, serve: impl FnOnce(Place) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let index = self.0;
        // Runs when this thread is idle at the earliest, so its place is
        // complete before it has given it back.
        let task = tokio::spawn(serve(self)).abort_handle();
        with_slot(index, |slot| slot.task = Some(task));
    }

    /// The connection belongs to this app from now on. The caller keeps `app`
    /// for as long as the place.
    pub fn belongs_to(&self, app: &Arc<AppStats>) {
        with_slot(self.0, |slot| slot.app = Some(AppKey::of(app)));
    }

    /// Why the connection is being closed, if it is.
    pub fn closing(&self) -> Option<Closing> {
        with_slot(self.0, |slot| slot.closing).flatten()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let slot = with_slot(self.0, std::mem::take);
        // Outside of the borrow, whatever it may set off.
        drop(slot);
        let _ = OPEN.try_with(|open| open.borrow_mut().give_back(self.0));
    }
}

/// None where the thread is ending.
fn with_slot<T>(index: u32, then: impl FnOnce(&mut Slot) -> T) -> Option<T> {
    let found = OPEN.try_with(|open| {
        let mut open = open.borrow_mut();
        open.slots.get_mut(index as usize).map(then)
    });
    found.ok().flatten()
}

/// Ends the connection at `index`, which says why as it goes.
fn close(index: u32, why: Closing) {
    let task = with_slot(index, |slot| {
        slot.closing = Some(why);
        slot.task.clone()
    });
    if let Some(task) = task.flatten() {
        task.abort();
    }
}

/// Places that are taken, each with its app.
fn taken() -> Vec<(u32, Option<AppKey>)> {
    OPEN.with_borrow(|open| {
        let numbered = (0u32..).zip(&open.slots);
        let taken = numbered.filter(|(_, slot)| slot.task.is_some());
        taken.map(|(index, slot)| (index, slot.app)).collect()
    })
}

/// Closes what this worker is told to, without end, and passes the order on to
/// who keeps the worker's flows of UDP.
pub async fn obey(mut orders: Orders, flows: mpsc::UnboundedSender<Order>) {
    let mut drains = JoinSet::new();
    while let Some(order) = orders.recv().await {
        // Where there are none any more, nobody need hear it.
        let _ = flows.send(order.clone());
        match order {
            Order::Close(apps) => {
                for (index, app) in taken() {
                    if app.is_some_and(|app| apps.contains(&app)) {
                        close(index, Closing::Disabled);
                    }
                }
            }
            Order::Drain(windows) => {
                drains.spawn(async move { close_over(&windows).await });
            }
            Order::Undrain => drains.abort_all(),
        }
    }
}

/// How long connections may go on once a drain has begun.
#[derive(Debug, Clone)]
pub struct Windows {
    pub of_apps: HashMap<AppKey, Duration>,
    /// For all apps, whatever they say.
    pub limit: Option<Duration>,
}

impl Windows {
    /// For what belongs to no app, or to one that is no longer declared, it is
    /// what apps have that say nothing.
    fn of(&self, app: Option<AppKey>) -> Duration {
        let own = app.and_then(|app| self.of_apps.get(&app).copied());
        let window = own.unwrap_or(Timeouts::default().drain);
        self.limit.map_or(window, |limit| window.min(limit))
    }

    /// When each of `open` is to be closed, after the begin of the drain and
    /// in that order; who is first within a window is left to chance.
    pub fn closings<T: Ord>(
        &self,
        open: impl IntoIterator<Item = (T, Option<AppKey>)>,
    ) -> Vec<(Duration, T)> {
        let mut by_window: HashMap<Duration, Vec<T>> = HashMap::new();
        for (one, app) in open {
            by_window.entry(self.of(app)).or_default().push(one);
        }
        let mut closings = Vec::new();
        for (window, mut open) in by_window {
            open.shuffle(&mut rand::rng());
            let count = u32::try_from(open.len()).unwrap_or(u32::MAX);
            closings.extend(closing_times(window, count).zip(open));
        }
        closings.sort_unstable();
        closings
    }
}

/// Closes this worker's connections as their windows end, in no order that
/// anyone could expect. Returns when all that were open have been told. To be
/// called when nothing is accepted any more.
pub async fn close_over(windows: &Windows) {
    let start = Instant::now();
    for (after, index) in windows.closings(taken()) {
        let at = start + after;
        // The timer counts in milliseconds; many may be due in one.
        if at > Instant::now() {
            tokio::time::sleep_until(at).await;
        }
        close(index, Closing::Drained);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::stats::Stats;
    use tokio::sync::oneshot;

    /// A connection of `app` that goes on until it is closed, and then tells
    /// why.
    fn open(app: &Arc<AppStats>) -> oneshot::Receiver<Option<Closing>> {
        struct Connection(
            Place,
            #[allow(dead_code)] Arc<AppStats>,
            Option<oneshot::Sender<Option<Closing>>>,
        );
        impl Drop for Connection {
            fn drop(&mut self) {
                let why = self.0.closing();
                self.2.take().unwrap().send(why).unwrap_or_default();
            }
        }
        let (tell, told) = oneshot::channel();
        let app = Arc::clone(app);
        Place::take().spawn(|place| async move {
            place.belongs_to(&app);
            let _connection = Connection(place, app, Some(tell));
            std::future::pending::<()>().await;
        });
        told
    }

    fn apps() -> [Arc<AppStats>; 2] {
        let stats = Stats::new(&prometheus::Registry::new()).unwrap();
        ["a", "b"].map(|name| stats.app(&name.parse().unwrap()))
    }

    #[tokio::test]
    async fn only_what_is_open_of_the_app_is_closed() {
        let [a, b] = apps();
        let (live, orders) = Live::of_workers(1);
        for orders in orders {
            tokio::spawn(obey(orders, mpsc::unbounded_channel().0));
        }
        let closed = [open(&a), open(&a)];
        let mut kept = open(&b);
        tokio::task::yield_now().await;
        live.close([(AppKey::of(&a), a.name().clone())].into());
        assert!(live.ordered().borrow().close.contains(a.name()));
        for told in closed {
            assert_eq!(told.await.unwrap(), Some(Closing::Disabled));
        }
        assert!(kept.try_recv().is_err());
        assert_eq!(taken().len(), 1, "the places are given back");
        let mut again = open(&a);
        assert_eq!(taken().len(), 2);
        assert!(again.try_recv().is_err(), "the place is as new");
    }

    #[tokio::test]
    async fn what_a_drain_has_not_closed_goes_on_when_it_is_undone() {
        let [a, b] = apps();
        let (live, orders) = Live::of_workers(1);
        let of_apps = HashMap::from([
            (AppKey::of(&a), Duration::from_millis(20)),
            // So that it is undone in time on a machine that stands still for a while.
            (AppKey::of(&b), Duration::from_secs(6)),
        ]);
        let windows = move || Windows {
            of_apps: of_apps.clone(),
            limit: None,
        };
        for orders in orders {
            tokio::spawn(obey(orders, mpsc::unbounded_channel().0));
        }
        let (told_a, mut told_b) = (open(&a), open(&b));
        live.drain(windows(), NamedWindows::default(), Begins::Now);
        assert_eq!(told_a.await.unwrap(), Some(Closing::Drained));
        live.undrain();
        tokio::time::sleep(Duration::from_secs(7)).await;
        assert!(told_b.try_recv().is_err());
        live.drain(windows(), NamedWindows::default(), Begins::Now);
        assert_eq!(told_b.await.unwrap(), Some(Closing::Drained));
    }

    #[tokio::test]
    async fn a_drain_closes_each_app_in_its_own_window() {
        let [a, b] = apps();
        let (told_a, mut told_b) = (open(&a), open(&b));
        tokio::task::yield_now().await;
        let windows = |of_a, of_b| Windows {
            of_apps: [(AppKey::of(&a), of_a), (AppKey::of(&b), of_b)].into(),
            limit: Some(Duration::from_millis(200)),
        };
        let start = Instant::now();
        let windows = windows(Duration::from_millis(20), Duration::from_secs(3600));
        let closing = tokio::spawn(async move { close_over(&windows).await });
        assert_eq!(told_a.await.unwrap(), Some(Closing::Drained));
        assert!(told_b.try_recv().is_err());
        assert_eq!(told_b.await.unwrap(), Some(Closing::Drained));
        assert!(start.elapsed() >= Duration::from_millis(200));
        closing.await.unwrap();
        assert_eq!(taken().len(), 0);
    }
}
