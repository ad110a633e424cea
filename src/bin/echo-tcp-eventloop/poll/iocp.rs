//! The event loop over an I/O completion port.
//!
//! A port does not report what is ready, but what is complete: epoll says "a read would find something", a port says "the
//! read that you began has found this, and it is in your buffer". So a program over a port begins its reads early, gives
//! a buffer to each connection, idle or not, and leaves it to the kernel until the operation is complete. To have
//! readiness, this loop begins an operation that moves no bytes: AFD, the driver beneath Winsock, has a poll, which is
//! complete once a socket is ready. select() and WSAPoll() are made of it. It is not documented, but libuv, wepoll and mio
//! live on it, and it has not changed since Windows Vista.
//!
//! Such a poll is complete once, and then over. A wait begins a new one for each socket that the last one reported: if
//! the socket is still ready it is complete at once, so the loop is level-triggered. (Not to begin it before the
//! program has met WouldBlock would make it edge-triggered.) Those that find no room among the events stay in the port.
//!
//! Memory: the kernel writes the result of an operation where the program told it to, at any time until the port has
//! brought its completion, even after it was cancelled or the socket was closed. So each operation in progress holds a
//! reference ([`Arc`]) to its own memory: made by [`begin`](Shared::begin), given back by the completion.
//!
//! Left out: more than one AFD handle, which makes cancelling cheaper among thousands of sockets (mio takes one for 32);
//! what layered service providers need that do not know SIO_BASE_HANDLE.

use super::{Event, Interest, Wait};
use std::cell::UnsafeCell;
use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::mem::zeroed;
use std::os::windows::io::{AsRawHandle, AsRawSocket, AsSocket, FromRawHandle, OwnedHandle, RawSocket};
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use windows_sys::Wdk::Foundation::OBJECT_ATTRIBUTES;
use windows_sys::Wdk::Storage::FileSystem::{FILE_OPEN, NtCreateFile};
use windows_sys::Wdk::System::IO::NtDeviceIoControlFile;
use windows_sys::Win32::Foundation::{
    HANDLE, INVALID_HANDLE_VALUE, NTSTATUS, RtlNtStatusToDosError, STATUS_SUCCESS, UNICODE_STRING, WAIT_TIMEOUT,
};
use windows_sys::Win32::Networking::WinSock::{SIO_BASE_HANDLE, WSAIoctl};
use windows_sys::Win32::Storage::FileSystem::{FILE_SHARE_READ, FILE_SHARE_WRITE, SYNCHRONIZE};
use windows_sys::Win32::System::IO::{
    CancelIoEx, CreateIoCompletionPort, GetQueuedCompletionStatusEx, IO_STATUS_BLOCK, OVERLAPPED_ENTRY,
    PostQueuedCompletionStatus,
};
use windows_sys::Win32::System::Threading::INFINITE;

const IOCTL_AFD_POLL: u32 = 0x0001_2024;

/// What AFD reports of a socket that is ready to read: AFD_POLL_RECEIVE, DISCONNECT (by the peer), ACCEPT, and what ends a
/// connection: ABORT, CONNECT_FAIL.
const READ: u32 = 0x1 | 0x8 | 0x80 | FAILED;
/// Ready to write: AFD_POLL_SEND.
const WRITE: u32 = 0x4 | FAILED;
const FAILED: u32 = 0x10 | 0x100;

/// AFD_POLL_INFO for one socket: what to wait for, and after completion what was found.
#[repr(C)]
struct AfdPollInfo {
    timeout: i64,
    handles: u32,
    exclusive: u32,
    handle: HANDLE,
    events: u32,
    status: NTSTATUS,
}

/// The memory of a poll operation.
struct Operation {
    socket: RawSocket,
    /// The kernel's while the operation is in progress.
    status: UnsafeCell<IO_STATUS_BLOCK>,
    info: UnsafeCell<AfdPollInfo>,
}

// SAFETY: the cells are touched by the kernel while the operation is in progress, and only then, or else under the lock
// of `State`.
unsafe impl Send for Operation {}
// SAFETY: as above.
unsafe impl Sync for Operation {}

/// A registered socket.
struct Source {
    token: usize,
    interest: Interest,
    operation: Arc<Operation>,
    /// What the operation in progress waits for; 0 if there is none.
    asked: u32,
}

/// Waits. There is one, in one thread.
pub struct Poll {
    registry: Registry,
    /// A wait has seen that the loop is closed.
    closed: bool,
}

/// What is waited for. Each clone, in any thread, speaks to the same loop.
#[derive(Clone)]
pub struct Registry(Arc<Shared>);

struct Shared {
    port: OwnedHandle,
    afd: OwnedHandle,
    state: Mutex<State>,
    /// The completion of a wake-up is in the port.
    woken: AtomicBool,
    closed: AtomicBool,
}

#[derive(Default)]
struct State {
    sources: HashMap<RawSocket, Source>,
    /// Sockets for which the next wait begins an operation, or ends one that waits for something else.
    changed: Vec<RawSocket>,
    /// Operations that the port has not brought back, of these sockets and of deregistered ones.
    in_progress: usize,
    waiting: bool,
}

/// Room for the events of one wait: for one at least.
pub struct Events {
    room: Vec<OVERLAPPED_ENTRY>,
    found: Vec<Event>,
}

impl Poll {
    pub fn new() -> io::Result<Self> {
        // SAFETY: no memory is involved.
        let port = unsafe { CreateIoCompletionPort(INVALID_HANDLE_VALUE, null_mut(), 0, 1) };
        check(!port.is_null())?;
        // SAFETY: the handle is new, and nobody else's.
        let port = unsafe { OwnedHandle::from_raw_handle(port) };
        let afd = open_afd()?;
        // From now on the port brings every completion of an operation on this handle.
        // SAFETY: both handles are open.
        check(!unsafe { CreateIoCompletionPort(afd.as_raw_handle(), port.as_raw_handle(), 0, 0) }.is_null())?;
        let [woken, closed] = [false, false].map(AtomicBool::new);
        let shared = Shared { port, afd, state: Mutex::default(), woken, closed };
        Ok(Self { registry: Registry(Arc::new(shared)), closed: false })
    }

    pub fn registry(&self) -> Registry {
        self.registry.clone()
    }

    /// Waits until something is ready, or for `timeout`.
    pub fn wait(&mut self, events: &mut Events, timeout: Option<Duration>) -> io::Result<Wait> {
        events.found.clear();
        if self.closed {
            return Ok(Wait::Closed);
        }
        let shared = &*self.registry.0;
        shared.begin_changed(&mut events.found);
        // What could not be begun is told of at once.
        let timeout = if events.found.is_empty() { timeout } else { Some(Duration::ZERO) };
        // Rounded up: a wait for less than a millisecond must not become one for nothing, over and over.
        let timeout =
            timeout.map_or(INFINITE, |left| left.as_nanos().div_ceil(1_000_000).try_into().unwrap_or(INFINITE - 1));
        let complete = shared.complete(&mut events.room, timeout);
        let mut state = shared.lock();
        state.waiting = false;
        let State { sources, changed, in_progress, .. } = &mut *state;
        for entry in &events.room[..complete?] {
            if entry.lpOverlapped.is_null() {
                shared.woken.swap(false, Ordering::AcqRel);
                continue;
            }
            *in_progress -= 1;
            // SAFETY: it is what `begin` passed, and the operation is over: its reference is ours.
            let operation = unsafe { Arc::from_raw(entry.lpOverlapped.cast::<Operation>().cast_const()) };
            // The socket may have been deregistered since, and another of the same number registered.
            let source = sources.get_mut(&operation.socket);
            let Some(source) = source.filter(|source| Arc::ptr_eq(&source.operation, &operation)) else { continue };
            source.asked = 0;
            changed.push(operation.socket);
            // SAFETY: the operation is over, and the lock is held.
            let (status, info) = unsafe { ((*operation.status.get()).Anonymous.Status, &*operation.info.get()) };
            // Not if it was cancelled, for another interest: the next operation will tell.
            let found = if status == STATUS_SUCCESS && info.handles == 1 { info.events } else { 0 };
            let Source { token, interest, .. } = *source;
            let (read, write) = (interest.read && found & READ != 0, interest.write && found & WRITE != 0);
            if read || write {
                events.found.push(Event { token, read, write });
            }
        }
        self.closed = shared.closed.load(Ordering::Acquire);
        Ok(if self.closed && events.found.is_empty() { Wait::Closed } else { Wait::Events })
    }
}

/// What is still in progress is cancelled, and its memory awaited.
impl Drop for Poll {
    fn drop(&mut self) {
        let shared = &*self.registry.0;
        let mut state = shared.lock();
        state.sources.drain().for_each(|(_, source)| shared.cancel(&source));
        let mut room = Events::with_capacity(64).room;
        while state.in_progress > 0 {
            // Without its completions the memory stays with the kernel: lost, but not misused.
            let Ok(complete) = shared.complete(&mut room, INFINITE) else { return };
            for entry in room[..complete].iter().filter(|entry| !entry.lpOverlapped.is_null()) {
                // SAFETY: as in `wait`.
                drop(unsafe { Arc::from_raw(entry.lpOverlapped.cast::<Operation>().cast_const()) });
                state.in_progress -= 1;
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Only the thread that waits begins operations, so that none belongs to a thread that ends before it. A socket whose
    /// operation cannot be begun counts as ready, as with any other error: the next call on it tells. The next wait tries
    /// again.
    fn begin_changed(&self, found: &mut Vec<Event>) {
        let mut state = self.lock();
        state.waiting = true;
        let State { sources, changed, in_progress, .. } = &mut *state;
        changed.retain(|socket| {
            let Some(source) = sources.get_mut(socket) else { return false };
            let wanted = wanted(source.interest);
            if source.asked == 0 && wanted != 0 {
                if self.begin(source, wanted).is_err() {
                    let Source { token, interest: Interest { read, write }, .. } = *source;
                    // It may be listed twice.
                    let first = found.iter().all(|event| event.token != token);
                    found.extend(first.then_some(Event { token, read, write }));
                    return first;
                }
                *in_progress += 1;
            } else if source.asked != wanted {
                // Its completion says that it was cancelled; then comes another.
                self.cancel(source);
            }
            false
        });
    }

    /// Begins an operation that is complete when the socket is ready.
    fn begin(&self, source: &mut Source, wanted: u32) -> io::Result<()> {
        let memory = Arc::into_raw(source.operation.clone());
        let (afd, size) = (self.afd.as_raw_handle(), size_of::<AfdPollInfo>() as u32);
        // SAFETY: no operation is in progress, so the memory is ours; from the call on it is the kernel's, and the
        // reference keeps it until the port brings this pointer back.
        let status = unsafe {
            let (status, info) = ((*memory).status.get(), (*memory).info.get());
            (*info).timeout = i64::MAX;
            (*info).handles = 1;
            (*info).events = wanted;
            let info = info.cast();
            NtDeviceIoControlFile(afd, null_mut(), None, memory.cast(), status, IOCTL_AFD_POLL, info, size, info, size)
        };
        // Success means that it is complete already; even then the port brings it back. Pending is a success, too.
        if status < 0 {
            // SAFETY: nothing was begun, so nothing will come back.
            drop(unsafe { Arc::from_raw(memory) });
            return Err(error(status));
        }
        source.asked = wanted;
        Ok(())
    }

    /// Cancels the operation in progress, if there is one. It is complete soon after, if not before.
    fn cancel(&self, source: &Source) {
        if source.asked != 0 {
            // An OVERLAPPED begins with the status block, by which the kernel knows the operation.
            // SAFETY: only the address matters.
            unsafe { CancelIoEx(self.afd.as_raw_handle(), source.operation.status.get().cast()) };
        }
    }

    /// Waits for completions: how many there are.
    fn complete(&self, room: &mut [OVERLAPPED_ENTRY], timeout: u32) -> io::Result<usize> {
        let (port, mut count) = (self.port.as_raw_handle(), 0);
        // SAFETY: the kernel writes at most as many completions as there is room for.
        let done =
            unsafe { GetQueuedCompletionStatusEx(port, room.as_mut_ptr(), room.len() as u32, &mut count, timeout, 0) };
        match check(done != 0) {
            Ok(()) => Ok(count as usize),
            Err(error) if error.raw_os_error() == Some(WAIT_TIMEOUT as i32) => Ok(0),
            Err(error) => Err(error),
        }
    }
}

impl Registry {
    pub fn register(&self, socket: &impl AsSocket, token: usize, interest: Interest) -> io::Result<()> {
        let (handle, socket) = (base_socket(socket)?, number(socket));
        // SAFETY: both are plain numbers.
        let (status, mut info) = unsafe { (zeroed(), zeroed::<AfdPollInfo>()) };
        info.handle = handle;
        let operation = Arc::new(Operation { socket, status: UnsafeCell::new(status), info: UnsafeCell::new(info) });
        let mut state = self.0.lock();
        if state.sources.contains_key(&socket) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        state.sources.insert(socket, Source { token, interest, operation, asked: 0 });
        self.changed(state, socket);
        Ok(())
    }

    pub fn reregister(&self, socket: &impl AsSocket, token: usize, interest: Interest) -> io::Result<()> {
        let (mut state, socket) = (self.0.lock(), number(socket));
        let source = state.sources.get_mut(&socket).ok_or(ErrorKind::NotFound)?;
        (source.token, source.interest) = (token, interest);
        self.changed(state, socket);
        Ok(())
    }

    pub fn deregister(&self, socket: &impl AsSocket) -> io::Result<()> {
        let source = self.0.lock().sources.remove(&number(socket)).ok_or(ErrorKind::NotFound)?;
        self.0.cancel(&source);
        Ok(())
    }

    /// The wait in progress ends, so that the next one begins what is to be begun.
    fn changed(&self, mut state: MutexGuard<'_, State>, socket: RawSocket) {
        state.changed.push(socket);
        if state.waiting {
            self.wake();
        }
    }

    /// May run in a signal handler: on Windows that is a thread of its own.
    pub fn wake(&self) {
        if !self.0.woken.swap(true, Ordering::AcqRel) {
            // A completion of nothing.
            // SAFETY: the port brings the null pointer back as it is.
            let posted = unsafe { PostQueuedCompletionStatus(self.0.port.as_raw_handle(), 0, 0, null()) } != 0;
            // It fails only for lack of memory: then the next wake-up has to try again.
            if !posted {
                self.0.woken.store(false, Ordering::Release);
            }
        }
    }

    pub fn close(&self) {
        self.0.closed.store(true, Ordering::Release);
        self.wake();
    }
}

impl Events {
    pub fn with_capacity(capacity: usize) -> Self {
        Self { room: vec![OVERLAPPED_ENTRY::default(); capacity], found: Vec::with_capacity(capacity) }
    }

    pub fn iter(&self) -> impl Iterator<Item = Event> {
        self.found.iter().copied()
    }
}

fn wanted(interest: Interest) -> u32 {
    (if interest.read { READ } else { 0 }) | (if interest.write { WRITE } else { 0 })
}

/// A handle of the driver itself: polls of any socket can be begun on it. The last part of its name is free.
fn open_afd() -> io::Result<OwnedHandle> {
    let mut name: Vec<u16> = r"\Device\Afd\echo-lab".encode_utf16().collect();
    let bytes = size_of_val(&name[..]) as u16;
    let name = UNICODE_STRING { Length: bytes, MaximumLength: bytes, Buffer: name.as_mut_ptr() };
    // SAFETY: numbers, and pointers that may be null.
    let mut attributes: OBJECT_ATTRIBUTES = unsafe { zeroed() };
    attributes.Length = size_of::<OBJECT_ATTRIBUTES>() as u32;
    attributes.ObjectName = &raw const name;
    let (mut afd, mut block) = (null_mut(), IO_STATUS_BLOCK::default());
    let share = FILE_SHARE_READ | FILE_SHARE_WRITE;
    // SAFETY: all pointers are valid during the call, and it keeps none.
    let status = unsafe {
        NtCreateFile(&mut afd, SYNCHRONIZE, &attributes, &mut block, null(), 0, share, FILE_OPEN, 0, null(), 0)
    };
    if status < 0 {
        return Err(error(status));
    }
    // SAFETY: the handle is new, and nobody else's.
    Ok(unsafe { OwnedHandle::from_raw_handle(afd) })
}

fn number(socket: &impl AsSocket) -> RawSocket {
    socket.as_socket().as_raw_socket()
}

/// The socket as the driver knows it: what Winsock gives out may be that of a layer above.
fn base_socket(socket: &impl AsSocket) -> io::Result<HANDLE> {
    let (mut base, mut len): (HANDLE, u32) = (null_mut(), 0);
    let (out, size) = ((&raw mut base).cast(), size_of::<HANDLE>() as u32);
    // SAFETY: the call writes a handle to `base`, and its size to `len`.
    let result =
        unsafe { WSAIoctl(number(socket) as _, SIO_BASE_HANDLE, null(), 0, out, size, &mut len, null_mut(), None) };
    check(result == 0).map(|()| base)
}

fn check(done: bool) -> io::Result<()> {
    if done { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn error(status: NTSTATUS) -> io::Error {
    // SAFETY: it maps one number to another.
    io::Error::from_raw_os_error(unsafe { RtlNtStatusToDosError(status) } as i32)
}
