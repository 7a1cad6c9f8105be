use super::*;
use crate::model::Section;
use crate::model::netns::NsIdentity;
use crate::model::snapshot::NodeSnapshot;

fn id(ino: u64) -> NetNsId {
    NetNsId { dev: 4, ino }
}

fn key(ino: u64) -> NsKey {
    NsKey {
        node: "n1".to_owned(),
        netns: id(ino),
    }
}

fn index(number: u32) -> IfIndex {
    IfIndex::new(number).expect("not zero")
}

fn link(own: u32, kind: LinkKind, peer: u32, nsid: Option<i32>) -> Link {
    Link {
        link: IfIndex::new(peer),
        link_netnsid: nsid,
        ..Link::new(index(own), format!("dev{own}"), kind)
    }
}

type Facts = (u64, Vec<Link>, Option<Vec<(i32, u64)>>);

/// One node of namespaces: inode, devices, and the ids it gives to others (`None`: not read).
fn topology(all: Vec<Facts>) -> Topology {
    let mut node = NodeSnapshot::new("n1");
    for (ino, links, nsids) in all {
        let mut ns = NetNs::new(NsIdentity {
            id: id(ino),
            host: ino == 1,
            pod_uid: None,
            paths: Vec::new(),
            processes: Vec::new(),
        });
        ns.links = Section::Known(links);
        if let Some(nsids) = nsids {
            ns.nsids = Section::Known(nsids.into_iter().map(|(n, i)| (n, id(i))).collect());
        }
        node.netns.insert(ns.identity.id, ns);
    }
    let mut topology = Topology::default();
    topology.nodes.insert(node.node.clone(), node);
    topology
}

fn veth(own: u32, peer: u32, nsid: Option<i32>) -> Link {
    link(own, LinkKind::Veth, peer, nsid)
}

#[test]
fn three_pods_with_the_same_index_are_told_apart_by_namespace() {
    let topology = topology(vec![
        (
            1,
            vec![
                veth(6, 2, Some(0)),
                veth(7, 2, Some(1)),
                veth(8, 2, Some(2)),
            ],
            Some(vec![(0, 10), (1, 11), (2, 12)]),
        ),
        (10, vec![veth(2, 6, Some(0))], Some(vec![(0, 1)])),
        (11, vec![veth(2, 7, Some(0))], Some(vec![(0, 1)])),
        (12, vec![veth(2, 8, Some(0))], Some(vec![(0, 1)])),
    ]);
    for (host, pod) in [(6, 10), (7, 11), (8, 12)] {
        let from_host = topology.netns(&key(1)).expect("host").link(index(host));
        let found = peer(&topology, &key(1), from_host.expect("the veth"));
        assert_eq!(found, Peer::Found(key(pod), index(2)));
        let from_pod = topology.netns(&key(pod)).expect("pod").link(index(2));
        let found = peer(&topology, &key(pod), from_pod.expect("the veth"));
        assert_eq!(found, Peer::Found(key(1), index(host)));
    }
}

#[test]
fn a_namespace_that_is_named_and_not_read_is_to_be_asked_for() {
    let topology = topology(vec![(1, vec![veth(6, 2, Some(0))], Some(vec![(0, 10)]))]);
    let host = topology.netns(&key(1)).expect("host");
    let link = host.link(index(6)).expect("the veth");
    assert_eq!(peer(&topology, &key(1), link), Peer::Unread(key(10)));
}

#[test]
fn without_own_table_the_other_side_confirms() {
    let topology = topology(vec![
        (1, vec![veth(6, 2, Some(0))], None),
        (10, vec![veth(2, 6, Some(5))], Some(vec![(5, 1)])),
        // Same indexes, but its id 0 is another namespace.
        (11, vec![veth(2, 6, Some(0))], Some(vec![(0, 12)])),
    ]);
    let host = topology.netns(&key(1)).expect("host");
    let link = host.link(index(6)).expect("the veth");
    assert_eq!(
        peer(&topology, &key(1), link),
        Peer::Found(key(10), index(2))
    );
}

#[test]
fn index_alone_never_decides() {
    let two = topology(vec![
        (1, vec![veth(6, 2, Some(0))], None),
        (10, vec![veth(2, 6, Some(0))], None),
        (11, vec![veth(2, 6, Some(0))], None),
    ]);
    let link = veth(6, 2, Some(0));
    assert_eq!(
        peer(&two, &key(1), &link),
        Peer::Ambiguous(vec![key(10), key(11)])
    );
    let one = topology(vec![
        (1, vec![veth(6, 2, Some(0))], None),
        (10, vec![veth(2, 6, Some(0))], None),
    ]);
    assert!(matches!(peer(&one, &key(1), &link), Peer::Unknown(_)));
}

#[test]
fn a_peer_in_no_known_namespace_is_outside_the_view() {
    let topology = topology(vec![
        (1, vec![veth(6, 2, Some(9))], Some(vec![(0, 10)])),
        (10, vec![veth(2, 7, Some(0))], Some(vec![(0, 1)])),
    ]);
    let found = peer(&topology, &key(1), &veth(6, 2, Some(9)));
    assert!(matches!(found, Peer::OutsideView(_)), "{found:?}");
    let found = peer(&topology, &key(1), &veth(6, 2, Some(-1)));
    assert!(matches!(found, Peer::OutsideView(_)), "{found:?}");
}

#[test]
fn a_pair_within_one_namespace_has_no_id() {
    let topology = topology(vec![(1, vec![veth(6, 7, None), veth(7, 6, None)], None)]);
    let link = veth(6, 7, None);
    assert_eq!(
        peer(&topology, &key(1), &link),
        Peer::Found(key(1), index(7))
    );
}

#[test]
fn a_macvlan_looks_like_a_veth_and_is_none() {
    use crate::model::link::MacvlanMode;
    let macvlan = link(2, LinkKind::Macvlan(MacvlanMode::Bridge), 6, Some(0));
    let topology = topology(vec![
        (1, vec![veth(6, 2, Some(0))], Some(vec![(0, 10)])),
        (10, vec![macvlan.clone()], Some(vec![(0, 1)])),
    ]);
    assert_eq!(peer(&topology, &key(10), &macvlan), Peer::NotVeth);
    let found = peer(&topology, &key(1), &veth(6, 2, Some(0)));
    assert!(matches!(found, Peer::Unknown(_)), "{found:?}");
}
