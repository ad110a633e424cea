//! For io_uring: a ring that is set up or says in a sentence why not, what a completion says, and buffers that the kernel
//! picks from. The operations, and the call that enters the kernel, are the example's.

use crate::{Attempt, Result, no_ring};
use io_uring::types::{BufRingEntry, CancelBuilder};
use io_uring::{IoUring, cqueue};
use slab::Slab;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::io::{self, ErrorKind};
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU16, Ordering};

/// A ring whose operations all end when it is dropped: after that no memory belongs to the kernel any more. So it must be
/// dropped before what its operations point to. Let it be the first field of a struct: fields are dropped in order.
pub struct Ring(IoUring);

/// A ring for `entries` submissions and eight times as many completions. Only this thread enters it (SINGLE_ISSUER), and
/// only there the kernel works for it (DEFER_TASKRUN): an operation that had to wait goes on inside the program's own wait.
pub fn open(entries: u32) -> Result<Ring> {
    let mut builder = IoUring::builder();
    builder.setup_single_issuer().setup_defer_taskrun().setup_submit_all().setup_cqsize(8 * entries);
    builder.build(entries).map(Ring).map_err(no_ring)
}

impl Ring {
    /// The oldest completion that was not yet looked at, if there is one.
    pub fn next_completion(&mut self) -> Option<cqueue::Entry> {
        self.completion().next()
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // If it fails no memory is touched either: the kernel works for this ring only inside io_uring_enter, where this
        // thread never is again.
        let _ = self.submitter().register_sync_cancel(None, CancelBuilder::any());
    }
}

impl Deref for Ring {
    type Target = IoUring;

    fn deref(&self) -> &IoUring {
        &self.0
    }
}

impl DerefMut for Ring {
    fn deref_mut(&mut self) -> &mut IoUring {
        &mut self.0
    }
}

/// Judges io_uring_enter(2). It may end before anything was submitted: by a signal, a time limit, for want of memory, or
/// because completions have to be taken first. What was not submitted stays queued. Other errors are fatal.
pub fn entered(result: io::Result<usize>) -> Result<()> {
    match result {
        Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => Ok(()),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ETIME | libc::EBUSY)) => Ok(()),
        result => result.map(drop).attempt("enter the ring"),
    }
}

/// What a completion says, in the form of a system call's result.
pub fn outcome(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}

/// Buffers for receives that name none: the kernel takes the next from a ring of `free` buffers (a second ring, shared as
/// the first), at the moment when it has something to put in, and the completion says which. A buffer taken is replaced
/// at once, up to a limit, so those that wait to be sent do not keep others from receiving.
pub struct Provided {
    ring: *mut BufRingEntry,
    layout: Layout,
    entries: u16,
    free: u16,
    tail: u16,
    in_ring: u16,
    size: usize,
    limit: usize,
    memory: Slab<Box<[u8]>>,
    spare: Vec<u16>,
}

/// The group in which a receive finds them: there is one.
pub const GROUP: u16 = 0;

impl Provided {
    /// `free` in the ring, each of `size` bytes, and up to `limit` with those in use. Allocates now what the ring holds.
    pub fn new(ring: &IoUring, free: u16, size: usize, limit: u16) -> Result<Self> {
        let entries = free.next_power_of_two();
        let layout = Layout::array::<BufRingEntry>(entries.into()).and_then(|layout| layout.align_to(4096));
        let layout = layout.attempt("lay out a ring of buffers")?;
        // SAFETY: the layout has a size: `entries` is not 0.
        let at = unsafe { alloc_zeroed(layout) }.cast::<BufRingEntry>();
        if at.is_null() {
            handle_alloc_error(layout);
        }
        // SAFETY: `entries` of memory, on a page of their own, which lives as long as the value returned. The kernel
        // keeps it mapped for as long as the ring exists.
        let registered = unsafe { ring.submitter().register_buf_ring_with_flags(at as u64, entries, GROUP, 0) };
        let (memory, spare) = (Slab::with_capacity(free.into()), Vec::with_capacity(2 * usize::from(free)));
        let (tail, in_ring, limit) = (0, 0, limit.into());
        let mut buffers = Self { ring: at, layout, entries, free, tail, in_ring, size, limit, memory, spare };
        registered.attempt("register a ring of buffers, which needs Linux 5.19")?;
        buffers.refill();
        Ok(buffers)
    }

    /// Puts buffers into the ring until it is full or there are no more. To be called once completions were taken.
    pub fn refill(&mut self) {
        let before = self.tail;
        while self.in_ring < self.free {
            let Some(id) = self.spare.pop().or_else(|| self.allocate()) else { break };
            let buffer = &mut self.memory[id.into()];
            // SAFETY: the slot is between tail and head, so the program's; `tail` masked is less than `entries`.
            let entry = unsafe { &mut *self.ring.add((self.tail & (self.entries - 1)).into()) };
            entry.set_addr(buffer.as_mut_ptr() as u64);
            entry.set_len(buffer.len() as u32);
            entry.set_bid(id);
            self.tail = self.tail.wrapping_add(1);
            self.in_ring += 1;
        }
        if self.tail != before {
            // SAFETY: the tail lies within the ring's memory. From this store on the buffers are the kernel's.
            unsafe { &*BufRingEntry::tail(self.ring).cast::<AtomicU16>() }.store(self.tail, Ordering::Release);
        }
    }

    fn allocate(&mut self) -> Option<u16> {
        let id = self.memory.vacant_key().try_into().ok().filter(|_| self.memory.len() < self.limit)?;
        self.memory.insert(vec![0; self.size].into_boxed_slice());
        Some(id)
    }

    /// A completion names this buffer: from now on it is the program's.
    pub fn take(&mut self, id: u16) {
        self.in_ring -= 1;
        debug_assert!(self.memory.contains(id.into()));
    }

    /// The bytes of a buffer that was taken.
    pub fn bytes(&self, id: u16) -> &[u8] {
        &self.memory[id.into()]
    }

    /// A buffer that was taken is free again. Of those beyond what the ring holds, as many again are kept.
    pub fn give_back(&mut self, id: u16) {
        if self.spare.len() < 2 * usize::from(self.free) {
            self.spare.push(id);
        } else {
            self.memory.remove(id.into());
        }
    }

    /// Whether a receive would find one.
    pub fn is_empty(&self) -> bool {
        self.in_ring == 0
    }
}

impl Drop for Provided {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout. The kernel has the ring's pages pinned, and it writes to a buffer only while
        // this thread is inside io_uring_enter (DEFER_TASKRUN), where it is never again.
        unsafe { dealloc(self.ring.cast(), self.layout) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use io_uring::{opcode, squeue, types::Fd};
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd;

    fn pair() -> (UdpSocket, UdpSocket) {
        let [server, client] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        client.connect(server.local_addr().unwrap()).unwrap();
        (server, client)
    }

    /// # Safety
    ///
    /// What `entry` points to outlives the ring, and is used by nothing else until the completion.
    unsafe fn push(ring: &mut Ring, entry: &squeue::Entry) {
        // SAFETY: the caller's promise.
        unsafe { ring.submission().push(entry) }.unwrap();
    }

    /// Why no server here keeps many receives waiting at one socket: each datagram wakes them all, and one that is woken
    /// in vain too often (APOLL_MAX_RETRY in io_uring/poll.c) goes to a thread of the kernel's.
    #[test]
    fn of_many_receives_that_wait_some_end_up_in_a_thread_of_the_kernel() {
        let (server, client) = pair();
        let mut bytes = [[0u8; 8]; 4];
        let mut ring = open(8).unwrap();
        let workers = || {
            let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
            let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            tasks.map(name).filter(|name| name.starts_with("iou-wrk")).count()
        };
        let mut arm = |ring: &mut Ring, at: usize| {
            let receive = opcode::Recv::new(Fd(server.as_raw_fd()), bytes[at].as_mut_ptr(), 8);
            // SAFETY: `bytes` outlive the ring's operations, and are not looked at.
            unsafe { push(ring, &receive.build().user_data(at as u64)) };
        };
        (0..4).for_each(|at| arm(&mut ring, at));
        entered(ring.submit()).unwrap();
        assert_eq!(workers(), 0);
        let mut received = 0;
        while received < 1000 && workers() == 0 {
            client.send(b"x").unwrap();
            entered(ring.submit_and_wait(1)).unwrap();
            let done: Vec<_> = ring.completion().map(|completion| completion.user_data()).collect();
            received += done.len();
            done.into_iter().for_each(|at| arm(&mut ring, at as usize));
        }
        assert!(workers() > 0, "none after {received} datagrams");
        assert!(received > 100, "after {received} datagrams");
    }

    /// What is held is replaced up to the limit; then a receive fails, without loss, until something is given back.
    #[test]
    fn buffers_are_replaced_up_to_the_limit() {
        let (server, client) = pair();
        let mut ring = open(8).unwrap();
        let mut buffers = Provided::new(&ring, 2, 8, 5).unwrap();
        let receive = opcode::RecvMulti::new(Fd(server.as_raw_fd()), GROUP).build();
        let (mut held, mut armed) = (Vec::new(), false);
        (0..7u8).for_each(|number| assert_eq!(client.send(&[number]).unwrap(), 1));
        let mut turns = 0;
        while held.len() < 5 {
            if !armed {
                // SAFETY: the kernel picks a buffer that was provided.
                unsafe { push(&mut ring, &receive) };
            }
            entered(ring.submit_and_wait(1)).unwrap();
            for completion in ring.completion() {
                armed = cqueue::more(completion.flags());
                match cqueue::buffer_select(completion.flags()) {
                    Some(id) => {
                        buffers.take(id);
                        held.push(id);
                    }
                    None => assert_eq!(completion.result(), -libc::ENOBUFS),
                }
            }
            buffers.refill();
            turns += 1;
            assert!(turns < 20);
        }
        assert!(buffers.is_empty());
        assert_eq!(held.iter().map(|id| buffers.bytes(*id)[0]).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        held.drain(..2).for_each(|id| buffers.give_back(id));
        buffers.refill();
        assert!(!buffers.is_empty());
    }
}
