//! A factor that follows what is wanted of it in small steps, and not at all
//! where that is close by.
//!
//! It begins to move when it is [`FAR`] off, and goes on until it is there: so
//! what is wanted may waver without moving it, and what stays the same moves it
//! one way and then never again.

use crate::weights::Factor;

/// One step, in thousandths.
pub const STEP: u32 = 50;
/// So many steps off, it begins to move.
const FAR: u32 = 3;
const ONE: u32 = 1000 / STEP;

/// See the module. Whoever has it decides when a step is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damped {
    steps: u32,
    moves: bool,
}

impl Default for Damped {
    fn default() -> Self {
        Self {
            steps: ONE,
            moves: false,
        }
    }
}

impl Damped {
    pub fn factor(self) -> Factor {
        Factor::of_thousandths(self.steps * STEP)
    }

    /// One step towards what is wanted; `None`: nothing is known, and it goes
    /// back to one.
    pub fn step(&mut self, wanted: Option<f64>) {
        let target = wanted.map_or(ONE, |wanted| {
            // In range, as a cast saturates.
            (wanted * f64::from(ONE))
                .round()
                .clamp(1.0, f64::from(2 * ONE)) as u32
        });
        self.moves |= self.steps.abs_diff(target) >= FAR || wanted.is_none();
        if self.moves {
            self.steps = match self.steps.cmp(&target) {
                std::cmp::Ordering::Less => self.steps + 1,
                std::cmp::Ordering::Equal => self.steps,
                std::cmp::Ordering::Greater => self.steps - 1,
            };
            self.moves = self.steps != target;
        }
    }

    /// It is one, and stays so while nothing is known.
    pub fn is_at_rest(self) -> bool {
        self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_wavers_around_it_does_not_move_it() {
        let mut damped = Damped::default();
        for wanted in [1.1, 0.9, 1.12, 0.88, 1.0] {
            damped.step(Some(wanted));
            assert!(damped.is_at_rest(), "{wanted}");
        }
    }

    #[test]
    fn it_goes_all_the_way_and_back_to_one_when_nothing_is_known() {
        let mut damped = Damped::default();
        let mut seen = Vec::new();
        for _ in 0..6 {
            damped.step(Some(0.8));
            seen.push(damped.factor().thousandths());
        }
        assert_eq!(seen, [950, 900, 850, 800, 800, 800]);
        damped.step(Some(0.9));
        assert_eq!(damped.factor().thousandths(), 800, "close by");
        (0..4).for_each(|_| damped.step(None));
        assert!(damped.is_at_rest());
    }

    proptest! {
        #[test]
        fn under_constant_input_it_moves_one_way_and_then_no_more(
            before in prop::collection::vec(prop::option::of(0.0f64..3.0), 0..40),
            wanted in prop::option::of(any::<f64>()),
        ) {
            let mut damped = Damped::default();
            before.into_iter().for_each(|wanted| damped.step(wanted));
            let mut seen = vec![damped.factor()];
            for _ in 0..80 {
                damped.step(wanted);
                seen.push(damped.factor());
            }
            let falls = seen.windows(2).any(|pair| pair[1] < pair[0]);
            let rises = seen.windows(2).any(|pair| pair[1] > pair[0]);
            prop_assert!(!(falls && rises), "{seen:?}");
            prop_assert!(seen[40..].iter().all(|factor| *factor == seen[40]));
            if wanted.is_none() {
                prop_assert!(damped.is_at_rest());
            }
        }
    }
}
