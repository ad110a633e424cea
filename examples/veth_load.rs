//! For scripts/xdp-cost: keeps 64 datagrams of 64 bytes outstanding, in batches over four sockets, for some seconds, and prints
//! how many came back, how many were lost, and its CPU time in ns. Usage: veth_load ADDRESS SECONDS

#[cfg(not(target_os = "linux"))]
fn main() {}

#[cfg(target_os = "linux")]
fn main() -> std::io::Result<()> {
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd;
    use std::time::{Duration, Instant};
    const FLOWS: usize = 4;
    const WINDOW: usize = 16; // For each.
    const SIZE: usize = 64;

    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().expect("an address");
    let seconds = arguments.next().and_then(|text| text.parse().ok()).expect("seconds");
    let mut buffers = [[0u8; SIZE]; WINDOW];
    let mut vectors =
        buffers.each_mut().map(|buffer| libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: SIZE });
    let mut messages = vectors.each_mut().map(|vector| {
        // SAFETY: all zeros is a valid message, without an address.
        let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
        (message.msg_hdr.msg_iov, message.msg_hdr.msg_iovlen) = (vector, 1);
        message
    });
    let mut flows = Vec::new();
    for _ in 0..FLOWS {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(&address)?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        flows.push((socket, 0usize));
    }

    let (mut echoed, mut lost) = (0u64, 0u64);
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        for (socket, outstanding) in &mut flows {
            let fd = socket.as_raw_fd();
            let missing = WINDOW - *outstanding;
            // SAFETY: `messages` and what they point to outlive both calls; no more of them are used than there are.
            let (sent, received) = unsafe {
                let sent = if missing == 0 { 0 } else { libc::sendmmsg(fd, messages.as_mut_ptr(), missing as u32, 0) };
                *outstanding += sent.max(0) as usize;
                let one = libc::MSG_WAITFORONE;
                (sent, libc::recvmmsg(fd, messages.as_mut_ptr(), WINDOW as u32, one, std::ptr::null_mut()))
            };
            if sent < 0 {
                return Err(std::io::Error::last_os_error());
            }
            if received > 0 {
                echoed += received as u64;
                *outstanding = outstanding.saturating_sub(received as usize);
            } else {
                lost += *outstanding as u64;
                *outstanding = 0;
            }
        }
    }
    // SAFETY: all zeros is a valid time, which is valid for writes.
    let cpu = unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time);
        time.tv_sec * 1_000_000_000 + time.tv_nsec
    };
    println!("{echoed} {lost} {cpu}");
    Ok(())
}
