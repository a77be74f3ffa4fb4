//! `io_uring=on`: requests are taken from io_uring. The other tests of this directory run so, too, where root has switched it
//! on (`tools/test-all`); here is what only it has, and what must hold where it is not offered.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::{Pid, SysconfVar, Whence, lseek, sysconf};

use crate::common::Test;
use crate::common::files::*;
use crate::common::mount::{Mount, processes_of};
use crate::common::sys::SharedMap;
use crate::common::union::Union;
use crate::t;

pub fn tests() -> Vec<Test> {
    let mut tests = vec![t!(many_who_wait)];
    // Options of the whole run come last.
    let of_the_run = std::env::var("LAYERFS_TEST_OPTIONS").unwrap_or_default();
    if !of_the_run.split(',').any(|option| option.starts_with("io=") || option.starts_with("io_uring=")) {
        tests.extend([t!(on_or_no_mount), t!(never_with_passthrough).root(), t!(off)]);
        tests.extend(offered().then(|| t!(each_core_has_a_worker)));
        tests.extend(offered().then(|| t!(busy_workers_of_cores_have_idle_priority).root()));
        tests.push(t!(busy_workers_have_idle_priority).root());
    }
    tests
}

const ON: [&str; 2] = ["--io-uring", "on"];

fn offered() -> bool {
    let switch = Path::new("/sys/module/fuse/parameters/enable_uring");
    std::fs::read_to_string(switch).is_ok_and(|on| on.trim() == "Y")
}

/// The threads of the mount's daemon that take requests from io_uring.
fn workers(union: &Union) -> Vec<String> {
    let daemons = processes_of(union.point().as_os_str());
    let tasks = daemons.iter().flat_map(|pid| std::fs::read_dir(format!("/proc/{pid}/task")).expect("threads"));
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.starts_with("ring-")).collect()
}

fn on_or_no_mount() {
    let mut union = Union::new(1).arguments(&ON);
    put(union.lower(0, "file"), "x");
    if offered() {
        union.mount();
        assert_eq!(read(union.at("file")), "x");
        union.umount();
    } else {
        let words = union.command_line();
        let Err(refused) = Mount::attempt(&words, &union.point()) else { panic!("mounted") };
        assert!(refused.stderr.contains("io_uring=on needs Linux 6.14"), "{}", refused.stderr);
        assert!(mounted_nothing(&union), "nothing stays mounted");
    }
}

fn mounted_nothing(union: &Union) -> bool {
    names(union.point()).is_empty()
}

fn never_with_passthrough() {
    let union = Union::new(1).arguments(&ON).arguments(&["--io", "passthrough"]);
    let Err(refused) = Mount::attempt(&union.command_line(), &union.point()) else { panic!("mounted") };
    assert!(refused.stderr.contains("not with io=passthrough"), "{}", refused.stderr);
    assert!(mounted_nothing(&union), "nothing stays mounted");
}

fn off() {
    let mut union = Union::new(1).arguments(&["--io-uring", "off"]);
    put(union.lower(0, "file"), "x");
    union.mount();
    assert_eq!(read(union.at("file")), "x");
    assert_eq!(workers(&union), [""; 0]);
    union.umount();
}

/// More than one where one is not enough.
fn each_core_has_a_worker() {
    let mut union = Union::new(1).arguments(&ON);
    put(union.lower(0, "file"), "x");
    union.mount();
    let cores = sysconf(SysconfVar::_NPROCESSORS_CONF).expect("cores").expect("cores");
    for core in 0..cores {
        assert!(workers(&union).contains(&format!("ring-{core}-0\n")), "{:?}", workers(&union));
    }
    union.umount();
}

fn busy_workers_of_cores_have_idle_priority() {
    lowered_while_busy(Union::new(1).arguments(&ON));
}

fn busy_workers_have_idle_priority() {
    lowered_while_busy(Union::new(1).arguments(&["--io-uring", "off"]));
}

/// Only then: a worker that waits must get its turn when it is asked.
fn lowered_while_busy(mut union: Union) {
    union.mount();
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut n = 0;
    while lowered(&union) == 0 {
        assert!(Instant::now() < deadline, "all workers keep their priority");
        for _ in 0..1000 {
            n += 1;
            assert!(!union.at(&format!("missing{n}")).exists());
        }
    }
    while lowered(&union) > 0 {
        assert!(Instant::now() < deadline, "a worker that nobody asks has idle priority");
        thread::sleep(Duration::from_millis(1));
    }
    union.umount();
}

/// How many threads of the mount's daemon have idle priority.
fn lowered(union: &Union) -> usize {
    const SCHED_IDLE: &str = "5";
    let daemons = processes_of(union.point().as_os_str());
    let tasks = daemons.iter().flat_map(|pid| std::fs::read_dir(format!("/proc/{pid}/task")).expect("threads"));
    let stats = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok());
    // proc(5): after the name the fields are counted from 3, and the policy is the 41st.
    let policy = |stat: &String| Some(stat.rsplit_once(") ")?.1.split(' ').nth(41 - 3)? == SCHED_IDLE);
    stats.filter(|stat| policy(stat).expect("a policy")).count()
}

/// Twenty threads on one core ask for data that the kernel must write back first, which are requests of that core, too.
fn many_who_wait() {
    const THREADS: usize = 20;
    // Without those that wait.
    const WORKERS_MAX: usize = 16;
    const LEN: usize = 1 << 20;
    let mut union = Union::new(1);
    for n in 0..THREADS {
        put(union.lower(0, &format!("file{n}")), "");
        edit(union.lower(0, &format!("file{n}"))).set_len(LEN as u64).expect("set_len");
    }
    union.mount();
    let work = |n: usize| {
        let mut core = CpuSet::new();
        core.set(0).expect("core 0");
        sched_setaffinity(Pid::from_raw(0), &core).expect("on core 0");
        let file = edit(union.at(&format!("file{n}")));
        for round in 0..10 {
            let map = SharedMap::new(&file, LEN, true).expect("mmap");
            map.write(round * 65536 + 4096, b"data");
            let at = lseek(&file, (round * 65536) as i64, Whence::SeekData).expect("lseek");
            assert_eq!(at, (round * 65536 + 4096) as i64, "file {n}, round {round}");
        }
        let mut read = [0; 4];
        file.read_exact_at(&mut read, 4096).expect("read");
        assert_eq!(&read, b"data");
    };
    thread::scope(|scope| {
        for n in 0..THREADS {
            let work = &work;
            scope.spawn(move || work(n));
        }
    });
    let of_core = || workers(&union).iter().filter(|name| name.starts_with("ring-0-")).count();
    assert!(of_core() <= THREADS + WORKERS_MAX, "{:?}", workers(&union));
    union.umount();
}
