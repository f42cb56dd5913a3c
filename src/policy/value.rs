//! One value of a policy file: TOML of the key's kind → JSON of one fixed spelling. Lists come out sorted,
//! with the place of each element beside them.

use super::keys::{FAMILIES, Kind};
use super::syscalls;
use serde_json::{Value, json};
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeArray, DeValue};

/// Longest path, bytes.
const MAX_PATH: usize = 4095;
/// Most elements of a list: a plan's mounts and rules have a bound too.
const MAX_LIST: usize = 256;

/// Why a value is none, and where in the text.
pub type Fault = (Range<usize>, String);

/// A value and, for a list, where each of its elements stands.
pub struct Read {
    /// The value; null for the kind's word for nothing.
    pub value: Value,
    /// Elements of a list with their places.
    pub elements: Vec<(Value, Range<usize>)>,
}

/// Reads a value of that kind.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn read(kind: Kind, found: &Spanned<DeValue<'_>>) -> Result<Read, Fault> {
    let at = || found.span();
    if found.get_ref().as_str().is_some_and(|text| kind.nothing() == Some(text)) {
        return Ok(Read { value: Value::Null, elements: Vec::new() });
    }
    if kind.is_list() {
        let list = found.get_ref().as_array().ok_or_else(|| (at(), expected(kind)))?;
        return elements(kind, list, at());
    }
    let value = scalar(kind, found.get_ref()).ok_or_else(|| (at(), expected(kind)))?;
    Ok(Read { value, elements: Vec::new() })
}

fn elements(kind: Kind, list: &DeArray<'_>, whole: Range<usize>) -> Result<Read, Fault> {
    if list.len() > MAX_LIST {
        return Err((whole, format!("more than {MAX_LIST} elements")));
    }
    let mut read: Vec<(Value, Range<usize>)> = Vec::new();
    for found in list.iter() {
        let value = element(kind, found.get_ref()).map_err(|why| (found.span(), why))?;
        if read.iter().any(|(known, _)| *known == value) {
            return Err((found.span(), "is in the list twice".into()));
        }
        read.push((value, found.span()));
    }
    let mut values: Vec<_> = read.iter().map(|(value, _)| value.clone()).collect();
    sort(&mut values);
    Ok(Read { value: Value::Array(values), elements: read })
}

/// Puts a list's elements in their one order.
pub fn sort(values: &mut [Value]) {
    values.sort_by(|a, b| (a.as_u64(), a.as_str()).cmp(&(b.as_u64(), b.as_str())));
}

fn element(kind: Kind, found: &DeValue<'_>) -> Result<Value, String> {
    let text = || found.as_str().ok_or_else(|| "expected text in quotes".to_owned());
    match kind {
        Kind::Paths => text().and_then(path).map(Value::from),
        Kind::Entries => text().and_then(entry).map(Value::from),
        Kind::Ports => match whole(found) {
            Some(port @ 1..=65_535) => Ok(json!(port)),
            _ => Err("expected a port, 1 to 65535".into()),
        },
        Kind::Groups => known(text()?, "group of system calls", |name| syscalls::group(name).is_some()),
        Kind::Calls => known(text()?, "system call", syscalls::exists),
        Kind::Families => known(text()?, "socket family (unix, inet, inet6, netlink)", |name| {
            FAMILIES.iter().any(|(family, _)| *family == name)
        }),
        _ => Err(expected(kind)),
    }
}

fn known(name: &str, what: &str, is_known: impl Fn(&str) -> bool) -> Result<Value, String> {
    if is_known(name) { Ok(name.into()) } else { Err(format!("{name:?} is no {what}")) }
}

fn scalar(kind: Kind, found: &DeValue<'_>) -> Option<Value> {
    let text = || found.as_str();
    match kind {
        Kind::Name => text().filter(|text| is_name(text)).map(Value::from),
        Kind::Line => {
            text().filter(|text| text.len() <= 256 && !text.contains(char::is_control)).map(Value::from)
        }
        Kind::Hostname => text().filter(|text| is_hostname(text)).map(Value::from),
        Kind::Demand => {
            text().filter(|text| ["required", "best_effort", "off"].contains(text)).map(Value::from)
        }
        Kind::Switch => found.as_bool().map(Value::from),
        Kind::Integer(least, most) => {
            whole(found).filter(|number| (least..=most).contains(number)).map(Value::from)
        }
        Kind::Size(least, most) | Kind::Limit(least, most) => {
            size(found).filter(|bytes| (least..=most).contains(bytes)).map(Value::from)
        }
        Kind::Mask => text().and_then(mask).map(|mask| format!("0o{mask:03o}").into()),
        Kind::OneOf(words) => text().filter(|text| words.contains(text)).map(Value::from),
        Kind::Path | Kind::Rootfs => text().and_then(|text| path(text).ok()).map(Value::from),
        _ => None,
    }
}

/// What a value of that kind looks like, fit for "expected …".
#[must_use]
pub fn expected(kind: Kind) -> String {
    let what = match kind {
        Kind::Name => "a name of 1 to 64 letters, digits, '-' or '_'".into(),
        Kind::Line => "text of one line, at most 256 bytes".into(),
        Kind::Hostname => "a host name of at most 64 letters, digits or '-'".into(),
        Kind::Demand => "\"required\", \"best_effort\" or \"off\"".into(),
        Kind::Switch => "true or false".into(),
        Kind::Integer(least, most) => format!("a whole number from {least} to {most}"),
        Kind::Size(least, most) => {
            format!("bytes from {least} to {most}, as a whole number or text like \"256M\"")
        }
        Kind::Limit(least, most) => {
            format!("bytes from {least} to {most}, as a whole number or text like \"256M\", or \"unlimited\"")
        }
        Kind::Mask => "text like \"0o077\", at most \"0o777\"".into(),
        Kind::OneOf(words) => words.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(" or "),
        Kind::Path => "an absolute path without '.', '..' and '//'".into(),
        Kind::Rootfs => "an absolute path without '.', '..' and '//', or \"host\"".into(),
        Kind::Ports => "a list of ports, or \"any\"".into(),
        Kind::Paths | Kind::Entries | Kind::Groups | Kind::Calls | Kind::Families => {
            "a list in brackets".to_owned()
        }
    };
    format!("expected {what}")
}

fn whole(found: &DeValue<'_>) -> Option<u64> {
    let number = found.as_integer()?;
    // TOML lets digits be set apart by '_'; the parser has taken those out already.
    u64::from_str_radix(number.as_str().trim_start_matches('+'), number.radix()).ok()
}

fn size(found: &DeValue<'_>) -> Option<u64> {
    found.as_str().map_or_else(|| whole(found), bytes)
}

/// Bytes from text: digits and one of `K`, `M`, `G`, `T` (powers of 1024), or digits alone.
#[must_use]
pub fn bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(['K', 'M', 'G', 'T']);
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return None,
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// A mask of permission bits from its text.
#[must_use]
pub fn mask(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("0o")?;
    let is_octal = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let mask = is_octal.then(|| u32::from_str_radix(digits, 8).ok()).flatten()?;
    (mask <= 0o777).then_some(mask)
}

/// Whether that can be a policy's name, and so a file's.
#[must_use]
pub fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

fn is_hostname(text: &str) -> bool {
    text.len() <= 64
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// An absolute path of one spelling, as it is.
///
/// # Errors
/// What is wrong with it.
pub fn path(text: &str) -> Result<&str, String> {
    match text.strip_prefix('/') {
        None => Err("is no absolute path".into()),
        Some("") => Ok(text),
        Some(rest) => parts(rest).map(|()| text),
    }
}

fn entry(text: &str) -> Result<&str, String> {
    if text.is_empty() || text.starts_with('/') {
        return Err("is no relative path".into());
    }
    parts(text).map(|()| text)
}

fn parts(path: &str) -> Result<(), String> {
    if path.len() > MAX_PATH || path.split('/').any(|part| part.len() > 255) {
        return Err("is longer than a path can be".into());
    }
    if path.contains(char::is_control) {
        return Err("has a control character".into());
    }
    match path.split('/').find(|part| matches!(*part, "" | "." | "..")) {
        Some("") => Err("has an empty part ('//' or a '/' at its end)".into()),
        Some(part) => Err(format!("has the part '{part}'")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_digits_and_one_letter() {
        for (text, expected) in [
            ("0", Some(0)),
            ("512", Some(512)),
            ("4K", Some(4096)),
            ("256M", Some(256 << 20)),
            ("2T", Some(2 << 40)),
        ] {
            assert_eq!(bytes(text), expected, "{text}");
        }
        for bad in
            ["", "M", "1MM", "1k", "1 M", "-1", "+1", "1.5G", "0x10", "99999999999999999999", "99999999999T"]
        {
            assert_eq!(bytes(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_path_has_one_spelling() {
        for good in ["/", "/a", "/a/b.c", "/a/...", "/..a"] {
            assert!(path(good).is_ok(), "{good}");
        }
        for bad in ["", "a", "/a/", "//a", "/a//b", "/.", "/a/..", "/a/./b", "/a\n", "/a\0"] {
            assert!(path(bad).is_err(), "{bad}");
        }
        assert!(path(&format!("/{}", "a".repeat(256))).is_err());
        assert!(entry(".git/hooks").is_ok());
        for bad in ["", "/a", "../a", "a/", "./a"] {
            assert!(entry(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn masks_are_octal() {
        assert_eq!((mask("0o077"), mask("0o0"), mask("0o777")), (Some(0o77), Some(0), Some(0o777)));
        for bad in ["077", "0o", "0o1000", "0o+7", "0o8", "63"] {
            assert_eq!(mask(bad), None, "{bad}");
        }
    }
}
