//! Questions without a cluster: about this machine's namespaces, and about a snapshot in a file.

use std::path::Path;

use anyhow::bail;
use netpath::model::names::Names;
use netpath::model::topology::Topology;
use netpath::model::want::Depth;
use netpath::simulate::Flow;
use netpath::trace::Trace;

use super::answer::exit_code;
use super::wants::{about_one, known_namespace};
use super::{Ends, Job, Probes, ends_of};
use crate::request::{Facts, file_flags, protocol_number};
use crate::resolve::{EndSpec, parse_local};
use crate::run::fleet::{Fleet, Source as FleetSource};
use crate::run::{INCONCLUSIVE, cluster, drive, local, probe, saved};

impl Job<'_> {
    pub(super) async fn local(&self) -> anyhow::Result<u8> {
        let node = local::host_name();
        let specs = (
            parse_local(&self.request.source)?,
            parse_local(&self.request.destination)?,
        );
        let mut fleet = Fleet::new(FleetSource::Local, Topology::default(), self.progress);
        let mut pids = (None, None);
        if let EndSpec::Pid { pid, .. } = specs.0 {
            pids.0 = local::by_pid(&mut fleet, &node, pid).await;
            local::found(&self.request.source, pid, pids.0)?;
        }
        if let EndSpec::Pid { pid, .. } = specs.1 {
            pids.1 = local::by_pid(&mut fleet, &node, pid).await;
            local::found(&self.request.destination, pid, pids.1)?;
        }
        // Other namespaces may hold rules by the ten thousand: those on the way are asked for when the
        // packet comes to them.
        fleet.ask(local::wants(&node, Depth::NoRules)).await;
        if let Some(why) = fleet.failure(&node) {
            bail!("{why}");
        }
        self.local_answer(fleet, &node, pids).await
    }

    pub(super) async fn local_answer(
        &self,
        mut fleet: Fleet<'_>,
        node: &str,
        pids: (
            Option<netpath::model::NetNsId>,
            Option<netpath::model::NetNsId>,
        ),
    ) -> anyhow::Result<u8> {
        let local = local::ends(
            &fleet.topology,
            node,
            (&self.request.source, &self.request.destination),
            pids,
            self.request.protocol,
            self.request.family,
        )?;
        probe::sendable(self.args, local.protocol)?;
        let v6 = local.dst.is_ipv6();
        let flow = Flow {
            from: local.from.clone(),
            src: local.src,
            sport: self.request.source_port.or(local.source_port),
            dst: local.dst,
            dport: local.port,
            protocol: protocol_number(local.protocol, v6),
            len: self.request.size(local.protocol, v6),
            uid: self.args.uid,
            gid: self.args.gid,
            bound: None,
        };
        fleet.about = Some(about_one(&fleet.topology, &flow));
        let flows = [flow];
        let outcomes = drive::drive(&mut fleet, &flows).await;
        if let Some(why) = fleet.failure(node) {
            bail!("{why}");
        }
        if let Some(recording) = &self.recording {
            let traces: Vec<&Trace> = outcomes.iter().flat_map(|one| &one.traces).collect();
            return Box::pin(recording.path(fleet, &Names::default(), &traces)).await;
        }
        let ends = Ends {
            source: local.source,
            destination: local.destination,
            protocol: local.protocol,
            source_port: self.request.source_port.or(local.source_port),
            notes: Vec::new(),
        };
        let names = Names::default();
        let sent = self.probe(&mut fleet, &flows, &outcomes).await;
        let existing = self.existing(&mut fleet, &flows, &outcomes).await;
        let topology = &fleet.topology;
        let mut answer = self.explain(topology, &names, &ends, &flows, &[1.0], &outcomes);
        let existing = self.compare(&mut answer, topology, &names, &ends, existing);
        if matches!(self.request.facts, Facts::Local) && exit_code(&answer) == INCONCLUSIVE {
            local::permitted(answer.unknown.iter().map(String::as_str))?;
        }
        self.finish(&mut answer, &existing, (&sent, &names), fleet)
            .await
    }

    pub(super) async fn file(&self, path: &Path) -> anyhow::Result<u8> {
        let file = saved::read(path)?;
        if saved::is_local(&file) {
            let node = saved::local_node(&file)?;
            let fleet = Fleet::new(FleetSource::Nobody, file.topology, self.progress);
            return self.local_answer(fleet, &node, (None, None)).await;
        }
        let specs = (
            cluster::parse(&self.request.source)?,
            cluster::parse(&self.request.destination)?.of_sender(self.request.family),
        );
        let view = saved::view(&file.names);
        let namespace = self.global.connection.namespace.as_deref();
        let flags = file_flags(path);
        let resolved = self
            .resolve(
                &view,
                namespace.unwrap_or("default"),
                flags,
                (&specs.0, &specs.1),
            )
            .await?;
        let node = resolved.source.node().unwrap_or_default().to_owned();
        let mut fleet = Fleet::new(FleetSource::Nobody, file.topology, self.progress);
        let Some(from) = known_namespace(&fleet.topology, &node, &resolved.source) else {
            bail!(
                "{}: the snapshot file holds nothing of its network namespace on node {node}",
                resolved.source.describe()
            );
        };
        let (flows, shares) = self.flows(&from, &resolved)?;
        let outcomes = drive::drive(&mut fleet, &flows).await;
        let ends = ends_of(self.request, &resolved);
        let existing = self.existing(&mut fleet, &flows, &outcomes).await;
        let topology = &fleet.topology;
        let mut answer = self.explain(topology, &file.names, &ends, &flows, &shares, &outcomes);
        let existing = self.compare(&mut answer, topology, &file.names, &ends, existing);
        self.finish(
            &mut answer,
            &existing,
            (&Probes::default(), &file.names),
            fleet,
        )
        .await
    }
}
