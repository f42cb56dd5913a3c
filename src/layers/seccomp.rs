//! System call filters: what a plan allows, refuses, and allows only with some arguments.
//!
//! One BPF program decides everything, so there is no order of filters to get wrong:
//!
//! ```text
//! another architecture ─► kill        number ─► binary search over spans of numbers ─► allow
//! x32's numbers        ─► kill                                                      ├─► EPERM
//! anything else unknown ─► ENOSYS                                                   └─► a rule on arguments
//! ```
//!
//! The search keeps installing cheap: the kernel runs a new filter once for every number, to learn which calls it need
//! not be asked about again. The rules on arguments are `seccompiler`'s programs for one system call each, as leaves
//! of the search: BPF jumps are relative, so a program can be moved as it is.

mod rules;

use crate::plan;
use rules::{Kind, Rule, Test};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    sock_filter,
};
use std::collections::{BTreeMap, BTreeSet};
use std::io;

/// No architecture has as many; x86-64 has numbers of x32 from here on, some of which old kernels take.
const NUMBERS: u32 = 512;
/// From here on x86-64 takes a number for x32's.
const X32: u32 = 0x4000_0000;
/// What a tracer writes to have a call skipped; no call of any ABI.
const SKIPPED: u32 = u32::MAX;
/// `BPF_MAXINSNS`.
const LONGEST: usize = 4096;

const LOAD: u16 = 0x20;
const JUMP: u16 = 0x05;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;
const NUMBER_OFFSET: u32 = 0;
const ARCHITECTURE_OFFSET: u32 = 4;

/// `AUDIT_ARCH_*` of this build.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
/// `AUDIT_ARCH_*` of this build.
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// A plan that no filter can be made of.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// Beyond every architecture's numbers.
    #[error("no system call has the number {0}")]
    Number(u32),
    /// Longer than the kernel takes.
    #[error("a filter of {0} instructions, of {LONGEST} at most")]
    TooLong(usize),
    /// A rule that the compiler of rules does not take.
    #[error("compile the rule of system call {number}: {error}")]
    Rule {
        /// The call.
        number: u32,
        /// Why.
        error: seccompiler::BackendError,
    },
}

/// Compiled, ready to be installed by any number of processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filters {
    program: BpfProgram,
}

impl Filters {
    /// How many instructions they come to.
    #[must_use]
    pub fn instructions(&self) -> usize {
        self.program.len()
    }
}

/// Compiles a plan's lists and the rules that go with them. A number in both lists is refused.
///
/// Never let through, whatever the plan says, since no filter can see what they are asked for: `clone3` and `io_uring_*`,
/// and in strict plans `openat2`. With `unshare` allowed, `clone` may make namespaces too.
///
/// # Errors
/// [`CompileError`].
pub fn compile(plan: &plan::Seccomp) -> Result<Filters, CompileError> {
    if let Some(number) = plan.allow.iter().chain(&plan.refuse).find(|number| **number >= NUMBERS) {
        return Err(CompileError::Number(*number));
    }
    let mut leaves: BTreeMap<u32, BpfProgram> = BTreeMap::new();
    for number in plan.allow.iter().filter(|number| !rules::opaque(plan.strict).contains(number)) {
        leaves.insert(*number, answer(libc::SECCOMP_RET_ALLOW));
    }
    let refused: BTreeSet<u32> = plan.refuse.iter().copied().collect();
    for number in &refused {
        leaves.insert(*number, answer(errno(libc::EPERM)));
    }
    for (number, of_call) in rules::of(plan) {
        if !refused.contains(&number) && leaves.contains_key(&number) {
            leaves.insert(number, chained(number, &of_call)?);
        }
    }
    let program = assemble(leaves);
    if program.len() > LONGEST { Err(CompileError::TooLong(program.len())) } else { Ok(Filters { program }) }
}

/// Installs them for the calling thread and all that it starts, for good. Sets `no_new_privs`.
///
/// # Errors
/// The kernel's.
pub fn apply(filters: &Filters) -> io::Result<()> {
    seccompiler::apply_filter(&filters.program).map_err(|error| match error {
        seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error) => error,
        _ => io::Error::from_raw_os_error(libc::EINVAL),
    })
}

fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

fn answer(value: u32) -> BpfProgram {
    vec![instruction(RETURN, 0, 0, value)]
}

fn errno(number: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | number.unsigned_abs()
}

/// Everything, from the leaves of single numbers.
fn assemble(leaves: BTreeMap<u32, BpfProgram>) -> BpfProgram {
    let unknown = answer(errno(libc::ENOSYS));
    let mut spans: Vec<(u32, BpfProgram)> = vec![(0, unknown.clone())];
    let mut add = |from: u32, leaf: &BpfProgram| {
        if spans.last().is_some_and(|(start, _)| *start == from) {
            spans.pop();
        }
        if spans.last().is_none_or(|(_, last)| last != leaf) {
            spans.push((from, leaf.clone()));
        }
    };
    for (number, leaf) in &leaves {
        add(*number, leaf);
        add(number + 1, &unknown);
    }
    if cfg!(target_arch = "x86_64") {
        add(X32, &answer(libc::SECCOMP_RET_KILL_PROCESS));
        add(SKIPPED, &unknown);
    }
    let mut program = vec![
        instruction(LOAD, 0, 0, ARCHITECTURE_OFFSET),
        instruction(JUMP_IF_EQUAL, 1, 0, ARCHITECTURE),
        instruction(RETURN, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
        instruction(LOAD, 0, 0, NUMBER_OFFSET),
    ];
    program.extend(search(&spans));
    program
}

/// Finds the span that the loaded number lies in.
fn search(spans: &[(u32, BpfProgram)]) -> BpfProgram {
    if let [(_, leaf)] = spans {
        return leaf.clone();
    }
    let (low, high) = spans.split_at(spans.len() / 2);
    let (least, below) = (high.first().map_or(0, |(start, _)| *start), search(low));
    let mut program = match u8::try_from(below.len()) {
        Ok(distance) => vec![instruction(JUMP_IF_AT_LEAST, distance, 0, least)],
        // A conditional jump goes 255 instructions at most, a plain one any way.
        Err(_) => vec![
            instruction(JUMP_IF_AT_LEAST, 0, 1, least),
            instruction(JUMP, 0, 0, u32::try_from(below.len()).unwrap_or(u32::MAX)),
        ],
    };
    program.extend(below);
    program.extend(search(high));
    program
}

/// What a compiled rule begins with; the search has made sure of all of it.
fn prologue(number: u32) -> [sock_filter; 5] {
    [
        instruction(LOAD, 0, 0, ARCHITECTURE_OFFSET),
        instruction(JUMP_IF_EQUAL, 1, 0, ARCHITECTURE),
        instruction(RETURN, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
        instruction(LOAD, 0, 0, NUMBER_OFFSET),
        instruction(JUMP_IF_EQUAL, 0, 1, number),
    ]
}

/// The rules of one call, one after the other: where one lets a call through, the next is asked.
fn chained(number: u32, of_call: &[Rule]) -> Result<BpfProgram, CompileError> {
    let mut program = BpfProgram::new();
    for (index, rule) in of_call.iter().enumerate() {
        let mut part = compiled(number, rule).map_err(|error| CompileError::Rule { number, error })?;
        if part.starts_with(&prologue(number)) {
            part.drain(..prologue(number).len());
        }
        if index + 1 < of_call.len() {
            let length = part.len();
            for (at, step) in part.iter_mut().enumerate() {
                if step.code == RETURN && step.k == libc::SECCOMP_RET_ALLOW {
                    let behind = u32::try_from(length - at - 1).unwrap_or(u32::MAX);
                    *step = instruction(JUMP, 0, 0, behind);
                }
            }
        }
        program.extend(part);
    }
    Ok(program)
}

fn compiled(number: u32, rule: &Rule) -> Result<BpfProgram, seccompiler::BackendError> {
    let refusal = SeccompAction::Errno(rule.errno.unsigned_abs());
    let (otherwise, then) = match rule.kind {
        Kind::OnlyIf => (refusal, SeccompAction::Allow),
        Kind::NeverIf => (SeccompAction::Allow, refusal),
    };
    let any =
        rule.any.iter().map(|all| SeccompRule::new(all.iter().map(condition).collect::<Result<_, _>>()?));
    let rules = BTreeMap::from([(i64::from(number), any.collect::<Result<Vec<_>, _>>()?)]);
    SeccompFilter::new(rules, otherwise, then, std::env::consts::ARCH.try_into()?)?.try_into()
}

/// Of C `int`s the kernel drops the upper half, and so does the test.
fn condition(test: &Test) -> Result<SeccompCondition, seccompiler::BackendError> {
    let operator = match test.mask {
        u32::MAX => SeccompCmpOp::Eq,
        mask => SeccompCmpOp::MaskedEq(u64::from(mask)),
    };
    let length = if test.wide { SeccompCmpArgLen::Qword } else { SeccompCmpArgLen::Dword };
    SeccompCondition::new(test.argument, length, operator, u64::from(test.value))
}

#[cfg(test)]
#[path = "seccomp/tests.rs"]
mod tests;
