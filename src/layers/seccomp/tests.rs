use super::*;
use crate::plan::Seccomp;

/// What a program answers, by the rules of classic BPF.
fn run(filters: &Filters, architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let (mut at, mut held) = (0, 0u32);
    loop {
        let step = &filters.program[at];
        at += 1;
        let jump = |holds: bool| usize::from(if holds { step.jt } else { step.jf });
        match step.code {
            LOAD if step.k == NUMBER_OFFSET => held = number,
            LOAD if step.k == ARCHITECTURE_OFFSET => held = architecture,
            LOAD => {
                let from = step.k as usize - 16;
                held = (arguments[from / 8] >> (from % 8 * 8)) as u32;
            }
            0x54 => held &= step.k,
            JUMP => at += step.k as usize,
            JUMP_IF_EQUAL => at += jump(held == step.k),
            JUMP_IF_AT_LEAST => at += jump(held >= step.k),
            RETURN => return step.k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

fn plan() -> Seccomp {
    // A third each, in an order that makes spans of every length, without the calls that have rules.
    let ruled: Vec<u32> = rules::of(&Seccomp::default()).into_keys().chain(rules::opaque(true)).collect();
    let plain = |number: &u32| !ruled.contains(number);
    let allow = (0..NUMBERS).filter(|number| number % 7 < 3 || number % 64 > 50).filter(plain).collect();
    let refuse = (0..NUMBERS).filter(|number| number % 5 == 4).filter(plain).collect();
    Seccomp { allow, refuse, families: vec![1, 2], strict: false }
}

#[test]
fn every_number_gets_its_answer() {
    let plan = plan();
    let filters = compile(&plan).unwrap();
    for number in (0..2 * NUMBERS).chain([X32 - 1, X32, X32 + 39, SKIPPED - 1, SKIPPED]) {
        let expected = if number >= X32 && number != SKIPPED && cfg!(target_arch = "x86_64") {
            libc::SECCOMP_RET_KILL_PROCESS
        } else if plan.refuse.contains(&number) {
            errno(libc::EPERM)
        } else if plan.allow.contains(&number) {
            libc::SECCOMP_RET_ALLOW
        } else {
            errno(libc::ENOSYS)
        };
        assert_eq!(run(&filters, ARCHITECTURE, number, [0; 6]), expected, "{number}");
        let foreign = run(&filters, 0x4000_0003, number, [0; 6]);
        assert_eq!(foreign, libc::SECCOMP_RET_KILL_PROCESS, "{number}");
    }
}

#[test]
fn rules_of_one_call_are_all_asked() {
    let socket = libc::SYS_socket as u32;
    let filters =
        compile(&Seccomp { allow: vec![socket], families: vec![1, 2], ..Seccomp::default() }).unwrap();
    let asked =
        |family, kind, protocol| run(&filters, ARCHITECTURE, socket, [family, kind, protocol, 0, 0, 0]);
    assert_eq!(asked(1, 1, 0), libc::SECCOMP_RET_ALLOW);
    assert_eq!(asked(2, 1 | 0o2_000_000, 6), libc::SECCOMP_RET_ALLOW);
    assert_eq!(asked(2, 1, 262), errno(libc::EPROTONOSUPPORT));
    assert_eq!(asked(38, 5, 0), errno(libc::EAFNOSUPPORT));
    // The kernel takes the lower half alone.
    assert_eq!(asked(38 | 1 << 32, 5, 0), errno(libc::EAFNOSUPPORT));
    assert_eq!(asked(2, 1, 262 | 1 << 32), errno(libc::EPROTONOSUPPORT));
    let none = compile(&Seccomp { allow: vec![socket], ..Seccomp::default() }).unwrap();
    assert_eq!(run(&none, ARCHITECTURE, socket, [1, 1, 0, 0, 0, 0]), errno(libc::EAFNOSUPPORT));
}

#[test]
fn what_a_filter_cannot_see_is_never_let_through() {
    let all = Seccomp { allow: (0..NUMBERS).collect(), ..Seccomp::default() };
    let strict = Seccomp { strict: true, ..all.clone() };
    for (plan, is_strict) in [(all, false), (strict, true)] {
        let filters = compile(&plan).unwrap();
        for number in rules::opaque(is_strict) {
            assert_eq!(run(&filters, ARCHITECTURE, number, [0; 6]), errno(libc::ENOSYS), "{number}");
        }
    }
}

#[test]
fn refusal_wins_over_permission() {
    let both = Seccomp { allow: vec![1, 2], refuse: vec![2], ..Seccomp::default() };
    let filters = compile(&both).unwrap();
    assert_eq!(run(&filters, ARCHITECTURE, 1, [0; 6]), libc::SECCOMP_RET_ALLOW);
    assert_eq!(run(&filters, ARCHITECTURE, 2, [0; 6]), errno(libc::EPERM));
}

#[test]
fn a_number_that_no_call_has_is_an_error() {
    for number in [NUMBERS, X32, u32::MAX] {
        let plan = Seccomp { allow: vec![number], ..Seccomp::default() };
        assert!(matches!(compile(&plan), Err(CompileError::Number(found)) if found == number));
        let plan = Seccomp { refuse: vec![number], ..Seccomp::default() };
        assert!(matches!(compile(&plan), Err(CompileError::Number(found)) if found == number));
    }
}
