//! SECURITY.md's table of threats and these tests name each other.

use std::collections::BTreeSet;
use std::path::Path;

/// All tests of this program.
fn own() -> BTreeSet<String> {
    let listed = std::process::Command::new(std::env::current_exe().unwrap()).arg("--list").output().unwrap();
    let text = String::from_utf8(listed.stdout).unwrap();
    text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect()
}

/// Tests that only one architecture has.
const ELSEWHERE: [&str; 3] =
    ["kernel::foreign_architecture", "kernel::x32_calls", "kernel::descriptor_tables"];

/// The rows: attack, layers, tests.
fn table() -> Vec<[String; 3]> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("SECURITY.md")).unwrap();
    let part = text.split("\n## Threats and tests\n").nth(1).unwrap();
    let part = part.split("\n## ").next().unwrap();
    let rows = part.lines().filter(|line| line.starts_with('|')).skip(2);
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        assert_eq!(cells.len(), 3, "{row}");
        [cells[0].to_owned(), cells[1].to_owned(), cells[2].to_owned()]
    })
    .collect()
}

fn named(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Whether another test program has it.
fn is_elsewhere(name: &str) -> bool {
    let Some((program, test)) = name.split_once("::") else { return false };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(format!("{program}.rs"));
    std::fs::read_to_string(path).is_ok_and(|text| text.contains(&format!("#[test]\nfn {test}()")))
}

#[test]
fn every_test_that_the_table_names_exists() {
    let own = own();
    for [attack, layers, tests] in table() {
        assert!(!attack.is_empty() && !layers.is_empty(), "{attack}");
        let tests = named(&tests);
        assert!(!tests.is_empty(), "{attack} is not tried");
        for test in tests {
            let is_known = own.contains(&test) || ELSEWHERE.contains(&test.as_str()) || is_elsewhere(&test);
            assert!(is_known, "{attack}: there is no test {test}");
        }
    }
}

#[test]
fn every_attack_is_in_the_table() {
    let told: BTreeSet<String> = table().iter().flat_map(|[_, _, tests]| named(tests)).collect();
    let untold: Vec<_> =
        own().into_iter().filter(|test| !test.starts_with("threats::") && !told.contains(test)).collect();
    assert!(untold.is_empty(), "{untold:?}");
}
