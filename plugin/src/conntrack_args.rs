//! Which entries `dump conntrack` shows, in the words of `conntrack -L`.

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use netpath::model::Prefix;
use netpath::model::conntrack::{ConntrackFilter, TCP_STATES, status};

/// Options of `dump conntrack`.
#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "Options of `dump conntrack`")]
pub struct ConntrackArgs {
    /// What each CPU counted, as `conntrack -S`, in place of entries
    #[arg(long)]
    pub stats: bool,
    /// Any of an entry's four addresses, or a network that one is of
    #[arg(long, value_name = "ADDRESS[/LENGTH]")]
    pub address: Option<String>,
    /// Source, as the side that opened the flow sends
    #[arg(long, alias = "orig-src", value_name = "ADDRESS[/LENGTH]")]
    pub src: Option<String>,
    /// Destination, as the side that opened the flow sends
    #[arg(long, alias = "orig-dst", value_name = "ADDRESS[/LENGTH]")]
    pub dst: Option<String>,
    /// Source of answers: where the flow is translated to
    #[arg(long, value_name = "ADDRESS[/LENGTH]")]
    pub reply_src: Option<String>,
    /// Destination of answers: what its source is translated to
    #[arg(long, value_name = "ADDRESS[/LENGTH]")]
    pub reply_dst: Option<String>,
    /// Any of an entry's four ports
    #[arg(long)]
    pub port: Option<u16>,
    /// Source port of the side that opened the flow
    #[arg(long, alias = "orig-port-src", value_name = "PORT")]
    pub sport: Option<u16>,
    /// Port that it asked for
    #[arg(long, alias = "orig-port-dst", value_name = "PORT")]
    pub dport: Option<u16>,
    /// tcp, udp, icmp, icmpv6, sctp or a number
    #[arg(long, alias = "proto", value_name = "PROTOCOL")]
    pub protocol: Option<String>,
    /// Connection mark
    #[arg(long, value_name = "MARK[/MASK]")]
    pub mark: Option<String>,
    /// Zone of either direction
    #[arg(long)]
    pub zone: Option<u16>,
    /// State of TCP: established, syn_sent, time_wait, ...
    #[arg(long, value_name = "STATE")]
    pub state: Option<String>,
    /// What is known of the flow; several: all of them
    #[arg(long, value_enum, value_delimiter = ',', value_name = "STATUS")]
    pub status: Vec<Status>,
    /// Only flows whose source is translated
    #[arg(long)]
    pub src_nat: bool,
    /// Only flows whose destination is translated
    #[arg(long)]
    pub dst_nat: bool,
}

/// IPS_* by name.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Not dropped early where the table is full.
    Assured,
    /// An answer was seen.
    #[value(alias = "seen_reply")]
    SeenReply,
    /// No answer was seen.
    #[value(alias = "unset")]
    Unreplied,
    /// Another flow's helper expected it.
    Expected,
    /// Its time is not renewed by packets.
    #[value(alias = "fixed_timeout")]
    FixedTimeout,
    /// In a flowtable.
    Offload,
}

impl ConntrackArgs {
    /// Whether anything was given.
    pub fn any(&self) -> bool {
        self.stats
            || !self.status.is_empty()
            || self.src_nat
            || self.dst_nat
            || self.zone.is_some()
            || [self.port, self.sport, self.dport]
                .iter()
                .any(Option::is_some)
            || [
                &self.address,
                &self.src,
                &self.dst,
                &self.reply_src,
                &self.reply_dst,
                &self.protocol,
                &self.mark,
                &self.state,
            ]
            .iter()
            .any(|own| own.is_some())
    }

    /// What was asked for. Errors: a value that is none, or several that no entry can have together.
    pub fn filter(&self) -> anyhow::Result<ConntrackFilter> {
        let (src, dst) = (
            prefix("--src", self.src.as_ref())?,
            prefix("--dst", self.dst.as_ref())?,
        );
        let reply_src = prefix("--reply-src", self.reply_src.as_ref())?;
        let reply_dst = prefix("--reply-dst", self.reply_dst.as_ref())?;
        let any = prefix("--address", self.address.as_ref())?;
        let all = [src, dst, reply_src, reply_dst, any];
        let mut families = all.iter().flatten().map(|prefix| prefix.addr().is_ipv6());
        let v6 = families.next();
        if families.any(|other| Some(other) != v6) {
            bail!("addresses of both families: no flow has IPv4 and IPv6 addresses");
        }
        let bits = |of: &[(bool, u32)]| {
            let given = of.iter().filter(|(given, _)| *given);
            given.fold(0, |all, (_, bit)| all | bit)
        };
        let is = |status: Status| self.status.contains(&status);
        let set = bits(&[
            (is(Status::Assured), status::ASSURED),
            (is(Status::SeenReply), status::SEEN_REPLY),
            (is(Status::Expected), status::EXPECTED),
            (is(Status::FixedTimeout), status::FIXED_TIMEOUT),
            (is(Status::Offload), status::OFFLOAD),
            (self.src_nat, status::SRC_NAT),
            (self.dst_nat, status::DST_NAT),
        ]);
        let unset = bits(&[(is(Status::Unreplied), status::SEEN_REPLY)]);
        if set & unset != 0 {
            bail!("--status: no flow is both seen-reply and unreplied");
        }
        Ok(ConntrackFilter {
            v6,
            protocol: self.protocol.as_deref().map(protocol).transpose()?,
            orig: (src, dst),
            reply: (reply_src, reply_dst),
            any,
            orig_ports: (self.sport, self.dport),
            reply_ports: (None, None),
            any_port: self.port,
            mark: self.mark.as_deref().map(mark).transpose()?,
            zone: self.zone,
            status: (set, unset),
            tcp_state: self.state.as_deref().map(state).transpose()?,
        })
    }
}

fn prefix(option: &str, text: Option<&String>) -> anyhow::Result<Option<Prefix>> {
    let Some(text) = text else {
        return Ok(None);
    };
    let bad = || format!("{option} {text}: want an address, or a network as ADDRESS/LENGTH");
    if text.contains('/') {
        return text.parse().map(Some).with_context(bad);
    }
    Ok(Some(Prefix::host(text.parse().with_context(bad)?)))
}

fn protocol(text: &str) -> anyhow::Result<u8> {
    Ok(match text.to_ascii_lowercase().as_str() {
        "icmp" => 1,
        "tcp" => 6,
        "udp" => 17,
        "gre" => 47,
        "icmpv6" | "ipv6-icmp" => 58,
        "sctp" => 132,
        other => other.parse().with_context(|| {
            format!(
                "--protocol {text}: want tcp, udp, icmp, icmpv6, gre, sctp or a number up to 255"
            )
        })?,
    })
}

fn mark(text: &str) -> anyhow::Result<(u32, u32)> {
    let number = |part: &str| match part.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => part.parse(),
    };
    let bad = || format!("--mark {text}: want MARK or MARK/MASK, as numbers or 0x...");
    let (value, mask) = match text.split_once('/') {
        Some((value, mask)) => (value, number(mask).with_context(bad)?),
        None => (text, u32::MAX),
    };
    Ok((number(value).with_context(bad)?, mask))
}

fn state(text: &str) -> anyhow::Result<u8> {
    let name = text.to_ascii_lowercase().replace('-', "_");
    let found = TCP_STATES.iter().position(|own| *own == name);
    found
        .and_then(|state| u8::try_from(state).ok())
        .with_context(|| format!("--state {text}: want one of {}", TCP_STATES.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_are_none_are_refused() {
        let of = |change: fn(&mut ConntrackArgs)| {
            let mut args = ConntrackArgs::default();
            change(&mut args);
            args.filter().map_err(|error| error.to_string())
        };
        let error = of(|args| args.src = Some("10.0.0".to_owned())).expect_err("no address");
        assert!(
            error.starts_with("--src 10.0.0: want an address"),
            "{error}"
        );
        let both = of(|args| {
            args.src = Some("10.0.0.1".to_owned());
            args.dst = Some("fd00::/8".to_owned());
        });
        assert!(both.is_err());
        assert!(of(|args| args.state = Some("open".to_owned())).is_err());
        assert!(of(|args| args.status = vec![Status::SeenReply, Status::Unreplied]).is_err());
        let marked = of(|args| args.mark = Some("0x4000/0x4000".to_owned())).expect("a mark");
        assert_eq!(marked.mark, Some((0x4000, 0x4000)));
        let state = of(|args| args.state = Some("TIME_WAIT".to_owned())).expect("a state");
        assert_eq!(state.tcp_state, Some(7));
    }
}
