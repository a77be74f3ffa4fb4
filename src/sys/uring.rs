//! One entry of FUSE over io_uring: a ring of its own with the buffers that requests come and answers go in.
//!
//! The interface: include/uapi/linux/io_uring.h and, from `struct fuse_uring_ent_in_out` on, include/uapi/linux/fuse.h
//! (Linux 6.14). A thread that waits on an entry gets what is asked for on the entry's core, in its own context: the kernel
//! copies a request into the buffers while the thread is in `wait`, and an answer out of them at the next `wait`.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;

use crate::sys::check;

/// The protocol's header of a request, in bytes (`struct fuse_in_header`).
pub const IN_HEADER: usize = 40;
/// The room for the fixed arguments of an operation, in bytes.
pub const ARGUMENTS: usize = 128;

/// Where things stand in the header buffer (`struct fuse_uring_req_header`).
const ARGUMENTS_AT: usize = 128;
const COMMIT_ID_AT: usize = ARGUMENTS_AT + ARGUMENTS + 8;
const PAYLOAD_SIZE_AT: usize = COMMIT_ID_AT + 8;
const HEADERS: usize = PAYLOAD_SIZE_AT + 16;
/// The answer's header (`struct fuse_out_header`), in bytes.
const OUT_HEADER: u32 = 16;
/// The payload begins on a page of its own.
const PAYLOAD_AT: usize = 4096;

const SETUP_SQE128: u32 = 1 << 10;
const SETUP_SINGLE_ISSUER: u32 = 1 << 12;
const SETUP_DEFER_TASKRUN: u32 = 1 << 13;
const SETUP_NO_SQARRAY: u32 = 1 << 16;
const ENTER_GETEVENTS: libc::c_uint = 1;
const OFF_SQES: libc::off_t = 0x1000_0000;
const OP_URING_CMD: u8 = 46;
const CMD_REGISTER: u32 = 1;
const CMD_COMMIT_AND_FETCH: u32 = 2;
const SQE: usize = 128;

#[repr(C)]
#[derive(Default)]
struct SqOffsets {
    head: u32,
    tail: u32,
    ring_mask: u32,
    ring_entries: u32,
    flags: u32,
    dropped: u32,
    array: u32,
    resv1: u32,
    user_addr: u64,
}

#[repr(C)]
#[derive(Default)]
struct CqOffsets {
    head: u32,
    tail: u32,
    ring_mask: u32,
    ring_entries: u32,
    overflow: u32,
    cqes: u32,
    flags: u32,
    resv1: u32,
    user_addr: u64,
}

/// `struct io_uring_params`.
#[repr(C)]
#[derive(Default)]
struct Params {
    sq_entries: u32,
    cq_entries: u32,
    flags: u32,
    sq_thread_cpu: u32,
    sq_thread_idle: u32,
    features: u32,
    wq_fd: u32,
    resv: [u32; 3],
    sq_off: SqOffsets,
    cq_off: CqOffsets,
}

/// The part of `struct io_uring_sqe` that a command to a file uses, with `struct fuse_uring_cmd_req` at its end.
#[repr(C)]
#[derive(Clone, Copy)]
struct Submission {
    opcode: u8,
    flags: u8,
    ioprio: u16,
    fd: i32,
    cmd_op: u32,
    pad: u32,
    addr: u64,
    len: u32,
    cmd_flags: u32,
    user_data: u64,
    unused: [u32; 2],
    fuse_flags: u64,
    commit_id: u64,
    queue: u16,
    fuse_pad: [u16; 3],
    rest: [u64; 7],
}
const _: () = assert!(size_of::<Submission>() == SQE);

/// `struct io_uring_cqe`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Completion {
    user_data: u64,
    res: i32,
    flags: u32,
}

/// Memory that is mapped until it is dropped.
#[derive(Debug)]
struct Map {
    start: NonNull<u8>,
    len: usize,
}

impl Map {
    fn new(len: usize, flags: libc::c_int, fd: libc::c_int, offset: libc::off_t) -> Result<Self, Errno> {
        // SAFETY: a new mapping at an address that the kernel chooses touches no memory of ours.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, fd, offset) };
        if start == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        Ok(Self { start: NonNull::new(start.cast()).ok_or(Errno::ENOMEM)?, len })
    }

    fn of_ring(ring: &OwnedFd, len: usize, offset: libc::off_t) -> Result<Self, Errno> {
        Self::new(len, libc::MAP_SHARED | libc::MAP_POPULATE, ring.as_raw_fd(), offset)
    }

    fn anonymous(len: usize) -> Result<Self, Errno> {
        Self::new(len, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, -1, 0)
    }

    fn at(&self, offset: usize) -> *mut u8 {
        debug_assert!(offset < self.len);
        // SAFETY: every caller stays within the mapping.
        unsafe { self.start.as_ptr().add(offset) }
    }

    /// A counter that the kernel shares.
    fn counter(&self, offset: u32) -> &AtomicU32 {
        // SAFETY: the kernel has said that an aligned 32-bit counter stands there; it lives as long as the mapping.
        unsafe { AtomicU32::from_ptr(self.at(offset as usize).cast()) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: nobody has a reference into the mapping any more.
        unsafe {
            libc::munmap(self.start.as_ptr().cast(), self.len);
        }
    }
}

/// A request in an entry's buffers.
#[derive(Debug)]
pub struct Request<'a> {
    /// `struct fuse_in_header`.
    pub header: &'a [u8; IN_HEADER],
    /// The fixed arguments of its operation.
    pub arguments: &'a [u8; ARGUMENTS],
    /// What follows them, and the room for the answer.
    pub payload: &'a mut [u8],
    /// How much of the payload is the request's.
    pub len: usize,
}

/// An entry of a core's queue. Only the thread that has opened it may use it.
#[derive(Debug)]
pub struct Entry {
    // First. The kernel writes to the buffers in this thread's `enter` only, and there is none after that.
    ring: OwnedFd,
    rings: Map,
    submissions: Map,
    buffers: Map,
    params: Params,
    device: Arc<OwnedFd>,
    queue: u16,
    payload: usize,
    /// Submissions that the kernel has not taken yet: 0 or 1.
    pending: u32,
    commit_id: u64,
}

impl std::fmt::Debug for Params {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} submissions, {} completions", self.sq_entries, self.cq_entries)
    }
}

impl Entry {
    /// Makes the ring and the buffers of an entry of queue `queue` (a core's number). `payload`: the most that a request or an
    /// answer carries, in bytes.
    ///
    /// # Errors
    /// When there is no io_uring, or not for this process.
    pub fn open(device: Arc<OwnedFd>, queue: u16, payload: usize) -> Result<Self, Errno> {
        let (ring, params) = set_up()?;
        let submissions_end = params.sq_off.array.max(params.sq_off.dropped + 4) as usize;
        let completions_end = params.cq_off.cqes as usize + params.cq_entries as usize * size_of::<Completion>();
        let rings = Map::of_ring(&ring, submissions_end.max(completions_end), 0)?;
        let submissions = Map::of_ring(&ring, params.sq_entries as usize * SQE, OFF_SQES)?;
        let buffers = Map::anonymous(PAYLOAD_AT + payload)?;
        Ok(Self { ring, rings, submissions, buffers, params, device, queue, payload, pending: 0, commit_id: 0 })
    }

    /// Puts the entry into its queue.
    ///
    /// # Errors
    /// What the kernel says of it. If it is the first one to be refused, the kernel goes on over `/dev/fuse`.
    pub fn register(&mut self) -> Result<(), Errno> {
        let buffers = [
            libc::iovec { iov_base: self.buffers.at(0).cast(), iov_len: HEADERS },
            libc::iovec { iov_base: self.buffers.at(PAYLOAD_AT).cast(), iov_len: self.payload },
        ];
        // The kernel reads the two while it takes the submission, below.
        self.submit(CMD_REGISTER, buffers.as_ptr() as u64, buffers.len() as u32);
        while self.pending > 0 {
            self.enter(0)?;
        }
        match self.peek() {
            Some(completion) if completion.res < 0 => Err(Errno::from_raw(-completion.res)),
            // It waits, or has a request already, which `wait` will find.
            _ => Ok(()),
        }
    }

    /// Waits for a request; an answer goes out first.
    ///
    /// # Errors
    /// `ENOTCONN` or `ECONNABORTED` when the mount is gone.
    pub fn wait(&mut self) -> Result<(), Errno> {
        loop {
            if let Some(completion) = self.peek() {
                self.rings.counter(self.params.cq_off.head).fetch_add(1, Ordering::Release);
                if completion.res < 0 {
                    return Err(Errno::from_raw(-completion.res));
                }
                self.commit_id = u64::from_ne_bytes(*self.header_at::<8>(COMMIT_ID_AT));
                return Ok(());
            }
            self.enter(1)?;
        }
    }

    /// The request that the last `wait` has brought.
    pub fn request(&mut self) -> Request<'_> {
        let len = u32::from_ne_bytes(*self.header_at::<4>(PAYLOAD_SIZE_AT)) as usize;
        let payload = self.payload;
        // SAFETY: the kernel writes to the buffers in `wait` only, which needs the entry for itself; the two slices and the
        // payload do not overlap, and lie within the mapping.
        unsafe {
            Request {
                header: &*self.buffers.at(0).cast(),
                arguments: &*self.buffers.at(ARGUMENTS_AT).cast(),
                payload: std::slice::from_raw_parts_mut(self.buffers.at(PAYLOAD_AT), payload),
                len: len.min(payload),
            }
        }
    }

    /// Answers it: with an error, or with the first `len` bytes of the payload. The next `wait` takes the answer along.
    pub fn answer(&mut self, result: Result<usize, Errno>) {
        let (len, error) = match result {
            Ok(len) => (len.min(self.payload) as u32, 0),
            Err(e) => (0, -(e as i32)),
        };
        // The number of the request stands at the same place in both headers.
        self.write_header(0, (OUT_HEADER + len).to_ne_bytes());
        self.write_header(4, error.to_ne_bytes());
        self.write_header(PAYLOAD_SIZE_AT, len.to_ne_bytes());
        self.submit(CMD_COMMIT_AND_FETCH, 0, 0);
    }

    fn header_at<const N: usize>(&self, offset: usize) -> &[u8; N] {
        // SAFETY: within the header buffer, to which nobody writes while the entry is borrowed.
        unsafe { &*self.buffers.at(offset).cast() }
    }

    fn write_header<const N: usize>(&mut self, offset: usize, value: [u8; N]) {
        // SAFETY: as above, and the entry is borrowed for writing.
        unsafe { self.buffers.at(offset).cast::<[u8; N]>().write(value) }
    }

    /// Puts a command into the only place for submissions; the next `enter` has the kernel take it.
    fn submit(&mut self, cmd_op: u32, addr: u64, len: u32) {
        debug_assert_eq!(self.pending, 0);
        let submission = Submission {
            opcode: OP_URING_CMD,
            flags: 0,
            ioprio: 0,
            fd: self.device.as_raw_fd(),
            cmd_op,
            pad: 0,
            addr,
            len,
            cmd_flags: 0,
            user_data: 0,
            unused: [0; 2],
            fuse_flags: 0,
            commit_id: self.commit_id,
            queue: self.queue,
            fuse_pad: [0; 3],
            rest: [0; 7],
        };
        let tail = self.rings.counter(self.params.sq_off.tail);
        let next = tail.load(Ordering::Relaxed);
        let place = (next & (self.params.sq_entries - 1)) as usize;
        // SAFETY: the place is one of the mapping's, and the kernel does not read it before the tail has moved.
        unsafe { self.submissions.at(place * SQE).cast::<Submission>().write(submission) };
        tail.store(next.wrapping_add(1), Ordering::Release);
        self.pending = 1;
    }

    fn peek(&self) -> Option<Completion> {
        let head = self.rings.counter(self.params.cq_off.head).load(Ordering::Relaxed);
        if self.rings.counter(self.params.cq_off.tail).load(Ordering::Acquire) == head {
            return None;
        }
        let place = (head & (self.params.cq_entries - 1)) as usize * size_of::<Completion>();
        // SAFETY: the kernel has filled this place before it moved the tail.
        Some(unsafe { *self.rings.at(self.params.cq_off.cqes as usize + place).cast::<Completion>() })
    }

    /// Has the kernel take what is submitted, and waits for `completions`.
    fn enter(&mut self, completions: u32) -> Result<(), Errno> {
        // SAFETY: plain numbers, and no signal mask.
        let taken = check(unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                self.ring.as_raw_fd(),
                self.pending,
                completions,
                ENTER_GETEVENTS,
                std::ptr::null::<libc::sigset_t>(),
                0,
            )
        });
        match taken {
            Ok(taken) => self.pending = self.pending.saturating_sub(taken as u32),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }
}

fn set_up() -> Result<(OwnedFd, Params), Errno> {
    let flags = SETUP_SQE128 | SETUP_NO_SQARRAY | SETUP_SINGLE_ISSUER | SETUP_DEFER_TASKRUN;
    let mut params = Params { flags, ..Params::default() };
    // SAFETY: `params` is as the kernel expects it, and is written to while the call lasts only.
    let ring = check(unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, &raw mut params) })?;
    // SAFETY: a new descriptor that nobody else has.
    let ring = unsafe { OwnedFd::from_raw_fd(ring as libc::c_int) };
    Ok((ring, params))
}

/// How many cores the machine may ever have: as many queues the kernel expects.
///
/// # Errors
/// When sysfs can't be read.
pub fn possible_cores() -> std::io::Result<usize> {
    let ranges = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = ranges.trim().rsplit([',', '-']).next().and_then(|last| last.parse::<usize>().ok());
    last.map(|last| last + 1).ok_or_else(|| std::io::ErrorKind::InvalidData.into())
}

/// Whether this process may have such a ring.
///
/// # Errors
/// Why not.
pub fn probe() -> Result<(), Errno> {
    set_up().map(drop)
}
