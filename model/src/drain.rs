//! When the connections that a drain leaves over are closed.

use std::time::Duration;

/// When each of `count` connections that are still open is to be closed,
/// counted from the beginning of a drain that may take `window`.
///
/// In the first half of it none is: what ends by itself does. In the second
/// half they go one after the other at equal distances, the last at the very
/// end, because who was cut off comes back at once, and all of them together
/// would be a flood on the edges that are left. So at most
/// `count / (window / 2)` are closed in a second.
pub fn closing_times(window: Duration, count: u32) -> impl ExactSizeIterator<Item = Duration> {
    let half = window / 2;
    (0..count).map(move |before| {
        let left = f64::from(count - before - 1) / f64::from(count);
        window - half.mul_f64(left)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn closes_evenly_over_the_second_half(millis in 1u64..100_000, count in 1u32..2000) {
            let window = Duration::from_millis(millis);
            let times: Vec<_> = closing_times(window, count).collect();
            prop_assert_eq!(times.len(), count as usize);
            prop_assert_eq!(*times.last().unwrap(), window);
            prop_assert!(times.iter().all(|time| *time >= window / 2));
            // No second, wherever it begins, sees more than its share.
            let second = Duration::from_secs(1);
            let share = f64::from(count) / (window / 2).as_secs_f64();
            for (index, &time) in times.iter().enumerate() {
                let within = times[index..].iter().take_while(|later| **later < time + second);
                prop_assert!(within.count() as f64 <= share + 1.0);
            }
        }
    }

    #[test]
    fn none_need_no_time() {
        assert_eq!(closing_times(Duration::from_secs(30), 0).len(), 0);
    }
}
