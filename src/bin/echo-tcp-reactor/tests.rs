//! What a peer of the server cannot see.

use crate::reactor::{
    Codec, Context, Flow, Frames, Full, Id, Names, Next, ORDERS, Order, Reactor, Refused, Remote, Runtime, Settings,
    TooLong, lock,
};
use echo_lab::cli::StreamArgs;
use echo_lab::stream::Ledger;
use mio::net::{TcpListener, TcpStream};
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
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

fn ledger() -> Arc<Mutex<Ledger>> {
    let bind = SocketAddr::from(([127, 0, 0, 1], 0));
    let args = StreamArgs { bind, buffer: 65536, verbose: false, json: false };
    Arc::new(Mutex::new(Ledger::new(&args, bind)))
}

fn new(name: &str, names: &Names<Vec<u8>>, ledger: Arc<Mutex<Ledger>>) -> echo_lab::Result<Runtime<Vec<u8>>> {
    let settings = Settings { codec: Arc::new(Frames { limit: 64 << 20 }), buffer: 65536 };
    Runtime::new(name, names, settings, ledger)
}

fn start() -> (Remote<Vec<u8>>, JoinHandle<u64>) {
    start_with(ledger())
}

fn start_with(ledger: Arc<Mutex<Ledger>>) -> (Remote<Vec<u8>>, JoinHandle<u64>) {
    let runtime = new("test", &Names::default(), ledger).unwrap();
    (runtime.remote(), thread::spawn(|| runtime.run().unwrap()))
}

fn stop(remote: &Remote<Vec<u8>>, thread: JoinHandle<u64>) -> u64 {
    ordered(remote, Order::Stop).unwrap();
    thread.join().unwrap()
}

/// A listener of this runtime for one that tells what happens: its id, and where it listens.
fn listen(remote: &Remote<Vec<u8>>) -> (Id, SocketAddr, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = channel();
    let place = move || (None, Box::new(Told(tell.clone())) as Box<dyn Reactor<_>>);
    (ordered(remote, Order::Listen(listener, Box::new(place))).unwrap(), address, told)
}

/// A connection of this runtime to a peer of the test.
fn connect(remote: &Remote<Vec<u8>>) -> (Id, std::net::TcpStream, Receiver<String>) {
    let peer = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (tell, told) = channel();
    let id = ordered(remote, Order::Connect(peer.local_addr().unwrap(), Box::new(Told(tell)))).unwrap();
    assert_eq!(next(&told), "connected");
    let stream = peer.accept().unwrap().0;
    stream.set_read_timeout(Some(SOON)).unwrap();
    (id, stream, told)
}

/// An id that was closed.
fn gone(remote: &Remote<Vec<u8>>) -> Id {
    let (id, ..) = listen(remote);
    ordered(remote, Order::Close(id)).unwrap()
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
    let (listening, address, server) = listen(&remote);
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
    assert!(matches!(&refused, Refused::System(error) if error.kind() == ErrorKind::ConnectionRefused), "{refused}");
    stop(&remote, thread);
    let ended = ordered(&remote, Order::Close(id)).unwrap_err();
    assert_eq!(ended.to_string(), "the runtime has ended");
}

/// Each runtime has its first connection, and knows nothing of the other's.
#[test]
fn an_order_reaches_no_connection_of_another_runtime() {
    let ((first, thread), (second, other_thread)) = (start(), start());
    let ((id, mut peer, _told), (other, mut other_peer, other_told)) = (connect(&first), connect(&second));
    assert_ne!(id, other);
    let refused = ordered(&second, Order::Command(id, b"to the wrong one".to_vec())).unwrap_err();
    assert!(matches!(refused, Refused::Elsewhere(of) if of == id), "{refused}");
    assert!(matches!(ordered(&second, Order::Close(id)), Err(Refused::Elsewhere(of)) if of == id));
    for (remote, id, peer) in [(&first, id, &mut peer), (&second, other, &mut other_peer)] {
        ordered(remote, Order::Command(id, b"right".to_vec())).unwrap();
        let mut frame = [0; 9];
        peer.read_exact(&mut frame).unwrap();
        assert_eq!(frame, *b"\0\0\0\x05right");
    }
    stop(&first, thread);
    stop(&second, other_thread);
    assert_eq!(other_told.try_iter().collect::<Vec<_>>(), ["sent true", "closed"]);
}

#[test]
fn a_connection_that_is_handed_over_is_completed() {
    let (remote, thread) = start();
    let peer = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (tell, told) = channel();
    let stream = TcpStream::connect(peer.local_addr().unwrap()).unwrap();
    let mut peer = peer.accept().unwrap().0;
    let id = ordered(&remote, Order::Adopt(stream.into(), Box::new(Told(tell)))).unwrap();
    peer.write_all(b"\0\0\0\x02hi").unwrap();
    assert_eq!([next(&told), next(&told)], ["connected", "message hi"]);
    ordered(&remote, Order::Close(id)).unwrap();
    assert_eq!(next(&told), "closed");
    stop(&remote, thread);
}

/// Of a peer that does not accept: its queue is full, so the system goes on trying for two minutes. Meanwhile the runtime
/// does other things, and when it stops, the order is completed.
#[test]
#[cfg(target_os = "linux")]
fn connecting_blocks_nothing_and_ends_with_the_runtime() {
    use socket2::{Domain, Socket, Type};
    let full = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    full.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    full.listen(0).unwrap();
    let address = full.local_addr().unwrap().as_socket().unwrap();
    let _first = std::net::TcpStream::connect(address).unwrap();
    let (remote, thread) = start();
    let ((tell, told), (done, completion)) = (channel(), channel());
    let connect = Order::Connect(address, Box::new(Told(tell)));
    remote.order(connect, move |result| done.send(result).unwrap());
    let (id, mut peer, other_told) = self::connect(&remote);
    peer.write_all(b"\0\0\0\x02hi").unwrap();
    assert_eq!(next(&other_told), "message hi");
    ordered(&remote, Order::Close(id)).unwrap();
    assert!(completion.try_recv().is_err(), "completed before its time");
    stop(&remote, thread);
    assert!(matches!(completion.try_recv(), Ok(Err(Refused::Ended))));
    assert!(completion.recv().is_err(), "completed twice");
    assert_eq!(told.recv().ok(), None, "it was never connected, so it is not closed");
}

/// With one ledger for both. That of the first would have ended after a second.
#[test]
fn a_runtime_that_stops_leaves_the_others_alone() {
    let ledger = ledger();
    let ((first, thread), (second, other_thread)) = (start_with(ledger.clone()), start_with(ledger));
    let (_, address, told) = listen(&second);
    stop(&first, thread);
    thread::sleep(Duration::from_millis(1300));
    let _peer = std::net::TcpStream::connect(address).unwrap();
    assert_eq!(next(&told), "connected");
    let waits = stop(&second, other_thread);
    assert!(waits < 20, "{waits} waits");
}

/// As long as descriptors are missing neither accepts; then both do, without another event.
#[test]
fn all_listeners_resume_after_a_pause() {
    let ledger = ledger();
    let (remote, thread) = start_with(ledger.clone());
    let listeners = [listen(&remote), listen(&remote), listen(&remote)];
    let missing = std::io::Error::from_raw_os_error(if cfg!(windows) { 10024 } else { 24 });
    lock(&ledger).exhausted(&missing);
    let _peers: Vec<_> =
        listeners.iter().map(|(_, address, _)| std::net::TcpStream::connect(address).unwrap()).collect();
    for _ in 0..10 {
        lock(&ledger).exhausted(&missing);
        thread::sleep(Duration::from_millis(20));
    }
    listeners.iter().for_each(|(.., told)| assert_eq!(next(told), "connected"));
    let waits = stop(&remote, thread);
    assert!(waits < 50, "{waits} waits");
}

/// Whatever they were about, and whether they were carried out, waiting or on their way.
#[test]
fn every_order_completes_once_whenever_the_runtime_stops() {
    const GIVERS: usize = 3;
    const EACH: usize = 100;
    let peer = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = peer.local_addr().unwrap();
    for round in 0..40 {
        let (remote, thread) = start();
        let gone = gone(&remote);
        let told: Arc<Vec<AtomicUsize>> = Arc::new((0..GIVERS * EACH).map(|_| AtomicUsize::new(0)).collect());
        let (tell, _) = channel();
        let give = |giver: usize| {
            let (remote, told, tell) = (remote.clone(), told.clone(), tell.clone());
            thread::spawn(move || {
                for number in 0..EACH {
                    let at = giver * EACH + number;
                    let told = told.clone();
                    let done = move |_| {
                        told[at].fetch_add(1, Ordering::Relaxed);
                    };
                    let reactor = || Box::new(Told(tell.clone()));
                    match number % 20 {
                        0 => remote.order(Order::Connect(address, reactor()), done),
                        1 => remote.order(Order::Adopt(TcpStream::connect(address).unwrap().into(), reactor()), done),
                        2 => remote.order_at(Instant::now() + SOON, Order::Close(gone), done),
                        3 => remote.order_at(Instant::now(), Order::Close(gone), done),
                        _ if giver == 0 && number == 5 + 2 * round => remote.order(Order::Stop, done),
                        _ => remote.order(Order::Command(gone, Vec::new()), done),
                    }
                }
            })
        };
        let givers: Vec<_> = (0..GIVERS).map(give).collect();
        givers.into_iter().for_each(|giver| giver.join().unwrap());
        remote.order(Order::Stop, |_| ());
        thread.join().unwrap();
        let counts: Vec<_> = told.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        assert!(counts.iter().all(|count| *count == 1), "round {round}: {counts:?}");
        // What the runtime left in the peer's queue.
        peer.set_nonblocking(true).unwrap();
        while peer.accept().is_ok() {}
    }
}

/// One that never runs counts as ended when it is dropped.
#[test]
fn no_more_orders_wait_than_stated() {
    let runtime = new("test", &Names::default(), ledger()).unwrap();
    let remote = runtime.remote();
    let (tell, told) = channel();
    let give = |at: Option<Instant>| {
        let tell = tell.clone();
        let done = move |result: Result<Id, Refused>| tell.send(result.unwrap_err().to_string()).unwrap();
        match at {
            Some(at) => remote.order_at(at, Order::Stop, done),
            None => remote.order(Order::Stop, done),
        }
    };
    (0..ORDERS + 3).for_each(|_| give(None));
    assert_eq!(told.try_iter().collect::<Vec<_>>(), vec![Refused::Full.to_string(); 3]);
    drop(runtime);
    assert_eq!(told.try_iter().collect::<Vec<_>>(), vec![Refused::Ended.to_string(); ORDERS]);

    let (remote, thread) = start();
    let give = |tell: Sender<String>| {
        let done = move |result: Result<Id, Refused>| tell.send(result.unwrap_err().to_string()).unwrap();
        remote.order_at(Instant::now() + 10 * SOON, Order::Stop, done);
    };
    for _ in 0..4 {
        (0..ORDERS / 2).for_each(|_| give(tell.clone()));
        // When this is over, those are in order of their times, or refused.
        gone(&remote);
    }
    assert_eq!(told.try_iter().collect::<Vec<_>>(), vec![Refused::Full.to_string(); ORDERS]);
    stop(&remote, thread);
    assert_eq!(told.try_iter().collect::<Vec<_>>(), vec![Refused::Ended.to_string(); ORDERS]);
}

/// Gives itself an order whenever it gets one.
struct Restless(Arc<AtomicUsize>);

impl Reactor<Vec<u8>> for Restless {
    fn connected(&mut self, context: &mut Context<Vec<u8>>) -> Flow {
        self.command(context, Vec::new())
    }

    fn message(&mut self, context: &mut Context<Vec<u8>>, message: &[u8]) -> Flow {
        context.send(message).map_or(Flow::Close, |()| Flow::Continue)
    }

    fn command(&mut self, context: &mut Context<Vec<u8>>, _: Vec<u8>) -> Flow {
        self.0.fetch_add(1, Ordering::Relaxed);
        context.remote().order(Order::Command(context.id(), Vec::new()), |_| ());
        Flow::Continue
    }
}

#[test]
fn orders_without_end_keep_no_socket_waiting() {
    let (remote, thread) = start();
    let peer = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let count = Arc::<AtomicUsize>::default();
    let connect = Order::Connect(peer.local_addr().unwrap(), Box::new(Restless(count.clone())));
    ordered(&remote, connect).unwrap();
    let mut peer = peer.accept().unwrap().0;
    peer.set_read_timeout(Some(SOON)).unwrap();
    for _ in 0..3 {
        peer.write_all(b"\0\0\0\x02hi").unwrap();
        peer.read_exact(&mut [0; 6]).unwrap();
    }
    let before = count.load(Ordering::Relaxed);
    while count.load(Ordering::Relaxed) < before + 10 {
        thread::yield_now();
    }
    stop(&remote, thread);
}

/// They are given while the runtime is busy, so it finds all of them at once.
#[test]
fn deferred_orders_come_in_order_of_time_and_never_early() {
    let (remote, thread) = start();
    let gone = gone(&remote);
    let (go_on, wait) = channel::<()>();
    remote.order(Order::Close(gone), move |_| {
        let _ = wait.recv();
    });
    let (tell, told) = channel();
    let start = Instant::now();
    let times = (0..50).map(|number| number * 37 % 50).chain([20, 20, 0]);
    for millis in times.clone() {
        let (tell, at) = (tell.clone(), start + Duration::from_millis(millis));
        // Of nobody: the refusal says when it was carried out.
        remote.order_at(at, Order::Close(gone), move |_| tell.send((millis, Instant::now() >= at)).unwrap());
    }
    drop(go_on);
    let came: Vec<_> = times.clone().map(|_| told.recv_timeout(SOON).unwrap()).collect();
    let mut expected: Vec<_> = times.map(|millis| (millis, true)).collect();
    expected.sort();
    assert_eq!(came, expected);
    stop(&remote, thread);
}

/// What stands behind the urgent byte is there when the runtime begins to read, and a read ends before it: tcp(7).
#[test]
#[cfg(unix)]
fn a_read_that_ends_at_an_urgent_mark_goes_on() {
    let (remote, thread) = start();
    let (_, peer, told) = connect(&remote);
    let gone = gone(&remote);
    let ((busy, is_busy), (go_on, wait)) = (channel(), channel::<()>());
    remote.order(Order::Close(gone), move |_| {
        busy.send(()).unwrap();
        let _ = wait.recv();
    });
    is_busy.recv().unwrap();
    let peer = socket2::SockRef::from(&peer);
    peer.send(b"\0\0\0\x06abc").unwrap();
    peer.send_out_of_band(b"!").unwrap();
    peer.send(b"def").unwrap();
    drop(go_on);
    assert_eq!(next(&told), "message abcdef");
    stop(&remote, thread);
}

/// A codec of one's own.
struct Lines;

impl Codec for Lines {
    fn decode<'b>(&self, bytes: &'b [u8]) -> Result<Next<'b>, TooLong> {
        Ok(match bytes.iter().position(|byte| *byte == b'\n') {
            Some(end) => Next::Message(&bytes[..end], end + 1),
            None if bytes.len() > 100 => return Err(TooLong(100)),
            None => Next::More(bytes.len() + 1),
        })
    }

    fn encode(&self, message: &[u8], write: &mut dyn FnMut(&[IoSlice])) {
        write(&[IoSlice::new(message), IoSlice::new(b"\n")]);
    }
}

#[test]
fn a_program_may_have_a_codec_of_its_own() {
    let settings = Settings { codec: Arc::new(Lines), buffer: 16 };
    let runtime = Runtime::new("lines", &Names::default(), settings, ledger()).unwrap();
    let remote = runtime.remote();
    let thread = thread::spawn(|| runtime.run().unwrap());
    let (id, mut peer, told) = connect(&remote);
    peer.write_all(b"one\n\na line of more than one read\nlast").unwrap();
    assert_eq!([(); 3].map(|()| next(&told)), ["message one", "message ", "message a line of more than one read"]);
    ordered(&remote, Order::Command(id, b"answer".to_vec())).unwrap();
    let mut answer = [0; 7];
    peer.read_exact(&mut answer).unwrap();
    assert_eq!(answer, *b"answer\n");
    peer.write_all(&[b'x'; 200]).unwrap();
    assert_eq!([next(&told), next(&told)], ["sent true", "closed"]);
    stop(&remote, thread);
}

/// 8 MiB to a peer that reads late: all arrive, and each completion comes once.
#[test]
fn what_cannot_be_sent_at_once_is_sent_later() {
    const MESSAGES: usize = 8;
    let (remote, thread) = start();
    let (id, mut stream, told) = connect(&remote);
    let message = |number: usize| vec![number as u8; 1 << 20];
    (0..MESSAGES).for_each(|number| assert!(ordered(&remote, Order::Command(id, message(number))).is_ok()));
    for number in 0..MESSAGES {
        let mut frame = vec![0; 4 + (1 << 20)];
        stream.read_exact(&mut frame).unwrap();
        assert!(frame[..4] == (1u32 << 20).to_be_bytes() && frame[4..] == message(number), "message {number}");
    }
    let said: Vec<_> = (0..MESSAGES).map(|_| next(&told)).collect();
    assert_eq!(said.iter().filter(|line| *line == "sent true").count(), MESSAGES, "{said:?}");

    // Nobody reads any more: what waits is bounded, and is reported as not sent when the connection is closed.
    (0..40).for_each(|number| assert!(ordered(&remote, Order::Command(id, message(number))).is_ok()));
    ordered(&remote, Order::Close(id)).unwrap();
    stop(&remote, thread);
    let said: Vec<_> = told.try_iter().collect();
    let count = |what: &str| said.iter().filter(|line| *line == what).count();
    assert!(count("full") >= 10 && count("sent false") >= 10, "{said:?}");
    assert_eq!(count("full") + count("sent false") + count("sent true"), 40, "{said:?}");
}

#[test]
fn a_name_stays_with_the_first_runtime_that_has_it() {
    let names = Names::default();
    let first = new("same", &names, ledger()).unwrap();
    let refused = new("same", &names, ledger()).map(drop).unwrap_err();
    assert_eq!(refused.to_string(), "there is a runtime of the name same; take another");
    assert!(names.find("same").is_some() && names.find("other").is_none());
    let remote = names.find("same").unwrap();
    let thread = thread::spawn(|| first.run().unwrap());
    stop(&remote, thread);
    assert!(names.find("same").is_none(), "free again");
}

/// A burst of orders wakes the runtime once or twice, and an idle one does not wake at all.
#[test]
fn a_runtime_waits_until_there_is_something() {
    let (remote, thread) = start();
    thread::sleep(Duration::from_millis(300));
    let waits = stop(&remote, thread);
    assert!(waits <= 3, "{waits} waits");
}
