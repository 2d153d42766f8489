//! Which of the right words a wrong one was meant to be.

/// The nearest of `words`, if it is near enough to be meant.
pub(super) fn nearest<'a>(given: &str, words: &[&'a str]) -> Option<&'a str> {
    // Longer than any field name, and the work is the product of the lengths.
    if given.len() > 64 {
        return None;
    }
    let near = |word: &&'a str| Some((distance(given, word), *word));
    let (distance, word) = words.iter().filter_map(near).min()?;
    (distance <= 1 + word.len() / 5).then_some(word)
}

/// Letters to insert, leave out, replace, or swap with their neighbour
/// (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replace = above[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replace.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_keyboard_finds_its_word() {
        let words = ["origin_pool", "origin_port", "edge_ips", "name"];
        for (given, meant) in [
            ("orign_pool", Some("origin_pool")),
            ("origin_pools", Some("origin_pool")),
            ("edge_ip", Some("edge_ips")),
            ("nmae", Some("name")),
            ("tls", None),
            ("", None),
        ] {
            assert_eq!(nearest(given, &words), meant, "{given:?}");
        }
    }
}
