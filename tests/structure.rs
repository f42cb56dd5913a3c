//! The borders between modules, read off the sources and the built launcher.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};

fn sources(directory: &Path, into: &mut Vec<(PathBuf, String)>) {
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = code(&std::fs::read_to_string(&path).unwrap());
            into.push((path, text));
        }
    }
}

/// The text without comments and string literals, lines kept.
fn code(text: &str) -> String {
    let mut out = String::new();
    let bytes: Vec<char> = text.chars().collect();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            '/' if bytes.get(at + 1) == Some(&'/') => {
                while at < bytes.len() && bytes[at] != '\n' {
                    at += 1;
                }
            }
            'r' if matches!(bytes.get(at + 1), Some('"' | '#'))
                && !out.ends_with(|c: char| c.is_alphanumeric()) =>
            {
                let mut hashes = 0;
                while bytes.get(at + 1 + hashes) == Some(&'#') {
                    hashes += 1;
                }
                if bytes.get(at + 1 + hashes) != Some(&'"') {
                    out.push('r');
                    at += 1;
                    continue;
                }
                at += 2 + hashes;
                while at < bytes.len()
                    && !(bytes[at] == '"' && (1..=hashes).all(|n| bytes.get(at + n) == Some(&'#')))
                {
                    at += 1;
                }
                at += 1 + hashes;
            }
            '"' => {
                at += 1;
                while at < bytes.len() && bytes[at] != '"' {
                    at += if bytes[at] == '\\' { 2 } else { 1 };
                }
                at += 1;
            }
            '\'' if bytes.get(at + 1) == Some(&'\\') || bytes.get(at + 2) == Some(&'\'') => {
                at += if bytes.get(at + 1) == Some(&'\\') { 3 } else { 2 };
                while at < bytes.len() && bytes[at] != '\'' {
                    at += 1;
                }
                at += 1;
            }
            other => {
                out.push(other);
                at += 1;
            }
        }
    }
    out
}

/// Whether `word` stands in `text` as a word, followed by `after`.
fn names(text: &str, word: &str, after: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let is_part = |c: char| c.is_alphanumeric() || c == '_';
        let (before, behind) = (&text[..at], &text[at + word.len()..]);
        !before.ends_with(is_part) && !behind.starts_with(is_part) && behind.starts_with(after)
    })
}

fn all() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    assert!(found.len() > 20);
    found
}

/// Path below `src`.
fn place(path: &Path) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    path.strip_prefix(root).unwrap().display().to_string()
}

#[test]
fn what_is_no_code_is_not_read_as_code() {
    let text = code("a // unsafe\nlet b = \"unsafe \\\" unsafe\"; r#\"unsafe\"# '\"' unsafe_code 'u'\n");
    assert!(!names(&text, "unsafe", ""), "{text}");
    assert!(names("x unsafe { y }", "unsafe", ""));
    assert!(names("use tokio::net;", "tokio", "::") && !names("not_tokio::x", "tokio", "::"));
}

#[test]
fn unsafe_is_in_sys_alone() {
    for (path, text) in all() {
        let place = place(&path);
        assert!(place.starts_with("sys/") || !names(&text, "unsafe", ""), "{place}");
    }
}

#[test]
fn crates_live_in_one_place() {
    for (path, text) in all() {
        let place = place(&path);
        let is_in = |places: &[&str]| places.iter().any(|allowed| place.starts_with(allowed));
        for (name, places) in [
            ("tokio", &["daemon/", "cli/"][..]),
            ("toml", &["policy/"]),
            ("caps", &["layers/"]),
            ("seccompiler", &["layers/"]),
            ("clap", &["cli/"]),
            ("dotenvy", &["daemon/", "cli/"]),
        ] {
            assert!(is_in(places) || !names(&text, name, "::"), "{name} in {place}");
            assert!(is_in(places) || !names(&text, name, ";"), "{name} in {place}");
        }
        // A layer's module has its crate's name: there the leading colons tell them apart.
        let written = ["use landlock::", " ::landlock::", "(::landlock::"];
        let named = written.iter().any(|written| text.contains(written));
        assert!(is_in(&["layers/"]) || !named, "landlock in {place}");
    }
}

#[test]
fn arrows_go_down_only() {
    for (path, text) in all() {
        let place = place(&path);
        for (below, above) in [
            ("sys/", &["daemon", "cli", "launcher", "layers", "policy", "plan"][..]),
            ("launcher/", &["daemon", "cli", "policy"]),
            ("layers/", &["daemon", "cli", "policy"]),
            ("plan/", &["daemon", "cli", "launcher", "layers", "sys"]),
            ("policy/", &["daemon", "cli", "launcher", "layers", "sys"]),
            ("daemon/", &["cli"]),
        ] {
            for module in above.iter().filter(|_| place.starts_with(below)) {
                assert!(!text.contains(&format!("crate::{module}::")), "{place} names {module}");
                assert!(!text.contains(&format!("crate::{module};")), "{place} names {module}");
                for group in text.split("use crate::{").skip(1) {
                    let group = group.split(';').next().unwrap();
                    assert!(!names(group, module, ""), "{place} names {module}");
                }
            }
        }
        if place.starts_with("daemon/") {
            let only = text.matches("crate::launcher").count();
            let protocol = text.matches("crate::launcher::protocol").count();
            assert_eq!(only, protocol, "{place} sees more of the launcher than its protocol");
        }
    }
}

#[test]
fn the_launcher_holds_no_runtime_and_no_parser_of_policies() {
    let binary = env!("CARGO_BIN_EXE_trl-launcher");
    let listed = std::process::Command::new("nm").arg(binary).output();
    let symbols = match listed {
        Ok(output) if output.status.success() && !output.stdout.is_empty() => output.stdout,
        _ => std::fs::read(binary).unwrap(),
    };
    // The mangled form of a crate's name: its length, then itself.
    for name in ["5tokio", "4toml", "11toml_parser", "10serde_json", "4clap", "7dotenvy"] {
        let found = symbols.windows(name.len()).any(|window| window == name.as_bytes());
        assert!(!found, "{name} in the launcher");
    }
}
