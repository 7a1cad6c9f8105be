//! The conversation of captures, with a watcher that plays its part.

use std::os::unix::net::UnixStream;
use std::thread;

use super::*;
use crate::collect::discovery::Roots;

/// Sees one packet at a time, whenever it is asked, until it was stopped.
#[derive(Default)]
struct Player {
    /// Becomes readable when packets come, which is always.
    wake: Option<(UnixStream, UnixStream)>,
    ended: Vec<Ended>,
    stops: usize,
}

impl Watcher for Player {
    fn watch(&mut self, _: Watch, _: &mut Collector) -> Result<Vec<Opened>, String> {
        let (own, mut other) = UnixStream::pair().map_err(|error| error.to_string())?;
        other.write_all(b"x").map_err(|error| error.to_string())?;
        self.wake = Some((own, other));
        Ok(Vec::new())
    }
    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.wake.iter().map(|(own, _)| own.as_fd()).collect()
    }
    fn take(&mut self) -> Result<Option<Vec<Seen>>, String> {
        let seen = Seen {
            point: 0,
            time: 0,
            len: 60,
            bytes: Vec::new(),
            ifindex: None,
            out: None,
            packet: None,
            mark: None,
            dropped: None,
        };
        Ok(self.wake.as_ref().map(|_| vec![seen]))
    }
    fn ended(&mut self) -> Vec<Ended> {
        std::mem::take(&mut self.ended)
    }
    fn stop(&mut self) -> Vec<Losses> {
        self.stops += 1;
        self.wake = None;
        Vec::new()
    }
    fn probe(&mut self, _: &Probe, _: &mut Collector) -> Result<Probed, String> {
        Err(BLIND.to_owned())
    }
}

/// The client's side.
struct Client {
    stream: UnixStream,
    decoder: Decoder,
}

impl Client {
    fn send(&mut self, request: &Request) {
        let frame = encode(request).expect("a frame");
        self.stream.write_all(&frame).expect("it listens");
    }

    fn next(&mut self) -> Reply {
        loop {
            if let Some(reply) = self.decoder.message().expect("a good frame") {
                return reply;
            }
            let mut chunk = [0; 4096];
            let len = self.stream.read(&mut chunk).expect("it speaks");
            assert_ne!(len, 0, "it ended");
            self.decoder.push(&chunk[..len]);
        }
    }

    /// The next that is no packet.
    fn answer(&mut self) -> Reply {
        loop {
            match self.next() {
                Reply::Packets { .. } => {}
                other => return other,
            }
        }
    }
}

/// Talks to a helper with this watcher; gives it back as it was at the end.
fn talk(mut player: Player, idle: Duration, say: impl FnOnce(&mut Client)) -> Player {
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let serving = thread::spawn(move || {
        let mut collector = Collector::new(Roots::default()).expect("a collector");
        let output = theirs.try_clone().expect("another handle");
        let served = serve(theirs, output, &mut collector, &mut player, idle);
        served.expect("it ends well");
        player
    });
    let mut client = Client {
        stream: ours,
        decoder: Decoder::default(),
    };
    client.send(&Request::Hello {
        schema: SCHEMA_VERSION,
    });
    assert!(matches!(client.next(), Reply::Hello { .. }));
    say(&mut client);
    client.send(&Request::Bye);
    // It may have more to say until it hears that.
    let rest = client.stream.read_to_end(&mut Vec::new());
    rest.expect("it speaks to its end");
    serving.join().expect("no panic")
}

fn watch(id: u32) -> Request {
    let watch = Watch::default();
    Request::Watch { id, watch }
}

#[test]
fn the_end_of_another_watch_ends_none() {
    let player = talk(Player::default(), IDLE, |client| {
        client.send(&watch(1));
        assert!(matches!(client.next(), Reply::Watching { id: 1, .. }));
        client.send(&Request::Unwatch { id: 2 });
        match client.answer() {
            Reply::Error { id: 2, message } => {
                assert_eq!(message, "end watch 2: there is no such watch");
            }
            other => panic!("{other:?}"),
        }
        // The first goes on, then ends.
        assert!(matches!(client.next(), Reply::Packets { id: 1, .. }));
        client.send(&Request::Unwatch { id: 1 });
        assert!(matches!(client.answer(), Reply::Watched { id: 1, .. }));
    });
    assert_eq!(player.stops, 1);
}

#[test]
fn a_point_that_ended_is_told_behind_its_packets() {
    let ended = Ended {
        point: 3,
        why: "capture on eth0: read packets: it is gone".to_owned(),
        losses: Losses::default(),
    };
    let player = Player {
        ended: vec![ended.clone()],
        ..Player::default()
    };
    talk(player, IDLE, |client| {
        client.send(&watch(1));
        assert!(matches!(client.next(), Reply::Watching { id: 1, .. }));
        assert!(matches!(client.next(), Reply::Packets { id: 1, .. }));
        assert_eq!(client.next(), Reply::PointEnded { id: 1, ended });
    });
}
