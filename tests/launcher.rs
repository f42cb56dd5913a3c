//! Speaks the launcher's and the init's protocol to the real launcher, as a daemon would and as none would.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, unsafe_code)]

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};
use trl::launcher::protocol::{
    About, FromInit, FromLauncher, HostIds, SpawnHeader, Stage, Target, ToInit, ToLauncher, VERSION,
    spawn_packets,
};
use trl::plan::{Fill, Ids, Isolation, Mount, Namespaces, Rlimit, Root, SessionPlan};
use trl::sys::{mark, socket};

const BOUND: Duration = Duration::from_secs(10);

struct Launcher {
    control: OwnedFd,
    child: std::process::Child,
    mark: u64,
    uid: u32,
}

fn receive(socket: &OwnedFd) -> Option<Vec<u8>> {
    let mut buffer = vec![0; 65536];
    let deadline = Instant::now() + BOUND;
    loop {
        match socket::receive(socket.as_fd(), &mut buffer).unwrap() {
            Some(received) if received.length == 0 => return None,
            Some(received) => return Some(buffer[..received.length].to_vec()),
            None => {
                assert!(Instant::now() < deadline, "no answer within {BOUND:?}");
                std::thread::sleep(Duration::from_micros(200));
            }
        }
    }
}

/// The first ids of those that the tests' user has for sessions.
fn first_id(own: u32) -> Option<u32> {
    let [(uids, _), (gids, _)] = if own == 0 { [(1_999_000_000, 1); 2] } else { trl::host::id_ranges(own)? };
    // One number does for both here.
    (uids == gids && (own == 0 || trl::host::id_mapper("newuidmap").is_some())).then_some(uids)
}

/// Puts the operator's file where the launcher looks for it, in a mount namespace of the launcher's own.
const UNDER_A_CEILING: &str = "umask 022; mount -t tmpfs t /mnt && mkdir /mnt/u /mnt/w && \
    mount -t overlay -o lowerdir=/etc,upperdir=/mnt/u,workdir=/mnt/w o /etc && mkdir /etc/trl && \
    printf %s \"$CEILING\" > /etc/trl/ceiling && chmod $MODE /etc/trl/ceiling && \
    exec \"$0\" \"$@\" 3<&0 0</dev/null";

impl Launcher {
    fn start(name: &str) -> Self {
        let launcher = Self::spawn(name, "/bin/sh", &["-c", "exec \"$0\" \"$@\" 3<&0 0</dev/null"], None, "");
        assert!(launcher.is_ready());
        launcher
    }

    /// One that root starts, with this in the operator's file.
    fn under(name: &str, ceiling: &str, mode: &str) -> Self {
        let script = format!("CEILING='{ceiling}' MODE={mode}; {UNDER_A_CEILING}");
        let before = ["--mount", "--propagation", "private", "/bin/sh", "-c", &script];
        Self::spawn(name, "unshare", &before, None, "")
    }

    fn is_ready(&self) -> bool {
        self.hello() && matches!(self.next(), Some(FromLauncher::Ready { orphans_left: 0, .. }))
    }

    fn hello(&self) -> bool {
        let hello = ToLauncher::Hello { version: VERSION, mark: self.mark }.encode();
        socket::send(self.control.as_fd(), &hello, &[]).is_ok()
    }

    fn spawn(name: &str, program: &str, before: &[&str], first: Option<u32>, count: &str) -> Self {
        use std::os::unix::process::CommandExt;
        let (ours, theirs) = socket::seqpacket_pair().unwrap();
        let number = name.bytes().fold(0, |number: u64, byte| number.wrapping_mul(31) + u64::from(byte));
        let mark = mark::of_inode(u64::from(std::process::id()), number);
        let own = nix::unistd::geteuid().as_raw();
        let uid = if own == 0 { 1_900_000_700 } else { own };
        // A shell moves the socket to descriptor 3: `Command` can only place 0 to 2.
        let child = std::process::Command::new(program)
            .args(before)
            .arg(env!("CARGO_BIN_EXE_trl-launcher"))
            .args([u64::from(uid), u64::from(uid), mark].map(|bound| bound.to_string()))
            .args(first.iter().flat_map(|first| [format!("{first}:{count}"), format!("{first}:{count}")]))
            .stdin(theirs)
            .process_group(0)
            .spawn()
            .unwrap();
        Self { control: ours, child, mark, uid }
    }

    fn say(&self, message: &ToLauncher, descriptors: &[i32]) {
        socket::send(self.control.as_fd(), &message.encode(), descriptors).unwrap();
    }

    fn next(&self) -> Option<FromLauncher> {
        receive(&self.control).map(|packet| FromLauncher::decode(&packet).unwrap())
    }

    fn plan(&self) -> SessionPlan {
        SessionPlan {
            uid: self.uid,
            gid: self.uid,
            mark: self.mark,
            umask: 0o077,
            nproc: 200,
            no_new_privileges: true,
            working_dir: b"/".to_vec(),
            shell: b"/bin/sh".to_vec(),
            rlimits: vec![Rlimit { resource: libc::RLIMIT_NOFILE, soft: 256, hard: 256 }],
            isolation: Default::default(),
        }
    }

    /// A plan for ids of the session's own.
    fn ranged(&self, ids: Ids) -> SessionPlan {
        let namespaces = Namespaces(Namespaces::ALL);
        let isolation =
            Isolation { namespaces, ids, inside_uid: 1000, inside_gid: 1000, ..Isolation::default() };
        SessionPlan { isolation, ..self.plan() }
    }

    fn create(&self, session: u64, plan: SessionPlan) -> (OwnedFd, FromLauncher) {
        let (ours, theirs) = socket::seqpacket_pair().unwrap();
        self.say(&ToLauncher::Create { session, plan: Box::new(plan) }, &[theirs.as_raw_fd()]);
        (ours, self.next().unwrap())
    }

    fn session(&self, session: u64) -> (OwnedFd, i32) {
        let (socket, answer) = self.create(session, self.plan());
        let FromLauncher::Created { pid, .. } = answer else { panic!("{answer:?}") };
        assert!(matches!(from_init(&socket), Some(FromInit::Ready { .. })));
        (socket, pid)
    }

    fn marked(&self) -> usize {
        mark::all(self.mark).len()
    }

    fn wait_for_none(&self) {
        let deadline = Instant::now() + Duration::from_secs(2);
        while self.marked() > 0 {
            assert!(Instant::now() < deadline, "{} processes are left", self.marked());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        // By its daemon's end at first, so that it leaves nothing behind; one that does not go is killed.
        if let Ok((other, _)) = socket::seqpacket_pair() {
            drop(std::mem::replace(&mut self.control, other));
        }
        let deadline = Instant::now() + Duration::from_secs(3);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn from_init(socket: &OwnedFd) -> Option<FromInit> {
    receive(socket).map(|packet| FromInit::decode(&packet).unwrap())
}

fn spawn(socket: &OwnedFd, exec: u64, argv: &[&str]) -> std::fs::File {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    let null = std::fs::File::open("/dev/null").unwrap();
    let argv: Vec<&[u8]> = argv.iter().map(|text| text.as_bytes()).collect();
    let header = SpawnHeader { exec, want_started: true, ..Default::default() };
    let path = trl::secret::Secret::copy_from(b"/usr/bin:/bin");
    let packets = spawn_packets(header, None, &argv, &BTreeMap::from([("PATH", &path)])).unwrap();
    for (index, packet) in packets.iter().enumerate() {
        let three = [null.as_raw_fd(), writer.as_raw_fd(), writer.as_raw_fd()];
        socket::send(socket.as_fd(), packet, if index == 0 { &three } else { &[] }).unwrap();
    }
    reader.into()
}

fn say(socket: &OwnedFd, message: &ToInit<'_>) {
    socket::send(socket.as_fd(), &message.encode(), &[]).unwrap();
}

#[test]
fn a_command_runs_with_exactly_its_environment_and_its_end_is_told() {
    let launcher = Launcher::start("runs");
    let (socket, _) = launcher.session(1);
    let mut output =
        spawn(&socket, 7, &["sh", "-c", "env; id -u; ulimit -n; ls /proc/self/fd | wc -l; exit 3"]);
    assert!(matches!(from_init(&socket), Some(FromInit::Started { exec: 7, .. })));
    let Some(FromInit::LeaderExited { exec: 7, status, last, .. }) = from_init(&socket) else {
        panic!("no end")
    };
    assert_eq!((libc::WEXITSTATUS(status), last), (3, true));
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    // `sh` adds PWD of its own accord; 4 descriptors are 0 to 2 and the one that `ls` opens.
    let others =
        lines.iter().filter(|line| line.contains('=') && !line.starts_with("PWD=")).collect::<Vec<_>>();
    assert_eq!(others, [&"PATH=/usr/bin:/bin"]);
    assert!(lines.ends_with(&[&launcher.uid.to_string(), "256", "4"]), "{lines:?}");
}

#[test]
fn a_program_that_is_not_there_is_a_failure_with_stage_and_errno() {
    let launcher = Launcher::start("missing");
    let (socket, _) = launcher.session(1);
    drop(spawn(&socket, 1, &["no-such-program-here"]));
    let failed = from_init(&socket);
    assert_eq!(failed, Some(FromInit::SpawnFailed { exec: 1, stage: Stage::Exec, errno: libc::ENOENT }));
    assert_eq!(from_init(&socket), Some(FromInit::TreeGone { exec: 1, killed: 0 }));
}

#[test]
fn what_escapes_its_leader_is_ended_with_its_exec_and_the_neighbour_is_not() {
    let launcher = Launcher::start("escape");
    let (socket, _) = launcher.session(1);
    let script =
        "(setsid sh -c '(trap \"\" TERM; sleep 1000) & sleep 1000' &) ; sh -c 'kill -STOP $$' & sleep 1000";
    let _neighbour = spawn(&socket, 2, &["sleep", "1000"]);
    assert!(matches!(from_init(&socket), Some(FromInit::Started { exec: 2, .. })));
    for round in 10..30 {
        let _output = spawn(&socket, round, &["sh", "-c", script]);
        assert!(matches!(from_init(&socket), Some(FromInit::Started { .. })));
        std::thread::sleep(Duration::from_millis(20));
        say(&socket, &ToInit::Kill { exec: round });
        assert!(matches!(from_init(&socket), Some(FromInit::LeaderExited { .. })));
        let Some(FromInit::TreeGone { exec, killed }) = from_init(&socket) else { panic!("not gone") };
        assert!(exec == round && killed >= 4, "{killed} killed");
        // The init, the neighbour's reaper and the neighbour.
        assert_eq!(launcher.marked(), 3, "round {round}");
    }
    say(&socket, &ToInit::Destroy);
    // The neighbour's reaper may say that its leader ended before it is ended itself.
    let mut last = from_init(&socket);
    while matches!(last, Some(FromInit::LeaderExited { exec: 2, .. })) {
        last = from_init(&socket);
    }
    assert_eq!(last, Some(FromInit::Destroyed { killed: 1 }));
    assert!(matches!(launcher.next(), Some(FromLauncher::Ended { session: 1, .. })));
    assert_eq!(launcher.marked(), 0);
}

#[test]
fn an_end_says_whether_something_outlives_the_leader() {
    let launcher = Launcher::start("outlives");
    let (socket, _) = launcher.session(1);
    for (exec, command, alone) in [(1, "exit 0", true), (2, "sleep 0.3 & exit 0", false)] {
        let _output = spawn(&socket, exec, &["sh", "-c", command]);
        assert!(matches!(from_init(&socket), Some(FromInit::Started { .. })));
        let Some(FromInit::LeaderExited { last, .. }) = from_init(&socket) else { panic!("no end") };
        assert_eq!(last, alone, "{command}");
    }
    // Once, and when it is true: of what was alone nothing more is said.
    assert_eq!(from_init(&socket), Some(FromInit::TreeGone { exec: 2, killed: 0 }));
}

#[test]
fn a_signal_reaches_its_target_and_an_ended_exec_has_none() {
    let launcher = Launcher::start("signal");
    let (socket, _) = launcher.session(1);
    let _output = spawn(&socket, 1, &["sleep", "1000"]);
    assert!(matches!(from_init(&socket), Some(FromInit::Started { .. })));
    say(&socket, &ToInit::Signal { request: 5, exec: 1, signal: libc::SIGTERM, target: Target::Leader });
    let mut seen = Vec::new();
    for _ in 0..2 {
        seen.push(from_init(&socket).unwrap());
    }
    assert!(seen.contains(&FromInit::Signaled { request: 5, delivered: 1, errno: 0 }), "{seen:?}");
    assert!(seen.iter().any(|event| matches!(event, FromInit::LeaderExited { status: libc::SIGTERM, .. })));
    say(&socket, &ToInit::Signal { request: 6, exec: 1, signal: libc::SIGTERM, target: Target::Group });
    assert_eq!(from_init(&socket), Some(FromInit::Signaled { request: 6, delivered: 0, errno: libc::ESRCH }));
}

#[test]
fn nothing_outlives_its_init_its_launcher_or_its_daemon() {
    for victim in ["init", "launcher", "daemon"] {
        let mut launcher = Launcher::start(victim);
        let sessions: Vec<_> = (1..4).map(|number| launcher.session(number)).collect();
        let outputs: Vec<_> = sessions
            .iter()
            .map(|(socket, _)| spawn(socket, 1, &["sh", "-c", "(setsid sleep 1000 &); sleep 1000"]))
            .collect();
        std::thread::sleep(Duration::from_millis(100));
        assert!(launcher.marked() >= 12, "{} marked", launcher.marked());
        match victim {
            "init" => {
                for (_, pid) in &sessions {
                    nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::SIGKILL)
                        .unwrap();
                }
                for _ in &sessions {
                    assert!(matches!(
                        launcher.next(),
                        Some(FromLauncher::Ended { status: libc::SIGKILL, .. })
                    ));
                }
            }
            "launcher" => launcher.child.kill().unwrap(),
            _ => {
                let (other, _) = socket::seqpacket_pair().unwrap();
                drop(std::mem::replace(&mut launcher.control, other));
            }
        }
        launcher.wait_for_none();
        drop(outputs);
    }
}

#[test]
fn a_hostile_daemon_gets_no_session_as_root_and_no_second_hello() {
    let launcher = Launcher::start("hostile");
    for plan in [
        SessionPlan { uid: 0, ..launcher.plan() },
        SessionPlan { gid: 0, ..launcher.plan() },
        SessionPlan { uid: launcher.uid ^ 1, ..launcher.plan() },
        SessionPlan { gid: 42, ..launcher.plan() },
        SessionPlan { no_new_privileges: false, ..launcher.plan() },
        SessionPlan { mark: launcher.mark ^ 1, ..launcher.plan() },
    ] {
        let (_socket, answer) = launcher.create(1, plan);
        assert!(matches!(answer, FromLauncher::CreateFailed { errno: libc::EPERM, .. }), "{answer:?}");
    }
    let (socket, _) = launcher.session(2);
    drop(spawn(&socket, 1, &["true"]));
    launcher.say(&ToLauncher::Hello { version: VERSION, mark: launcher.mark }, &[]);
    assert_eq!(launcher.next(), None, "out of phase, and still served");
    launcher.wait_for_none();
}

#[test]
fn a_working_directory_or_shell_that_is_not_there_is_refused() {
    let launcher = Launcher::start("refused");
    for (plan, stage) in [
        (SessionPlan { working_dir: b"/no/such".to_vec(), ..launcher.plan() }, Stage::WorkingDirectory),
        (SessionPlan { shell: b"/bin/no-such-shell".to_vec(), ..launcher.plan() }, Stage::Shell),
    ] {
        let (socket, _) = launcher.create(u64::from(stage as u8), plan);
        assert_eq!(
            from_init(&socket),
            Some(FromInit::Failed { stage, errno: libc::ENOENT, about: About::new("") })
        );
        assert!(matches!(launcher.next(), Some(FromLauncher::Ended { .. })));
    }
}

fn uid_map(pid: i32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/uid_map")).unwrap();
    text.split_ascii_whitespace().map(|number| number.parse().unwrap()).collect()
}

#[test]
fn host_ids_are_the_launchers_to_give_and_never_more_than_its_range() {
    let own = nix::unistd::geteuid().as_raw();
    let none = Launcher::start("no-ids");
    none.say(&ToLauncher::Prepare, &[]);
    assert_eq!(none.next(), Some(FromLauncher::Prepared { ids: HostIds::NoRange }));
    let (_socket, answer) = none.create(1, none.ranged(Ids::Range(8)));
    assert!(matches!(answer, FromLauncher::CreateFailed { stage: Stage::HostIds, .. }), "{answer:?}");
    let Some(first) = first_id(own) else {
        println!("skipped: this user has no range of ids (subuid(5), newuidmap)");
        return;
    };
    let shell = ["-c", "exec \"$0\" \"$@\" 3<&0 0</dev/null"];
    let launcher = Launcher::spawn("ids", "/bin/sh", &shell, Some(first), "16");
    assert!(launcher.is_ready());
    launcher.say(&ToLauncher::Prepare, &[]);
    assert_eq!(launcher.next(), Some(FromLauncher::Prepared { ids: HostIds::Available }));
    // What a daemon that was taken over may ask for.
    let root = |plan: &mut SessionPlan| plan.isolation.inside_uid = 0;
    let group = |plan: &mut SessionPlan| plan.isolation.inside_gid = 0;
    let shared = |plan: &mut SessionPlan| plan.isolation.namespaces = Namespaces(Namespaces::MOUNT);
    let all = |plan: &mut SessionPlan| plan.isolation.ids = Ids::Range(u32::MAX);
    let others = |plan: &mut SessionPlan| plan.uid = first_id(own).unwrap();
    let attempts: [&dyn Fn(&mut SessionPlan); 5] = [&root, &group, &shared, &all, &others];
    for (at, change) in attempts.into_iter().enumerate() {
        let mut plan = launcher.ranged(Ids::Range(8));
        change(&mut plan);
        let (_socket, answer) = launcher.create(90 + at as u64, plan);
        let is_refused =
            matches!(answer, FromLauncher::CreateFailed { stage: Stage::Plan, errno: libc::EPERM, .. });
        assert!(is_refused, "attempt {at}: {answer:?}");
    }
    let mut sockets = Vec::new();
    let mut make = |session: u64, ids: Ids| -> Result<i32, (Stage, i32)> {
        let (socket, answer) = launcher.create(session, launcher.ranged(ids));
        match answer {
            FromLauncher::Created { pid, .. } => {
                assert!(matches!(from_init(&socket), Some(FromInit::Ready { .. })));
                sockets.push(socket);
                Ok(pid)
            }
            FromLauncher::CreateFailed { stage, errno, .. } => Err((stage, errno)),
            other => panic!("{other:?}"),
        }
    };
    let left = Err((Stage::HostIds, libc::EAGAIN));
    assert_eq!(make(1, Ids::Range(17)), left);
    let (one, two) = (make(2, Ids::Range(8)).unwrap(), make(3, Ids::Range(8)).unwrap());
    assert_eq!([uid_map(one), uid_map(two)], [[1000, first, 8], [1000, first + 8, 8]]);
    assert_eq!(make(4, Ids::Range(8)), left);
    assert_eq!(make(5, Ids::Range(1)), left);
    // One without such ids is the user that the launcher was made for.
    assert_eq!(uid_map(make(6, Ids::Own).unwrap()), [1000, launcher.uid, 1]);
    for _ in 0..5 {
        // Its init does not answer, and is not asked.
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(two), nix::sys::signal::SIGSTOP).ok();
        launcher.say(&ToLauncher::Kill { session: 3 }, &[]);
        assert!(matches!(launcher.next(), Some(FromLauncher::Ended { session: 3, .. })));
        let (socket, answer) = launcher.create(3, launcher.ranged(Ids::Range(8)));
        let FromLauncher::Created { pid, .. } = answer else { panic!("{answer:?}") };
        assert!(matches!(from_init(&socket), Some(FromInit::Ready { .. })));
        assert_eq!(uid_map(pid), [1000, first + 8, 8]);
    }
}

/// A copy of a descriptor of another process, as whoever may trace that process can have it.
fn taken(pid: i32, descriptor: i32) -> std::io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    let handle = trl::sys::process::pidfd_open(pid)?;
    // SAFETY: numbers only; what comes back is a descriptor that the kernel just made.
    let copy = unsafe { libc::syscall(libc::SYS_pidfd_getfd, handle.as_raw_fd(), descriptor, 0) };
    if copy < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: see above.
    Ok(unsafe { OwnedFd::from_raw_fd(copy as i32) })
}

#[test]
fn what_a_zygote_says_has_nobody_ended_but_what_it_made() {
    let launcher = Launcher::start("forged");
    let (socket, answer) = launcher.create(1, launcher.ranged(Ids::Own));
    let FromLauncher::Created { pid: init, .. } = answer else { panic!("{answer:?}") };
    assert!(matches!(from_init(&socket), Some(FromInit::Ready { .. })));
    let mut sockets = vec![socket];
    let own = launcher.child.id().cast_signed();
    let is_zygote = |pid: &i32| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
        name.is_ok_and(|name| name.trim() == "trl-zygote") && trl::sys::tree::is_alive(*pid)
    };
    let mut victim = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let stranger = victim.id().cast_signed();
    // Its own number, the launcher's, that of a session it made before, and a stranger's.
    for session in 2..6 {
        let zygote = trl::sys::tree::descendants(own, &|_| false).into_keys().find(is_zygote).unwrap();
        // The first that is kept is the launcher's. The user whose the zygote is gets at it while maps are written.
        let Ok(stolen) = taken(zygote, 64) else {
            println!("skipped: zygotes cannot be looked into here");
            break;
        };
        // Said before it is asked.
        let pid = [zygote, own, init, stranger][session as usize - 2];
        let forged = [&[0; 8][..], &FromLauncher::Created { session, pid }.encode()].concat();
        socket::send(stolen.as_fd(), &forged, &[]).unwrap();
        let (_ours, theirs) = socket::seqpacket_pair().unwrap();
        let create = ToLauncher::Create { session, plan: Box::new(launcher.ranged(Ids::Own)) };
        launcher.say(&create, &[theirs.as_raw_fd()]);
        let told = launcher.next();
        let is_refused =
            matches!(told, Some(FromLauncher::CreateFailed { session: of, .. }) if of == session);
        assert!(is_refused, "{told:?}");
        launcher.say(&ToLauncher::Kill { session }, &[]);
        // Another one takes its place.
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(zygote), nix::sys::signal::SIGKILL).ok();
        while trl::sys::tree::is_alive(zygote) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let (socket, answer) = launcher.create(session + 100, launcher.ranged(Ids::Own));
        assert!(matches!(answer, FromLauncher::Created { .. }), "{answer:?}");
        sockets.push(socket);
        assert!(trl::sys::tree::is_alive(init) && trl::sys::tree::is_alive(stranger));
    }
    victim.kill().unwrap();
    victim.wait().unwrap();
}

#[test]
fn an_init_obeys_nobody_in_its_session_who_says_to_be_outside() {
    let launcher = Launcher::start("queued");
    let (socket, answer) = launcher.create(1, launcher.ranged(Ids::Own));
    assert!(matches!(answer, FromLauncher::Created { .. }), "{answer:?}");
    assert!(matches!(from_init(&socket), Some(FromInit::Ready { .. })));
    // SIGTERM, SI_QUEUE, process 0.
    let script = format!(
        "my $info = pack('i6x104', 15, 0, -1, 0, 0, 0); print syscall({}, 1, 15, $info)",
        libc::SYS_rt_sigqueueinfo
    );
    let mut output = spawn(&socket, 7, &["perl", "-e", &script]);
    assert!(matches!(from_init(&socket), Some(FromInit::Started { exec: 7, .. })));
    assert!(matches!(from_init(&socket), Some(FromInit::LeaderExited { exec: 7, last: true, .. })));
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    assert_eq!(text, "0", "the signal was not sent");
    let _output = spawn(&socket, 8, &["true"]);
    assert!(matches!(from_init(&socket), Some(FromInit::Started { exec: 8, .. })));
    // From outside it is.
    let FromLauncher::Created { pid, .. } = answer else { panic!("{answer:?}") };
    let _over = from_init(&socket);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGTERM).unwrap();
    assert!(matches!(from_init(&socket), Some(FromInit::Destroyed { .. })));
}

#[test]
fn a_launcher_of_roots_is_held_to_the_operators_file() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root can write the operator's file");
        return;
    }
    let named = "user 1900000700\nuids 1999100000 8\ngids 1999200000 8\npath /srv\n";
    for (name, text, mode) in [
        ("unnamed", "user 1900000701\n", "644"),
        ("unknown", "user 1900000700\nroot yes\n", "644"),
        ("writable", named, "664"),
    ] {
        let launcher = Launcher::under(name, text, mode);
        assert!(!launcher.hello() || receive_or_end(&launcher.control).is_none(), "{name}: it serves");
    }
    let launcher = Launcher::under("named", named, "644");
    assert!(launcher.is_ready());
    let (socket, answer) = launcher.create(1, launcher.ranged(Ids::Range(8)));
    let FromLauncher::Created { pid, .. } = answer else { panic!("{answer:?}") };
    assert!(matches!(from_init(&socket), Some(FromInit::Ready { .. })));
    assert_eq!(uid_map(pid), [1000, 1_999_100_000, 8]);
    for (session, path, allowed) in [(2, "/srv", true), (3, "/etc", false), (4, "/srv/../etc", false)] {
        let mut plan = launcher.ranged(Ids::Own);
        let fill = Fill::ReadWrite(path.into());
        let mounts = vec![Mount { target: path.into(), fill, optional: false }];
        plan.isolation.root = Some(Root { mounts, workspace: None, processes_only: false });
        let (_socket, answer) = launcher.create(session, plan);
        assert_eq!(matches!(answer, FromLauncher::Created { .. }), allowed, "{path}: {answer:?}");
    }
}

#[test]
fn a_launcher_by_file_capabilities_is_held_to_the_operators_file_and_has_none_without_it() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: only root can give a file capabilities");
        return;
    }
    if std::process::Command::new("setcap").arg("-h").output().is_err() {
        println!("skipped: setcap is not there (package libcap2-bin)");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let program = directory.path().join("trl-launcher");
    let run = |program: &str, arguments: &[&str]| {
        let output = std::process::Command::new(program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let shown = program.to_str().unwrap().to_owned();
    run("cp", &[env!("CARGO_BIN_EXE_trl-launcher"), &shown]);
    run("chmod", &["755", directory.path().to_str().unwrap(), &shown]);
    run("setcap", &["cap_setuid,cap_setgid,cap_kill=ep", &shown]);
    // `$0` is the launcher without capabilities: the arguments that follow it are what counts.
    let start = |name: &str, ceiling: Option<&str>, user: &str| {
        let put = ceiling.map_or(String::new(), |text| {
            format!("CEILING='{text}' MODE=644; {}", UNDER_A_CEILING.split("exec").next().unwrap_or_default())
        });
        let put = put.trim_end().trim_end_matches("&&").to_owned();
        let script = format!(
            "{put}\nexec setpriv --reuid {user} --regid {user} --clear-groups {shown} \"$@\" 3<&0 0</dev/null"
        );
        let before = ["--mount", "--propagation", "private", "/bin/sh", "-c", &script];
        Launcher::spawn(name, "unshare", &before, None, "")
    };
    let capabilities = |pid: i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("CapPrm:\t")).unwrap();
        u64::from_str_radix(line, 16).unwrap()
    };
    let named = "user 1900000700\nuids 1999300000 8\ngids 1999400000 8\n";
    let launcher = start("caps", Some(named), "1900000700");
    assert!(launcher.is_ready());
    let pid = launcher.child.id().cast_signed();
    assert_eq!(capabilities(pid), 1 << 5 | 1 << 6 | 1 << 7, "CAP_KILL, CAP_SETGID, CAP_SETUID");
    let (_socket, init) = launcher.session(1);
    assert_eq!(capabilities(init), 0);
    let (socket, answer) = launcher.create(2, launcher.ranged(Ids::Range(8)));
    let FromLauncher::Created { pid: init, .. } = answer else { panic!("{answer:?}") };
    assert!(matches!(from_init(&socket), Some(FromInit::Ready { .. })));
    assert_eq!((uid_map(init), capabilities(init)), (vec![1000, 1_999_300_000, 8], 0));
    launcher.say(&ToLauncher::Kill { session: 2 }, &[]);
    assert!(matches!(launcher.next(), Some(FromLauncher::Ended { session: 2, .. })));
    // Nobody else may start it, whatever the arguments say.
    let foreign = start("foreign", Some(named), "1900000701");
    assert!(!foreign.hello() || receive_or_end(&foreign.control).is_none());
    let bare = start("bare", None, "1900000700");
    assert!(bare.is_ready());
    assert_eq!(capabilities(bare.child.id().cast_signed()), 0);
    bare.say(&ToLauncher::Prepare, &[]);
    assert_eq!(bare.next(), Some(FromLauncher::Prepared { ids: HostIds::NoRange }));
    // As what runs in sessions it has none: anybody may execute it so.
    let bait = trl::launcher::attacks::Bait::default().arguments();
    let user = ["--reuid", "1900000700", "--regid", "1900000700", "--clear-groups", &shown];
    let key = (trl::launcher::protocol::PROBE_KEY, trl::launcher::protocol::ATTACKS);
    let mut command = std::process::Command::new("setpriv");
    let output = command.args(user).args(bait).env(key.0, key.1).current_dir("/").output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains(&format!("credentials: become root={}\n", libc::EPERM)), "{said}");
}

/// Like [`receive`], of one that may end without reading what was sent.
fn receive_or_end(socket: &OwnedFd) -> Option<Vec<u8>> {
    let mut buffer = vec![0; 65536];
    let deadline = Instant::now() + BOUND;
    loop {
        match socket::receive(socket.as_fd(), &mut buffer) {
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_micros(200)),
            Ok(None) => panic!("no answer within {BOUND:?}"),
            Ok(Some(received)) if received.length > 0 => return Some(buffer[..received.length].to_vec()),
            _ => return None,
        }
    }
}
