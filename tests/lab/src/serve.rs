//! The listener of a pod: answers on TCP and UDP with its name and with the peer that it saw.
//!
//! The first line of every answer is `<name> <peer address>`, then comes what was sent. A request
//! that begins with `GET ` is answered in HTTP, so that an ordinary client can ask too.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket,
};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::cmsg_space;
use nix::sys::socket::sockopt::Ipv6RecvPacketInfo;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt,
};

/// Arguments of the internal subcommand `serve`.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// Name to answer with.
    #[arg(long)]
    pub name: String,
    /// TCP port; may be given several times.
    #[arg(long)]
    pub tcp: Vec<u16>,
    /// UDP port; may be given several times.
    #[arg(long)]
    pub udp: Vec<u16>,
    /// Listen on the loopback addresses only.
    #[arg(long)]
    pub localhost: bool,
}

/// Opens every listener, says `ready`, and serves until killed.
pub fn serve(args: &ServeArgs) -> Result<()> {
    // The unspecified IPv6 address takes IPv4 too, as Go's listeners in most pods do.
    let places: &[IpAddr] = if args.localhost {
        &[
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(Ipv6Addr::LOCALHOST),
        ]
    } else {
        &[IpAddr::V6(Ipv6Addr::UNSPECIFIED)]
    };
    for place in places {
        for port in &args.tcp {
            let at = SocketAddr::new(*place, *port);
            let listener = TcpListener::bind(at).with_context(|| format!("listen on tcp {at}"))?;
            let name = args.name.clone();
            thread::spawn(move || serve_tcp(&listener, &name));
        }
        for port in &args.udp {
            let at = SocketAddr::new(*place, *port);
            let socket = UdpSocket::bind(at).with_context(|| format!("listen on udp {at}"))?;
            if place.is_ipv6() {
                setsockopt(&socket, Ipv6RecvPacketInfo, &true)
                    .context("ask for addresses asked")?;
            }
            let name = args.name.clone();
            thread::spawn(move || serve_udp(&socket, &name));
        }
    }
    println!("ready");
    io::stdout().flush().context("report readiness")?;
    loop {
        thread::park();
    }
}

fn serve_tcp(listener: &TcpListener, name: &str) {
    loop {
        match listener.accept() {
            Ok((stream, peer)) => {
                let name = name.to_owned();
                thread::spawn(move || {
                    if let Err(error) = answer(stream, peer, &name) {
                        eprintln!("serve {peer}: {error}");
                    }
                });
            }
            Err(error) => eprintln!("accept: {error}"),
        }
    }
}

fn answer(mut stream: TcpStream, peer: SocketAddr, name: &str) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut buffer = [0; 16 * 1024];
    let mut first = true;
    loop {
        let length = stream.read(&mut buffer)?;
        let request = buffer.get(..length).unwrap_or_default();
        if first {
            let line = format!("{name} {}\n", plain(peer));
            if request.starts_with(b"GET ") {
                return write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{line}",
                    line.len()
                );
            }
            stream.write_all(line.as_bytes())?;
            first = false;
        }
        if length == 0 {
            return Ok(());
        }
        stream.write_all(request)?;
    }
}

fn serve_udp(socket: &UdpSocket, name: &str) {
    loop {
        if let Err(error) = answer_datagram(socket, name) {
            eprintln!("serve udp: {error}");
        }
    }
}

/// Answers one datagram from the address that it was sent to, as DNS servers do: a socket on any address
/// would answer from the one that the kernel chooses, which a client need not have asked.
fn answer_datagram(socket: &UdpSocket, name: &str) -> io::Result<()> {
    let mut buffer = vec![0; 65536];
    let mut control = cmsg_space!(libc::in6_pktinfo);
    let (length, peer, asked) = {
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let message = recvmsg::<SockaddrStorage>(
            socket.as_raw_fd(),
            &mut slices,
            Some(&mut control),
            MsgFlags::empty(),
        )?;
        let asked = message.cmsgs()?.find_map(|part| match part {
            ControlMessageOwned::Ipv6PacketInfo(info) => Some(libc::in6_pktinfo {
                // Any device: only the address is to be kept.
                ipi6_ifindex: 0,
                ..info
            }),
            _ => None,
        });
        (message.bytes, message.address, asked)
    };
    let peer = peer.ok_or_else(|| io::Error::other("a datagram came without address"))?;
    let shown = match (peer.as_sockaddr_in(), peer.as_sockaddr_in6()) {
        (Some(v4), _) => SocketAddr::V4((*v4).into()),
        (_, Some(v6)) => SocketAddr::V6((*v6).into()),
        _ => return Err(io::Error::other("a datagram came from no IP address")),
    };
    let mut reply = format!("{name} {}\n", plain(shown)).into_bytes();
    reply.extend_from_slice(buffer.get(..length).unwrap_or_default());
    let asked = asked.as_ref().map(ControlMessage::Ipv6PacketInfo);
    sendmsg(
        socket.as_raw_fd(),
        &[IoSlice::new(&reply)],
        asked.as_slice(),
        MsgFlags::empty(),
        Some(&peer),
    )?;
    Ok(())
}

/// An IPv4 peer of a dual-stack socket as IPv4.
fn plain(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}

/// Reads `ADDRESS:PORT`.
pub fn parse_target(text: &str) -> Result<SocketAddr> {
    match text.to_socket_addrs() {
        Ok(mut found) => found
            .next()
            .with_context(|| format!("read target {text:?}: no address")),
        Err(error) => bail!("read target {text:?}: {error}; ADDRESS:PORT is wanted"),
    }
}
