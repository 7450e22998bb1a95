//! Computes the probabilities in `docs/guides/realms.md` that a guess is right.

use std::fs;
use std::path::Path;

/// Probability that one attempt is right, by the column of the table.
const OF_AN_ATTEMPT: [f64; 3] = [3e-6, 1e-6, 3e-8];

#[test]
fn the_probability_of_a_guess_within_a_year_is_as_documented() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/guides/realms.md");
    let page = fs::read_to_string(page).unwrap();
    let (_, table) = page.split_once("| failures a day |").unwrap();
    let rows = table.lines().skip(2).take_while(|line| line.starts_with("| "));
    let mut checked = 0;
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let attempts = 365.0 * cells[0].parse::<f64>().unwrap();
        for (cell, of_an_attempt) in cells[1..].iter().zip(OF_AN_ATTEMPT) {
            let percent: f64 = cell.strip_suffix(" %").unwrap().parse().unwrap();
            let computed = 100.0 * (1.0 - (1.0 - of_an_attempt).powf(attempts));
            assert!((percent / computed - 1.0).abs() < 0.05, "{row}: {cell} is {computed}");
            checked += 1;
        }
    }
    assert_eq!(checked, 15);
    let default = twofactor_core::limits::Limits::default().failures_per_day;
    assert!(table.contains(&format!("\n| {default} |")), "the default has a row");
}
