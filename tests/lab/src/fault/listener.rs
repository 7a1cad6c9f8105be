//! Faults of the listener of a pod.

use anyhow::{Context, Result};

use crate::cluster::{Cluster, listener_of};
use crate::launch;
use crate::namespace::Namespaces;
use crate::process;

impl Cluster {
    pub(super) fn stop_listener(&mut self, pod: &str) -> Result<()> {
        let pid = self
            .pod_state(pod)?
            .serve_pid
            .with_context(|| format!("the listener of {pod} does not run"))?;
        process::kill_and_wait(pid)?;
        self.set_listener(pod, None);
        Ok(())
    }

    pub(super) fn start_listener(&mut self, pod: &str, localhost: bool) -> Result<()> {
        let spec = &self.state.spec;
        let pod_spec = spec
            .pods
            .iter()
            .find(|p| p.path() == pod)
            .with_context(|| format!("no pod {pod}"))?;
        let holder = self
            .state
            .node(&self.pod_state(pod)?.node)
            .context("find the node of the pod")?
            .holder_pid;
        let inner = launch::in_node(
            &Namespaces::of_node(holder)?,
            &self.program,
            &[listener_of(spec, pod_spec, localhost)],
        )?;
        let outer = process::ids_in_namespace_of(holder)?;
        let pid = inner
            .first()
            .and_then(|id| outer.get(id))
            .copied()
            .context("find the listener's process: it is gone")?;
        self.set_listener(pod, Some(pid));
        Ok(())
    }

    fn set_listener(&mut self, pod: &str, pid: Option<i32>) {
        for state in &mut self.state.pods {
            if format!("{}/{}", state.namespace, state.name) == pod {
                state.serve_pid = pid;
            }
        }
    }
}
