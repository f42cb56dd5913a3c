//! What is mounted, read back: a process's `/proc/<pid>/mountinfo` (see `proc(5)`) against the plan of its root.
//!
//! Every planned place must be a mount of its own with the type, the flags and the limits that it was to have, and
//! nothing else may be mounted. What is no mount (copies, links, contents) is not seen here.

use super::{dev, proc};
use crate::plan::{Fill, Root, Workspace};
use std::collections::BTreeMap;

/// Masks that every kernel with a procfs has something for.
const CERTAIN_MASKS: [&str; 3] = ["cmdline", "driver", "fs"];

/// One line.
struct Seen<'a> {
    /// What of its file system is mounted.
    inner: &'a str,
    flags: &'a str,
    kind: &'a str,
    options: &'a str,
}

/// Lines by mount point, those taken out that were planned.
struct Mounts<'a>(BTreeMap<Vec<u8>, Seen<'a>>);

/// What a place must be.
struct Wanted<'a> {
    /// Types, one of which; empty for any.
    kinds: &'a [&'a str],
    with: &'a [&'a str],
    without: &'a [&'a str],
}

const READ_ONLY: [&str; 3] = ["ro", "nosuid", "nodev"];
const INERT: [&str; 2] = ["nosuid", "nodev"];
const DATA: [&str; 3] = ["nosuid", "nodev", "noexec"];
const DATA_READ_ONLY: [&str; 4] = ["ro", "nosuid", "nodev", "noexec"];

fn lossy(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

fn has(list: &str, word: &str) -> bool {
    list.split(',').any(|one| one == word)
}

/// The value of `key=` in a list of options.
fn number(list: &str, key: &str) -> Option<u64> {
    let text = list.split(',').find_map(|one| one.strip_prefix(key)?.strip_prefix('='))?;
    match text.strip_suffix('k') {
        Some(kibibytes) => kibibytes.parse::<u64>().ok()?.checked_mul(1024),
        None => text.parse().ok(),
    }
}

/// Undoes the octal escapes of space, tab, line feed and backslash.
fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                out.push(byte);
                rest = &tail[3..];
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

impl<'a> Mounts<'a> {
    fn parse(text: &'a str) -> Result<Self, String> {
        let mut all = BTreeMap::new();
        for line in text.lines() {
            let wrong = || format!("a line of unknown form: {line}");
            let (mount, file_system) = line.split_once(" - ").ok_or_else(wrong)?;
            let fields: Vec<&str> = mount.split(' ').collect();
            let [_, _, _, inner, place, flags, ..] = fields.as_slice() else { return Err(wrong()) };
            let mut ends = file_system.splitn(3, ' ');
            let (Some(kind), Some(_), Some(options)) = (ends.next(), ends.next(), ends.next()) else {
                return Err(wrong());
            };
            if fields.get(6..).is_some_and(|tags| tags.iter().any(|tag| tag.contains(':'))) {
                return Err(format!("{place} shares its mounts with others"));
            }
            if all.insert(unescape(place), Seen { inner, flags, kind, options }).is_some() {
                return Err(format!("{place} is mounted twice"));
            }
        }
        Ok(Self(all))
    }

    /// Takes a place out, if it is there, and checks it.
    fn take(&mut self, place: &[u8], wanted: &Wanted) -> Result<Option<Seen<'a>>, String> {
        let Some(seen) = self.0.remove(place) else { return Ok(None) };
        let place = lossy(place);
        if !wanted.kinds.is_empty() && !wanted.kinds.contains(&seen.kind) {
            return Err(format!("{place} is {}, not {}", seen.kind, wanted.kinds.join(" or ")));
        }
        if let Some(flag) = wanted.with.iter().find(|flag| !has(seen.flags, flag)) {
            return Err(format!("{place} is not {flag} ({})", seen.flags));
        }
        if let Some(flag) = wanted.without.iter().find(|flag| has(seen.flags, flag)) {
            return Err(format!("{place} is {flag} ({})", seen.flags));
        }
        Ok(Some(seen))
    }

    fn need(&mut self, place: &[u8], wanted: &Wanted) -> Result<Seen<'a>, String> {
        self.take(place, wanted)?.ok_or_else(|| format!("nothing is mounted at {}", lossy(place)))
    }

    fn tmpfs(&mut self, place: &[u8], wanted: &Wanted, size: u64, inodes: u64) -> Result<(), String> {
        let seen = self.need(place, wanted)?;
        // The kernel rounds up to pages, of 64 KiB at most.
        let is_size = |bytes: u64| (size..size.saturating_add(64 * 1024)).contains(&bytes);
        if !number(seen.options, "size").is_some_and(is_size) {
            return Err(format!("{} has not the size {size} ({})", lossy(place), seen.options));
        }
        if number(seen.options, "nr_inodes") != Some(inodes) {
            return Err(format!("{} has not {inodes} inodes ({})", lossy(place), seen.options));
        }
        Ok(())
    }
}

fn below(place: &[u8], name: &[u8]) -> Vec<u8> {
    [place, b"/", name].concat()
}

/// Checks a process's mounts against its plan. Yields a sentence of what was found.
///
/// # Errors
/// The first place that is not as planned.
pub fn verify(mountinfo: &str, root: &Root) -> Result<String, String> {
    let mut mounts = Mounts::parse(mountinfo)?;
    let tmpfs = |with, without| Wanted { kinds: &["tmpfs"], with, without };
    mounts.tmpfs(b"/", &tmpfs(&DATA_READ_ONLY, &[]), super::ROOT_SIZE, super::ROOT_INODES)?;
    // Places below which a host's further mounts may be, and their flags.
    let mut trees: Vec<(&[u8], &[&str])> = Vec::new();
    let (mut binds, mut views, mut bound, mut memory) = (0, 0, 0, 0);
    let mut words = Vec::new();
    for mount in &root.mounts {
        let place = mount.target.as_slice();
        let any = |with| Wanted { kinds: &[], with, without: &[] };
        let mut host = |mounts: &mut Mounts, with| match mounts.take(place, &any(with))? {
            None if mount.optional => Ok(None),
            None => Err(format!("nothing is mounted at {}", lossy(place))),
            Some(seen) => {
                trees.push((place, with));
                Ok(Some(seen.kind == "overlay"))
            }
        };
        match &mount.fill {
            Fill::ReadOnly(_) => binds += usize::from(host(&mut mounts, &READ_ONLY)?.is_some()),
            Fill::ReadWrite(_) => binds += usize::from(host(&mut mounts, &INERT)?.is_some()),
            Fill::View(_) => match host(&mut mounts, &READ_ONLY)? {
                Some(true) => views += 1,
                Some(false) => bound += 1,
                None => {}
            },
            Fill::Copy(_) | Fill::File(_) | Fill::Link(_) => {}
            Fill::Tmpfs { size, inodes, exec } => {
                let with: &[&str] = if *exec { &INERT } else { &DATA };
                mounts.tmpfs(place, &tmpfs(with, &["ro"]), *size, *inodes)?;
                memory += 1;
            }
            Fill::Proc => words.push(procfs(&mut mounts, place, root.processes_only)?),
            Fill::Dev { size } => words.push(devices(&mut mounts, place, *size)?),
        }
    }
    if let Some(workspace) = &root.workspace {
        words.push(workspace_of(&mut mounts, workspace)?);
        if !workspace.source.is_empty() && !workspace.overlay {
            trees.push((&workspace.target, flags_of(workspace)));
        }
    }
    let further = rest(&mounts, &trees)?;
    words.insert(
        0,
        format!("root read-only, {views} views, {bound} views as binds, {binds} binds, {memory} tmpfs"),
    );
    words.push(format!("{further} mounts below binds"));
    Ok(words.join("; "))
}

/// What is left must be a host's mount below one that was bound with it, and no freer.
fn rest(mounts: &Mounts, trees: &[(&[u8], &[&str])]) -> Result<usize, String> {
    for (place, seen) in &mounts.0 {
        let is_below = |tree: &[u8]| place.strip_prefix(tree).is_some_and(|rest| rest.starts_with(b"/"));
        let tree = trees.iter().filter(|(tree, _)| is_below(tree)).max_by_key(|(tree, _)| tree.len());
        let (_, with) = tree.ok_or_else(|| format!("{} ({}) is not planned", lossy(place), seen.kind))?;
        if let Some(flag) = with.iter().find(|flag| !has(seen.flags, flag)) {
            return Err(format!("{} is not {flag} ({})", lossy(place), seen.flags));
        }
    }
    Ok(mounts.0.len())
}

fn procfs(mounts: &mut Mounts, place: &[u8], processes_only: bool) -> Result<String, String> {
    let wanted = Wanted { kinds: &["proc"], with: &DATA, without: &[] };
    let seen = mounts.need(place, &wanted)?;
    if !has(seen.options, "hidepid=invisible") && !has(seen.options, "hidepid=2") {
        return Err(format!("{} hides no process ({})", lossy(place), seen.options));
    }
    if processes_only != has(seen.options, "subset=pid") {
        return Err(format!("{} shows other files than planned ({})", lossy(place), seen.options));
    }
    let mask = Wanted { kinds: &["tmpfs"], with: &DATA_READ_ONLY, without: &[] };
    let mut masks = 0;
    for (name, inner) in proc::FILES
        .iter()
        .map(|name| (*name, "/file"))
        .chain(proc::DIRECTORIES.map(|name| (name, "/directory")))
    {
        match mounts.take(&below(place, name.as_bytes()), &mask)? {
            Some(seen) if seen.inner == inner => masks += 1,
            Some(seen) => return Err(format!("{}/{name} shows {}", lossy(place), seen.inner)),
            None if processes_only || !CERTAIN_MASKS.contains(&name) => {}
            None => return Err(format!("{}/{name} is not masked", lossy(place))),
        }
    }
    if !processes_only {
        let knobs = Wanted { kinds: &["proc"], with: &DATA_READ_ONLY, without: &[] };
        mounts.need(&below(place, proc::KNOBS.as_bytes()), &knobs)?;
    }
    Ok(format!("proc with {masks} masks"))
}

fn devices(mounts: &mut Mounts, place: &[u8], shm: u64) -> Result<String, String> {
    let plain = Wanted { kinds: &["tmpfs"], with: &["ro", "nosuid", "noexec"], without: &[] };
    mounts.tmpfs(place, &plain, dev::SIZE, dev::INODES)?;
    for (name, _, _) in dev::DEVICES {
        let wanted = Wanted { kinds: &[], with: &["ro", "nosuid", "noexec"], without: &[] };
        let seen = mounts.need(&below(place, name.as_bytes()), &wanted)?;
        if seen.inner.rsplit('/').next() != Some(name) {
            return Err(format!("{}/{name} shows {}", lossy(place), seen.inner));
        }
    }
    let terminals = Wanted { kinds: &["devpts"], with: &["nosuid", "noexec"], without: &[] };
    mounts.need(&below(place, b"pts"), &terminals)?;
    let memory = Wanted { kinds: &["tmpfs"], with: &DATA, without: &["ro"] };
    mounts.tmpfs(&below(place, b"shm"), &memory, shm, dev::SHM_INODES)?;
    let queues = Wanted { kinds: &["mqueue"], with: &DATA, without: &[] };
    let queues = mounts.take(&below(place, b"mqueue"), &queues)?.map_or("no", |_| "own");
    Ok(format!("{} devices, {queues} message queues", dev::DEVICES.len()))
}

/// What a workspace's mount must have.
fn flags_of(workspace: &Workspace) -> &'static [&'static str] {
    match (workspace.writable, workspace.exec) {
        (true, true) => &INERT,
        (true, false) => &DATA,
        (false, true) => &READ_ONLY,
        (false, false) => &DATA_READ_ONLY,
    }
}

fn workspace_of(mounts: &mut Mounts, workspace: &Workspace) -> Result<String, String> {
    let place = workspace.target.as_slice();
    let with = flags_of(workspace);
    let without: &[&str] = match (workspace.writable, workspace.exec) {
        (true, true) => &["ro", "noexec"],
        (true, false) => &["ro"],
        (false, _) => &[],
    };
    let kind = if workspace.source.is_empty() {
        mounts.tmpfs(
            place,
            &Wanted { kinds: &["tmpfs"], with, without },
            workspace.size,
            workspace.inodes,
        )?;
        "own"
    } else {
        let kinds: &[&str] = if workspace.overlay { &["overlay"] } else { &[] };
        // The host's own may be mounted noexec.
        let without: &[&str] = if workspace.writable { &["ro"] } else { &[] };
        mounts.need(place, &Wanted { kinds, with, without })?;
        if workspace.overlay { "overlay" } else { "host's" }
    };
    let plain = |entry: &[u8]| entry.strip_suffix(b"/").unwrap_or(entry).to_vec();
    let entries: std::collections::BTreeSet<Vec<u8>> = workspace.protect.iter().map(|e| plain(e)).collect();
    let mut protected = 0;
    for entry in &entries {
        // Each directory on the way, then the entry. Below what is read-only already nothing can be made.
        let mut read_only = !workspace.writable;
        let ends = entry.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        for end in ends.chain([entry.len()]) {
            let part = &entry[..end];
            let is_entry = entries.contains(part);
            let with: &[&str] = if is_entry { &READ_ONLY } else { &INERT };
            let path = below(place, part);
            let wanted = Wanted { kinds: &[], with, without: &[] };
            let is_taken = entries.iter().take_while(|other| *other != entry).any(|other| {
                other.as_slice() == part
                    || other.strip_prefix(part).is_some_and(|rest| rest.starts_with(b"/"))
            });
            match mounts.take(&path, &wanted)? {
                Some(_) => protected += usize::from(is_entry),
                None if is_taken || read_only => {}
                None => return Err(format!("{} is not protected", lossy(&path))),
            }
            read_only |= is_entry;
        }
    }
    Ok(format!("{kind} workspace with {protected} protected entries"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str = "\
20 1 0:40 / / ro,nosuid,nodev,noexec,relatime - tmpfs none rw,size=16384k,nr_inodes=4096,mode=755,inode64
21 20 0:41 / /tmp rw,nosuid,nodev,noexec,relatime - tmpfs none rw,size=1024k,nr_inodes=10,inode64
22 20 0:42 / /a\\040b rw,nosuid,nodev,relatime - tmpfs none rw,size=64k,nr_inodes=5,inode64
";

    fn plan() -> Root {
        let tmpfs = |target: &[u8], size, inodes, exec| crate::plan::Mount {
            target: target.to_vec(),
            fill: Fill::Tmpfs { size, inodes, exec },
            optional: false,
        };
        Root {
            mounts: vec![tmpfs(b"/tmp", 1 << 20, 10, false), tmpfs(b"/a b", 64_000, 5, true)],
            workspace: None,
            processes_only: false,
        }
    }

    #[test]
    fn what_is_as_planned_passes_and_each_difference_does_not() {
        assert_eq!(verify(PLAIN, &plan()).err(), None);
        for (from, to, complaint) in [
            ("/ / ro,", "/ / rw,", "/ is not ro"),
            ("/tmp rw,nosuid", "/tmp rw,suid", "/tmp is not nosuid"),
            ("/tmp rw,", "/tmp ro,", "/tmp is ro"),
            (
                "nodev,noexec,relatime - tmpfs none rw,size=1024k",
                "nodev - tmpfs none rw,size=1024k",
                "/tmp is not noexec",
            ),
            ("size=1024k", "size=2048k", "/tmp has not the size"),
            ("nr_inodes=10,", "", "/tmp has not 10 inodes"),
            ("- tmpfs none rw,size=64k", "- ext4 none rw,size=64k", "/a b is ext4, not tmpfs"),
            ("/a\\040b", "/ab", "nothing is mounted at /a b"),
            (
                "relatime - tmpfs none rw,size=64k",
                "relatime master:1 - tmpfs none rw,size=64k",
                "shares its mounts",
            ),
            ("22 20", "22", "/a\\040b"),
        ] {
            assert!(PLAIN.contains(from), "{from}");
            let found = verify(&PLAIN.replacen(from, to, 1), &plan());
            assert!(
                found.as_ref().is_err_and(|text| text.contains(complaint) || from == "22 20"),
                "{from}: {found:?}"
            );
        }
        let more = format!("{PLAIN}23 20 0:9 / /sys ro,nosuid,nodev - sysfs sysfs rw\n");
        assert_eq!(verify(&more, &plan()), Err("/sys (sysfs) is not planned".to_owned()));
        let twice = format!("{PLAIN}23 21 0:9 / /tmp rw,nosuid,nodev,noexec - tmpfs none rw\n");
        assert_eq!(verify(&twice, &plan()), Err("/tmp is mounted twice".to_owned()));
    }
}
