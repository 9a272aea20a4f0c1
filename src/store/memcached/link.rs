//! One connection to a server, shared by all operations: their commands are sent as they come, and answered in order.
//!
//! [`Link::run`] waits for nothing but the answers: the caller bounds the time. An operation that is given up leaves its
//! answers to be skipped. When the connection breaks, every operation in progress fails, and it is unknown which commands
//! took effect.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::BytesMut;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::protocol::{Answer, Requests, take_answer};

/// How many groups of commands may wait to be sent.
const WAITING: usize = 1_024;

/// How many groups of commands may wait for their answers.
const UNANSWERED: usize = 4_096;

/// How many bytes are sent together, at least while there are more.
const BATCH: usize = 64 << 10;

/// How much is received at once. A value that is in use keeps so much memory.
const ROOM: usize = 32 << 10;

/// Below this much free room, another [`ROOM`] is allocated.
const LEAST_ROOM: usize = 4 << 10;

/// The sending end of a connection; cloning shares it. The connection ends after the last one is dropped and all answers
/// have come.
#[derive(Clone, Debug)]
pub(super) struct Link(mpsc::Sender<Group>);

/// Commands that are sent together, and where their answers go.
#[derive(Debug)]
struct Group {
    wire: Vec<u8>,
    awaits: Awaiting,
}

#[derive(Debug)]
struct Awaiting {
    count: usize,
    answers: Vec<Answer>,
    done: oneshot::Sender<Vec<Answer>>,
}

/// What the two directions of a connection share.
struct Shared {
    unanswered: Mutex<VecDeque<Awaiting>>,
    slots: Semaphore,
    /// Nothing more is sent.
    is_closing: AtomicBool,
}

impl Link {
    /// Creates a link, and what carries its bytes: a future that ends with the reason when the connection has ended.
    pub(super) fn over<S>(stream: S) -> (Self, impl Future<Output = String> + Send)
    where
        S: AsyncRead + AsyncWrite + Send,
    {
        let (sender, groups) = mpsc::channel(WAITING);
        (Self(sender), carry(stream, groups))
    }

    /// Sends commands and returns their answers; `None` if the connection breaks.
    pub(super) async fn run(&self, requests: Requests) -> Option<Vec<Answer>> {
        let (done, answered) = oneshot::channel();
        let count = requests.count();
        let awaits = Awaiting { count, answers: Vec::with_capacity(count), done };
        self.0.send(Group { wire: requests.into_wire(), awaits }).await.ok()?;
        answered.await.ok()
    }
}

async fn carry<S: AsyncRead + AsyncWrite>(stream: S, groups: mpsc::Receiver<Group>) -> String {
    let (receiving, sending) = tokio::io::split(stream);
    let shared =
        Shared { unanswered: Mutex::default(), slots: Semaphore::new(UNANSWERED), is_closing: AtomicBool::new(false) };
    // Both directions at once: a server that cannot send does not receive either.
    tokio::select! {
        why = send(sending, groups, &shared) => why,
        why = receive(receiving, &shared) => why,
    }
}

async fn send<S: AsyncWrite>(mut stream: WriteHalf<S>, mut groups: mpsc::Receiver<Group>, shared: &Shared) -> String {
    let mut wire = Vec::new();
    loop {
        // The semaphore is never closed.
        let Ok(slot) = shared.slots.acquire().await else { return String::new() };
        let Some(first) = groups.recv().await else { break };
        slot.forget();
        wire.clear();
        if queue(first, &mut wire, shared) > 1 {
            // Under load, other tasks that are ready have commands too: one write for all of them.
            tokio::task::yield_now().await;
        }
        while wire.len() < BATCH
            && let Ok(slot) = shared.slots.try_acquire()
            && let Ok(next) = groups.try_recv()
        {
            slot.forget();
            queue(next, &mut wire, shared);
        }
        let sent = async {
            stream.write_all(&wire).await?;
            stream.flush().await
        };
        if let Err(error) = sent.await {
            return error.to_string();
        }
    }
    shared.is_closing.store(true, Ordering::Release);
    if shared.unanswered.lock().is_empty() {
        return "it is not used any more".to_owned();
    }
    std::future::pending().await
}

/// Adds commands to what is sent next. Their place among the answers is taken before. Returns how many groups are unanswered.
fn queue(group: Group, wire: &mut Vec<u8>, shared: &Shared) -> usize {
    wire.extend_from_slice(&group.wire);
    let mut unanswered = shared.unanswered.lock();
    unanswered.push_back(group.awaits);
    unanswered.len()
}

async fn receive<S: AsyncRead>(mut stream: ReadHalf<S>, shared: &Shared) -> String {
    let mut received = BytesMut::with_capacity(ROOM);
    loop {
        match take_answer(&mut received) {
            Ok(Some(answer)) => {
                if let Err(why) = assign(answer, shared) {
                    return why;
                }
                if shared.is_closing.load(Ordering::Acquire) && shared.unanswered.lock().is_empty() {
                    return "it is not used any more".to_owned();
                }
                continue;
            }
            Ok(None) => {}
            Err(unreadable) => return unreadable.to_string(),
        }
        if received.capacity() - received.len() < LEAST_ROOM {
            received.reserve(ROOM);
        }
        match stream.read_buf(&mut received).await {
            Ok(0) => return "the server closed the connection".to_owned(),
            Ok(_) => {}
            Err(error) => return error.to_string(),
        }
    }
}

/// Gives an answer to the oldest commands without one.
fn assign(answer: Answer, shared: &Shared) -> Result<(), String> {
    let mut unanswered = shared.unanswered.lock();
    let first = unanswered.front_mut().ok_or("the server sends an answer to nothing")?;
    first.answers.push(answer);
    if first.answers.len() == first.count
        && let Some(whole) = unanswered.pop_front()
    {
        shared.slots.add_permits(1);
        // The operation may have been given up.
        let _ = whole.done.send(whole.answers);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::duplex;
    use tokio::time::timeout;

    use super::*;

    /// More than any test takes.
    const PATIENCE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn answers_go_to_their_commands_also_after_one_is_given_up() {
        let (ours, mut theirs) = duplex(1 << 16);
        let (link, carried) = Link::over(ours);
        let carried = tokio::spawn(carried);
        let mut given_up = Box::pin(link.run(Requests::default().get("a").get("b")));
        assert!(timeout(Duration::from_millis(1), &mut given_up).await.is_err());
        drop(given_up);
        let served = async {
            // When both groups have arrived: nothing is answered before it was asked.
            theirs.read_exact(&mut [0; 25]).await.unwrap();
            theirs.write_all(b"EN\r\nVA 1 c1 t1\r\nx\r\n").await.unwrap();
            theirs.write_all(b"HD c7\r\n").await.unwrap();
        };
        let (answers, ()) = tokio::join!(link.run(Requests::default().delete("c")), served);
        assert_eq!(answers, Some(vec![Answer::Done(7)]));
        drop(link);
        assert_eq!(timeout(PATIENCE, carried).await.unwrap().unwrap(), "it is not used any more");
    }

    #[tokio::test]
    async fn a_broken_connection_fails_every_operation_in_progress() {
        for last in [&b""[..], b"CLIENT_ERROR no\r\n"] {
            let (ours, mut theirs) = duplex(1 << 16);
            let (link, carried) = Link::over(ours);
            let carried = tokio::spawn(carried);
            let broken = async {
                // When both have arrived.
                theirs.read_exact(&mut [0; 22]).await.unwrap();
                theirs.write_all(last).await.unwrap();
                drop(theirs);
            };
            let run = |key| link.run(Requests::default().get(key));
            let answers = timeout(PATIENCE, async { tokio::join!(run("a"), run("b"), broken) }).await.unwrap();
            assert_eq!(answers, (None, None, ()));
            assert!(!carried.await.unwrap().is_empty());
            assert_eq!(link.run(Requests::default().get("c")).await, None);
        }
    }
}
