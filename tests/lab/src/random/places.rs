//! A set of network namespaces with names of its own, in `/run/netns`.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use crate::cluster::Place;
use crate::command::{ip_batch, output};

/// Namespaces; they are removed when this is dropped.
#[derive(Debug)]
pub struct Places {
    prefix: String,
    names: Vec<String>,
    all: Vec<Place>,
}

impl Places {
    /// Makes them. `prefix` tells whose they are.
    pub fn make<'n>(prefix: &str, names: impl IntoIterator<Item = &'n str>) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut places = Self {
            prefix: format!("{prefix}-{}-{number}-", std::process::id()),
            names: names.into_iter().map(str::to_owned).collect(),
            all: Vec::new(),
        };
        let lines = places.names.iter();
        let lines: Vec<String> = lines
            .map(|name| format!("netns add {}", places.netns(name)))
            .collect();
        ip_batch(&lines)?;
        places.all = places.again()?;
        Ok(places)
    }

    /// Namespaces, in the order of their names.
    pub fn all(&self) -> &[Place] {
        &self.all
    }

    /// Their names.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Name of a namespace's file.
    pub fn netns(&self, place: &str) -> String {
        format!("{}{place}", self.prefix)
    }

    fn file(&self, place: &str) -> PathBuf {
        PathBuf::from("/run/netns").join(self.netns(place))
    }

    /// A namespace.
    pub fn place(&self, name: &str) -> Result<&Place> {
        let found = self.all.iter().find(|place| place.name == name);
        found.with_context(|| format!("{name} is no namespace of this network"))
    }

    /// The namespaces again, for a capture.
    pub fn again(&self) -> Result<Vec<Place>> {
        let names = self.names.iter();
        names
            .map(|name| Place::at(name, &self.file(name)))
            .collect()
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        let made = self.names.iter().filter(|name| self.file(name).exists());
        let lines: Vec<String> = made
            .map(|name| format!("netns del {}\n", self.netns(name)))
            .collect();
        match output(&["ip", "-force", "-batch", "-"], &lines.concat()) {
            Ok(done) if done.status.success() => {}
            Ok(done) => eprintln!(
                "remove namespaces: {}",
                String::from_utf8_lossy(&done.stderr)
            ),
            Err(error) => eprintln!("remove namespaces: {error:#}"),
        }
    }
}
