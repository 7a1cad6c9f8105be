//! Exactly what was typed. What it means is checked in [`crate::request`].

use std::path::PathBuf;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::conntrack_args::ConntrackArgs;
use crate::kube_flags::ConnectionFlags;
use crate::launch::HelperFlags;

/// Where a packet goes between pods, Services and nodes, and what stops it.
#[derive(Parser, Debug)]
#[command(
    name = "kubectl-netpath",
    version,
    disable_help_subcommand = true,
    after_help = EXAMPLES,
    max_term_width = 100
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Flags of every command.
    #[command(flatten)]
    pub global: GlobalFlags,
}

const EXAMPLES: &str = "\
Examples:
  kubectl netpath trace web-0 api                 from pod web-0 to Service api, and back
  kubectl netpath trace deploy/web svc/api:http   from a ready pod of a Deployment, to a named port
  kubectl netpath trace node/worker-1 10.96.0.10:53 --protocol udp
  kubectl netpath map web-0                       its veth, bridge port, MAC, MTU and namespace
  kubectl netpath map veth/veth3fa2c1@worker-1    which pod is behind this device
  kubectl netpath dump routes web-0               the routes inside the pod's namespace
  kubectl netpath capture web-0 api               its packets, at every hop
  kubectl netpath check                           do the nodes' rules agree with the Services
  kubectl netpath snapshot save net.json          everything, for later:
  kubectl netpath trace --snapshot net.json web-0 api
  kubectl-netpath trace --local netns/a 10.0.1.3  on this machine, without Kubernetes
  kubectl netpath explain NP0101                  what a finding means and how to mend it

Exit codes: 0 delivered on every branch; 1 dropped, rejected or looping on some branch;
            2 wrong usage or the tool failed; 3 inconclusive.
            For check: 0 nothing was found; 1 something was; 3 nothing, but not all could be read.";

/// Commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Trace a packet from SRC to DST and its reply back
    Trace(TraceArgs),
    /// Show which host device belongs to which pod, or the other way round
    Map(MapArgs),
    /// Show what the kernel of a node or of a pod's namespace holds
    Dump(DumpArgs),
    /// Look for faults that are visible without a flow, on all nodes or on those named
    Check(CheckArgs),
    /// Show or record packets at the hops of a pod, a node or a path
    Capture(CaptureArgs),
    /// Save what kernels hold to a file that trace, map, dump and check run on later
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Explain a finding and how to mend it
    Explain(ExplainArgs),
    /// Remove helper pods that a killed client left behind
    Cleanup(CleanupArgs),
    /// Print versions
    Version(VersionArgs),
    /// Print a completion script
    Completion(CompletionArgs),
}

/// Flags of every command.
#[derive(Args, Debug, Clone)]
pub struct GlobalFlags {
    /// When to colour: never alone the carrier of meaning
    #[arg(long, global = true, value_enum, default_value_t = ColorChoice::Auto, value_name = "WHEN")]
    pub color: ColorChoice,
    /// Say on stderr what is done: rounds, bytes, times
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// How to reach the cluster.
    #[command(flatten)]
    pub connection: ConnectionFlags,
}

/// When to colour.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColorChoice {
    /// On a terminal, unless NO_COLOR is set or TERM is dumb.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// How to write the answer.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// For people: every decision with the objects that made it.
    Wide,
    /// For programs: docs/output.md.
    Json,
    /// The same as JSON, in YAML.
    Yaml,
}

/// Transport protocols by name.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProtocolName {
    /// Transmission Control Protocol.
    Tcp,
    /// User Datagram Protocol.
    Udp,
    /// Echo request and reply.
    Icmp,
    /// Stream Control Transmission Protocol.
    Sctp,
}

/// Where facts come from: helpers in the cluster, this machine, or a file.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Where facts come from")]
pub struct AccessFlags {
    /// Look at this Linux machine, without Kubernetes (needs root)
    #[arg(long, conflicts_with = "snapshot")]
    pub local: bool,
    /// Look at a file made by `snapshot save` (needs no cluster and no root)
    #[arg(long, value_name = "FILE")]
    pub snapshot: Option<PathBuf>,
    /// About helper pods.
    #[command(flatten)]
    pub helper: HelperFlags,
}

/// `trace`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
Ends: [TYPE/]NAME[.NAMESPACE][:PORT], an address with or without a port, or a URL.
  web-0   pod/web-0   svc/api:http   api.shop:80   deploy/api   node/worker-1   10.96.0.10:53
  A bare name is a pod as SRC; as DST a Service, then a pod.
  With --local: netns/NAME, pid/N, host, or an address.

Examples:
  kubectl netpath trace web-0 api                          which way, and does it arrive
  kubectl netpath trace -n shop web-0 api.db:5432 -o wide  every decision with its kernel object
  kubectl netpath trace web-0 api -o json | jq .verdict
  kubectl netpath trace web-0 1.1.1.1 --protocol icmp
  kubectl netpath trace web-0 api --probe                  predict, then prove by a real connection
  kubectl netpath trace web-0 api.db:53 --protocol udp --probe --data hello --count 5
  kubectl netpath trace web-0 api --mtu                    how large packets may be, each way, and what limits them
  kubectl-netpath trace --local netns/net0 10.0.1.3        echo request between two namespaces
  kubectl-netpath trace --local netns/net0 10.0.1.3:8080   a TCP connection")]
pub struct TraceArgs {
    /// Where the packet starts
    #[arg(value_name = "SRC")]
    pub source: String,
    /// Where it is sent
    #[arg(value_name = "DST")]
    pub destination: String,
    /// Format of the answer
    #[arg(short, long, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    pub output: Format,
    /// Protocol [default: that of the Service's port, else tcp; with --local and no port, icmp]
    #[arg(long, value_enum, ignore_case = true, value_name = "PROTOCOL")]
    pub protocol: Option<ProtocolName>,
    /// Source port [default: any free one]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub source_port: Option<u16>,
    /// User id of the sending program, where rules ask for it, as those of service meshes do [default: not known]
    #[arg(long, value_name = "UID")]
    pub uid: Option<u32>,
    /// Its group id [default: not known]
    #[arg(long, value_name = "GID")]
    pub gid: Option<u32>,
    /// Size of the packet in bytes, IP header included: try 1500 where large answers hang
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(28..=65535))]
    pub size: Option<u32>,
    /// IPv4 only
    #[arg(short = '4', long = "ipv4", conflicts_with = "ipv6")]
    pub ipv4: bool,
    /// IPv6 only
    #[arg(short = '6', long = "ipv6")]
    pub ipv6: bool,
    /// Also follow flows that stand already between the two, as conntrack has them
    #[arg(long)]
    pub existing: bool,
    /// Do not show the way of the reply (it still decides)
    #[arg(long)]
    pub no_reply: bool,
    /// Then send one real packet from SRC and show what is seen of it beside the prediction, device by device
    #[arg(long, conflicts_with = "snapshot")]
    pub probe: bool,
    /// Send so many probes, one after the other
    #[arg(long, value_name = "N", default_value_t = 1, requires = "probe",
          value_parser = clap::value_parser!(u32).range(1..=100))]
    pub count: u32,
    /// What a UDP probe carries [default: a line of text that names netpath]
    #[arg(long, value_name = "TEXT", requires = "probe")]
    pub data: Option<String>,
    /// Where a probe differs from the prediction, write what that was made of to this file, as a snapshot
    #[arg(long, value_name = "FILE", requires = "probe")]
    pub save_disagreement: Option<PathBuf>,
    /// Then find the largest packet that passes, each way, by echo requests that may not be cut, beside what each
    /// device leaves for it
    #[arg(long, conflicts_with = "snapshot")]
    pub mtu: bool,
    /// Where facts come from.
    #[command(flatten)]
    pub access: AccessFlags,
}

/// `map`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
WHAT is nothing (everything), a pod, a node, or what is known of one side:
  web-0   pod/web-0.shop   node/worker-1
  veth/NAME[@NODE]   ifindex/N[@NODE]   netns/INODE[@NODE]   ip/ADDRESS   mac/ADDRESS

Examples:
  kubectl netpath map                             every pod of every node
  kubectl netpath map web-0 -o wide
  kubectl netpath map veth/veth3fa2c1@worker-1    whose device is this
  kubectl netpath map ifindex/12@worker-1
  kubectl netpath map netns/4026532621
  kubectl netpath map 10.244.1.7")]
pub struct MapArgs {
    /// Pod, node, device, ifindex, namespace inode, or address [default: everything]
    #[arg(value_name = "WHAT")]
    pub what: Option<String>,
    /// Format of the answer
    #[arg(short, long, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    pub output: Format,
    /// Where facts come from.
    #[command(flatten)]
    pub access: AccessFlags,
}

/// What `dump` shows.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum DumpWhat {
    /// Devices, as `ip -d link`.
    #[value(alias = "link")]
    Links,
    /// Addresses, as `ip addr`.
    #[value(alias = "addr")]
    Addrs,
    /// Routes of all tables, as `ip route show table all`.
    #[value(alias = "route")]
    Routes,
    /// Policy rules, as `ip rule`.
    #[value(alias = "rule")]
    Rules,
    /// Neighbours, as `ip neigh`.
    #[value(alias = "neighbours", alias = "neighbors")]
    Neigh,
    /// Forwarding entries of bridges and tunnels, as `bridge fdb`.
    Fdb,
    /// Rules of nf_tables and of x_tables.
    #[value(alias = "nft", alias = "iptables")]
    Netfilter,
    /// Virtual services of IPVS and their servers, as `ipvsadm-save -n`.
    #[value(alias = "ipvsadm")]
    Ipvs,
    /// The conntrack table, as `conntrack -L`.
    #[value(alias = "ct")]
    Conntrack,
    /// Sockets that wait for packets, as `ss -ltun`.
    #[value(alias = "socket")]
    Sockets,
    /// Settings that decide about packets.
    #[value(alias = "sysctl")]
    Sysctls,
}

/// `dump`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
Examples:
  kubectl netpath dump routes web-0          inside the pod's namespace
  kubectl netpath dump netfilter node/worker-1
  kubectl netpath dump neigh node/worker-1 -o json
  kubectl netpath dump netfilter node/worker-1 --syntax iptables-save
  kubectl netpath dump conntrack node/worker-1 --address 10.244.1.7 --protocol udp --port 53
  kubectl netpath dump conntrack node/worker-1 --stats
  kubectl-netpath dump links host --local
  kubectl-netpath dump sockets netns/net0 --local")]
pub struct DumpArgs {
    /// What to show
    #[arg(value_enum, value_name = "WHAT")]
    pub what: DumpWhat,
    /// A pod, a node (node/NAME), or with --local netns/NAME, pid/N, host
    #[arg(value_name = "WHERE")]
    pub place: String,
    /// Rules of netfilter as this program alone prints them, to be piped [default: all, each as its own]
    #[arg(long, value_enum, value_name = "PROGRAM")]
    pub syntax: Option<RuleSyntax>,
    /// Of `dump conntrack`.
    #[command(flatten)]
    pub conntrack: ConntrackArgs,
    /// Format of the answer
    #[arg(short, long, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    pub output: Format,
    /// Where facts come from.
    #[command(flatten)]
    pub access: AccessFlags,
}

/// `check`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
What is looked for:
  Rules of kube-proxy (modes iptables, nftables, ipvs) against the Services and EndpointSlices as
  each node sees them: endpoints that are missing, left over or wrong; Services without rules and
  rules without Service; traffic policies; session affinity; rules of two modes or backends at once.
  A conntrack table that is full or nearly so.

Examples:
  kubectl netpath check
  kubectl netpath check worker-1 worker-3
  kubectl netpath check --snapshot net.json -o json | jq .verdict

Exit codes: 0 nothing was found; 1 something was; 2 wrong usage or the tool failed;
            3 nothing was found, but not all could be read.")]
pub struct CheckArgs {
    /// Nodes [default: all]
    #[arg(value_name = "NODE")]
    pub nodes: Vec<String>,
    /// Format of the answer
    #[arg(short, long, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    pub output: Format,
    /// Where facts come from.
    #[command(flatten)]
    pub access: AccessFlags,
}

/// `capture`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
With one end: a pod's own devices and their other ends, and its packets at the node's uplinks and
tunnels; a node's uplinks and tunnels. With two: every device on the predicted path and on the way
back, on all nodes. A filter holds for packets as they are and for those inside VXLAN, IP in IP,
sit and ip6tnl; those of other tunnels are seen at the tunnel's own device. Payload is left out, and
nothing is taken that is not for the node, unless asked for. It ends by Ctrl-C, complete to the last
packet, and tells what was lost.

Examples:
  kubectl netpath capture web-0                         one line for each packet and device
  kubectl netpath capture web-0 --filter 'tcp port 80 and tcp[tcpflags] & tcp-syn != 0'
  kubectl netpath capture web-0 api --count 20          what one flow looks like at each hop
  kubectl netpath capture web-0 api -w flow.pcapng --duration 1m
  kubectl netpath capture node/worker-1 --filter 'host 10.244.2.4' -w - | wireshark -k -i -
  kubectl netpath capture web-0 --dropped               what the kernel drops of it, and why
  kubectl-netpath capture --local netns/net0 10.0.1.3:8080")]
pub struct CaptureArgs {
    /// A pod, a node (node/NAME), or the source of a flow; with --local netns/NAME, pid/N, host
    #[arg(value_name = "WHERE")]
    pub place: String,
    /// Destination of the flow
    #[arg(value_name = "DST")]
    pub destination: Option<String>,
    /// Which packets, in pcap's language (man pcap-filter) [default: all, of a node but for tcp port 10250; with DST,
    /// those of the flow]
    #[arg(short, long, value_name = "FILTER")]
    pub filter: Option<String>,
    /// Write pcapng to this file, or to stdout (-)
    #[arg(short, long, value_name = "FILE")]
    pub write: Option<PathBuf>,
    /// End after so many packets, each device's counted
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// End after this time, 24h at most
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = crate::kube_flags::parse_lasting)]
    pub duration: std::time::Duration,
    /// End after so many bytes of output
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(1..))]
    pub size: Option<u64>,
    /// Also what packets carry, not their headers alone
    #[arg(long)]
    pub payload: bool,
    /// Also packets that are for other stations (sets the devices to promiscuous mode meanwhile)
    #[arg(long)]
    pub promiscuous: bool,
    /// Only packets that the kernel drops, each with its reason (Linux 5.17 and later): in the pod's namespace, and of
    /// its packets in the node's; of a flow in those on its path
    #[arg(long, conflicts_with = "promiscuous")]
    pub dropped: bool,
    /// Protocol of the flow [default: as trace]
    #[arg(
        long,
        value_enum,
        ignore_case = true,
        value_name = "PROTOCOL",
        requires = "destination"
    )]
    pub protocol: Option<ProtocolName>,
    /// Where facts come from.
    #[command(flatten)]
    pub access: AccessFlags,
}

impl CaptureArgs {
    /// How long it may last.
    pub fn lasts(&self) -> std::time::Duration {
        self.duration
    }

    /// The trace whose way is watched.
    pub fn trace(&self) -> TraceArgs {
        TraceArgs {
            source: self.place.clone(),
            destination: self.destination.clone().unwrap_or_default(),
            output: Format::Text,
            protocol: self.protocol,
            source_port: None,
            uid: None,
            gid: None,
            size: None,
            ipv4: false,
            ipv6: false,
            existing: false,
            no_reply: false,
            probe: false,
            mtu: false,
            count: 1,
            data: None,
            save_disagreement: None,
            access: self.access.clone(),
        }
    }
}

/// Whose words rules are printed in, and so which of them.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleSyntax {
    /// IPv4 tables of iptables-nft, as `iptables-nft-save -c` prints them.
    IptablesSave,
    /// IPv6 tables of iptables-nft.
    Ip6tablesSave,
    /// IPv4 tables of iptables-legacy.
    IptablesLegacySave,
    /// IPv6 tables of iptables-legacy.
    Ip6tablesLegacySave,
    /// Tables of nf_tables that no iptables made, as `nft -f` reads them.
    Nft,
}

/// `snapshot`.
#[derive(Subcommand, Debug, Clone)]
pub enum SnapshotCommand {
    /// Read everything of all nodes (or of those named) into one file
    #[command(after_help = "\
Examples:
  kubectl netpath snapshot save net.json
  kubectl netpath snapshot save net.json worker-1 worker-3
  kubectl-netpath snapshot save net.json --local

The file holds addresses, rules and process names of the nodes: treat it as you treat logs.")]
    Save(SaveArgs),
}

/// `snapshot save`.
#[derive(Args, Debug, Clone)]
pub struct SaveArgs {
    /// File to write; an existing one is replaced only by a whole new one
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Nodes [default: all]
    #[arg(value_name = "NODE")]
    pub nodes: Vec<String>,
    /// Where facts come from.
    #[command(flatten)]
    pub access: AccessFlags,
}

/// `explain`.
#[derive(Args, Debug, Clone)]
pub struct ExplainArgs {
    /// Code of a finding, for instance NP0101 [default: list them]
    #[arg(value_name = "CODE")]
    pub code: Option<String>,
}

/// `cleanup`.
#[derive(Args, Debug, Clone)]
pub struct CleanupArgs {
    /// Only in this namespace [default: every namespace that can be listed]
    #[arg(long, value_name = "NAME")]
    pub helper_namespace: Option<String>,
    /// Where helpers usually are, for those who may not look everywhere.
    #[arg(skip = std::env::var("NETPATH_HELPER_NAMESPACE").ok().filter(|name| !name.is_empty()))]
    pub usual_namespace: Option<String>,
    /// Also those of other users
    #[arg(long)]
    pub all: bool,
    /// Only say what would be removed
    #[arg(long)]
    pub dry_run: bool,
}

/// `version`.
#[derive(Args, Debug, Clone)]
pub struct VersionArgs {
    /// Format of the answer
    #[arg(short, long, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    pub output: Format,
}

/// `completion`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "\
Examples:
  source <(kubectl-netpath completion bash)
  kubectl netpath completion kubectl > ~/.local/bin/kubectl_complete-netpath
  chmod +x ~/.local/bin/kubectl_complete-netpath     # kubectl 1.26 and later then completes netpath")]
pub struct CompletionArgs {
    /// Shell; or kubectl, for the script by which kubectl asks its plugins
    #[arg(value_enum, value_name = "SHELL")]
    pub shell: CompletionFor,
}

/// Who completes.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompletionFor {
    /// For `kubectl-netpath`.
    Bash,
    /// For `kubectl-netpath`.
    Elvish,
    /// For `kubectl-netpath`.
    Fish,
    /// For `kubectl-netpath`.
    #[value(name = "powershell")]
    PowerShell,
    /// For `kubectl-netpath`.
    Zsh,
    /// For `kubectl netpath`: to be in PATH as `kubectl_complete-netpath`.
    Kubectl,
}

/// Name that usage lines show: `kubectl netpath` where kubectl would find this file as its plugin.
pub fn invocation(argv0: Option<&std::ffi::OsStr>) -> String {
    let file = argv0
        .map(std::path::Path::new)
        .and_then(std::path::Path::file_name)
        .map_or_else(
            || "kubectl-netpath".to_owned(),
            |name| name.to_string_lossy().into_owned(),
        );
    match file.strip_prefix("kubectl-") {
        Some(rest) => format!(
            "kubectl {}",
            rest.trim_end_matches(".exe").replace('_', "-")
        ),
        None => file,
    }
}

/// Examples before the flags: what most readers of a help text look for.
const TEMPLATE: &str = "\
{before-help}{about-with-newline}
{usage-heading} {usage}{after-help}

{all-args}";

/// The command line with its name as [`invocation`] gives it.
pub fn command(argv0: Option<&std::ffi::OsStr>) -> clap::Command {
    fn examples_first(command: clap::Command) -> clap::Command {
        let command = command.mut_subcommands(examples_first);
        if command.get_after_help().is_some() {
            command.help_template(TEMPLATE)
        } else {
            command
        }
    }
    examples_first(Cli::command().bin_name(invocation(argv0)))
}

/// Takes the arguments apart. Errors carry their own exit code (2, or 0 for `--help`).
pub fn parse(args: impl IntoIterator<Item = std::ffi::OsString>) -> Result<Cli, clap::Error> {
    let args: Vec<std::ffi::OsString> = args.into_iter().collect();
    let argv0 = args.first().cloned();
    let matches = command(argv0.as_deref()).try_get_matches_from(args)?;
    Cli::from_arg_matches(&matches)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn as_a_plugin_it_calls_itself_kubectl_netpath() {
        let name = |text: &str| invocation(Some(std::ffi::OsStr::new(text)));
        assert_eq!(name("/usr/local/bin/kubectl-netpath"), "kubectl netpath");
        assert_eq!(name("kubectl-netpath.exe"), "kubectl netpath");
        assert_eq!(name("netpath"), "netpath");
        assert_eq!(invocation(None), "kubectl netpath");
    }
}
