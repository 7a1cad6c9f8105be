//! A listener whose connections can all be broken off, as when an API server dies.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};

use super::misbehave::Switch;

/// The listener.
pub(super) struct Cuttable {
    listener: TcpListener,
    switch: Switch,
}

impl Cuttable {
    pub(super) fn new(listener: TcpListener, switch: Switch) -> Self {
        Self { listener, switch }
    }
}

impl axum::serve::Listener for Cuttable {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            // An error concerns the one connection (ECONNABORTED) or passes (EMFILE).
            let Ok((stream, address)) = self.listener.accept().await else {
                continue;
            };
            if self.switch.get().gone {
                continue;
            }
            // Small frames go out at once, as from a real server.
            let _ = stream.set_nodelay(true);
            let mut gone = self.switch.gone();
            let cut = Box::pin(async move {
                // The sender lives as long as the server.
                let _ = gone.wait_for(|gone| *gone).await;
            });
            return (Connection { stream, cut }, address);
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// A connection that ends with an error once the switch says so.
pub(super) struct Connection {
    stream: TcpStream,
    cut: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Connection {
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.cut.as_mut().poll(cx) {
            Poll::Ready(()) => {
                // Polled again after its end a future may panic.
                self.cut = Box::pin(std::future::ready(()));
                Err(io::ErrorKind::ConnectionReset.into())
            }
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
