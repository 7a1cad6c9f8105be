//! A TCP port of this namespace that leads to an address inside another network namespace.
//!
//! A listening socket keeps the namespace it was made in; the sockets that go on are made on a thread
//! inside the other one. So a client here reaches a server there without a device between the two.

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;

use anyhow::{Context, Result};
use clap::Args;

use crate::namespace::Namespaces;

/// Arguments of the subcommand `relay`.
#[derive(Args, Clone, Debug)]
pub struct RelayArgs {
    /// ADDRESS:PORT to listen on, here.
    pub listen: SocketAddr,
    /// Process whose network namespace is meant.
    pub pid: i32,
    /// ADDRESS:PORT to connect to, there.
    pub to: SocketAddr,
}

/// Listens, says `ready`, and relays until killed.
pub fn relay(args: &RelayArgs) -> Result<()> {
    let listener =
        TcpListener::bind(args.listen).with_context(|| format!("listen on tcp {}", args.listen))?;
    let there = Namespaces::net_of(args.pid)?;
    println!("ready");
    loop {
        let (near, peer) = listener.accept().context("accept a connection")?;
        let far = there.run(|| {
            TcpStream::connect(args.to).with_context(|| format!("connect to tcp {}", args.to))
        });
        match far {
            Ok(far) => {
                thread::spawn(move || {
                    if let Err(error) = join(near, far) {
                        eprintln!("relay {peer}: {error}");
                    }
                });
            }
            Err(error) => eprintln!("relay {peer}: {error:#}"),
        }
    }
}

/// Copies both ways until both have ended.
fn join(near: TcpStream, far: TcpStream) -> io::Result<()> {
    let (near_read, far_read) = (near.try_clone()?, far.try_clone()?);
    let back = thread::spawn(move || copy(far_read, near));
    copy(near_read, far)?;
    back.join().unwrap_or(Ok(()))
}

fn copy(mut from: TcpStream, mut to: TcpStream) -> io::Result<()> {
    let copied = io::copy(&mut from, &mut to);
    // Where the other end is gone already, that is the end that was to be passed on.
    match to.shutdown(Shutdown::Write) {
        Err(error) if error.kind() != io::ErrorKind::NotConnected => Err(error),
        _ => copied.map(drop),
    }
}
