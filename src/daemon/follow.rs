//! Following an exec: a cursor over its rings, from a snapshot to the end without a seam.

use super::dispatch::Call;
use super::exec::{Exec, STREAMS, rfc3339};
use super::wire::text::{complete_prefix, encode_bytes};
use super::wire::{Code, WireError};
use serde::Serialize;
use serde_json::json;
use std::rc::Rc;

/// Most bytes of one `output` event.
const CHUNK: usize = 64 * 1024;

#[derive(Serialize)]
struct Output<'a> {
    exec_id: crate::ids::ExecId,
    stream: &'static str,
    offset: u64,
    data: &'a str,
    encoding: &'static str,
}

/// Counts a follower for as long as it is there.
struct Following<'a>(&'a Exec, u64);

impl Drop for Following<'_> {
    fn drop(&mut self) {
        self.0.followers.set(self.0.followers.get().saturating_sub(1));
        if self.0.followers.get() == 0 && self.0.writer.get() == Some(self.1) {
            self.0.writer.set(None);
        }
    }
}

/// Sends events from `cursors` on to the end, or until the client is gone or too slow.
pub async fn follow(call: &Call, exec: &Rc<Exec>, mut cursors: [u64; 2]) -> Result<(), WireError> {
    exec.followers.set(exec.followers.get() + 1);
    let _following = Following(exec, call.outbox.number);
    // Only a snapshot may begin with a gap: what is lost later, was lost to a reader that was too slow.
    let mut fresh = [true; 2];
    let mut warned = None;
    let mut line = Vec::new();
    loop {
        let changed = exec.changed.notified();
        if let Some(at) = exec.expiring.get()
            && warned != Some(at)
        {
            warned = Some(at);
            let data = json!({"session_id": exec.session, "exec_id": exec.id, "at": rfc3339(at)});
            call.event("expiring", &data).await;
        }
        let mut idle = true;
        for index in 0..2 {
            idle &= !step(call, exec, index, &mut cursors, &mut fresh, &mut line).await?;
        }
        if call.outbox.is_closed() {
            return Ok(());
        }
        if idle {
            if exec.has_ended() {
                break;
            }
            changed.await;
        }
    }
    call.outbox.room_for(exec.retained()).await;
    if let Some(id) = &call.id {
        let line = exec.outcome(|outcome| super::wire::encode_event(id, call.rpc, "end", outcome));
        call.outbox.send(line);
    }
    Ok(())
}

/// Sends the next part of one stream; whether there was any.
async fn step(
    call: &Call,
    exec: &Rc<Exec>,
    index: usize,
    cursors: &mut [u64; 2],
    fresh: &mut [bool; 2],
    line: &mut Vec<u8>,
) -> Result<bool, WireError> {
    call.outbox.room_for(CHUNK + 1).await;
    let ended = exec.has_ended();
    let (gap, next) = {
        let rings = exec.output.borrow();
        let ring = &rings[index];
        if cursors[index] >= ring.end() {
            fresh[index] = false;
            return Ok(false);
        }
        let read = ring.read(cursors[index], CHUNK);
        if read.gap.is_some() && !fresh[index] {
            let [stdout, stderr] = *cursors;
            return Err(WireError::new(Code::SlowConsumer, "output was dropped before it could be sent")
                .with(json!({"exec_id": exec.id, "stdout_offset": stdout, "stderr_offset": stderr})));
        }
        let mut bytes = read.bytes;
        let at_end = read.offset + bytes.len() as u64 >= ring.end();
        if !(ended && at_end) {
            let whole = complete_prefix(bytes);
            // A part that holds no whole character at all is sent as it is, unless the rest may still come.
            if whole > 0 || at_end {
                bytes = &bytes[..whole];
            }
        }
        if let Some(id) = call.id.as_ref().filter(|_| !bytes.is_empty()) {
            let (data, encoding) = encode_bytes(bytes);
            let output = Output {
                exec_id: exec.id,
                stream: STREAMS[index],
                offset: read.offset,
                data: &data,
                encoding,
            };
            // A quarter more for what is escaped: growing would copy all of it.
            line.reserve(data.len() + data.len() / 4 + 256);
            super::wire::encode_event_into(line, id, call.rpc, "output", &output);
        }
        (read.gap, read.offset + bytes.len() as u64)
    };
    let moved = next > cursors[index];
    cursors[index] = next;
    if let Some((from, to)) = gap {
        let data = json!({"exec_id": exec.id, "stream": STREAMS[index], "from": from, "to": to});
        call.event("gap", &data).await;
    }
    if !line.is_empty() {
        call.outbox.send_from(line);
    }
    fresh[index] = false;
    if moved {
        consumed(exec, index, next);
    }
    Ok(moved)
}

/// Says that somebody has read up to `offset`.
pub fn consumed(exec: &Exec, index: usize, offset: u64) {
    let mut consumed = exec.consumed.get();
    if offset > consumed[index] {
        consumed[index] = offset;
        exec.consumed.set(consumed);
        if exec.rules.overflow == super::wire::types::Overflow::Block {
            exec.wake.notify_one();
        }
    }
}
