//! What a peer of the server cannot see.

use crate::reactor::{Context, Flow, Full, Id, Names, Order, Reactor, Refused, Remote, Runtime, Settings};
use echo_lab::cli::StreamArgs;
use echo_lab::stream::{Ledger, Split};
use mio::net::TcpListener;
use std::io::Read;
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(10);

/// Sends every command to its peer, and what happens to the test.
struct Told(Sender<String>);

impl Reactor<Vec<u8>> for Told {
    fn connected(&mut self, _: &mut Context<Vec<u8>>) -> Flow {
        let _ = self.0.send("connected".into());
        Flow::Continue
    }

    fn message(&mut self, _: &mut Context<Vec<u8>>, message: &[u8]) -> Flow {
        let _ = self.0.send(format!("message {}", String::from_utf8_lossy(message)));
        if message == b"close" { Flow::Close } else { Flow::Continue }
    }

    fn command(&mut self, context: &mut Context<Vec<u8>>, command: Vec<u8>) -> Flow {
        let told = self.0.clone();
        let sent = context.send_then(&command, move |sent| {
            let _ = told.send(format!("sent {sent}"));
        });
        if sent == Err(Full) {
            let _ = self.0.send("full".into());
        }
        Flow::Continue
    }

    fn closed(&mut self) {
        let _ = self.0.send("closed".into());
    }
}

fn new(name: &str, names: &Names<Vec<u8>>) -> echo_lab::Result<Runtime<Vec<u8>>> {
    let bind = SocketAddr::from(([127, 0, 0, 1], 0));
    let args = StreamArgs { bind, buffer: 65536, verbose: false, json: false };
    let settings = Settings { split: Some(Split::Frames), limit: 64 << 20, buffer: 65536 };
    Runtime::new(name, names, settings, Arc::new(Mutex::new(Ledger::new(&args, bind))))
}

fn start() -> (Remote<Vec<u8>>, JoinHandle<u64>) {
    let runtime = new("test", &Names::default()).unwrap();
    (runtime.remote(), thread::spawn(|| runtime.run().unwrap()))
}

/// Gives an order, and waits for what comes of it.
fn ordered(remote: &Remote<Vec<u8>>, order: Order<Vec<u8>>) -> Result<Id, Refused> {
    let (done, result) = channel();
    remote.order(order, move |of_order| done.send(of_order).unwrap());
    let outcome = result.recv_timeout(SOON).expect("completed");
    assert!(result.recv().is_err(), "completed twice");
    outcome
}

fn next(told: &Receiver<String>) -> String {
    told.recv_timeout(SOON).expect("something happens")
}

#[test]
fn orders_from_another_thread_are_completed_once() {
    let (remote, thread) = start();
    let listener = TcpListener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, server) = channel();
    let place = move || (None, Box::new(Told(tell.clone())) as Box<dyn Reactor<_>>);
    let listening = ordered(&remote, Order::Listen(listener, Box::new(place))).unwrap();
    let (tell, client) = channel();
    let id = ordered(&remote, Order::Connect(address, Box::new(Told(tell.clone())))).unwrap();
    assert_eq!((next(&client), next(&server)), ("connected".into(), "connected".into()));
    ordered(&remote, Order::Command(id, b"hello".to_vec())).unwrap();
    assert_eq!((next(&client), next(&server)), ("sent true".into(), "message hello".into()));
    ordered(&remote, Order::Command(id, b"close".to_vec())).unwrap();
    assert_eq!(
        (next(&client), next(&server), next(&server)),
        ("sent true".into(), "message close".into(), "closed".into())
    );
    assert_eq!(next(&client), "closed");

    let again = ordered(&remote, Order::Connect(address, Box::new(Told(tell.clone())))).unwrap();
    assert_ne!(again, id, "an id is never used again");
    assert!(matches!(ordered(&remote, Order::Command(id, Vec::new())), Err(Refused::Gone(gone)) if gone == id));
    assert!(matches!(ordered(&remote, Order::Close(id)), Err(Refused::Gone(_))));
    ordered(&remote, Order::Close(again)).unwrap();
    ordered(&remote, Order::Close(listening)).unwrap();
    let refused = ordered(&remote, Order::Connect(address, Box::new(Told(tell)))).unwrap_err();
    assert!(
        matches!(&refused, Refused::System(error) if error.kind() == std::io::ErrorKind::ConnectionRefused),
        "{refused}"
    );
    ordered(&remote, Order::Stop).unwrap();
    thread.join().unwrap();
    let ended = ordered(&remote, Order::Close(id)).unwrap_err();
    assert_eq!(ended.to_string(), "the runtime has ended");
}

#[test]
fn deferred_orders_come_in_order_of_time_and_never_early() {
    let (remote, thread) = start();
    let listener = TcpListener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let place = || -> (_, Box<dyn Reactor<_>>) { unreachable!("nobody connects") };
    let gone = ordered(&remote, Order::Listen(listener, Box::new(place))).unwrap();
    ordered(&remote, Order::Close(gone)).unwrap();
    let (tell, told) = channel();
    let start = Instant::now();
    for millis in [60, 20, 40, 0, 20] {
        let tell = tell.clone();
        // Of nobody: the refusal says when it was carried out.
        let order = Order::Close(gone);
        remote
            .order_after(Duration::from_millis(millis), order, move |_| tell.send((millis, start.elapsed())).unwrap());
    }
    let order: Vec<_> = (0..5).map(|_| told.recv_timeout(SOON).unwrap()).collect();
    assert_eq!(order.iter().map(|(millis, _)| *millis).collect::<Vec<_>>(), [0, 20, 20, 40, 60]);
    assert!(order.iter().all(|(millis, at)| *at >= Duration::from_millis(*millis)), "{order:?}");
    ordered(&remote, Order::Stop).unwrap();
    thread.join().unwrap();
}

/// 8 MiB to a peer that reads late: all arrive, and each completion comes once.
#[test]
fn what_cannot_be_sent_at_once_is_sent_later() {
    const MESSAGES: usize = 8;
    let (remote, thread) = start();
    let peer = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (tell, told) = channel();
    let connect = Order::Connect(peer.local_addr().unwrap(), Box::new(Told(tell)));
    let id = ordered(&remote, connect).unwrap();
    let (mut stream, _) = peer.accept().unwrap();
    let message = |number: usize| vec![number as u8; 1 << 20];
    (0..MESSAGES).for_each(|number| assert!(ordered(&remote, Order::Command(id, message(number))).is_ok()));
    thread::sleep(Duration::from_millis(50));
    for number in 0..MESSAGES {
        let mut frame = vec![0; 4 + (1 << 20)];
        stream.read_exact(&mut frame).unwrap();
        assert!(frame[..4] == (1u32 << 20).to_be_bytes() && frame[4..] == message(number), "message {number}");
    }
    let said: Vec<_> = (0..1 + MESSAGES).map(|_| next(&told)).collect();
    assert_eq!(said.iter().filter(|line| *line == "sent true").count(), MESSAGES, "{said:?}");

    // Nobody reads any more: what waits is bounded, and is reported as not sent when the connection is closed.
    (0..40).for_each(|number| assert!(ordered(&remote, Order::Command(id, message(number))).is_ok()));
    ordered(&remote, Order::Close(id)).unwrap();
    ordered(&remote, Order::Stop).unwrap();
    thread.join().unwrap();
    let said: Vec<_> = told.try_iter().collect();
    let count = |what: &str| said.iter().filter(|line| *line == what).count();
    assert!(count("full") >= 10 && count("sent false") >= 10, "{said:?}");
    assert_eq!(count("full") + count("sent false") + count("sent true"), 40, "{said:?}");
}

#[test]
fn a_name_stays_with_the_first_runtime_that_has_it() {
    let names = Names::default();
    let first = new("same", &names).unwrap();
    let refused = new("same", &names).map(drop).unwrap_err();
    assert_eq!(refused.to_string(), "there is a runtime of the name same; take another");
    assert!(names.find("same").is_some() && names.find("other").is_none());
    let remote = names.find("same").unwrap();
    let thread = thread::spawn(|| first.run().unwrap());
    ordered(&remote, Order::Stop).unwrap();
    thread.join().unwrap();
    assert!(names.find("same").is_none(), "free again");
}

/// A burst of orders wakes the runtime once or twice, and an idle one does not wake at all.
#[test]
fn a_runtime_waits_until_there_is_something() {
    let (remote, thread) = start();
    thread::sleep(Duration::from_millis(300));
    ordered(&remote, Order::Stop).unwrap();
    let waits = thread.join().unwrap();
    assert!(waits <= 3, "{waits} waits");
}
