//! Output of a command to a client, against a minimal relay; both are read by the same code.

use crate::harness::{Client, Daemon, median};
use serde::Serialize;
use serde_json::json;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Instant;

const SIZE: u64 = 300_000_000;
const PRODUCER: &str = "yes 'a line of output, as programs write them, of eighty bytes with its end ......' \
                        | head -c 300000000";

/// Reads lines to the last one; MB/s of what the program wrote.
fn consume(stream: &mut BufReader<UnixStream>, start: Instant) -> f64 {
    let (mut line, mut bytes) = (Vec::new(), 0u64);
    loop {
        line.clear();
        stream.read_until(b'\n', &mut line).unwrap();
        bytes += line.len() as u64;
        let head = String::from_utf8_lossy(&line[..line.len().min(80)]);
        assert!(!line.is_empty() && !head.contains("\"ok\":false"), "{head}");
        if head.contains("\"end\"") {
            break;
        }
    }
    assert!(bytes > SIZE);
    SIZE as f64 / start.elapsed().as_secs_f64() / 1e6
}

fn subject(client: &mut Client, session: &str) -> f64 {
    let params = json!({"session_id": session, "command": PRODUCER, "overflow": "block"});
    let line = format!("{}\n", json!({"id": "s", "method": "exec.stream", "params": params}));
    let start = Instant::now();
    client.stream.get_mut().write_all(line.as_bytes()).unwrap();
    consume(&mut client.stream, start)
}

#[derive(Serialize)]
struct Frame<'a> {
    id: &'a str,
    event: &'a str,
    data: Data<'a>,
}

#[derive(Serialize)]
struct Data<'a> {
    stream: &'a str,
    offset: usize,
    data: &'a str,
    encoding: &'a str,
}

/// One thread reads a pipe, checks that it is UTF-8, escapes it as JSON and writes it to a socket, through two
/// buffers that it keeps.
fn relay() -> f64 {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let start = Instant::now();
    let relaying = std::thread::spawn(move || {
        let mut child =
            Command::new("/bin/sh").args(["-c", PRODUCER]).stdout(Stdio::piped()).spawn().unwrap();
        let mut output = child.stdout.take().unwrap();
        let (mut buffer, mut frame, mut offset) = (vec![0; 65536], Vec::with_capacity(1 << 17), 0);
        loop {
            let count = output.read(&mut buffer).unwrap();
            let data = std::str::from_utf8(&buffer[..count]).unwrap();
            let event = if count == 0 { "end" } else { "output" };
            frame.clear();
            let data = Data { stream: "stdout", offset, data, encoding: "utf-8" };
            serde_json::to_writer(&mut frame, &Frame { id: "s", event, data }).unwrap();
            frame.push(b'\n');
            theirs.write_all(&frame).unwrap();
            offset += count;
            if count == 0 {
                break;
            }
        }
        child.wait().unwrap();
    });
    let rate = consume(&mut BufReader::with_capacity(256 * 1024, ours), start);
    relaying.join().unwrap();
    rate
}

/// Subject and floor in turn; medians, and the daemon's CPU time.
pub fn measure(daemon: &Daemon, rounds: usize) {
    let mut client = daemon.connect();
    let session = client.session();
    let (mut ours, mut floor, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    subject(&mut client, &session);
    for _ in 0..rounds {
        let before = daemon.cpu_seconds();
        ours.push(subject(&mut client, &session));
        cpu.push((daemon.cpu_seconds() - before) / (SIZE as f64 / 1e9));
        floor.push(relay());
    }
    client.destroy(&session);
    let (o, f) = (median(&ours), median(&floor));
    println!("{:<36} median {o:6.0} MB/s | relay {f:6.0} MB/s | {:5.2}x", "exec.stream", o / f);
    println!("{:<36} {ours:.0?} against {floor:.0?}", "  rounds, MB/s");
    println!("{:<36} median {:6.2} CPU seconds of the daemon a GB", "  relayed output", median(&cpu));
}
