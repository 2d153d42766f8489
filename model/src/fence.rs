//! Sets of balancers have a number, the *epoch*, that rises with every change. What is of
//! an older set than was seen is not taken: weights of a balancer that was left behind,
//! the word of a config service that is cut off.

use std::time::{Duration, Instant};

/// Where nobody has offered the highest epoch for so long, nobody has it any more: all
/// who had are gone, or the store was begun anew.
const FORGOTTEN: Duration = Duration::from_secs(30);

/// The highest epoch that something was taken of. Who goes by an older set, as one that
/// is cut off from the others does, may hold what is long since different.
#[derive(Debug, Default)]
pub struct Fence {
    highest: u64,
    /// When that epoch or a higher one was last offered.
    offered: Option<Instant>,
    /// Since then, an older one was refused.
    refused: bool,
}

/// An epoch that is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is of epoch {epoch} of the balancers' set, and epoch {highest} was taken before")]
pub struct Older {
    epoch: u64,
    highest: u64,
    /// The first one since something was taken.
    pub is_news: bool,
}

impl Fence {
    /// Something of `epoch` is offered; 0: who offers it knows of no set.
    ///
    /// # Errors
    /// It is not to be taken.
    pub fn offer(&mut self, epoch: u64, now: Instant) -> Result<(), Older> {
        let highest = self.highest;
        if epoch < highest && !self.is_forgotten(now) {
            return Err(Older {
                epoch,
                highest,
                is_news: !std::mem::replace(&mut self.refused, true),
            });
        }
        *self = Self {
            highest: epoch,
            offered: Some(now),
            refused: false,
        };
        Ok(())
    }

    /// Who offered what was taken last has stood by it until now.
    pub fn left(&mut self, now: Instant) {
        self.offered = Some(now);
    }

    fn is_forgotten(&self, now: Instant) -> bool {
        let since = |offered| now.saturating_duration_since(offered);
        self.offered.is_none_or(|at| since(at) >= FORGOTTEN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn an_older_epoch_is_taken_only_when_nobody_has_a_newer_one_any_more() {
        let (mut fence, start) = (Fence::default(), Instant::now());
        assert_eq!(fence.offer(0, start), Ok(()), "nothing higher is known");
        assert_eq!(fence.offer(7, start), Ok(()));
        for (epoch, is_news) in [(6, true), (0, false)] {
            let older = Older {
                epoch,
                highest: 7,
                is_news,
            };
            assert_eq!(fence.offer(epoch, start), Err(older));
        }
        assert_eq!(fence.offer(7, start), Ok(()), "the set is the same");
        assert!(fence.offer(6, start).is_err_and(|older| older.is_news));
        // Its stream is silent for an hour, and then it is gone.
        let gone = start + SECOND * 3600;
        fence.left(gone);
        assert!(fence.offer(6, gone + SECOND * 29).is_err());
        assert_eq!(fence.offer(6, gone + SECOND * 30), Ok(()));
        assert!(fence.offer(5, gone + SECOND * 31).is_err(), "6 counts now");
    }

    #[test]
    fn whoever_offers_as_high_an_epoch_keeps_it_alive() {
        let (mut fence, start) = (Fence::default(), Instant::now());
        for second in (0..100).step_by(20) {
            let now = start + SECOND * second;
            assert_eq!(fence.offer(7, now), Ok(()));
            assert!(fence.offer(6, now + SECOND * 19).is_err());
        }
    }

    #[test]
    fn who_was_followed_has_stood_by_what_it_offered_until_it_was_left() {
        let start = Instant::now();
        let long = start + FORGOTTEN * 100;
        let mut fence = Fence::default();
        fence.left(start);
        assert_eq!(fence.offer(3, start), Ok(()), "nothing was taken before");
        assert_eq!(fence.offer(2, long), Ok(()), "nobody has stood by 3");
        fence.left(long + FORGOTTEN * 100);
        let left = long + FORGOTTEN * 100;
        assert!(fence.offer(1, left).is_err_and(|older| older.is_news));
        let again = fence.offer(1, left);
        assert!(again.is_err_and(|older| !older.is_news));
        // Another one with the same epoch, which is left, too.
        assert_eq!(fence.offer(2, left + SECOND), Ok(()));
        fence.left(left + FORGOTTEN);
        let since = left + FORGOTTEN;
        assert!(fence.offer(1, since + FORGOTTEN - SECOND).is_err());
        assert_eq!(fence.offer(1, since + FORGOTTEN), Ok(()));
    }

    proptest! {
        /// Against what was taken and when, told as a whole.
        #[test]
        fn epochs_fall_only_after_silence(
            offers in prop::collection::vec((prop::option::weighted(0.8, 0u64..5), 0u64..40_000), 1..60),
        ) {
            let (mut fence, mut now) = (Fence::default(), Instant::now());
            // When somebody was last there who had it.
            let mut taken: Vec<(u64, Instant)> = Vec::new();
            for (epoch, millis) in offers {
                now += Duration::from_millis(millis);
                let Some(epoch) = epoch else {
                    fence.left(now);
                    taken.iter_mut().for_each(|(_, at)| *at = now);
                    continue;
                };
                let last = taken.last();
                let stands = last.is_some_and(|(highest, at)| epoch < *highest && now - *at < FORGOTTEN);
                prop_assert_eq!(fence.offer(epoch, now).is_err(), stands);
                if !stands {
                    taken.push((epoch, now));
                }
            }
        }
    }
}
