//! The helper beside others: namespaces that end while they are read, processes that send forged answers,
//! and what the helper may still do once it runs.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use netpath::contract::{Reply, Request, SCHEMA_VERSION};
use netpath::model::want::{Depth, Fact, NsTarget, Want};

use crate::helper::Talk;
use crate::ns::{Ns, collector};

/// Everything is asked of many namespaces; when the first answer comes, some of those whose turn is later
/// are deleted.
#[test]
fn a_namespace_that_ends_while_it_is_read_is_named_and_the_others_answer() {
    let mut all: Vec<Ns> = (0..80).map(|_| Ns::new()).collect();
    let inode = |ns: &Ns| {
        let meta = std::fs::metadata(format!("/run/netns/{}", ns.0)).expect("a namespace file");
        std::os::unix::fs::MetadataExt::ino(&meta)
    };
    all.sort_by_key(inode);
    let inodes: Vec<u64> = all.iter().map(inode).collect();
    // Answers come by inode, and namespaces are opened by the dozens ahead.
    let mut doomed = all.split_off(75);
    let (lasting, ending) = inodes.split_at(75);
    let want = Want::NetNs {
        target: NsTarget::All,
        depth: Depth::NoRules,
    };
    let (mut read, mut gone) = (BTreeSet::new(), BTreeSet::new());
    collector().each(&[want], Duration::from_secs(60), |fact| {
        doomed.clear();
        match fact {
            Fact::NetNs(ns) => {
                // Other tests' namespaces may end on their own.
                if lasting.contains(&ns.identity.id.ino) {
                    assert!(ns.missing().is_empty(), "{:?}", ns.missing());
                }
                read.insert(ns.identity.id.ino);
            }
            Fact::NoNetNs {
                target: NsTarget::Id(id),
                why,
            } => {
                assert!(why.contains("it ended while it was looked at"), "{why}");
                gone.insert(id.ino);
            }
            // A process of this machine that not even root may look at.
            Fact::NoNetNs {
                target: NsTarget::All,
                why,
            } => assert!(why.contains("permission denied"), "{why}"),
            other => panic!("{other:?}"),
        }
    });
    assert!(lasting.iter().all(|ino| read.contains(ino)));
    assert!(ending.iter().all(|ino| gone.contains(ino)), "{gone:?}");
}

/// Facts of one namespace that ended after it was read: each says so, none is an answer.
#[test]
fn what_is_asked_of_a_namespace_that_ended_says_so() {
    let (kept, ended) = (Ns::new(), Ns::new());
    let id = ended.read(Depth::Identity).identity.id;
    drop(ended);
    let asked = [
        Want::Set {
            netns: id,
            family: netpath::model::netfilter::Family::Ip,
            table: "t".to_owned(),
            set: "s".to_owned(),
        },
        Want::NetNs {
            target: NsTarget::Id(id),
            depth: Depth::Full,
        },
        Want::NetNs {
            target: NsTarget::Named(kept.0.clone()),
            depth: Depth::Full,
        },
    ];
    let facts = collector().collect(&asked, Duration::from_secs(20));
    let said = |fact: &Fact| match fact {
        Fact::NetNs(_) => "read".to_owned(),
        Fact::NoNetNs { why, .. } => why.clone(),
        Fact::Set { set, .. } => set.missing().unwrap_or("no reason").to_owned(),
        other => panic!("{other:?}"),
    };
    let mut said: Vec<String> = facts.iter().map(said).collect();
    said.sort();
    let [gone, ended, read] = said.as_slice() else {
        panic!("{said:?}")
    };
    assert!(gone.contains("not there any more"), "{gone}");
    assert!(ended.contains("it ended while it was looked at"), "{ended}");
    assert_eq!(read, "read");
}

/// Sends what looks like answers (a device, an address, the end of a dump) to every netlink socket of the
/// namespace, with all sequence numbers that its next requests may have.
const FORGE: &str = r"
import socket,struct
def attr(k,d): return struct.pack('=HH',4+len(d),k)+d+bytes(-len(d)%4)
link=struct.pack('=BBHiII',0,0,1,66,1,0)+attr(3,b'forged\0')
addr=struct.pack('=BBBBi',2,24,0,0,1)+attr(2,bytes([6,6,6,6]))
s=socket.socket(socket.AF_NETLINK,socket.SOCK_RAW,0); s.bind((0,0))
ports=[l.split() for l in open('/proc/thread-self/net/netlink').readlines()[1:]]
ports=[int(w[2]) for w in ports if w[1]=='0' and w[2]!='0' and int(w[2])!=s.getsockname()[0]]
assert ports
for port in ports:
  for seq in range(60):
    for kind,body in ((16,link),(20,addr),(3,bytes(4))):
      m=struct.pack('=IHHII',16+len(body),kind,2,seq,0)+body
      try: s.sendto(m,(port,0))
      except OSError as e: assert e.errno in (11,105),e
";

#[test]
fn answers_of_other_processes_are_none() {
    let ns = Ns::new();
    let want = || Want::NetNs {
        target: NsTarget::Named(ns.0.clone()),
        depth: Depth::Full,
    };
    let mut collector = collector();
    let mut read = || {
        let facts = collector.collect(&[want()], Duration::from_secs(20));
        match facts.as_slice() {
            [Fact::NetNs(ns)] => (**ns).clone(),
            other => panic!("{other:?}"),
        }
    };
    let before = read();
    assert!(before.missing().is_empty(), "{:?}", before.missing());
    ns.feed("python3 -", FORGE);
    let after = read();
    assert_eq!(after.missing(), before.missing());
    let names = |ns: &netpath::model::netns::NetNs| {
        let links = ns.links.known().expect("devices");
        links.iter().map(|l| l.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(names(&after), names(&before));
    assert_eq!(after.addrs, before.addrs);
}

/// A field of all threads of a process.
fn of_threads(pid: u32, field: &str) -> BTreeSet<String> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("its threads");
    let value = |task: std::io::Result<std::fs::DirEntry>| {
        let path = task.expect("a thread").path().join("status");
        let status = std::fs::read_to_string(path).expect("its status");
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        line.expect("the field").trim().to_owned()
    };
    tasks.map(value).collect()
}

#[test]
fn a_running_helper_may_do_only_what_reading_needs() {
    let mut talk = Talk::start();
    talk.send(&Request::Hello {
        schema: SCHEMA_VERSION,
    });
    assert!(matches!(talk.reply(), Reply::Hello { .. }));
    let pid = talk.child.id();
    // CAP_NET_ADMIN 12, NET_RAW 13, SYS_PTRACE 19, SYS_ADMIN 21.
    let needed = [12, 13, 19, 21].iter().fold(0u64, |set, n| set | 1 << n);
    let needed = BTreeSet::from([format!("{needed:016x}")]);
    assert_eq!(of_threads(pid, "CapEff:"), needed);
    assert_eq!(of_threads(pid, "CapPrm:"), needed);
    let none = BTreeSet::from([format!("{:016x}", 0)]);
    assert_eq!(of_threads(pid, "CapInh:"), none);
    assert_eq!(of_threads(pid, "CapAmb:"), none);
    assert_eq!(
        of_threads(pid, "NoNewPrivs:"),
        BTreeSet::from(["1".to_owned()])
    );
    let ns = Ns::new();
    talk.send(&Request::Collect {
        id: 1,
        wants: vec![Want::NetNs {
            target: NsTarget::Named(ns.0.clone()),
            depth: Depth::Full,
        }],
    });
    let Reply::Facts { facts, .. } = talk.reply() else {
        panic!("no facts")
    };
    let [Fact::NetNs(read)] = facts.as_slice() else {
        panic!("{facts:?}")
    };
    assert!(read.missing().is_empty(), "{:?}", read.missing());
    talk.send(&Request::Bye);
    talk.ends();
}

#[test]
fn an_idle_helper_may_do_nothing() {
    let mut child = Command::new(crate::helper::helper())
        .args(["idle", "60"])
        .spawn()
        .expect("it starts");
    let none = BTreeSet::from([format!("{:016x}", 0)]);
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while of_threads(child.id(), "CapEff:") != none {
        assert!(std::time::Instant::now() < deadline, "it keeps them");
        std::thread::yield_now();
    }
    child.kill().expect("it ends");
    child.wait().expect("it ended");
}
