use super::*;

#[test]
fn smoke() {
    let ns = std::fs::metadata("/proc/self/ns/net").unwrap();
    let begin = std::time::Instant::now();
    let mut drops = Drops::open(&[std::os::unix::fs::MetadataExt::ino(&ns)]).unwrap();
    println!("{:?}", begin.elapsed());
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect("127.0.0.1:9").unwrap();
    socket.send(b"hello").unwrap();
    for lost in drops.take(100) {
        println!("{lost:?}");
    }
    println!("{:?}", drops.lost());
}
