//! Whether counts may be chance.

/// The probability that counts, drawn by these weights, are at least as far from them as these are:
/// Pearson's chi-square test. Of an origin without a weight nothing is expected, and one count is
/// more than chance.
///
/// # Panics
///
/// Where there are not as many counts as weights.
pub fn p_value(counts: &[u64], weights: &[f64]) -> f64 {
    assert_eq!(counts.len(), weights.len(), "a weight for each count");
    let drawn = counts.iter().sum::<u64>() as f64;
    let whole: f64 = weights.iter().sum();
    let (mut statistic, mut kinds) = (0.0, 0);
    for (count, weight) in counts.iter().zip(weights) {
        let expected = drawn * weight / whole;
        if *weight > 0.0 {
            kinds += 1;
            statistic += (*count as f64 - expected).powi(2) / expected;
        } else if *count > 0 {
            return 0.0;
        }
    }
    match kinds {
        0 | 1 => 1.0,
        _ => chi_square_above(statistic, kinds - 1),
    }
}

/// The probability of a chi-square of more than `x`, with so many degrees of freedom: one minus
/// the regularized lower incomplete gamma function, by its power series (Abramowitz and Stegun,
/// 6.5.29). Good to about 1e-13.
fn chi_square_above(x: f64, degrees: u32) -> f64 {
    let (half, a) = (x / 2.0, f64::from(degrees) / 2.0);
    if half <= 0.0 {
        return 1.0;
    }
    // x^a / Γ(a + 1), from a = 0 or 1/2 on.
    let mut at = f64::from(degrees % 2) / 2.0;
    let mut factor = match degrees % 2 {
        0 => 1.0,
        _ => 2.0 * (half / std::f64::consts::PI).sqrt(),
    };
    while at < a {
        at += 1.0;
        factor *= half / at;
    }
    let (mut term, mut sum) = (1.0, 1.0);
    let mut n = a;
    while term > sum * f64::EPSILON {
        n += 1.0;
        term *= half / n;
        sum += term;
    }
    // The exponent last, so that no part of it is too large for a number.
    let below = (factor.ln() + sum.ln() - half).exp();
    (1.0 - below).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the tables that every handbook has.
    #[test]
    fn it_agrees_with_the_tables() {
        for (degrees, p, x) in [
            (1, 0.05, 3.841_459),
            (1, 0.001, 10.827_566),
            (2, 0.05, 5.991_465),
            (2, 0.001, 13.815_511),
            (3, 0.001, 16.266_236),
            (5, 0.5, 4.351_460),
            (10, 0.001, 29.588_298),
            (30, 0.01, 50.892_181),
            (99, 0.001, 148.230_4),
        ] {
            let got: f64 = chi_square_above(x, degrees);
            assert!((got / p - 1.0).abs() < 1e-4, "{got} for {p}, {degrees}");
        }
        // Far out, where it is e^(-x/2).
        let far = chi_square_above(40.0, 2);
        assert!((far / (-20.0f64).exp() - 1.0).abs() < 1e-4, "{far}");
        assert_eq!(chi_square_above(0.0, 4), 1.0);
        assert!(chi_square_above(5000.0, 4) < 1e-9);
    }

    #[test]
    fn what_is_as_expected_is_likely_and_what_is_not_is_not() {
        assert_eq!(p_value(&[100, 200, 400], &[1.0, 2.0, 4.0]), 1.0);
        assert!(p_value(&[110, 190, 400], &[1.0, 2.0, 4.0]) > 0.1);
        assert!(p_value(&[233, 233, 234], &[1.0, 2.0, 4.0]) < 1e-9);
        assert_eq!(p_value(&[100, 1], &[1.0, 0.0]), 0.0);
        assert_eq!(p_value(&[100, 0], &[1.0, 0.0]), 1.0);
        assert_eq!(p_value(&[], &[]), 1.0);
    }

    /// Of draws that are by the weights, a part of `p` is below `p`.
    #[test]
    fn chance_is_called_as_often_as_it_is_said_to_be() {
        let mut state = 7u64;
        let mut random = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as f64 / (1u64 << 31) as f64
        };
        let weights = [1.0, 2.0, 3.0, 0.5];
        let mut below = 0;
        for _ in 0..2000 {
            let mut counts = [0; 4];
            for _ in 0..500 {
                let mut at = random() * 6.5;
                let drawn = weights.iter().position(|weight| {
                    at -= weight;
                    at < 0.0
                });
                counts[drawn.unwrap_or(3)] += 1;
            }
            below += u32::from(p_value(&counts, &weights) < 0.05);
        }
        assert!((70..130).contains(&below), "{below} of 2000, for 100");
    }
}
