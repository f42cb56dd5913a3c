use super::*;
use proptest::prelude::*;

#[test]
fn a_late_reader_is_told_what_it_missed() {
    let mut ring = Ring::new(4);
    ring.push(b"abcdef");
    assert_eq!((ring.start(), ring.end(), ring.dropped(), ring.retained()), (2, 6, 2, 4));
    assert_eq!(ring.read(0, 3), Read { gap: Some((0, 2)), offset: 2, bytes: b"cde" });
    assert_eq!(ring.read(5, 3), Read { gap: None, offset: 5, bytes: b"f" });
    assert_eq!(ring.read(9, 3), Read { gap: None, offset: 9, bytes: b"" });
    assert!(ring.full());
}

#[test]
fn eviction_does_not_cut_a_character() {
    let mut ring = Ring::new(6);
    ring.push("€€€".as_bytes());
    assert_eq!(ring.copy(0), "€€".as_bytes());
    ring.push(b"x");
    assert_eq!(ring.copy(0), "€x".as_bytes());
    ring.evict_to(0);
    assert_eq!((ring.retained(), ring.start()), (0, 10));
}

#[test]
fn a_chunk_does_not_end_within_a_character() {
    let mut ring = Ring::new(4 * CHUNK);
    let text = "€".repeat(CHUNK);
    for part in text.as_bytes().chunks(4099) {
        ring.push(part);
    }
    let mut offset = 0;
    while offset < ring.end() {
        let read = ring.read(offset, usize::MAX);
        assert!(std::str::from_utf8(read.bytes).is_ok() && read.bytes.len() <= CHUNK);
        offset += read.bytes.len() as u64;
    }
    assert_eq!(offset, text.len() as u64);
}

#[test]
fn a_closed_ring_takes_nothing() {
    let mut ring = Ring::new(8);
    ring.push(b"a");
    ring.close();
    ring.push(b"b");
    assert!(ring.closed());
    assert_eq!(ring.total(), 1);
}

#[test]
fn debug_shows_lengths_only() {
    let (mut ring, mut stdin) = (Ring::new(8), StdinBuffer::new(8));
    ring.push(b"hunter2");
    assert_eq!(stdin.write(None, b"hunter2", false), Ok(7));
    let shown = format!("{ring:?} {stdin:?} {:?}", ring.read(0, 8));
    assert!(!shown.contains("hunter") && !shown.contains("104"));
}

#[test]
fn the_same_offset_is_written_once() {
    let mut stdin = StdinBuffer::new(16);
    assert_eq!(stdin.write(Some(0), b"abc", false), Ok(3));
    assert_eq!(stdin.write(Some(0), b"abc", false), Ok(3));
    assert_eq!(stdin.write(Some(2), b"cde", true), Ok(5));
    assert_eq!(stdin.write(Some(2), b"cde", true), Ok(5), "also after the end");
    assert_eq!(stdin.peek(), b"abcde");
    assert_eq!(stdin.write(Some(5), b"f", false), Err(StdinError::Closed));
    assert_eq!(stdin.write(None, b"", true), Err(StdinError::Closed));
    assert!(!stdin.eof());
    stdin.consume(5);
    assert!(stdin.eof());
}

#[test]
fn a_write_beyond_what_was_accepted_is_a_gap() {
    let mut stdin = StdinBuffer::new(16);
    assert_eq!(stdin.write(Some(1), b"x", false), Err(StdinError::Gap { accepted_offset: 0 }));
}

#[test]
fn full_says_how_far_and_goes_on_from_there() {
    let mut stdin = StdinBuffer::new(4);
    assert_eq!(stdin.write(None, b"abcdef", true), Err(StdinError::Full { accepted_offset: 0 }));
    assert_eq!(stdin.write(Some(0), b"abcdef", true), Err(StdinError::Full { accepted_offset: 4 }));
    assert_eq!(stdin.peek(), b"abcd");
    stdin.consume(3);
    assert_eq!(stdin.write(Some(4), b"ef", true), Ok(6));
    assert_eq!(stdin.peek(), b"def");
    stdin.consume(3);
    assert!(stdin.eof());
}

#[test]
fn a_program_that_closed_its_end_gets_nothing() {
    let mut stdin = StdinBuffer::new(4);
    assert_eq!(stdin.write(None, b"ab", false), Ok(2));
    stdin.close();
    assert_eq!(stdin.peek(), b"");
    assert_eq!(stdin.write(Some(0), b"ab", false), Err(StdinError::Closed));
}

#[test]
fn consumed_bytes_are_wiped() {
    let mut buffer = Wiped::default();
    buffer.append(b"secret", 64);
    buffer.consume(4);
    assert_eq!(&buffer.bytes, b"\0\0\0\0et");
}

#[derive(Debug, Clone)]
enum Step {
    Push(Vec<u8>),
    PushLarge(u8, usize),
    Evict(usize),
    Attach(u64),
    Read(usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..200).prop_map(Step::Push),
        1 => (any::<u8>(), 0..2 * CHUNK).prop_map(|(byte, count)| Step::PushLarge(byte, count)),
        1 => (0..2 * CHUNK).prop_map(Step::Evict),
        1 => any::<u64>().prop_map(Step::Attach),
        4 => (any::<usize>(), 1..500usize).prop_map(|(reader, max)| Step::Read(reader, max)),
    ]
}

struct Reader {
    next: u64,
    from: u64,
    got: u64,
    gaps: u64,
}

/// One read, compared with what was produced; whether there was anything.
fn advance(reader: &mut Reader, ring: &Ring, produced: &[u8], max: usize) -> bool {
    let read = ring.read(reader.next, max);
    if let Some((from, to)) = read.gap {
        assert_eq!((from, to), (reader.next, read.offset));
        assert_eq!(to, ring.start());
        reader.gaps += to - from;
    } else {
        assert_eq!(read.offset, reader.next);
    }
    let at = read.offset as usize;
    assert!(read.bytes.len() <= max);
    assert!(read.bytes == &produced[at..at + read.bytes.len()], "other bytes than were produced at {at}");
    assert_eq!(read.bytes.is_empty(), read.offset == ring.end());
    reader.got += read.bytes.len() as u64;
    reader.next = read.offset + read.bytes.len() as u64;
    !read.bytes.is_empty()
}

proptest! {
    #[test]
    fn replay_and_live_are_what_was_produced_less_the_declared_gaps(
        capacity in prop_oneof![0..300usize, 0..3 * CHUNK],
        steps in prop::collection::vec(step(), 0..120),
    ) {
        let (mut ring, mut produced) = (Ring::new(capacity), Vec::new());
        let mut readers = vec![Reader { next: 0, from: 0, got: 0, gaps: 0 }];
        for step in steps {
            match step {
                Step::Push(bytes) => {
                    ring.push(&bytes);
                    produced.extend(bytes);
                }
                Step::PushLarge(byte, count) => {
                    let bytes: Vec<u8> = (0..count).map(|i| byte.wrapping_add((i % 251) as u8)).collect();
                    ring.push(&bytes);
                    produced.extend(bytes);
                }
                Step::Evict(retained) => {
                    ring.evict_to(retained);
                    prop_assert!(ring.retained() <= retained);
                }
                Step::Attach(offset) => {
                    let from = offset % (ring.end() + 1);
                    readers.push(Reader { next: from, from, got: 0, gaps: 0 });
                }
                Step::Read(reader, max) => {
                    let index = reader % readers.len();
                    advance(&mut readers[index], &ring, &produced, max);
                }
            }
            prop_assert!(ring.retained() <= capacity);
            prop_assert_eq!(ring.total(), produced.len() as u64);
            prop_assert_eq!(ring.dropped() + ring.retained() as u64, ring.total());
            let allocated: usize = ring.chunks.iter().map(|(_, chunk)| chunk.bytes.capacity()).sum();
            prop_assert!(allocated <= 2 * capacity + 3 * CHUNK, "allocated {} for {}", allocated, capacity);
        }
        prop_assert!(ring.copy(0) == produced[ring.start() as usize..]);
        for reader in &mut readers {
            while advance(reader, &ring, &produced, 70_000) {}
            prop_assert_eq!(reader.got + reader.gaps, ring.end() - reader.from);
        }
    }

    #[test]
    fn stdin_arrives_once_and_in_order_however_it_is_repeated(
        content in prop::collection::vec(any::<u8>(), 0..2000),
        capacity in 1..300usize,
        steps in prop::collection::vec((any::<u64>(), 0..400usize, 0..200usize), 0..200),
    ) {
        let (mut stdin, mut got) = (StdinBuffer::new(capacity), Vec::new());
        let mut send = |stdin: &mut StdinBuffer, from: u64, length: usize, consumed: usize| {
            let from = from % (stdin.accepted() + 1);
            let to = content.len().min(from as usize + length);
            let _ = stdin.write(Some(from), &content[from as usize..to], to == content.len());
            assert!(stdin.peek().len() <= capacity);
            let now = consumed.min(stdin.peek().len());
            got.extend_from_slice(&stdin.peek()[..now]);
            stdin.consume(now);
        };
        for (from, length, consumed) in steps {
            send(&mut stdin, from, length, consumed);
        }
        while !stdin.eof() {
            let from = stdin.accepted();
            send(&mut stdin, from, 100, usize::MAX);
        }
        prop_assert!(got == content);
    }
}
