//! `trl policy`, through the real program: what it prints, what it refuses and where.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use serde_json::Value;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output};

fn trl(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_trl")).args(arguments).env_clear().output().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
}

fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
    directory
}

const OWN: &str = "name = \"own\"\ndescription = \"ours\"\nextends = \"build\"\ngrace_s = 9\n";

#[test]
fn what_ships_is_listed_and_shown_as_a_policy_of_the_same_digest() {
    let listed: Value = serde_json::from_str(&out(&trl(&["policy", "list", "--json"]))).unwrap();
    let names: Vec<_> =
        listed["policies"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["build", "ci", "default", "l1", "strict"]);
    let directory = directory();
    for policy in listed["policies"].as_array().unwrap() {
        let shown = trl(&["policy", "show", policy["name"].as_str().unwrap()]);
        assert!(shown.status.success());
        let path = directory.path().join("shown.toml");
        write(&path, &out(&shown));
        let path = path.to_str().unwrap();
        assert_eq!(trl(&["policy", "check", path]).status.code(), Some(0));
        let again: Value = serde_json::from_str(&out(&trl(&["policy", "show", path, "--json"]))).unwrap();
        assert_eq!(again["digest"], policy["digest"]);
    }
    assert!(!trl(&["policy", "show", "nothing"]).status.success());
}

#[test]
fn check_prints_file_line_and_column_and_fails() {
    let directory = directory();
    let (good, bad) = (directory.path().join("good.toml"), directory.path().join("bad.toml"));
    write(&good, OWN);
    write(&bad, &format!("{OWN}[filesystem]\nwritable = [\"/srv/../etc\"]\n"));
    let (good, bad) = (good.to_str().unwrap(), bad.to_str().unwrap());
    let output = trl(&["policy", "check", good]);
    assert_eq!((output.status.code(), out(&output).as_str()), (Some(0), ""));
    let output = trl(&["policy", "check", good, bad]);
    assert_eq!(output.status.code(), Some(1));
    assert!(out(&output).starts_with(&format!("{bad}:6:13: ")), "{}", out(&output));
}

#[test]
fn the_schema_is_json_and_names_the_sections() {
    let schema: Value = serde_json::from_str(&out(&trl(&["policy", "schema"]))).unwrap();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    assert!(schema["properties"]["filesystem"]["properties"]["add_copy"].is_object());
}

#[test]
fn a_directory_that_others_can_write_is_refused() {
    let directory = directory();
    let path = directory.path().join("own.toml");
    let list = || trl(&["policy", "list", "--policy-dir", directory.path().to_str().unwrap()]);
    write(&path, OWN);
    write(&directory.path().join("README"), "no policy");
    let fine = list();
    assert!(fine.status.success() && out(&fine).contains("ours"), "{}", err(&fine));
    fs::set_permissions(&path, Permissions::from_mode(0o664)).unwrap();
    assert!(err(&list()).contains("mode 0664"), "{}", err(&list()));
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    fs::set_permissions(directory.path(), Permissions::from_mode(0o777)).unwrap();
    assert!(err(&list()).contains("mode 0777"), "{}", err(&list()));
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
    symlink(&path, directory.path().join("link.toml")).unwrap();
    assert!(err(&list()).contains("link.toml"), "{}", err(&list()));
    fs::remove_file(directory.path().join("link.toml")).unwrap();
    nix::unistd::mkfifo(&directory.path().join("fifo.toml"), nix::sys::stat::Mode::from_bits_truncate(0o600))
        .unwrap();
    assert!(err(&list()).contains("no regular file"), "{}", err(&list()));
    fs::remove_file(directory.path().join("fifo.toml")).unwrap();
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(&path, Some(1_900_000_501), None).unwrap();
        assert!(err(&list()).contains("belongs to uid"), "{}", err(&list()));
        std::os::unix::fs::chown(&path, Some(0), None).unwrap();
    }
    assert!(list().status.success());
}

#[test]
fn a_file_is_named_as_its_policy() {
    let directory = directory();
    write(&directory.path().join("other.toml"), OWN);
    let output = trl(&["policy", "list", "--policy-dir", directory.path().to_str().unwrap()]);
    assert!(err(&output).contains("other.toml:1:1: name must be \"other\""), "{}", err(&output));
}
