//! What finding a Service's rules costs once they are read, among 10, 1,000 and 10,000 Services, and what the
//! first packet pays for the index.
//!
//! `cargo bench --bench lookup`. The rules are those that kube-proxy writes, for three endpoints a Service.
#![allow(missing_docs, reason = "criterion's macros make public items")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark")]

mod services;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use netpath::model::netfilter::Hook;
use netpath::simulate::Prepared;
use services::{PROXIES, key, packet, topology};

const NUMBERS: [u32; 3] = [10, 1_000, 10_000];

fn lookups(c: &mut Criterion) {
    for proxy in PROXIES {
        let mut group = c.benchmark_group(format!("lookup/{proxy:?}"));
        for number in NUMBERS {
            let topology = topology(proxy, number);
            // The last Service: what is walked has passed all others by then.
            let sent = packet(number - 1);
            let mut prepared = Prepared::new(&topology);
            let mut walked = Prepared::one_by_one(&topology);
            let answer = prepared.through(&key(), Hook::Output, sent.clone());
            assert_eq!(answer.len(), 3, "each endpoint is a way");
            assert_eq!(answer, walked.through(&key(), Hook::Output, sent.clone()));
            group.bench_function(BenchmarkId::new("indexed", number), |b| {
                b.iter(|| black_box(prepared.through(&key(), Hook::Output, sent.clone())));
            });
            group.bench_function(BenchmarkId::new("walked", number), |b| {
                b.iter(|| black_box(walked.through(&key(), Hook::Output, sent.clone())));
            });
            group.bench_function(BenchmarkId::new("first packet", number), |b| {
                b.iter(|| {
                    let mut fresh = Prepared::new(&topology);
                    black_box(fresh.through(&key(), Hook::Output, sent.clone()))
                });
            });
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = lookups
}
criterion_main!(benches);
