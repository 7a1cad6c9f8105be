//! Mends name the object that decided, not the next best one.

use super::*;
use crate::trace::Tap;

fn dropped(reason: DropReason, step: Step) -> Trace {
    trace(1.0, Disposition::Dropped(reason), step)
}

fn sysctl(name: &str, value: &str) -> Evidence {
    Evidence::Sysctl {
        name: name.to_owned(),
        value: value.to_owned(),
    }
}

/// The only finding of one trace.
fn finding(trace: Trace) -> Finding {
    let mut found = explained(&[trace]).findings;
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

#[test]
fn the_reverse_path_filter_of_all_names_the_device_that_received() {
    let all = |value| {
        let step = step(StepKind::RpFilter, "came in by flannel.1")
            .with(sysctl("net.ipv4.conf.all.rp_filter", value));
        let mut trace = dropped(DropReason::IpRpfilter, step);
        trace.hops[0].oif = Some("eth1".to_owned());
        let packet = trace.packet.clone();
        trace.hops[0].taps = [("eth0", false), ("flannel.1", false), ("lo", true)]
            .map(|(dev, out)| Tap {
                dev: dev.to_owned(),
                out,
                packet: packet.clone(),
            })
            .to_vec();
        trace
    };
    let strict = finding(all("1")).mend;
    assert!(strict.contains("route 10.0.0.1 by flannel.1,"), "{strict}");
    assert!(
        strict.ends_with("sysctl -w net.ipv4.conf.flannel.1.rp_filter=2"),
        "{strict}"
    );
    let loose = finding(all("2")).mend;
    assert!(loose.contains("add a route back to 10.0.0.1"), "{loose}");
}
