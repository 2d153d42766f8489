//! What an agent that finishes has obeyed, and what an order changes. Pure.

use crate::live::{OrderId, Ordered};

/// What it does about a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    None,
    Begin,
    End,
    /// The one that is under way was undone, which was not heard of.
    BeginAnew,
}

/// An order that was given before one that was obeyed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("id: {} was ordered before {}, which is obeyed", .0.0, .1.0)]
pub struct Late(OrderId, OrderId);

/// The latest that was obeyed.
#[derive(Debug)]
pub struct Obeyed {
    id: OrderId,
    /// While there is a drain: the order that began it, where it is known.
    drain: Option<Option<OrderId>>,
}

impl Obeyed {
    /// Of an agent that has ordered this itself.
    pub fn own(ordered: &Ordered) -> Self {
        Self {
            id: ordered.id,
            drain: ordered.drain.as_ref().map(|drain| drain.since),
        }
    }

    /// Takes an order, whose drain was begun by `drain`.
    pub fn take(&mut self, id: OrderId, drain: Option<Option<OrderId>>) -> Result<Change, Late> {
        if id < self.id {
            return Err(Late(id, self.id));
        }
        self.id = id;
        let change = match (self.drain, drain) {
            (None, None) => Change::None,
            (None, Some(_)) => Change::Begin,
            (Some(_), None) => Change::End,
            (Some(known), Some(told)) if told.is_none() || told == known => {
                return Ok(Change::None);
            }
            (Some(_), Some(_)) => Change::BeginAnew,
        };
        self.drain = drain;
        Ok(change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DRAIN: Option<Option<OrderId>> = Some(Some(OrderId(2)));

    fn serving() -> Obeyed {
        Obeyed {
            id: OrderId(1),
            drain: None,
        }
    }

    #[test]
    fn a_late_order_overrides_nothing_and_the_same_one_may_come_again() {
        let mut obeyed = serving();
        assert_eq!(obeyed.take(OrderId(2), DRAIN), Ok(Change::Begin));
        assert_eq!(obeyed.take(OrderId(2), DRAIN), Ok(Change::None));
        assert_eq!(obeyed.take(OrderId(3), None), Ok(Change::End));
        let late = Err(Late(OrderId(2), OrderId(3)));
        assert_eq!(obeyed.take(OrderId(2), DRAIN), late);
        assert_eq!(obeyed.take(OrderId(3), None), Ok(Change::None));
    }

    #[test]
    fn a_drain_goes_on_under_the_next_agent_and_a_new_one_begins_anew() {
        let mut obeyed = serving();
        assert_eq!(obeyed.take(OrderId(2), DRAIN), Ok(Change::Begin));
        let inherited = Some(None);
        assert_eq!(obeyed.take(OrderId(3), inherited), Ok(Change::None));
        assert_eq!(obeyed.take(OrderId(4), DRAIN), Ok(Change::None));
        // The undoing of it was lost.
        let new = Some(Some(OrderId(6)));
        assert_eq!(obeyed.take(OrderId(6), new), Ok(Change::BeginAnew));
        assert_eq!(obeyed.take(OrderId(7), None), Ok(Change::End));
    }

    proptest! {
        /// In whatever order and however often they arrive, from the latest on
        /// nothing changes any more, and it is as the latest says.
        #[test]
        fn the_latest_of_all_stands(
            drained in prop::collection::vec(any::<bool>(), 1..6),
            arrivals in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let order = |at: usize| {
                let id = OrderId(at as u64 + 1);
                (id, drained.get(at).copied().unwrap_or_default().then_some(Some(id)))
            };
            let last = drained.len() - 1;
            let mut obeyed = Obeyed { id: OrderId(0), drain: None };
            let mut is_drained = false;
            let mut take = |at| {
                let (id, drain) = order(at);
                match obeyed.take(id, drain) {
                    Ok(Change::Begin | Change::BeginAnew) => is_drained = true,
                    Ok(Change::End) => is_drained = false,
                    Ok(Change::None) | Err(_) => {}
                }
                is_drained
            };
            for arrival in &arrivals {
                take(arrival.index(drained.len()));
            }
            prop_assert_eq!(Some(&take(last)), drained.last());
            for arrival in &arrivals {
                prop_assert_eq!(Some(&take(arrival.index(drained.len()))), drained.last());
            }
        }
    }
}
