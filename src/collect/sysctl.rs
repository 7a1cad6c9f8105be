//! Settings under `/proc/sys/net`. They follow the thread that opens the files, so this runs on the
//! thread that entered the namespace.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::error::Error;
use crate::model::Section;
use crate::model::ipvs::IpvsSysctls;
use crate::model::link::{Inet6Conf, InetConf};
use crate::model::sysctl::Sysctls;

/// Reads the settings of the calling thread's namespace; `proc` is the mount point of proc.
pub fn read(proc: &Path) -> Sysctls {
    let dir = Dir(proc.join("sys/net"));
    Sysctls {
        inet_all: inet_all(&dir).into(),
        inet6_all: inet6_all(&dir).into(),
        bridge_nf_call_iptables: dir.maybe_flag("bridge/bridge-nf-call-iptables").into(),
        bridge_nf_call_ip6tables: dir.maybe_flag("bridge/bridge-nf-call-ip6tables").into(),
        bridge_nf_filter_vlan_tagged: dir.maybe_flag("bridge/bridge-nf-filter-vlan-tagged").into(),
        ip_default_ttl: dir.number("ipv4/ip_default_ttl").into(),
        ip_nonlocal_bind: dir.flag("ipv4/ip_nonlocal_bind").into(),
        ip_forward_use_pmtu: dir.flag("ipv4/ip_forward_use_pmtu").into(),
        fib_multipath_hash_policy: dir.number("ipv4/fib_multipath_hash_policy").into(),
        fib_multipath_hash_policy6: dir.number("ipv6/fib_multipath_hash_policy").into(),
        ip_local_port_range: port_range(&dir).into(),
        nf_conntrack_max: dir.maybe("netfilter/nf_conntrack_max").into(),
        nf_conntrack_count: dir.maybe("netfilter/nf_conntrack_count").into(),
        nf_conntrack_tcp_be_liberal: dir
            .maybe_flag("netfilter/nf_conntrack_tcp_be_liberal")
            .into(),
        nf_conntrack_tcp_loose: dir.maybe_flag("netfilter/nf_conntrack_tcp_loose").into(),
        nf_conntrack_acct: dir.maybe_flag("netfilter/nf_conntrack_acct").into(),
        icmp_echo_ignore_all: dir.flag("ipv4/icmp_echo_ignore_all").into(),
        icmp6_echo_ignore_all: dir.maybe_flag("ipv6/icmp/echo_ignore_all").into(),
        tcp_l3mdev_accept: dir.maybe_flag("ipv4/tcp_l3mdev_accept").into(),
        udp_l3mdev_accept: dir.maybe_flag("ipv4/udp_l3mdev_accept").into(),
        raw_l3mdev_accept: dir.maybe_flag("ipv4/raw_l3mdev_accept").into(),
    }
}

/// Settings of IPVS, in the calling thread's namespace. One that this kernel does not have is what older ones do.
pub fn ipvs(proc: &Path) -> IpvsSysctls {
    let dir = Dir(proc.join("sys/net/ipv4/vs"));
    let flag = |name: &str| {
        let own = dir.maybe_flag(name);
        own.map(|own| own.unwrap_or(false)).into()
    };
    let number = |name: &str| dir.maybe(name).map(|own| own.unwrap_or(0)).into();
    IpvsSysctls {
        conntrack: flag("conntrack"),
        snat_reroute: flag("snat_reroute"),
        expire_nodest_conn: flag("expire_nodest_conn"),
        expire_quiescent_template: flag("expire_quiescent_template"),
        conn_reuse_mode: number("conn_reuse_mode"),
        sloppy_tcp: flag("sloppy_tcp"),
        backup_only: flag("backup_only"),
        cache_bypass: flag("cache_bypass"),
        drop_packet: number("drop_packet"),
    }
}

fn inet_all(dir: &Dir) -> Result<InetConf, Error> {
    let all = |name: &str| format!("ipv4/conf/all/{name}");
    Ok(InetConf {
        forwarding: dir.flag(&all("forwarding"))?,
        rp_filter: dir.number(&all("rp_filter"))?,
        accept_local: dir.flag(&all("accept_local"))?,
        route_localnet: dir.flag(&all("route_localnet"))?,
        proxy_arp: dir.flag(&all("proxy_arp"))?,
        arp_ignore: dir.number(&all("arp_ignore"))?,
        arp_announce: dir.number(&all("arp_announce"))?,
        arp_filter: dir.flag(&all("arp_filter"))?,
        src_valid_mark: dir.flag(&all("src_valid_mark"))?,
        ignore_routes_with_linkdown: dir.flag(&all("ignore_routes_with_linkdown"))?,
        send_redirects: dir.flag(&all("send_redirects"))?,
        nopolicy: dir.flag(&all("disable_policy"))?,
        noxfrm: dir.flag(&all("disable_xfrm"))?,
    })
}

fn inet6_all(dir: &Dir) -> Result<Inet6Conf, Error> {
    let all = |name: &str| format!("ipv6/conf/all/{name}");
    Ok(Inet6Conf {
        disable_ipv6: dir.flag(&all("disable_ipv6"))?,
        forwarding: dir.flag(&all("forwarding"))?,
        proxy_ndp: dir.flag(&all("proxy_ndp"))?,
        accept_ra: dir.number(&all("accept_ra"))?,
        ignore_routes_with_linkdown: dir.flag(&all("ignore_routes_with_linkdown"))?,
        // 6.17 and later.
        force_forwarding: dir.maybe_flag(&all("force_forwarding"))?.unwrap_or(false),
        hop_limit: dir.maybe(&all("hop_limit"))?,
    })
}

fn port_range(dir: &Dir) -> Result<(u16, u16), Error> {
    let name = "ipv4/ip_local_port_range";
    let text = dir.text(name)?.ok_or_else(|| dir.absent(name))?;
    let mut numbers = text.split_whitespace().map(str::parse::<u16>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(first)), Some(Ok(last))) => Ok((first, last)),
        _ => Err(dir.wrong(name, &text)),
    }
}

struct Dir(PathBuf);

impl Dir {
    fn operation(&self, name: &str) -> String {
        format!("read {}", self.0.join(name).display())
    }

    fn absent(&self, name: &str) -> Error {
        Error::malformed(self.operation(name), "this kernel has no such setting")
    }

    fn wrong(&self, name: &str, text: &str) -> Error {
        let start: String = text.trim().chars().take(40).collect();
        Error::malformed(
            self.operation(name),
            format!("'{start}' is not what it should hold"),
        )
    }

    fn text(&self, name: &str) -> Result<Option<String>, Error> {
        match fs::read_to_string(self.0.join(name)) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(Error::io(self.operation(name), &error)),
        }
    }

    /// A number, or nothing where the file does not exist.
    fn maybe<T: FromStr>(&self, name: &str) -> Result<Option<T>, Error> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        let number = text.trim().parse().map_err(|_| self.wrong(name, &text))?;
        Ok(Some(number))
    }

    fn maybe_flag(&self, name: &str) -> Result<Option<bool>, Error> {
        Ok(self.maybe::<i64>(name)?.map(|number| number != 0))
    }

    fn number<T: FromStr>(&self, name: &str) -> Result<T, Error> {
        self.maybe(name)?.ok_or_else(|| self.absent(name))
    }

    fn flag(&self, name: &str) -> Result<bool, Error> {
        self.maybe_flag(name)?.ok_or_else(|| self.absent(name))
    }
}

/// Names of the legacy tables that exist, by family: from `ip_tables_names`, which lists those of the
/// calling thread's namespace. A missing file means that the family has no x_tables.
pub fn legacy_tables(proc: &Path, v6: bool) -> Section<Vec<String>> {
    let name = if v6 {
        "ip6_tables_names"
    } else {
        "ip_tables_names"
    };
    table_names(proc, name)
}

/// Names of tables whose rules are not read: those of legacy arptables, as `arp NAME`, and the modules of
/// legacy ebtables (`ebtable_filter`), which tell that there may be tables: asking for one makes it.
pub fn unread_tables(proc: &Path) -> Section<Vec<String>> {
    let Section::Known(arp) = table_names(proc, "arp_tables_names") else {
        return table_names(proc, "arp_tables_names");
    };
    let mut names: Vec<String> = arp.iter().map(|name| format!("arp {name}")).collect();
    let modules = proc.join("modules");
    match fs::read_to_string(&modules) {
        Ok(text) => names.extend(
            text.lines()
                .filter_map(|line| line.split(' ').next())
                .filter(|module| module.starts_with("ebtable_"))
                .map(str::to_owned),
        ),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
        Err(error) => {
            let operation = format!("read {}", modules.display());
            return Section::Missing(Error::io(operation, &error).to_string());
        }
    }
    Section::Known(names)
}

fn table_names(proc: &Path, name: &str) -> Section<Vec<String>> {
    let path = proc.join("thread-self/net").join(name);
    match fs::read_to_string(&path) {
        Ok(text) => Section::Known(text.lines().map(str::to_owned).collect()),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Section::Known(Vec::new()),
        Err(error) => {
            let operation = format!("read {}", path.display());
            Section::Missing(Error::io(operation, &error).to_string())
        }
    }
}
