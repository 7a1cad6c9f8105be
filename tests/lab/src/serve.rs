//! The listener of a pod: answers on TCP and UDP with its name and with the peer that it saw.
//!
//! The first line of every answer is `<name> <peer address>`, then comes what was sent. A request
//! that begins with `GET ` is answered in HTTP, so that an ordinary client can ask too.

use std::io::{self, Read, Write};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket,
};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

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
    let mut buffer = vec![0; 65536];
    loop {
        let sent = socket.recv_from(&mut buffer).and_then(|(length, peer)| {
            let mut reply = format!("{name} {}\n", plain(peer)).into_bytes();
            reply.extend_from_slice(buffer.get(..length).unwrap_or_default());
            socket.send_to(&reply, peer)
        });
        if let Err(error) = sent {
            eprintln!("serve udp: {error}");
        }
    }
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
